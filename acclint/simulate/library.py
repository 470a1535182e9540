"""What happens when the program calls torch, a framework, a builtin, or something unknown.

The behaviours come from `acclint.knowledge` (which class is what, who divides, zeroes and steps); this file applies them to
abstract values and writes events. `Library` is the half of the machine that knows calls; `machine.py` knows Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from acclint import program as p
from acclint.knowledge import losses, names, norms, optimizers, schedulers
from acclint.program import NOWHERE, Span
from acclint.simulate import values as v
from acclint.simulate.scan import text
from acclint.simulate.trace import TAKEN, Backward, Event, Loop, Part
from acclint.simulate.values import (
    NOBODY,
    ClassValue,
    Closure,
    Imported,
    Instance,
    Loader,
    Maybe,
    Module,
    Num,
    Opaque,
    Owner,
    Owners,
    Param,
    ParamSet,
    PyRaise,
    Range,
    Stream,
    Tensor,
    Term,
    Value,
    numeric,
    roots_of,
)

from acclint.simulate.world import Restart

if TYPE_CHECKING:
    from acclint.simulate.machine import Frame, Machine

_SAME = frozenset(
    "to cuda cpu float half double bfloat16 clone view reshape squeeze unsqueeze contiguous type requires_grad_ share_memory "
    "xpu type_as flatten pin_memory train compile __enter__ get_base_model module".split()
)
_MODULE_METHODS = frozenset(
    "parameters named_parameters train eval to cuda cpu zero_grad state_dict load_state_dict modules named_modules children "
    "named_children requires_grad_ apply half float double bfloat16 forward buffers named_buffers register_buffer "
    "add_module register_module append insert extend compile share_memory __call__ extra_repr get_parameter trainable_parameters".split()
)
_PASS_THROUGH = frozenset(
    "DistributedDataParallel DataParallel FullyShardedDataParallel FSDP compile convert_sync_batchnorm convert_syncbn_model "
    "DDP prepare_model ScaleModel fully_shard".split()
)
_PROGRESS = frozenset("tqdm trange track progress_bar ProgressBar alive_it master_bar Progress".split())
_CREATORS = frozenset(
    "randn rand zeros ones empty full randint normal eye rand_like tensor as_tensor from_numpy".split()
)
_DATA_SIZE = frozenset("size shape numel __len__ nelement".split())


class Library:
    """The torch half of the machine."""

    # --- owners and data -----------------------------------------------------------------------------------------------

    def owner_of(self: Machine, value: Opaque) -> Owner:
        """The parameter owner that an unknown object is, made when first asked for."""
        if value.owner is None:
            parent = value.attrs.get("<parent>")
            value.owner = Owner(value.name, self.owner_of(parent) if type(parent) is Opaque else parent)
        return value.owner

    def owners_of(self: Machine, value: Value, depth: int = 0) -> Owners:
        """The parameters that a value is, holds, or was computed from with a graph."""
        kind = type(value)
        if kind is Tensor:
            return value.owners if value.graph else NOBODY  # type: ignore[no-any-return]
        if kind is Module or kind is v.Engine:
            return frozenset((value.owner,))
        if kind is Instance:
            if value.owner is not None:
                return frozenset((value.owner,))
            return NOBODY
        if kind is Opaque:
            if value.batch:
                return NOBODY
            if value.graph or value.owners:
                return value.owners  # type: ignore[no-any-return]
            return frozenset((self.owner_of(value),))
        if kind in (ParamSet,):
            return value.owners  # type: ignore[no-any-return]
        if kind is Param:
            return frozenset((value.owner,))
        if isinstance(value, (list, tuple)) and depth < 4:
            return NOBODY.union(*(self.owners_of(one, depth + 1) for one in value[:64]))
        if isinstance(value, dict) and depth < 4:
            inside = value.get("params")
            if inside is not None:
                return self.owners_of(inside, depth + 1)
            return NOBODY.union(*(self.owners_of(one, depth + 1) for one in list(value.values())[:64]))
        if kind is Stream:
            items = self.drain(value, 64)
            value.pull = iter(items)
            return NOBODY.union(*(self.owners_of(one, depth + 1) for one in items)) if depth < 4 else NOBODY
        return NOBODY

    def graph_owners(self: Machine, value: Value, depth: int = 0) -> Owners:
        """The parameters that a result computed from `value` depends on: only what carries a graph or is a module."""
        kind = type(value)
        if kind is Opaque:
            if value.graph:
                return value.owners  # type: ignore[no-any-return]
            if value.owners and not value.batch:
                return self.live(value.owners)
            if value.owner is not None and not value.batch:
                return self.live(frozenset((value.owner,)))
            return NOBODY
        if isinstance(value, (list, tuple)) and depth < 4:
            return NOBODY.union(*(self.graph_owners(one, depth + 1) for one in value[:64]))
        if isinstance(value, dict) and depth < 4:
            return NOBODY.union(*(self.graph_owners(one, depth + 1) for one in list(value.values())[:64]))
        if kind is Stream:
            return NOBODY
        return self.owners_of(value, depth) if kind is Tensor else self.live(self.owners_of(value, depth))

    def live(self: Machine, owners: Owners) -> Owners:
        """The owners whose parameters ask for a gradient."""
        if not self.frozen:
            return owners
        return frozenset(one for one in owners if not any(one.within(other) for other in self.frozen))

    def set_requires_grad(self: Machine, owner: Owner, value: Value) -> None:
        """`requires_grad_` on a whole module or parameter; a part that is thawed leaves the rest in doubt, so live."""
        if value is False:
            self.frozen.add(owner)
        else:
            self.frozen = {one for one in self.frozen if not one.overlaps(owner)}

    def set_mode(self: Machine, owner: Owner, training: bool) -> None:
        """train() and eval() of a whole module."""
        if training:
            self.evaluating = {one for one in self.evaluating if not one.within(owner)}
            self.norms_off = {one for one in self.norms_off if not one.within(owner)}
        else:
            self.evaluating.add(owner)

    def batch_of(self: Machine, value: Value, depth: int = 0) -> frozenset[int]:
        """The micro-batches whose data a value was made from."""
        kind = type(value)
        if kind is Opaque or kind is Tensor:
            return value.batch  # type: ignore[no-any-return]
        if isinstance(value, (list, tuple)) and depth < 3:
            return frozenset().union(*(self.batch_of(one, depth + 1) for one in value[:64]))
        if isinstance(value, dict) and depth < 3:
            return frozenset().union(*(self.batch_of(one, depth + 1) for one in list(value.values())[:64]))
        return frozenset()

    def is_data(self: Machine, value: Value) -> bool:
        return type(value) in (Opaque, Tensor) and bool(value.batch)

    def parameter(self: Machine, owner: Owner) -> Param:
        """The one parameter that stands for an owner's: the same object each time, so that it can be a key."""
        return self.parameters.setdefault(owner, Param(owner))

    def parameters_of(self: Machine, value: Value) -> list[Value]:
        if type(value) is Param:
            return [value]
        owners = sorted(value.owners, key=lambda owner: owner.name)
        made: list[Value] = [self.parameter(owner) for owner in owners]
        if value.named:
            return [(f"{param.owner.name}.weight", param) for param in made]
        return made

    def covers(self: Machine, owners: Owners) -> Callable[[Owner], bool]:
        wild = [self.wild[owner] for owner in owners if owner in self.wild]
        plain = [owner for owner in owners if owner not in self.wild]

        def inside(owner: Owner) -> bool:
            return any(owner.within(one) for one in plain) or any(self.ledger.owns(opt, owner) for opt in wild)

        return inside

    def measured(self: Machine, key: str, batch: frozenset[int]) -> Opaque:
        """A plain number read off a tensor: it carries no graph, whatever it is called."""
        made = self.opaque(key, "<number>", batch=batch)
        made.hint = "number"
        return made

    def promote_loss(self: Machine, value: Value) -> bool:
        """Whether an unknown value is a loss by its name; from then on it carries a graph."""
        if type(value) is not Opaque or value.batch or value.hint == "number" or not self.grad_enabled:
            return False
        if value.graph:
            return True
        if not names.is_loss_name(value.name) or value.owner is not None or value.key in self.numbers:
            return False
        value.owners = frozenset((Owner(value.name),))
        value.graph = True
        return True

    @staticmethod
    def data_size(size: Value) -> Value:
        """A batch's number of samples: known, but not to be mistaken for k or for a number that was written down."""
        return Num(size, frozenset(("<size>",))) if isinstance(size, int) else size

    def made_up(self: Machine) -> frozenset[int]:
        """A number for data that the program makes itself (torch.randn): negative, to tell it from fetched data."""
        self.inventions += 1
        return frozenset((-self.inventions,))

    # --- losses --------------------------------------------------------------------------------------------------------

    def new_term(
        self: Machine, owners: Owners, reduction: str, why: str, span: Span, data: frozenset[int] = frozenset()
    ) -> Term:
        loops = tuple((loop, loop.turn) for loop in self.loops)
        term = Term(len(self.run.terms), span, (*self.path, span), owners, reduction, why, loops)
        term.fetch = self.batches
        term.data = data
        self.run.terms.append(term)
        return term

    def loss(
        self: Machine,
        reduction: str,
        args: list[Value],
        span: Span,
        why: str,
        extra: Owners = NOBODY,
    ) -> Value:
        """The value of a loss function call."""
        owners = self.graph_owners(args) | extra
        batch = self.batch_of(args)
        if not self.grad_enabled or not owners:
            return Tensor(NOBODY, False, reduction=reduction if reduction == "none" else "", batch=batch)
        if reduction == "none":
            return Tensor(owners, True, reduction="none", batch=batch)
        made = Tensor(owners, True, {self.new_term(owners, reduction, why, span, batch): 1}, batch=batch)
        return made

    def as_loss(self: Machine, value: Value, span: Span = NOWHERE) -> Tensor:
        """`value` as a weighted sum of loss terms."""
        if type(value) is Tensor:
            if value.terms is None:
                reduction = value.reduction if value.reduction in ("mean", "sum") else "unknown"
                term = self.new_term(value.owners, reduction, value.name, span, value.batch) if value.graph else None
                value.terms = {term: 1} if term is not None else {}
            return value
        kept = value.attrs.get("<loss>") if type(value) is Opaque else None
        if type(kept) is Tensor:
            return kept
        if type(value) is Opaque:
            owners = value.owners or frozenset((self.owner_of(value),))
            # A function that is given the model and not its output may return a plain number.
            named = value.hint not in ("", "forward") and (value.hint != "criterion" or "<scored>" in value.attrs)
            why = value.hint if named else value.name
            reduction = "mean" if value.hint == "output" else "unknown"
            made = Tensor(
                owners,
                True,
                {self.new_term(owners, reduction, why, span, value.batch): 1},
                name=value.name,
                batch=value.batch,
            )
            value.attrs["<loss>"] = made
            return made
        return Tensor(NOBODY, False, {})

    def scaled(
        self: Machine, value: Tensor, factor: Any, divisor: tuple[Any, bool, Span] | None = None, sure: bool = True
    ) -> Tensor:
        terms = {term: weight * factor for term, weight in (value.terms or {}).items()}
        divisors = value.divisors if divisor is None else (*value.divisors, divisor)
        return Tensor(
            value.owners,
            value.graph,
            terms,
            reduction=value.reduction,
            name=value.name,
            batch=value.batch,
            sure=value.sure and sure,
            divisors=divisors,
        )

    def tensor_binary(self: Machine, op: str, left: Value, right: Value, span: Span, augmented: bool) -> Value:
        """Arithmetic where a side is a tensor or carries a graph."""
        lgraph = type(left) in (Tensor, Opaque) and left.graph
        rgraph = type(right) in (Tensor, Opaque) and right.graph
        batch = self.batch_of(left) | self.batch_of(right)
        if not self.grad_enabled:
            # The result has no graph; a tensor changed in place keeps the one it has.
            if augmented and lgraph:
                return left
            return Tensor(batch=batch, size=getattr(left if type(left) is Tensor else right, "size", None))
        if not lgraph and not rgraph:
            if op == "/" and numeric(right) is not None and type(left) is Tensor:
                return Tensor(batch=batch, size=left.size, divisors=((numeric(right), self.is_k(right), span),))
            return Tensor(batch=batch, size=getattr(left if type(left) is Tensor else right, "size", None))
        if lgraph and rgraph:
            owners = left.owners | right.owners
            has_terms = any(self._has_terms(one) or (type(one) is Opaque and self.is_loss_like(one)) for one in (left, right))
            if op in ("+", "-") and has_terms:
                a, b = self.as_loss(left, span), self.as_loss(right, span)
                terms = dict(a.terms or {})
                for term, weight in (b.terms or {}).items():
                    terms[term] = terms.get(term, 0) + (weight if op == "+" else -weight)
                return Tensor(
                    owners,
                    True,
                    terms,
                    batch=batch,
                    sure=a.sure and b.sure,
                    divisors=a.divisors + b.divisors,
                    name=a.name,
                )
            return Tensor(
                owners, True, reduction="none" if "none" in (self._red(left), self._red(right)) else "", batch=batch
            )
        value, other = (left, right) if lgraph else (right, left)
        if op in ("+", "-"):
            if type(value) is Opaque:
                return value if not augmented else self.as_loss(value, span)
            return value if op == "+" or lgraph else self.scaled(self.as_loss(value, span), -1)
        per_sample = self._red(value) == "none"
        if op == "/" and lgraph:
            return self.divided(value, other, span, per_sample)
        if op == "*":
            return self.multiplied(value, other, span, per_sample)
        return Tensor(value.owners, True, batch=batch, reduction="none" if per_sample else "")

    def _has_terms(self: Machine, value: Value) -> bool:
        if type(value) is Tensor:
            return value.terms is not None
        return "<loss>" in value.attrs

    @staticmethod
    def _red(value: Value) -> str:
        return value.reduction if type(value) is Tensor else ""

    def divided(self: Machine, value: Value, other: Value, span: Span, per_sample: bool) -> Value:
        """A loss divided by something: by a number, by a count of its own data (a mean), by something unknown."""
        if per_sample:
            return value
        if self.is_data(other) or (type(other) is Num and "batch" in {self._role(root) for root in roots_of(other)}):
            loss = self.as_loss(value, span)
            own = type(other) is Num or other.batch <= loss.batch or not loss.batch
            if own and loss.terms and all(term.reduction == "sum" for term in loss.terms):
                return Tensor(
                    loss.owners, True, {self.new_term(loss.owners, "mean", "sum / count", span, loss.batch): 1}, batch=loss.batch
                )
            if type(other) is Num:
                return self.scaled(loss, Fraction(1, int(other.v)) if other.v else 1, (other.v, False, span))
            return self.scaled(loss, 1, (0, False, span), sure=False)
        number = self.as_number(other)
        if number is None:
            return self.scaled(self.as_loss(value, span), 1, (0, False, span), sure=False)
        amount = numeric(number)
        named = self.is_k(number) or self._named_k(span)
        if not amount:
            return self.as_loss(value, span)
        loss = self.as_loss(value, span)
        factor = Fraction(1, amount) if isinstance(amount, (int, Fraction)) else 1 / amount
        known = not roots_of(number) or all(self._role(root) for root in roots_of(number)) or named
        return self.scaled(loss, factor, (amount, named, span), sure=known)

    def multiplied(self: Machine, value: Value, other: Value, span: Span, per_sample: bool) -> Value:
        if per_sample:
            return value
        loss = self.as_loss(value, span)
        if self.is_data(other) or type(other) in (Tensor, Maybe):
            return self.scaled(loss, 1, sure=False)
        number = self.as_number(other)
        amount = numeric(number) if number is not None else None
        if amount is None:
            return self.scaled(loss, 1, sure=False)
        roles = {self._role(root) for root in roots_of(number)}
        if roles and roles <= {"", "interval"}:
            # A weight of the term (lambda): part of the loss, not of the window's arithmetic.
            return self.scaled(loss, 1)
        if "batch" in roles or "length" in roles:
            return self.scaled(loss, 1, sure=False)
        if isinstance(amount, (int, float, Fraction)) and amount and abs(amount) < 1 and roles & {"k", "over k"}:
            return self.scaled(loss, amount, (1 / amount, True, span))
        return self.scaled(loss, amount)

    def _role(self: Machine, root: str) -> str:
        return self.world.role_of(root, root.rpartition(".")[2].strip("'\"[]"))

    def _named_k(self: Machine, span: Span) -> bool:
        return span in self.world.k_divisions

    # --- backward ------------------------------------------------------------------------------------------------------

    def backward(self: Machine, value: Value, span: Span, factor: Any = 1, sure: bool = True, via: str = "") -> None:
        """A backward call on a loss."""
        hidden = {loop.span for loop in self.loops if loop.level == "quiet"} - self.world.loud
        if hidden:
            # A backward call behind a closure or a table of functions: these loops train after all.
            self.world.loud |= hidden
            raise Restart
        loss = self.as_loss(value, span)
        terms = tuple((term, weight * factor) for term, weight in (loss.terms or {}).items())
        owners = NOBODY.union(*(term.owners for term, _ in terms)) if terms else loss.owners
        if not loss.graph:
            owners = NOBODY
        number = len(self.run.backwards)
        event = self.event("backward", span, number=number, via=via, batch=loss.batch)
        for term, _ in terms:
            term.sent += 1
        reached = owners
        known = [optimizer for optimizer in self.ledger.optimizers]
        if (
            owners
            and len(known) == 1
            and known[0].parts
            and not any(owner.overlaps(part) for owner in owners for part in known[0].parts)
        ):
            # The loss comes from something unknown: with one optimizer it can only be meant for that one.
            reached = known[0].parts
        self.run.backwards.append(
            Backward(number, event, terms, reached, sure and loss.sure, loss.divisors, self.replaying > 0)
        )
        self.ledger.backward(number, reached)
        self.sent[id(loss)] = (loss, number)

    def zero(self: Machine, owners: Owners, span: Span, what: str, optimizer: v.Optimizer | None = None) -> None:
        event = self.event("zero", span, what=what, optimizer=optimizer)
        if optimizer is not None:
            self.ledger.zero(lambda owner: self.ledger.owns(optimizer, owner), event)
        else:
            self.ledger.zero(self.covers(owners), event)

    def step(self: Machine, optimizer: v.Optimizer, args: list[Value], keywords: dict[str, Value], span: Span) -> None:
        closure = args[0] if args else keywords.get("closure")
        if type(closure) is Closure:
            optimizer.replays = True
            self.replaying += 1
            try:
                self.invoke(closure, [], {}, span)
            finally:
                self.replaying -= 1
        if optimizer.gate is not None and not optimizer.gate.sync:
            return
        event = self.event("update", span, optimizer=optimizer)
        self.ledger.step(optimizer, event)

    def as_optimizer(self: Machine, value: Opaque, span: Span = NOWHERE) -> v.Optimizer:
        kept = value.attrs.get("<optimizer>")
        if kept is None:
            kept = v.Optimizer(len(self.run.optimizers), value.name, "unknown", value.owners or None, span, False)
            value.attrs["<optimizer>"] = kept
            self.run.optimizers.append(kept)
            self.ledger.add(kept)
        return kept  # type: ignore[no-any-return]

    def recognise(self: Machine, value: Value) -> None:
        """What was made from parameters and is called an optimizer is one, before it is first used."""
        if type(value) is not Opaque or value.graph or not names.is_optimizer_name(value.name):
            return
        receiver = value.attrs.get("<receiver>")
        if not value.owners and type(receiver) is Opaque and self.is_module_like(receiver):
            # `optimizer = model.configure_optimizer(...)`
            value.owners = frozenset((self.owner_of(receiver),))
        if value.owners:
            self.as_optimizer(value)

    def as_scheduler(self: Machine, value: Opaque, span: Span = NOWHERE) -> v.Scheduler:
        kept = value.attrs.get("<scheduler>")
        if kept is None:
            kept = v.Scheduler(len(self.run.schedulers), value.name, "unknown", "unknown", span)
            value.attrs["<scheduler>"] = kept
            self.run.schedulers.append(kept)
        return kept  # type: ignore[no-any-return]

    def as_accelerator(self: Machine, value: Opaque) -> v.Accelerator:
        kept = value.attrs.get("<accelerator>")
        if kept is None:
            steps = self.number(f"{value.key}.gradient_accumulation_steps", "gradient_accumulation_steps")
            kept = value.attrs["<accelerator>"] = v.Accelerator(value.name, steps, False)
        return kept  # type: ignore[no-any-return]

    # --- attributes ----------------------------------------------------------------------------------------------------

    def attribute(self: Machine, value: Value, name: str, span: Span) -> Value:
        kind = type(value)
        if kind is Opaque:
            return self.opaque_attribute(value, name)
        if kind is Imported:
            return Imported(f"{value.path}.{name}")
        if kind is Instance:
            return self.instance_attribute(value, name)
        if kind is ClassValue:
            found = self.member(value, name)
            if type(found) is Closure and found.kind == "class":
                return Closure(found.function, found.scope, value, found.no_grad, value, found.defaults, "class")
            return found if found is not None else self.opaque(f"{value.name}.{name}", name)
        if kind is Module:
            if name in value.attrs:
                return value.attrs[name]
            if name in _MODULE_METHODS:
                return v.Bound(value, name)
            if name in ("weight", "bias"):
                return self.parameter(value.owner)
            if name == "module":
                return value
            if name == "training":
                return value.training
            made = Module(f"{value.path}.{name}", Owner(name, value.owner))
            value.attrs[name] = made
            return made
        if kind is Tensor:
            return self.tensor_attribute(value, name)
        if kind is Param:
            if name == "grad":
                return v.Grad(value.owner, dict(self.row_of(value.owner)), True)
            if name == "data":
                return value
            if (value.owner, name) in self.attached:
                return self.attached[value.owner, name]
            if name == "requires_grad":
                return bool(self.live(frozenset((value.owner,))))
            return v.Bound(value, name)
        if kind is v.Grad:
            return value if name == "data" else v.Bound(value, name)
        if kind is v.Optimizer:
            if name == "param_groups":
                return self.param_groups(value)
            if name in value.attrs:
                return value.attrs[name]
            if name == "optimizer":
                return value
            return v.Bound(value, name)
        if kind is v.Accelerator:
            if name == "sync_gradients":
                return value.sync
            if name == "gradient_accumulation_steps":
                return 1 if value.steps is None else value.steps
            if name in ("is_main_process", "is_local_main_process"):
                return Maybe(f"{value.name}.{name}", False, span)
            return v.Bound(value, name)
        if kind is Loader:
            if name == "batch_size":
                return value.batch_size
            if name == "dataset":
                return v.Dataset(None)
            if name in value.attrs:
                return value.attrs[name]
            return v.Bound(value, name)
        if kind is v.Engine:
            return value.attrs.get(name, v.Bound(value, name))
        if kind in (v.Scheduler,):
            return value.attrs.get(name, v.Bound(value, name))
        if isinstance(value, tuple) and len(value) == 2 and name in ("values", "indices"):
            return value[0 if name == "values" else 1]
        if isinstance(value, (list, tuple, dict, str, set)) or kind in (
            v.Scaler,
            v.Fabric,
            ParamSet,
            Stream,
            v.LossFunction,
            v.Bound,
            Closure,
        ):
            return v.Bound(value, name)
        if numeric(value) is not None:
            return v.Bound(value, name)
        return self.opaque(f"{self.key(value)}.{name}", name)

    def opaque_attribute(self: Machine, value: Opaque, name: str) -> Value:
        kept = value.attrs.get(name)
        if kept is not None or name in value.attrs:
            return kept
        if name == "grad" and not value.batch:
            return v.Grad(self.owner_of(value), dict(self.row_of(self.owner_of(value))), True)
        if name == "data":
            if value.graph:
                return self.opaque(f"{value.key}.data", value.name, batch=value.batch)
            return value
        if name == "loss" and value.graph:
            made = self.opaque(f"{value.key}.loss", "loss", owners=value.owners, graph=True, batch=value.batch)
            made.hint = "output"
            value.attrs[name] = made
            return made
        made = self.opaque(f"{value.key}.{name}", name, owners=value.owners, graph=value.graph, batch=value.batch)
        if "<size>" in value.attrs:
            made.attrs["<size>"] = value.attrs["<size>"]
        made.attrs["<parent>"] = value
        value.attrs[name] = made
        return made

    def instance_attribute(self: Machine, value: Instance, name: str) -> Value:
        if name in value.attrs:
            return value.attrs[name]
        found = self.member(value.cls, name)
        if type(found) is Closure:
            bound = Closure(
                found.function, found.scope, value, found.no_grad, found.owner_class, found.defaults, found.kind
            )
            if found.kind == "property":
                return self.invoke(bound, [], {}, found.function.span)
            if found.kind == "static":
                bound.bound = None
            return bound
        if found is not None:
            return found
        if name == "__dict__":
            return value.attrs
        if value.owner is not None and (name in _MODULE_METHODS or name == "training"):
            return value.training if name == "training" else v.Bound(value, name)
        if self.is_lightning(value) and name in _LIGHTNING:
            return v.Bound(value, name)
        made = self.opaque(f"{value.key}.{name}", name)
        made.attrs["<parent>"] = value.owner
        value.attrs[name] = made
        return made

    def is_lightning(self: Machine, value: Instance) -> bool:
        todo = list(value.cls.bases)
        while todo:
            base = todo.pop()
            if isinstance(base, ClassValue):
                todo += base.bases
            elif "LightningModule" in (base.path if isinstance(base, Imported) else getattr(base, "name", "")):
                return True
        return False

    def tensor_attribute(self: Machine, value: Tensor, name: str) -> Value:
        if name == "data":
            return Tensor(batch=value.batch, size=value.size)
        if name == "shape":
            return v.Bound(value, "shape")
        if name == "loss" and value.graph:
            return value
        if name in ("T", "mT"):
            return value
        if name == "grad":
            return None
        return v.Bound(value, name)

    def store_attribute(self: Machine, base: Value, name: str, value: Value, span: Span) -> None:
        kind = type(base)
        if getattr(value, "name", "")[:1] == "<" and isinstance(getattr(value, "name", None), str):
            value.name = name
            self.recognise(value)
        if name == "grad" and kind in (Param, Opaque):
            owner = base.owner if kind is Param else self.owner_of(base)
            if value is None:
                self.zero(frozenset((owner,)), span, "grad = None")
            elif type(value) is v.Grad:
                self.event("edit", span, how="replace", added=value.added)
                self.ledger.replace(owner, value.row)
            elif type(value) in (Tensor, Opaque):
                self.zero(frozenset((owner,)), span, "grad = tensor")
                self.run.notes.append(("gradients are set by hand", span))
            return
        if name == "requires_grad" and kind in (Param, Opaque):
            if value is not False:
                self.set_requires_grad(base.owner if kind is Param else self.owner_of(base), True)
            return
        if kind is Param and name != "data":
            self.attached[base.owner, name] = value
            return
        if self.frozen and kind in (Module, Instance, Opaque) and type(value) in (Module, Instance, Opaque, Param):
            # A new part of a frozen module has parameters of its own.
            if base.owner is not None:
                self.frozen = {one for one in self.frozen if not base.owner.within(one)}
        if kind is Instance:
            base.attrs[name] = value
            if base.owner is not None:
                self.adopt(base, value, span)
            return
        if kind is v.Accelerator and name == "gradient_accumulation_steps":
            base.steps = value
            return
        if kind in (Opaque, Module, v.Optimizer, v.Scheduler, v.Accelerator, Loader, v.Engine):
            base.attrs[name] = value
            if kind is Module and type(value) is Module:
                value.owner.parents.append(base.owner)
                value_norm = self.norm_inside(value)
                if base.batchnorm is None and value_norm is not None:
                    base.batchnorm = value_norm

    def adopt(self: Machine, base: Instance, value: Value, span: Span) -> None:
        """A submodule or parameter stored on a module belongs to it."""
        kind = type(value)
        if kind in (Module, Instance) and value.owner is not None and value.owner is not base.owner:
            if not base.owner.within(value.owner):  # type: ignore[union-attr]
                value.owner.parents.append(base.owner)
            if value.batchnorm is not None and base.batchnorm is None:
                base.batchnorm = value.batchnorm
        elif kind is Param and value.owner is not base.owner:
            value.owner.parents.append(base.owner)
        elif kind is Opaque and not value.batch and not value.graph:
            owner = self.owner_of(value)
            if owner is not base.owner and not base.owner.within(owner):  # type: ignore[union-attr]
                owner.parents.append(base.owner)
        elif isinstance(value, (list, tuple)):
            for one in value[:16]:
                self.adopt(base, one, span)
        elif isinstance(value, dict):
            for one in list(value.values())[:16]:
                self.adopt(base, one, span)

    def row_of(self: Machine, owner: Owner) -> dict[int, Any]:
        for one, row in self.ledger.rows.items():
            if one.within(owner) or owner.within(one):
                return row
        opt = self.wild.get(owner)
        if opt is not None:
            for one, row in self.ledger.rows.items():
                if self.ledger.owns(opt, one):
                    return row
        return {}

    def param_groups(self: Machine, optimizer: v.Optimizer) -> Value:
        parts = optimizer.parts
        if parts is None:
            owner = Owner(f"{optimizer.name}'s parameters")
            self.wild[owner] = optimizer
            parts = frozenset((owner,))
        kept = optimizer.attrs.get("<groups>")
        if kept is None:
            lr = self.opaque(f"{optimizer.name}.lr", "lr")
            groups = optimizer.attrs.get("<parts>") or [parts]
            kept = optimizer.attrs["<groups>"] = [{"params": ParamSet(part), "lr": lr} for part in groups]
        return kept

    # --- items ---------------------------------------------------------------------------------------------------------

    def item(self: Machine, value: Value, index: Value, span: Span = NOWHERE) -> Value:
        kind = type(value)
        at = numeric(index)
        if isinstance(value, (list, tuple)):
            if value and value[0] == "slice" and isinstance(value, tuple):
                return self.opaque("slice", "<slice>")
            if at is not None and not isinstance(at, float):
                return (
                    value[int(at)]
                    if -len(value) <= at < len(value)
                    else (value[-1] if value else self.opaque("?", "<item>"))
                )
            if isinstance(index, tuple) and index and index[0] == "slice":
                lower, upper = numeric(index[1]), numeric(index[2])
                return list(value)[
                    slice(int(lower) if lower is not None else None, int(upper) if upper is not None else None)
                ]
            return value[0] if value else self.opaque(f"item:{span.row}", "<item>")
        if isinstance(value, dict):
            index = self.dict_key(index)
            try:
                if index in value:
                    return value[index]
            except TypeError:
                pass
            if type(index) is Opaque or isinstance(index, (str, int)):
                if value and not isinstance(index, (str, int)):
                    return next(iter(value.values()))
                name = index if isinstance(index, str) else "<item>"
                return self.opaque(f"{{}}[{self.key(index)}]", name, batch=self.batch_of(value))
            return self.opaque(f"item:{span.row}", "<item>")
        if kind is Opaque:
            key = self.key(index)
            kept = value.attrs.get(f"[{key}]")
            if kept is not None:
                return kept
            plain = not value.batch and not value.graph and isinstance(index, int)
            name = index if isinstance(index, str) else "<item>" if plain else value.name
            made = self.opaque(f"{value.key}[{key}]", name, owners=value.owners, graph=value.graph, batch=value.batch)
            made.attrs["<parent>"] = value
            if "<size>" in value.attrs:
                made.attrs["<size>"] = value.attrs["<size>"]
            if value.graph and (index == 0 or index == "loss"):
                made.hint = "output"
            if isinstance(index, tuple) and index and index[0] == "slice" and value.batch:
                self.batches += 1
                self.run.cuts.add(self.batches)
                self.note_part(self.batches, value, self.bound(index[1], 0), self.bound(index[2], None), None)
                made.batch = value.batch | {self.batches}
            elif not value.batch and not value.graph and value.name in _INDEXED_DATA:
                made.batch = frozenset((0,))
            value.attrs[f"[{key}]"] = made
            return made
        if kind is Tensor:
            if isinstance(index, tuple) and index and index[0] == "slice":
                lower, upper = numeric(index[1]), numeric(index[2])
                size = upper - (lower or 0) if upper is not None else None
                self.batches += 1
                self.run.cuts.add(self.batches)
                self.note_part(self.batches, value, self.bound(index[1], 0), self.bound(index[2], None), numeric(value.size))
                batch = value.batch | {self.batches}
                return Tensor(value.owners, value.graph, size=size, batch=batch, reduction=value.reduction)
            if value.reduction == "stack" or value.terms is not None:
                return value
            made = self.row(value, known=at is not None)
            if isinstance(at, int) and value.batch and not value.graph:
                made.batch = value.batch | self.taken_row(value, at)
            return made
        if kind is Module:
            if at is not None and value.items:
                return value.items[int(at) % len(value.items)]
            if isinstance(index, str) and index in value.attrs:
                return value.attrs[index]
            return Module(value.path, Owner(value.name, value.owner))
        if kind is Instance:
            getter = self.member(value.cls, "__getitem__")
            if type(getter) is Closure and not value.cls.dataset:
                return self.invoke(
                    Closure(getter.function, getter.scope, value, defaults=getter.defaults), [index], {}, span
                )
            return self.opaque(f"{value.key}[]", "<item>", batch=frozenset((0,)) if value.cls.dataset else frozenset())
        if kind is v.Bound and value.name == "shape":
            size = getattr(value.owner, "size", None)
            return size if size is not None and index == 0 else self.number("shape", "size")
        if kind is v.Dataset:
            return self.opaque("dataset[]", "<item>", batch=frozenset((0,)))
        if kind is Imported:
            return value
        return self.opaque(f"{self.key(value)}[]", "<item>")

    def note_part(self: Machine, number: int, value: Value, lower: Any, upper: Any, whole: Any) -> None:
        """Remember that the data `number` are a part of `value`."""
        source, _ = self.sources.setdefault(id(value), (len(self.sources), value))
        if not any(isinstance(one, (int, float, Fraction)) and one < 0 for one in (lower, upper)):
            self.run.parts[number] = Part(source, lower, upper, whole)

    def bound(self: Machine, value: Value, default: Any) -> Any:
        """A bound of a slice: a number, or the key of an unknown one."""
        if value is None:
            return default
        number = numeric(value)
        return number if number is not None else self.key(value)

    def taken_row(self: Machine, value: Tensor, at: Any) -> frozenset[int]:
        """The number of one row that is taken by its index: the same one each time."""
        source, _ = self.sources.setdefault(id(value), (len(self.sources), value))
        number = self.taken.setdefault((source, at), TAKEN - len(self.taken))
        self.note_part(number, value, at, at + 1, numeric(value.size))
        return frozenset((number,))

    @staticmethod
    def row(value: Tensor, known: bool = True) -> Tensor:
        """One item along the first axis; `known` says that it is one whole item."""
        made = Tensor(value.owners, value.graph, batch=value.batch, reduction=value.reduction)
        if known and value.rest:
            made.size, made.rest = value.rest[0], value.rest[1:]
        return made

    def rows(self: Machine, value: Tensor, count: int) -> Iterator[Tensor]:
        """The items along the first axis, in turn: data of their own, if they are data."""
        for _ in range(count):
            made = self.row(value)
            if not value.graph:
                part = self.made_up()
                self.run.cuts |= part
                made.batch = value.batch | part
            yield made

    def dict_key(self: Machine, index: Value) -> Any:
        """What a value counts as when it is the key of a dict: the same object is the same key."""
        if isinstance(index, (str, int, float, bool, tuple)) or index is None:
            return index
        if type(index) is Num:
            return index.v
        if type(index) is Param:
            return self.parameters.setdefault(index.owner, index)
        return index if type(index) is Opaque else f"<{self.key(index)}>"

    def store_item(self: Machine, base: Value, index: Value, value: Value, span: Span) -> None:
        if isinstance(base, dict):
            key = self.dict_key(index)
            try:
                base[self.key(key) if type(key) is Opaque else key] = value
            except TypeError:
                return
            self.watch_kept(span, value, list(base.values()))
        elif isinstance(base, list):
            at = numeric(index)
            if at is not None and base and -len(base) <= at < len(base):
                base[int(at)] = value
            elif at is not None and len(base) < 64:
                base.append(value)
            self.watch_kept(span, value, base)
        elif type(base) is Opaque:
            base.attrs[f"[{self.key(index)}]"] = value
        elif type(base) is Instance:
            base.attrs[f"[{self.key(index)}]"] = value

    # --- watching ------------------------------------------------------------------------------------------------------

    def watch_division(self: Machine, stmt: p.Stmt, value: Value, frame: Frame) -> None:
        """`loss = loss / k` after backward, in whatever form: a variable gets a smaller share of what it held."""
        target = stmt.target if isinstance(stmt, p.Augment) else None
        if isinstance(stmt, p.Assign) and len(stmt.targets) == 1:
            target = stmt.targets[0]
        if type(value) is not Tensor or not value.divisors or not value.terms or target is None:
            return
        held = self.held(target, frame)
        if type(held) is Opaque:
            held = held.attrs.get("<loss>")
        if type(held) is not Tensor or held.terms is None or held.terms.keys() != value.terms.keys():
            return
        if len(value.divisors) > len(held.divisors) and all(term.sent for term in value.terms):
            self.event("late division", stmt.span, divisor=value.divisors[-1], terms=tuple(value.terms))

    def held(self: Machine, target: p.Expr, frame: Frame) -> Value:
        """What a variable, an attribute or an item of a variable holds now; None if nothing is known of it."""
        if isinstance(target, p.Name):
            return frame.outer.get(target.id, frame).vars.get(target.id)
        if isinstance(target, (p.Attr, p.Index)) and isinstance(target.value, p.Name):
            base = self.lookup(target.value.id, frame)
            if isinstance(target, p.Attr):
                return getattr(base, "attrs", {}).get(target.name)
            if isinstance(base, dict) and isinstance(target.index, p.Const):
                return base.get(target.index.value)
        return None

    def watch_growth(self: Machine, span: Span, target: str, value: Tensor) -> None:
        """A tensor with a graph that holds loss terms of several iterations."""
        if not value.graph or not value.terms or len(value.terms) < 2:
            return
        sites: dict[tuple[Span, ...], int] = {}
        for term in value.terms:
            sites[term.site] = sites.get(term.site, 0) + 1
        if max(sites.values()) > 1:
            evaluating = all(self.in_evaluation(term.owners) for term in value.terms)
            size = max(sites.values())
            self.event("keep", span, target=target, terms=tuple(value.terms), size=size, evaluating=evaluating)

    def watch_kept(
        self: Machine, span: Span, value: Value, holder: list[Value], target: str = "", *, plain: bool = True
    ) -> None:
        """A tensor with a graph is put into a container."""
        new = [one for one in _leaves(value) if type(one) in (Tensor, Opaque) and one.graph]
        for one in new:
            if type(one) is Opaque and self.is_loss_like(one):
                self.as_loss(one, span)
            elif plain and one.batch and (type(one) is Tensor or one.hint == "forward") and not self._has_terms(one):
                kept_term = Term(-1, span, (*self.path, span), one.owners, "output", "", self._turns())
                self.outputs[id(one)] = (one, kept_term)
        if not new:
            return
        kept: list[Term] = []
        outputs: list[tuple[Value, Term]] = []
        for one in holder[-64:]:
            for inner in _leaves(one):
                if type(inner) is Tensor and inner.graph and inner.terms:
                    kept += list(inner.terms)
                elif type(inner) is Opaque and inner.graph and type(inner.attrs.get("<loss>")) is Tensor:
                    kept += list(inner.attrs["<loss>"].terms or ())
                elif id(inner) in self.outputs:
                    outputs.append(self.outputs[id(inner)])
        sites: dict[tuple[Span, ...], int] = {}
        for term in kept:
            sites[term.site] = sites.get(term.site, 0) + 1
        if sites and max(sites.values()) > 1:
            evaluating = all(self.in_evaluation(term.owners) for term in kept)
            size = max(sites.values())
            self.event("keep", span, target=target, terms=tuple(kept), size=size, evaluating=evaluating)
        same = [(one, term) for one, term in outputs if term.span == span]
        if len(same) > 1:
            self.event(
                "keep output",
                span,
                target=target,
                terms=tuple(term for _, term in same),
                batches=tuple(one.batch for one, _ in same),
                evaluating=all(self.in_evaluation(one.owners) for one, _ in same),
                known=all(type(one) is Tensor for one, _ in same),
            )

    def in_evaluation(self: Machine, owners: Owners) -> bool:
        """Whether all of these modules are in eval mode."""
        return bool(owners) and all(any(one.within(other) for other in self.evaluating) for one in owners)

    def is_model(self: Machine, callee: Opaque) -> bool:
        """Whether something unknown is a model: by its name, by eval(), or since an optimizer has its parameters."""
        if any(word in _MODEL_WORDS for word in names.words(callee.name)):
            return True
        owner = callee.owner
        if owner is None:
            return False
        parts = [part for optimizer in self.ledger.optimizers for part in optimizer.parts or ()]
        return owner in self.evaluating or owner in parts

    def is_loss_like(self: Machine, value: Opaque) -> bool:
        """Whether an unknown result with a graph is said to be a loss: by the name of what made it."""
        return value.hint in ("output", "criterion") or "<loss>" in value.attrs

    def _turns(self: Machine) -> tuple[tuple[Loop, int], ...]:
        return tuple((loop, loop.turn) for loop in self.loops)

    # --- gradients by hand ---------------------------------------------------------------------------------------------

    def grad_binary(self: Machine, op: str, left: Value, right: Value, span: Span) -> Value:
        lg, rg = type(left) is v.Grad, type(right) is v.Grad
        if lg and rg and op in ("+", "-"):
            doubled = [number for number in right.row if left.row.get(number)]
            added = left.added | right.added
            if op == "+" and doubled and right.read and not left.shared:
                self.event("hand added", span, numbers=tuple(doubled))
                added |= {span}
            row = dict(left.row)
            for number, amount in right.row.items():
                row[number] = row.get(number, 0) + (amount if op == "+" else -amount)
            return v.Grad(left.owner, {n: a for n, a in row.items() if a}, added=added)
        if lg or rg:
            grad, other = (left, right) if lg else (right, left)
            if type(other) is Param:
                return v.Delta(dict(grad.row))
            number = self.as_number(other)
            amount = numeric(number) if number is not None else None
            if op in ("*", "/") and amount:
                known = all(self._role(root) in ("k", "over k") for root in roots_of(number))
                if not known:
                    # An unknown factor keeps its sign: a step along the gradient is no update.
                    against = amount < 0 or self.key(other).startswith("-")
                    row = {n: -a if against else a for n, a in grad.row.items()}
                    return v.Grad(grad.owner, row, read=grad.read, added=grad.added)
                factor = (
                    amount
                    if op == "*"
                    else (Fraction(1, amount) if isinstance(amount, (int, Fraction)) else 1 / amount)
                )
                row = {n: a * factor for n, a in grad.row.items()}
                return v.Grad(grad.owner, row, read=grad.read, added=grad.added)
            return v.Grad(grad.owner, dict(grad.row), read=grad.read, added=grad.added)
        if type(left) is Param and op in ("-", "+") and type(right) is v.Delta:
            return v.Delta(right.row)
        if type(left) is Param or type(right) is Param:
            param = left if type(left) is Param else right
            if self.grad_enabled:
                return Tensor(frozenset((param.owner,)), True, batch=self.batch_of(left) | self.batch_of(right))
            return param
        return v.Delta({})

    def augment_gradient(self: Machine, base: Value, name: str, op: str, value: Value, span: Span) -> bool:
        """`p.grad /= k`, `p.data -= lr * p.grad`; False if this is something else."""
        if type(base) not in (Param, Opaque) or (type(base) is Opaque and (base.batch or base.graph)):
            return False
        owner = base.owner if type(base) is Param else self.owner_of(base)
        if name == "data":
            if type(base) is Param and type(value) in (v.Grad, v.Delta) and op == "-":
                return self.augment_parameter(base, op, value, span)
            return type(base) is Param
        if op in ("/", "*"):
            self.scale_gradient(frozenset((owner,)), value, op, span)
            return True
        return True

    def scale_gradient(self: Machine, owners: Owners, value: Value, op: str, span: Span) -> None:
        number = self.as_number(value) if not self.is_data(value) else None
        amount = numeric(number) if number is not None else None
        event = self.event("edit", span, how="scale", amount=amount)
        if amount:
            factor = (
                amount if op == "*" else (Fraction(1, amount) if isinstance(amount, (int, Fraction)) else 1 / amount)
            )
            known = not roots_of(number) or all(self._role(root) for root in roots_of(number))
            self.ledger.edit(self.covers(owners), lambda a: a * factor, event)
            if not known:
                self.unsure_edit(owners, event)
        else:
            self.ledger.edit(self.covers(owners), lambda a: a, event)
            self.unsure_edit(owners, event)

    def unsure_edit(self: Machine, owners: Owners, event: Event) -> None:
        event.data["unsure"] = True

    def augment_parameter(self: Machine, param: Param, op: str, value: Value, span: Span) -> bool:
        """An update written by hand."""
        if type(value) in (v.Grad, v.Delta) and value.row and op == "-":
            event = self.event("update", span, optimizer=None, added=getattr(value, "added", frozenset()))
            self.ledger.manual_step(param.owner, value.row, event)
            return True
        return op in ("-", "+", "*", "/")

    # --- iteration -----------------------------------------------------------------------------------------------------

    def batches_of(self: Machine, loader: Loader) -> Iterator[Value]:
        """The micro-batches of one pass over a loader."""
        length = numeric(loader.length)
        count = int(length) if length is not None else self.world.turns(self.assignment)
        literal = length is not None and not roots_of(loader.length)
        if literal and count > 64:
            k = max([self.assignment.k, *self.world.literal_ks])
            count = 2 * k + count % k
        for turn in range(count):
            self.batches += 1
            self.last_batch = turn + 1 == count
            item = self.opaque(f"item({loader.key})", "batch", batch=frozenset((self.batches,)))
            if loader.batch_size is not None:
                item.attrs["<size>"] = (loader.batch_size, loader.batch_span)
            yield item

    def iterate_object(self: Machine, value: Value, loop: Loop, wanted: int) -> Iterator[Value]:
        if type(value) is Module:
            return iter(value.items or [Module(value.path, Owner(value.name, value.owner))])
        maker = self.member(value.cls, "__iter__")
        if type(maker) is Closure:
            result = self.invoke(
                Closure(maker.function, maker.scope, value, defaults=maker.defaults), [], {}, loop.span
            )
            if type(result) is Stream or isinstance(result, list):
                loop.kind = "loader"
                loop.fetched = True
                if isinstance(result, list):
                    return iter(result)
                return self._limited(
                    result.pull, 3 * self.world.turns(self.assignment) if result.length else wanted, loop
                )
        loop.kind = "loader" if names.is_loader_name(value.name) or value.cls.dataset else "other"
        loop.fetched = True
        count = wanted if loop.level != "quiet" else 2
        return self.batches_of(Loader(value.key, count))

    def stream(self: Machine, value: Value, span: Span) -> Stream:
        """An iterator over a value."""
        if type(value) is Imported:
            value = self.opaque(value.path, value.path.rpartition(".")[2])
        kind = type(value)
        if kind is Stream:
            return value  # type: ignore[no-any-return]
        if kind is Loader:
            return Stream(self.batches_of(value), value.length, True, value)
        if isinstance(value, (list, tuple, dict, set, str)):
            items = list(value)
            feeds = bool(items) and bool(self.batch_of(items[0]))
            return Stream(iter(items), len(items), feeds)
        if kind is Range:
            items = self.listed(value)
            return Stream(iter(items), len(items))
        if kind in (ParamSet, Param):
            return Stream(iter(self.parameters_of(value)))
        if kind is Opaque and not value.graph:
            if value.batch:
                return Stream(iter([self.item_of(value) for _ in range(self.assignment.k)]), None, False)
            value.hint = value.hint or ("loader" if names.is_loader_name(value.name) else "")
            length = self.number(f"len({value.key})", "length", "length")
            return Stream(self.batches_of(Loader(value.key, length)), length, True)
        if kind is Instance:
            maker = self.member(value.cls, "__iter__")
            if type(maker) is Closure:
                result = self.invoke(Closure(maker.function, maker.scope, value, defaults=maker.defaults), [], {}, span)
                if result is not value:
                    return self.stream(result, span)
            length = self.number(f"len({value.key})", "length", "length")
            return Stream(self.batches_of(Loader(value.key, length)), length, True)
        if kind is Tensor:
            size = numeric(value.size)
            count = int(size) if size is not None and 0 < size <= 64 else 2
            return Stream(self.rows(value, count), count)
        if kind is Module:
            return Stream(iter(value.items))
        return Stream(iter([self.opaque(f"item:{span.row}", "<item>")]))

    # --- contexts ------------------------------------------------------------------------------------------------------

    def enter(self: Machine, value: Value, manager: p.Expr) -> tuple[Value, Callable[[], None] | None]:
        """Enter a `with` item: what `as` binds, and what to do on leaving."""
        if isinstance(value, tuple) and value and isinstance(value[0], str):
            what = value[0]
            if what == "grad":
                before = value[2] if len(value) > 2 else self.grad_enabled
                self.grad_enabled = bool(value[1])

                def restore() -> None:
                    self.grad_enabled = before

                return None, restore
            if what == "accumulate":
                self.accumulate(value[1])
                return None, None
            if what == "scaled":
                return value[1], None
            if what == "context":
                return self.enter_generator(value[1], value[2], manager.span)
            return (value[1] if len(value) > 1 else None), None
        kind = type(value)
        if kind is Instance:
            method = self.member(value.cls, "__enter__")
            leave = self.member(value.cls, "__exit__")

            def out() -> None:
                if type(leave) is Closure:
                    bound = Closure(leave.function, leave.scope, value, defaults=leave.defaults)
                    self.invoke(bound, [None, None, None], {}, manager.span)

            if type(method) is Closure:
                bound = Closure(method.function, method.scope, value, defaults=method.defaults)
                return self.invoke(bound, [], {}, manager.span), out
            return value, out
        if kind is Opaque:
            last = value.name
            if last in ("no_grad", "inference_mode"):
                return self.enter(("grad", False), manager)
        if kind is Imported and value.path.rpartition(".")[2] in ("no_grad", "inference_mode"):
            return self.enter(("grad", False), manager)
        return value, None

    def enter_generator(
        self: Machine, closure: Closure, frame: Frame, span: Span
    ) -> tuple[Value, Callable[[], None] | None]:
        """A @contextmanager function of the file: what stands before its yield, the value, and what stands behind."""
        before, value, after = _around_yield(closure.function.body)
        function = closure.function

        def part(body: tuple[p.Stmt, ...]) -> None:
            self.stack.append(function)
            self.path.append(span)
            try:
                self.block(body, frame)
            finally:
                self.stack.pop()
                self.path.pop()

        part(before)
        bound = self.eval(value, frame) if value is not None else None
        return bound, (lambda: part(after)) if after else None

    def accumulate(self: Machine, accelerator: v.Accelerator) -> None:
        """accelerate's `accumulate()`: one more micro-batch; gradients are synchronised on the k-th and the last."""
        accelerator.count += 1
        accelerator.entered = True
        steps = numeric(self.as_number(accelerator.steps))
        boundary = steps is None or steps <= 1 or accelerator.count % int(steps) == 0
        accelerator.sync = boundary or self.last_batch
        if self.last_batch:
            accelerator.count = 0
        self.event("accumulate", NOWHERE, sync=accelerator.sync)

    # --- calls ---------------------------------------------------------------------------------------------------------

    def library_call(
        self: Machine, callee: Value, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        kind = type(callee)
        span = expr.span
        if kind is Imported:
            return self.imported(callee.path, args, keywords, expr, frame)
        if kind is v.Bound:
            return self.method(callee.owner, callee.name, args, keywords, expr, frame)
        if kind is Opaque:
            return self.unknown_call(callee, args, keywords, expr, frame)
        if kind is Module:
            return self.forward(callee, args, keywords, span)
        if kind is Instance:
            return self.call_instance(callee, args, keywords, expr, frame)
        if kind is v.LossFunction:
            return self.loss(callee.reduction, [*args, *keywords.values()], span, callee.why)
        if kind is v.Scaler:
            return self.combined_scaler(args, keywords, span)
        if kind is v.Engine:
            owners = frozenset((callee.owner,)) | self.graph_owners(args)
            return self.opaque(
                f"{callee.name}()", "outputs", owners=owners, graph=self.grad_enabled, batch=self.batch_of(args)
            )
        if kind is Tensor or kind is v.Grad:
            return callee
        return self.opaque(f"call:{span.row}:{span.column}", "<value>", batch=self.batch_of(args))

    def forward(self: Machine, module: Module, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        values = [*args, *keywords.values()]
        owners = self.live(frozenset((module.owner,))) | self.graph_owners(values)
        batch = self.batch_of(values)
        self.note_batchnorm(self.norm_inside(module), module.training, module.owner, values, span)
        if not self.grad_enabled or not owners:
            return Tensor(batch=batch, size=self.size_of(args))
        if module.path.startswith("torch.nn.") or module.items:
            return Tensor(owners, True, size=self.size_of(args), batch=batch)
        return self.opaque(f"{module.name}()", "outputs", owners=owners, graph=True, batch=batch)

    def note_batchnorm(
        self: Machine, where: Span | None, training: bool, owner: Owner, args: list[Value], span: Span
    ) -> None:
        if where is None or not self.grad_enabled:
            return
        layers = self.layers.get(where, [owner])
        off = self.evaluating | self.norms_off
        if where not in self.always and (not training or all(any(one.within(other) for other in off) for one in layers)):
            return
        if any(one.within(other) for one in (owner, *layers) for other in self.normless):
            return
        size, size_span = None, None
        for one in args:
            if type(one) is Opaque and "<size>" in one.attrs:
                size, size_span = one.attrs["<size>"]
                break
            if type(one) is Tensor and one.size is not None:
                size, size_span = one.size, None
                break
        self.event("norm", span, layer=where, size=size, size_span=size_span, owner=owner)

    def norm_inside(self: Machine, value: Value, depth: int = 0) -> Span | None:
        """The place that made a BatchNorm layer in a module, as it is now."""
        if type(value) not in (Module, Instance) or depth > 4:
            return None
        if value.batchnorm is not None:
            return value.batchnorm
        parts = value.items if type(value) is Module else [one for _, one in list(value.attrs.items())[:32]]
        for one in parts:
            found = self.norm_inside(one, depth + 1)
            if found is not None:
                return found
        return None

    def size_of(self: Machine, args: list[Value]) -> Value:
        for one in args[:1]:
            if type(one) is Tensor:
                return one.size
            if type(one) is Opaque and "<size>" in one.attrs:
                return one.attrs["<size>"][0]
        return None

    def call_instance(
        self: Machine, value: Instance, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        method = self.member(value.cls, "__call__") or self.member(value.cls, "forward")
        values = [*args, *keywords.values()]
        if value.owner is None:
            if type(method) is Closure:
                bound = Closure(
                    method.function, method.scope, value, method.no_grad, method.owner_class, method.defaults
                )
                return self.invoke(bound, args, keywords, expr.span)
            return self.opaque(f"{value.key}()", "<value>", batch=self.batch_of(values))
        owners = self.live(frozenset((value.owner,))) | self.graph_owners(values)
        batch = self.batch_of(values)
        result: Value = None
        if type(method) is not Closure:
            self.note_batchnorm(self.norm_inside(value), value.training, value.owner, values, expr.span)
        else:
            key = (id(value.cls), value.training, self.grad_enabled, len(args), tuple(keywords), expr.span)
            if key in self.templates:
                result = self.templates[key]
            else:
                bound = Closure(
                    method.function, method.scope, value, method.no_grad, method.owner_class, method.defaults
                )
                events = len(self.run.events)
                try:
                    result = self.invoke(bound, args, keywords, expr.span)
                except PyRaise:
                    result = None
                if len(self.run.events) == events:
                    self.templates[key] = result
        return self.fresh(result, owners, batch, expr.span, self.size_of(args))

    def fresh(self: Machine, value: Value, owners: Owners, batch: frozenset[int], span: Span, size: Value) -> Value:
        """A forward pass's result with terms of its own, owned by the module that was called."""
        if isinstance(value, tuple) and not (value and isinstance(value[0], str)):
            return tuple(self.fresh(one, owners, batch, span, size) for one in value)
        if isinstance(value, dict):
            return {name: self.fresh(one, owners, batch, span, size) for name, one in value.items()}
        if isinstance(value, list):
            return [self.fresh(one, owners, batch, span, size) for one in value]
        if not self.grad_enabled or not owners:
            return Tensor(batch=batch, size=size) if type(value) in (Tensor, Opaque) or value is None else value
        if type(value) is Tensor:
            if not value.graph:
                if value.batch:
                    return Tensor(owners, True, reduction=value.reduction, batch=batch, size=size)
                return value
            made = Tensor(owners, True, None, size, value.reduction, value.name, batch, value.sure, value.divisors)
            if value.terms is not None:
                made.terms = {
                    self.new_term(owners, term.reduction, term.why, span, batch): weight
                    for term, weight in value.terms.items()
                }
            return made
        if value is None or isinstance(value, (int, float, str, bool)):
            if value is None:
                return self.opaque(f"forward:{span.row}", "outputs", owners=owners, graph=True, batch=batch)
            return value
        if type(value) is Opaque:
            made_opaque = self.opaque(value.key, value.name, owners=owners, graph=True, batch=batch)
            made_opaque.hint = value.hint
            return made_opaque
        return value

    def combined_scaler(self: Machine, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        """timm's NativeScaler and its relatives: called with loss and optimizer; backward, and a step if asked."""
        if not args:
            return self.opaque(f"call:{span.row}", "<value>")
        self.backward(args[0], span, via="scaler")
        optimizer = args[1] if len(args) > 1 else keywords.get("optimizer")
        wanted = True
        for name in ("need_update", "update_grad", "update", "step"):
            if name in keywords:
                value = keywords[name]
                wanted = bool(numeric(value)) if numeric(value) is not None else True
                if type(value) is Num and value.modulus is not None:
                    self.learn_k(value.modulus[0], value.modulus[1])
        if type(optimizer) is Opaque:
            optimizer = self.as_optimizer(optimizer)
        if wanted and type(optimizer) is v.Optimizer:
            self.step(optimizer, [], {}, span)
        return self.opaque(f"norm:{span.row}", "grad_norm")

    def unknown_call(
        self: Machine, callee: Opaque, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        """A call of something unknown, or a method of something unknown: what it is said to be by name and use."""
        parent = callee.attrs.get("<parent>")
        if type(parent) is Opaque and isinstance(expr.func, p.Attr):
            result = self.opaque_method(parent, callee.name, args, keywords, expr, frame)
            if result is not _NOT:
                return result
        values = [*args, *keywords.values()]
        span = expr.span
        if names.is_scaler_name(callee.name) and len(args) >= 2 and self._could_be_optimizer(args[1]):
            return self.combined_scaler(args, keywords, span)
        if callee.name in _PROGRESS or callee.name in ("log_every",):
            if args:
                return args[0]
        batch = self.batch_of(values)
        self.note_opaque(callee.key, values, span)
        for one in values:
            if type(one) is Closure and self.scanner.has_backward(one.function.body):
                self.engine_driven.append((one, None))
        loaders = [
            one for one in values if type(one) is Loader or (type(one) is Opaque and names.is_loader_name(one.name))
        ]
        owners = self.graph_owners(values)
        if callee.batch:
            return self.opaque(f"{callee.key}()", callee.name, batch=callee.batch | batch)
        if callee.graph or callee.owners:
            owners |= callee.owners
        elif not (loaders and not batch):
            owners |= self.live(frozenset((self.owner_of(callee),))) if self.is_forward_call(callee, values) else NOBODY
        key = f"{callee.key}({','.join(self.key(one) for one in args[:3])})"
        graph = self.grad_enabled and bool(owners) and (callee.graph or self.is_forward_call(callee, values))
        made = self.opaque(key, callee.name if graph or batch else f"<{callee.name}", owners=owners, graph=graph, batch=batch)
        made.attrs["<given>"] = {text(one): value for one, value in zip(expr.args, args, strict=False)}
        if type(parent) is Opaque:
            made.attrs["<receiver>"] = parent
        if names.is_loss_name(callee.name):
            made.hint = "criterion"
            if any(self._graphed(one) for one in values):
                made.attrs["<scored>"] = True
        elif graph and not callee.graph and self.is_model(callee):
            made.hint = "forward"
        if loaders and not graph:
            made.hint = "loader"
            made.key = f"{callee.key}({self.key(loaders[0])})"
            made.name = "loader"
        made.attrs.update(
            {"<size>": one.attrs["<size>"] for one in values if type(one) is Opaque and "<size>" in one.attrs}
        )
        return made

    def is_forward_call(self: Machine, callee: Opaque, values: list[Value]) -> bool:
        """Whether calling something unknown runs a model: it is given data, or its parameters were asked for before."""
        if self.batch_of(values) or any(self._graphed(one) for one in values):
            return True
        return callee.owner is not None or (bool(callee.owners) and self.is_module_like(callee))

    def _graphed(self: Machine, value: Value) -> bool:
        return type(value) in (Tensor, Opaque) and bool(value.graph)

    def _could_be_optimizer(self: Machine, value: Value) -> bool:
        return type(value) is v.Optimizer or (type(value) is Opaque and names.is_optimizer_name(value.name))

    def note_opaque(self: Machine, what: str, values: list[Value], span: Span) -> None:
        """A call of something unknown that is handed the optimizer or the model could step or zero."""
        accelerators = [one for one in values if type(one) is v.Accelerator]
        accelerators += [self.as_accelerator(one) for one in values if type(one) is Opaque and _is_accelerator(one.name)]
        if accelerators:
            # `setup(accelerator, model, optimizer)` prepares what it is given.
            self.accelerator_method(accelerators[0], "prepare", values, {}, span)
        for one in values:
            if type(one) is v.Optimizer or (type(one) is Opaque and "<optimizer>" in one.attrs):
                self.event("opaque", span, what=what, value=one)
                return
        words = set(names.words(what))
        if words & _GRADIENT_WORDS and "clip" not in words:
            owners = NOBODY.union(*(self.owners_of(one) for one in values if type(one) in (Module, Instance, ParamSet, Opaque)))
            if owners:
                event = self.event("edit", span, how="unknown", what=what)
                self.ledger.edit(self.covers(owners), lambda a: a, event)
                self.unsure_edit(owners, event)

    def opaque_method(
        self: Machine,
        base: Opaque,
        name: str,
        args: list[Value],
        keywords: dict[str, Value],
        expr: p.Call,
        frame: Frame,
    ) -> Value:
        span = expr.span
        if name == "backward":
            return self.backward_method(base, args, keywords, span)
        if name == "manual_backward" and args:
            self.backward(args[0], span, via="manual_backward")
            return None
        if name == "zero_grad":
            if names.is_optimizer_name(base.name) or "<optimizer>" in base.attrs or not self.is_module_like(base):
                self.optimizer_method(self.as_optimizer(base, span), "zero_grad", args, keywords, span)
            else:
                self.zero(frozenset((self.owner_of(base),)), span, "module zero_grad")
            return None
        if name in ("step", "step_update", "step_and_update_lr", "update_lr"):
            return self.step_method(base, name, args, keywords, span)
        if name in ("parameters", "named_parameters", "trainable_parameters", "get_parameters"):
            return ParamSet(base.owners or frozenset((self.owner_of(base),)), name == "named_parameters")
        if name in ("zero_", "zero") and base.name == "grad":
            return None
        if names.is_scaler_name(base.name) and name == "scale" and args:
            return args[0]
        if names.is_scaler_name(base.name) and name in ("update", "unscale_"):
            self.event(name, span)
            return None
        if _is_accelerator(base.name):
            return self.accelerator_method(self.as_accelerator(base), name, args, keywords, span)
        if name in ("prepare", "setup", "setup_dataloaders", "setup_optimizers") and args:
            return args[0] if len(args) == 1 else tuple(args)
        if name in ("detach", "item", "tolist", "numpy", "detach_", "cpu"):
            if name == "cpu":
                return base
            if name == "item":
                return self.measured(f"{base.key}.item()", base.batch)
            return self.opaque(f"{base.key}.{name}()", base.name, batch=base.batch)
        if name in _NO_GRADIENT and base.graph:
            return Tensor(batch=base.batch)
        if name in _WITH_INDICES and base.graph and (args or "dim" in keywords):
            return (Tensor(base.owners, True, batch=base.batch), Tensor(batch=base.batch))
        if name in ("mean", "sum") and base.graph:
            tensor = Tensor(base.owners, True, batch=base.batch)
            if "<loss>" in base.attrs:
                return self.as_loss(base, span)
            return self.tensor_method(tensor, name, args, keywords, span)
        if name == "requires_grad_" and not base.batch and not base.graph:
            self.set_requires_grad(self.owner_of(base), args[0] if args else keywords.get("requires_grad", True))
            return base
        if name in ("train", "eval") and not base.batch and not base.graph and (not args or isinstance(args[0], bool)):
            self.set_mode(self.owner_of(base), name == "train" and not (args and args[0] is False))
            return base
        if name in _RESHAPES and "<size>" in base.attrs:
            if not self.keeps_batch_axis(base.attrs["<size>"][0], name, args):
                made = self.opaque(base.key, base.name, owners=base.owners, graph=base.graph, batch=base.batch)
                made.hint = base.hint
                return made
            return base
        if name in ("train", "eval") or (
            name in _SAME and (base.graph or base.batch or name in ("to", "cuda", "train"))
        ):
            return base
        if name in ("append", "extend", "update", "add") and args and not base.graph:
            holder = base.attrs.setdefault("<held>", None if "<bounded>" in base.attrs else [])
            if name == "append" and isinstance(holder, list):
                holder.append(args[0])
                self.watch_kept(span, args[0], holder, text(expr.func), plain=False)
            return None
        if name in _DATA_SIZE and base.batch:
            size = base.attrs.get("<size>")
            if size is not None and (not args or args[0] == 0):
                return self.data_size(size[0])
            return self.opaque(f"{base.key}.{name}()", "size", batch=base.batch)
        if name in ("chunk", "split", "tensor_split") and args:
            return self.chunks(base, name, args, span, keywords.get("dim"))
        if name in ("items", "values", "keys", "copy") and not args:
            made = self.opaque(
                f"{base.key}.{name}()", base.name, owners=base.owners, graph=base.graph, batch=base.batch
            )
            return made
        if name == "add_argument" and args:
            return self.add_argument(base, args, keywords)
        if name in ("parse_args", "parse_known_args"):
            made = self.opaque("args", "args")
            made.attrs["<parser>"] = base.attrs.get("<arguments>", {})
            for option, value in base.attrs.get("<arguments>", {}).items():
                made.attrs[option] = value
            return made if name == "parse_args" else (made, [])
        if name == "get" and args and isinstance(args[0], str):
            return self.item(base, args[0], span)
        if name == "clip_grad_norm_" or name == "clip_grad_value_":
            self.event("clip", span)
            return self.opaque(f"norm:{span.row}", "grad_norm")
        return _NOT

    def add_argument(self: Machine, parser: Opaque, args: list[Value], keywords: dict[str, Value]) -> None:
        """argparse: a default is a hint, not a constant."""
        flags = [one for one in args if isinstance(one, str)]
        long = [flag for flag in flags if flag.startswith("--")] or flags
        name = keywords.get("dest") or (long[0].lstrip("-").replace("-", "_") if long else "")
        if not isinstance(name, str) or not name:
            return
        made = self.opaque(f"args.{name}", name)
        default = keywords.get("default")
        if isinstance(default, int) and not isinstance(default, bool):
            self.world.hints.setdefault(made.key, default)
        parser.attrs.setdefault("<arguments>", {})[name] = made

    def is_module_like(self: Machine, base: Opaque) -> bool:
        words = names.words(base.name)
        return base.owner is not None or any(word in _MODEL_WORDS for word in words)

    def backward_method(
        self: Machine, base: Opaque, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        """`x.backward(...)` on something unknown: a loss, or a wrapper that is given one."""
        given = args[0] if args else keywords.get("loss")
        if (
            given is not None
            and type(given) in (Tensor, Opaque)
            and (given.graph or names.is_loss_name(getattr(given, "name", "")))
        ):
            if _is_accelerator(base.name):
                return self.accelerator_method(self.as_accelerator(base), "backward", args, keywords, span)
            if names.is_optimizer_name(base.name):
                self.backward(given, span, sure=False, via="optimizer")
                return None
            if "fabric" in base.name.lower():
                self.backward(given, span, via="fabric")
                return None
            self.event("engine", span, name=base.name)
            return None
        if base.batch and not base.graph:
            return None
        self.backward(base, span)
        return None

    def step_method(
        self: Machine, base: Opaque, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        """`x.step(...)` on something unknown: optimizer, scheduler, scaler, or something else."""
        first = args[0] if args else keywords.get("optimizer")
        lossy = type(first) in (Tensor, Opaque) and (first.graph or names.is_loss_name(first.name))
        if lossy and not names.is_scheduler_name(base.name):
            # A step that takes the loss (a differentiable optimizer, an environment) works by itself.
            self.event("engine", span, name=base.name)
            return None
        if self._could_be_optimizer(first) and not names.is_scheduler_name(base.name):
            target = first if type(first) is v.Optimizer else self.as_optimizer(first)
            self.step(target, args[1:], {}, span)
            return None
        if "<scheduler>" in base.attrs or (names.is_scheduler_name(base.name) and "<optimizer>" not in base.attrs):
            self.schedule(self.as_scheduler(base, span), args, span, absolute=name != "step" or bool(args))
            return None
        if name != "step":
            if "<optimizer>" in base.attrs or names.is_optimizer_name(base.name):
                self.event("engine", span, name=base.name)
                return None
            return _NOT
        if "<optimizer>" in base.attrs or names.is_optimizer_name(base.name) or base.key in self.world.zeroed_names:
            self.step(self.as_optimizer(base, span), args, keywords, span)
            return None
        if base.name in self.world.zeroed_names:
            self.step(self.as_optimizer(base, span), args, keywords, span)
            return None
        if self.is_module_like(base) and not args:
            self.event("engine", span, name=base.name)
            return None
        return _NOT

    def schedule(self: Machine, scheduler: v.Scheduler, args: list[Value], span: Span, absolute: bool = False) -> None:
        if scheduler.gate is not None and not scheduler.gate.sync:
            return
        metric = bool(args) and type(args[0]) in (Tensor, Opaque)
        self.event("schedule", span, scheduler=scheduler, absolute=absolute and not metric, metric=metric)

    def chunks(self: Machine, value: Value, name: str, args: list[Value], span: Span, dim: Value = None) -> Value:
        """chunk/split of a batch: a list of micro-batches; along another axis, parts of the same samples."""
        axis = numeric(dim if dim is not None else args[1] if len(args) > 1 else 0)
        size_span: Span | None = None
        size = numeric(getattr(value, "size", None))
        if type(value) is Opaque and "<size>" in value.attrs:
            given, size_span = value.attrs["<size>"]
            size = numeric(given) if not roots_of(given) else None
        amount = self.as_number(args[0])
        count_value = numeric(amount)
        if count_value is None or isinstance(args[0], (list, tuple)):
            count = len(args[0]) if isinstance(args[0], (list, tuple)) else self.assignment.k
        elif name == "split":
            count = math.ceil(size / count_value) if size and count_value else self.assignment.k
        else:
            count = int(count_value)
        whole = size
        if axis != 0:
            size = None
            count = int(count_value) if name != "split" and count_value else self.assignment.k
        count = min(max(int(count), 1), 64)
        part = whole if axis != 0 else None
        if size is not None:
            part = count_value if name == "split" and count_value else math.ceil(Fraction(size) / count)
        made: list[Value] = []
        for i in range(count):
            batch = self.batch_of(value)
            if axis == 0:
                self.batches += 1
                self.run.cuts.add(self.batches)
                self.note_part(self.batches, value, i, i + 1, count)
                batch = batch | {self.batches}
            if type(value) is Tensor:
                last = size - (count - 1) * math.ceil(part) if size is not None and part is not None else None
                each = part if i + 1 < count or last is None else last
                made.append(Tensor(value.owners, value.graph, batch=batch, size=each))
            else:
                one = self.opaque(
                    f"{value.key}.{name}", value.name, owners=value.owners, graph=value.graph, batch=batch
                )
                if part is not None:
                    one.attrs["<size>"] = (part, size_span)
                made.append(one)
        return made

    # --- methods of known values -----------------------------------------------------------------------------------------

    def method(
        self: Machine,
        owner: Value,
        name: str,
        args: list[Value],
        keywords: dict[str, Value],
        expr: p.Call,
        frame: Frame,
    ) -> Value:
        kind = type(owner)
        span = expr.span
        if kind is Tensor:
            return self.tensor_method(owner, name, args, keywords, span)
        if kind is v.Optimizer:
            return self.optimizer_method(owner, name, args, keywords, span)
        if kind is v.Scheduler:
            if name in ("step", "step_update"):
                known = schedulers.scheduler_kind(owner.kind)
                absolute = name == "step_update" or (bool(args) and known is not None and known.cadence != "metric")
                self.schedule(owner, args, span, absolute)
                return None
            return self.opaque(f"{owner.name}.{name}()", "lr")
        if kind is Module or kind is Instance:
            return self.module_method(owner, name, args, keywords, expr, frame)
        if kind is v.Scaler:
            return self.scaler_method(owner, name, args, keywords, span)
        if kind is v.Accelerator:
            return self.accelerator_method(owner, name, args, keywords, span)
        if kind is v.Fabric:
            if name == "backward" and args:
                self.backward(args[0], span, via="fabric")
                return None
            if name.startswith("setup") and args:
                return args[0] if len(args) == 1 else tuple(args)
            if name == "clip_gradients":
                self.event("clip", span)
            return self.opaque(f"fabric.{name}()", name)
        if kind is v.Engine:
            if name in ("backward", "step", "zero_grad"):
                self.event("engine", span, name=owner.name)
                return None
            if name in ("parameters", "named_parameters"):
                return ParamSet(frozenset((owner.owner,)), name.startswith("named"))
            return owner if name in _SAME or name == "eval" else self.opaque(f"{owner.name}.{name}()", name)
        if kind is Param:
            return self.param_method(owner, name, args, keywords, span)
        if kind is v.Grad:
            return self.grad_method(owner, name, args, keywords, span)
        if kind is v.LossFunction:
            return owner if name in _SAME or name == "eval" else self.loss(owner.reduction, args, span, owner.why)
        if kind is Loader:
            if name == "__iter__":
                return self.stream(owner, span)
            if name == "__len__":
                return owner.length
            return self.opaque(f"{owner.key}.{name}()", name)
        if kind is Stream:
            if name == "__next__":
                return self.pull(owner, [])
            return owner
        if isinstance(owner, list):
            return self.list_method(owner, name, args, expr, frame)
        if isinstance(owner, dict):
            return self.dict_method(owner, name, args, keywords, span)
        if isinstance(owner, tuple):
            return len(owner) if name == "__len__" else self.opaque(f"tuple.{name}", name)
        if isinstance(owner, str):
            return "<text>" if name not in ("split", "splitlines") else ["<text>"]
        if isinstance(owner, set):
            if name == "add" and args and isinstance(args[0], (str, int)):
                owner.add(args[0])
            return None
        if kind is v.Bound and owner.name == "<super>" and type(owner.owner) is Instance:
            return self.super_method(owner.owner, name, args, keywords, expr, frame)
        if kind is v.Bound:
            return self.opaque(f"{owner.name}.{name}()", name)
        if numeric(owner) is not None:
            return owner if name in ("item", "detach", "to", "cpu", "cuda", "float", "clone", "view", "double") else self.opaque(f"number.{name}", name)
        return self.opaque(f"{self.key(owner)}.{name}()", name)

    def optimizer_method(
        self: Machine, owner: v.Optimizer, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "step":
            self.step(owner, args, keywords, span)
        elif name == "zero_grad":
            if owner.gate is None or owner.gate.sync:
                self.zero(NOBODY, span, "zero_grad", owner)
        elif name == "backward" and args:
            self.backward(args[0], span, sure=False, via="optimizer")
        elif name == "add_param_group" and args:
            owner.parts = (owner.parts or NOBODY) | self.owners_of(args[0])
            owner.attrs.pop("<parts>", None)
            owner.attrs.pop("<groups>", None)
        elif name in ("train", "eval"):
            return None
        elif name.startswith("register_"):
            self.event("hook", span)
        elif name == "clip_master_grads":
            self.event("clip", span)
        return self.opaque(f"{owner.name}.{name}()", name)

    def scaler_method(
        self: Machine, owner: v.Scaler, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "scale" and args:
            return args[0]
        if name == "step" and args:
            target = args[0]
            if type(target) is Opaque:
                target = self.as_optimizer(target)
            if type(target) is v.Optimizer:
                self.step(target, args[1:], {}, span)
            return None
        if name in ("update", "unscale_"):
            self.event(name, span)
            return None
        return self.opaque(f"{owner.name}.{name}()", name)

    def accelerator_method(
        self: Machine, owner: v.Accelerator, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "backward" and args:
            steps = numeric(self.as_number(owner.steps)) if owner.steps is not None else 1
            factor = Fraction(1, int(steps)) if steps and steps > 1 else 1
            sure = owner.known or owner.entered
            self.backward(args[0], span, factor, sure, via="accelerator")
            return None
        if name in ("prepare", "prepare_model", "prepare_optimizer", "prepare_data_loader", "prepare_scheduler"):
            for one in args:
                if type(one) is v.Optimizer or type(one) is v.Scheduler:
                    one.gate = owner
                elif type(one) is Loader:
                    one.prepared = True
                elif type(one) is Opaque and names.is_optimizer_name(one.name):
                    self.as_optimizer(one).gate = owner
                elif type(one) is Opaque and names.is_scheduler_name(one.name):
                    self.as_scheduler(one).gate = owner
            return args[0] if len(args) == 1 else tuple(args)
        if name == "accumulate":
            if owner.steps is None:
                # Nobody set the steps here, but the window is used: the launcher or the environment sets them.
                owner.steps = self.number(f"{owner.name}.gradient_accumulation_steps", "gradient_accumulation_steps")
            return ("accumulate", owner)
        if name in ("clip_grad_norm_", "clip_grad_value_"):
            self.event("clip", span)
        if name in ("autocast", "no_sync", "join_uneven_inputs", "main_process_first", "local_main_process_first"):
            return ("null",)
        if name in ("unwrap_model", "gather", "reduce", "gather_for_metrics", "pad_across_processes") and args:
            return args[0]
        if name in ("skip_first_batches",) and args:
            return args[0]
        return self.opaque(f"{owner.name}.{name}()", name)

    def module_method(
        self: Machine, owner: Any, name: str, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        span = expr.span
        if name == "<super>":
            return v.Bound(owner, "<super>")
        if type(owner) is Instance and name.startswith("<"):
            return None
        if name in ("parameters", "named_parameters", "trainable_parameters"):
            return ParamSet(frozenset((owner.owner,)), name == "named_parameters")
        if name == "zero_grad":
            self.zero(frozenset((owner.owner,)), span, "module zero_grad")
            return None
        if name in ("train", "eval"):
            mode = name == "train" and (not args or bool(numeric(args[0]) if numeric(args[0]) is not None else True))
            of = owner.attrs.get("<of>") if type(owner) is Module else None
            if of is not None:
                if not mode:
                    self.norms_off.add(of.owner)
                return owner
            owner.training = mode
            if owner.owner is not None:
                self.set_mode(owner.owner, mode)
            return owner
        if name in ("modules", "named_modules", "children", "named_children"):
            view = Module("torch.nn.Module", owner.owner)
            view.attrs["<of>"] = owner
            return [("<layer>", view)] if name.startswith("named") else [view]
        if name in ("manual_backward",) and args:
            self.backward(args[0], span, via="manual_backward")
            return None
        if name in ("forward", "__call__"):
            if type(owner) is Module:
                return self.forward(owner, args, keywords, span)
            return self.call_instance(owner, args, keywords, expr, frame)
        if name in ("add_module", "register_module") and len(args) == 2:
            self.store_attribute(owner, str(args[0]), args[1], span)
            return None
        if name in ("append", "insert", "extend") and args and type(owner) is Module:
            for item in _modules(list(args)):
                owner.items = (*owner.items, item)
                if item.owner is not None:
                    item.owner.parents.append(owner.owner)
            return owner
        if name == "requires_grad_":
            if type(owner) is Instance or "<of>" not in owner.attrs:
                self.set_requires_grad(owner.owner, args[0] if args else keywords.get("requires_grad", True))
            return owner
        if name == "apply" or name in _SAME:
            return owner
        if type(owner) is Instance and self.is_lightning(owner):
            return self.lightning_method(owner, name, args, keywords, span)
        return self.opaque(f"{owner.name}.{name}()", name)

    def super_method(
        self: Machine,
        instance: Instance,
        name: str,
        args: list[Value],
        keywords: dict[str, Value],
        expr: p.Call,
        frame: Frame,
    ) -> Value:
        """`super().name(...)`: the method of a base class of the file, or what a torch module does."""
        cls = frame.cls if frame.cls is not None else instance.cls
        for base in cls.bases:
            found = self.member(base, name) if type(base) is ClassValue else None
            if type(found) is Closure:
                bound = Closure(
                    found.function,
                    found.scope,
                    instance,
                    found.no_grad,
                    found.owner_class,
                    found.defaults,
                    found.kind,
                )
                return self.invoke(bound, args, keywords, expr.span)
        if instance.owner is not None and name in ("train", "eval", "zero_grad", "parameters", "named_parameters"):
            return self.module_method(instance, name, args, keywords, expr, frame)
        return self.opaque(f"<super>.{name}()", name)

    def lightning_method(
        self: Machine, owner: Instance, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "optimizers":
            kept = owner.attrs.get("<optimizers>")
            if kept is None:
                maker = self.member(owner.cls, "configure_optimizers")
                result: Value = None
                if type(maker) is Closure:
                    bound = Closure(
                        maker.function, maker.scope, owner, owner_class=maker.owner_class, defaults=maker.defaults
                    )
                    result = self.invoke(bound, [], {}, span)
                found = [one for one in _flat(result) if type(one) is v.Optimizer]
                owner.attrs["<schedulers>"] = [one for one in _flat(result) if type(one) is v.Scheduler]
                if not found:
                    made = self.opaque(f"{owner.key}.optimizer", "optimizer")
                    found = [self.as_optimizer(made, span)]
                    found[0].parts = frozenset((owner.owner,)) if owner.owner is not None else None
                kept = owner.attrs["<optimizers>"] = found
            return kept[0] if len(kept) == 1 else list(kept)
        if name == "lr_schedulers":
            kept = owner.attrs.get("<schedulers>") or []
            if len(kept) == 1:
                return kept[0]
            return list(kept) if kept else self.opaque(f"{owner.key}.lr_scheduler", "lr_scheduler")
        if name == "clip_gradients":
            self.event("clip", span)
        return self.opaque(f"{owner.name}.{name}()", name)

    def tensor_method(
        self: Machine, owner: Tensor, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "backward":
            given = args[0] if args else keywords.get("gradient")
            factor: Any = 1
            if given is not None:
                factor = numeric(given) if numeric(given) is not None else 1
                self.backward(owner, span, factor, numeric(given) is not None)
            else:
                self.backward(owner, span)
            return None
        if name == "detach_":
            return self.changed(owner, Tensor(batch=owner.batch, size=owner.size), span)
        if name in ("detach", "numpy", "tolist", "item", "data"):
            if name == "item":
                return self.measured("item()", frozenset())
            return Tensor(batch=owner.batch, size=owner.size)
        if name in ("mean", "sum"):
            return self.reduced(owner, name, args, keywords, span)
        if name == "clone":
            return self.copied(owner)
        if name in _RESHAPES and not self.keeps_batch_axis(owner.size, name, args):
            made = self.copied(owner)
            made.size, made.rest = None, ()
            return made
        if name in _SAME:
            return owner
        if name in ("size", "__len__", "numel"):
            if name != "numel" and owner.size is not None and (not args or args[0] == 0):
                return owner.size
            return self.opaque(f"tensor.{name}", "size", batch=owner.batch or frozenset((0,)))
        if name in ("chunk", "split", "tensor_split") and args:
            return self.chunks(owner, name, args, span, keywords.get("dim"))
        if name in _IN_PLACE and args and (name != "add_" or type(args[0]) in (Tensor, Opaque)):
            return self.changed(owner, self.tensor_binary(_IN_PLACE[name], owner, args[0], span, True), span)
        if name == "add" and args and type(args[0]) in (Tensor, Opaque):
            return self.tensor_binary("+", owner, args[0], span, False)
        if name == "div" and args:
            return self.tensor_binary("/", owner, args[0], span, False)
        if name == "mul" and args:
            return self.tensor_binary("*", owner, args[0], span, False)
        if not owner.graph and self.grad_enabled and any(type(one) is Param or self._graphed(one) for one in args):
            # Data times a parameter: `x.mm(w)`.
            owner = Tensor(NOBODY, True, size=owner.size, batch=owner.batch)
        if not owner.graph or name in _NO_GRADIENT:
            return Tensor(batch=owner.batch, size=owner.size)
        if name in _WITH_INDICES and (args or "dim" in keywords):
            return (Tensor(owner.owners, True, batch=owner.batch), Tensor(batch=owner.batch))
        extra = self.graph_owners(args)
        return Tensor(
            owner.owners | extra, True, size=owner.size, batch=owner.batch | self.batch_of(args),
            reduction="none" if owner.reduction == "none" else "",
        )  # fmt: skip

    @staticmethod
    def keeps_batch_axis(size: Value, name: str, args: list[Value]) -> bool:
        """Whether a reshaped tensor has the same first axis."""
        first = args[0][0] if args and isinstance(args[0], (tuple, list)) and args[0] else (args[0] if args else None)
        number = numeric(first)
        if type(first) is Opaque and "<size>" in first.attrs:
            number = numeric(first.attrs["<size>"][0])  # x.shape[0]
        if name in ("view", "reshape"):
            return number is not None and number == numeric(size)
        if name == "flatten":
            return number is not None and number != 0
        if name == "permute":
            return number == 0
        return name in ("squeeze", "unsqueeze", "transpose") and number is not None and number != 0

    @staticmethod
    def copied(value: Tensor) -> Tensor:
        """The same value in another tensor, so that a change in place reaches only one of them."""
        return Tensor(
            value.owners,
            value.graph,
            value.terms,
            value.size,
            value.reduction,
            value.name,
            value.batch,
            value.sure,
            value.divisors,
        )

    def changed(self: Machine, owner: Tensor, result: Value, span: Span) -> Value:
        """A tensor changed in place: every name of it sees the result."""
        if type(result) is not Tensor or result is owner:
            return owner
        for part in ("owners", "graph", "terms", "reduction", "sure", "divisors", "batch"):
            setattr(owner, part, getattr(result, part))
        self.watch_growth(span, owner.name if owner.name[:1] != "<" else "", owner)
        return owner

    def reduced(
        self: Machine, owner: Tensor, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        """`.mean()` and `.sum()`."""
        if owner.reduction == "stack" and owner.terms:
            count = numeric(owner.size) or 1
            return self.scaled(owner, Fraction(1, int(count)) if name == "mean" else 1)
        if owner.terms is not None:
            return owner
        if not owner.graph:
            return Tensor(batch=owner.batch)
        axis = args[0] if args else keywords.get("dim", keywords.get("axis"))
        if axis is not None:
            if owner.reduction == "":
                return Tensor(owner.owners, True, batch=owner.batch, reduction="none")
            return owner
        term = self.new_term(owner.owners, name, f".{name}()", span, owner.batch)
        return Tensor(owner.owners, True, {term: 1}, batch=owner.batch)

    def _ascends(self: Machine, args: list[Value], keywords: dict[str, Value]) -> bool:
        """Whether `p.add_(...)` goes along the gradient (an adversarial step, SAM), not against it."""
        for factor in (keywords.get("alpha", keywords.get("value")), args[0] if len(args) > 1 else None):
            if factor is not None:
                known = numeric(factor)
                return known >= 0 if known is not None else not self.key(factor).startswith("-")
        return all(amount > 0 for one in args if type(one) in (v.Grad, v.Delta) for amount in one.row.values())

    def param_method(
        self: Machine, owner: Param, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        owners = frozenset((owner.owner,))
        if name in ("sub_", "add_", "addcdiv_", "copy_", "sub", "add"):
            ascends = name == "add_" and self._ascends(args, keywords)
            for value in args:
                if ascends:
                    break
                if type(value) in (v.Grad, v.Delta) and value.row and name in ("sub_", "add_", "copy_"):
                    event = self.event("update", span, optimizer=None, added=getattr(value, "added", frozenset()))
                    self.ledger.manual_step(owner.owner, value.row, event)
                    return owner
            if name in ("sub", "add") and args and type(args[0]) is v.Grad:
                return v.Delta(dict(args[0].row))
            if self.grad_enabled and name in ("sub", "add"):
                return Tensor(owners, True)
            return owner
        if name in (
            "mm",
            "matmul",
            "dot",
            "mul",
            "pow",
            "norm",
            "sum",
            "mean",
            "clamp",
            "relu",
            "t",
            "view",
            "reshape",
            "abs",
        ):
            if not self.grad_enabled:
                return Tensor()
            base = Tensor(owners | self.graph_owners(args), True, batch=self.batch_of(args))
            return self.reduced(base, name, args, keywords, span) if name in ("sum", "mean") else base
        if name == "backward":
            return None
        if name in ("zero_grad",):
            self.zero(owners, span, "zero_grad")
        if name == "requires_grad_" and not (args and args[0] is False):
            self.set_requires_grad(owner.owner, True)
        if name == "register_hook" or name == "register_post_accumulate_grad_hook":
            self.event("hook", span)
        if name in ("size", "numel", "__len__", "dim"):
            return owner.size if name == "size" and owner.size is not None else self.number("shape", "size")
        return owner

    def grad_method(
        self: Machine, owner: v.Grad, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if not owner.shared:
            op = _GRAD_OPS.get(name.rstrip("_"))
            if op is not None and args:
                other = args[0]
                if "alpha" in keywords and type(other) is v.Grad:
                    other = self.grad_binary("*", other, keywords["alpha"], span)
                made = self.grad_binary(op, owner, other, span)
                if name[-1] == "_" and type(made) is v.Grad:
                    owner.row, owner.read, owner.added = made.row, made.read, made.added
                    return owner
                return owner if name[-1] == "_" else made
            if name == "zero_":
                owner.row, owner.read, owner.added = {}, False, frozenset()
                return owner
            if name == "copy_" and args and type(args[0]) is v.Grad:
                owner.row, owner.read, owner.added = dict(args[0].row), args[0].read, args[0].added
                return owner
            return v.Grad(owner.owner, dict(owner.row), read=owner.read, added=owner.added)
        owners = frozenset((owner.owner,))
        if name in ("zero_", "fill_"):
            self.zero(owners, span, "grad.zero_()")
            return owner
        if name in ("div_", "mul_") and args:
            self.scale_gradient(owners, args[0], "/" if name == "div_" else "*", span)
            return owner
        if name == "copy_" and args and type(args[0]) is v.Grad:
            self.event("edit", span, how="replace", added=args[0].added)
            self.ledger.replace(owner.owner, args[0].row)
            return owner
        if name in ("add_",) and args and type(args[0]) is v.Grad:
            row = self.grad_binary("+", v.Grad(owner.owner, dict(owner.row)), args[0], span)
            self.ledger.replace(owner.owner, row.row)
            return owner
        if name in ("detach_",):
            return owner
        if name not in _KEEPS_GRAD:
            return self.opaque(f"grad.{name}()", "<norm>")
        return v.Grad(owner.owner, dict(owner.row), read=True)

    def list_method(
        self: Machine, owner: list[Value], name: str, args: list[Value], expr: p.Call, frame: Frame
    ) -> Value:
        span = expr.span
        if name == "append" and args:
            if len(owner) < 400:
                owner.append(args[0])
            target = text(expr.func.value) if isinstance(expr.func, p.Attr) else ""
            self.watch_kept(span, args[0], owner, target)
            return None
        if name == "extend" and args:
            items = self.listed(args[0])
            owner.extend(items)
            self.watch_kept(span, items[:4], owner, text(expr.func.value) if isinstance(expr.func, p.Attr) else "")
            return None
        if name == "clear":
            owner.clear()
            return None
        if name == "pop":
            return owner.pop() if owner else self.opaque("pop", "<item>")
        if name == "popleft":
            return owner.pop(0) if owner else self.opaque("pop", "<item>")
        if name == "insert" and len(args) == 2:
            owner.insert(0, args[1])
            return None
        if name == "copy":
            return list(owner)
        if name == "__len__":
            return len(owner)
        return self.opaque(f"list.{name}", name)

    def dict_method(
        self: Machine, owner: dict[Any, Value], name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "get" and args:
            key = self.dict_key(args[0])
            if type(key) is not Opaque and key in owner:
                return owner[key]
            if not owner or type(args[0]) is Param:
                return args[1] if len(args) > 1 else None
            if isinstance(args[0], str):
                return args[1] if len(args) > 1 else None
            return self.opaque(f"dict.get:{span.row}", "<item>")
        if name == "setdefault" and args and isinstance(args[0], (str, int)):
            return owner.setdefault(args[0], args[1] if len(args) > 1 else None)
        if name == "items":
            return [(key, value) for key, value in owner.items()]
        if name == "values":
            return list(owner.values())
        if name == "keys":
            return list(owner)
        if name == "pop" and args and isinstance(args[0], (str, int)):
            return owner.pop(args[0], args[1] if len(args) > 1 else self.opaque("pop", "<item>"))
        if name == "update":
            if args and isinstance(args[0], dict):
                owner.update(args[0])
            owner.update(keywords)
            return None
        if name == "clear":
            owner.clear()
            return None
        if name == "copy":
            return dict(owner)
        return self.opaque(f"dict.{name}", name)

    def pull(self: Machine, stream: Stream, rest: list[Value]) -> Value:
        try:
            return next(stream.pull)
        except StopIteration:
            if rest:
                return rest[0]
            raise PyRaise("StopIteration") from None

    # --- imported names ------------------------------------------------------------------------------------------------

    def imported(
        self: Machine, path: str, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        span = expr.span
        if path.startswith("builtins."):
            handler = _BUILTIN.get(path[9:])
            if handler is not None:
                return handler(self, args, keywords, span)
            return self.opaque(f"{path[9:]}:{span.row}:{span.column}", path[9:], batch=self.batch_of(args))
        last = path.rpartition(".")[2]
        top = path.partition(".")[0]
        handler = _FUNCTIONS.get(path) or (_TORCHLIKE.get(last) if top in _TORCH_TOPS else None)
        if handler is not None:
            return handler(self, args, keywords, span)
        kind = optimizers.optimizer_kind(path)
        if kind is not None:
            return self.make_optimizer(path, kind, args, keywords, span)
        scheduler = schedulers.scheduler_kind(path)
        if scheduler is not None:
            return self.make_scheduler(path, scheduler, args, keywords, span)
        default = losses.reduction_of(path)
        if default is not None:
            return self.known_loss(path, default, args, keywords, span)
        if last in _PROGRESS or path.startswith("tqdm"):
            return args[0] if args else (keywords.get("iterable") or self.opaque("tqdm", "progress"))
        if last in _PASS_THROUGH and (args or "model" in keywords or "module" in keywords):
            return args[0] if args else keywords.get("model", keywords.get("module"))
        if top == "torch" or path.startswith(("torchvision.models", "timm.", "segmentation_models_pytorch")):
            return self.torch_call(path, last, args, keywords, span)
        return self.foreign_call(path, last, args, keywords, expr, frame)

    def known_loss(
        self: Machine, path: str, default: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        literal = {
            name: keywords[name]
            for name in ("reduction", "size_average", "reduce")
            if name in keywords and isinstance(keywords[name], (str, bool))
        }
        unknown = any(name in keywords and name not in literal for name in ("reduction", "size_average", "reduce"))
        reduction = losses.reduction_from_arguments(default, literal) or "unknown"
        if unknown:
            reduction = "unknown"
        last = path.rpartition(".")[2]
        if last[:1].isupper():
            return v.LossFunction(last, reduction, last)
        return self.loss(reduction, [*args, *keywords.values()], span, last)

    def make_optimizer(
        self: Machine, path: str, kind: Any, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        given = args[0] if args else keywords.get("params", keywords.get("model"))
        parts = self.owners_of(given) if given is not None else NOBODY
        made = v.Optimizer(len(self.run.optimizers), "<optimizer>", path, parts or frozenset((Owner("<parameters>"),)), span, True)
        if isinstance(given, (list, tuple)) and given and all(isinstance(one, dict) for one in given):
            groups = [self.owners_of(one.get("params")) for one in given]
            if all(groups):
                made.attrs["<parts>"] = groups
        literal = {
            name: (value if isinstance(value, (int, float, bool, str)) else None) for name, value in keywords.items()
        }
        made.invariant = bool(kind.is_invariant(literal))
        made.replays = bool(kind.closure)
        made.lr = keywords.get("lr", args[1] if len(args) > 1 else None)
        decay = keywords.get("weight_decay", 0)
        made.plain_sgd = path.endswith(".SGD") and decay == 0
        self.run.optimizers.append(made)
        self.ledger.add(made)
        return made

    def make_scheduler(
        self: Machine, path: str, kind: Any, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        made = v.Scheduler(len(self.run.schedulers), "<scheduler>", path, kind.cadence, span)
        values: dict[str, Value] = {}
        for count in kind.counts:
            if count.name in keywords:
                values[count.name] = keywords[count.name]
            elif count.position is not None and count.position < len(args):
                values[count.name] = args[count.position]
        made.attrs["<counts>"] = values
        given = args[kind.optimizer_position] if len(args) > kind.optimizer_position else keywords.get("optimizer")
        if type(given) is Opaque and not given.graph:
            given = self.as_optimizer(given)
        made.optimizer = given if type(given) is v.Optimizer else None
        made.attrs["<args>"] = (list(args), dict(keywords))
        if path.endswith(".LambdaLR"):
            factor = args[1] if len(args) > 1 else keywords.get("lr_lambda")
            factor = factor[0] if isinstance(factor, list) and factor else factor
            made.horizon = self.zero_of(factor, span) if type(factor) is Closure else None
        self.run.schedulers.append(made)
        return made

    def zero_of(self: Machine, function: Closure, span: Span) -> int | None:
        """The first step at which a schedule's factor is down to 0 (and stays there), None if it never is."""
        self.deciding = False
        try:

            def ended(step: int) -> bool:
                value = numeric(self.call_value(function, [step], span))
                if value is None:
                    raise PyRaise("unknown")
                return bool(value <= 1e-9)

            low, high = 0, 1 << 17
            if not ended(high) or ended(1):
                return None
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if ended(middle) else (middle, high)
            return high
        except PyRaise:
            return None
        finally:
            self.deciding = True

    def torch_call(
        self: Machine, path: str, last: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        """A torch function or class with no special meaning: a module, a context, or an operation on tensors."""
        values = [*args, *keywords.values()]
        if path.startswith(("torch.nn.functional.",)) or (
            path.startswith("torch.") and last[:1].islower() and "models" not in path
        ):
            owners = self.graph_owners(values)
            batch = self.batch_of(values)
            for one in values:
                if type(one) is Closure and self.scanner.has_backward(one.function.body):
                    self.engine_driven.append((one, None))
            if last in _WITH_INDICES and len(values) > 1 and type(values[1]) in (int, Num) and self.grad_enabled and owners:
                return (Tensor(owners, True, batch=batch), Tensor(batch=batch))
            if self.grad_enabled and owners and last not in _NO_GRADIENT:
                none = any(type(one) is Tensor and one.reduction == "none" for one in values)
                return Tensor(owners, True, size=self.size_of(args), batch=batch, reduction="none" if none else "")
            if batch or any(type(one) in (Tensor, Param, v.Grad) for one in values):
                return Tensor(batch=batch, size=self.size_of(args))
            return self.opaque(f"{path}({','.join(self.key(one) for one in args[:2])})", "<" + last)
        values = [self.drain(one, 64) if type(one) is Stream else one for one in values]
        literal = {
            name: value for name, value in keywords.items() if isinstance(value, (str, int, float, bool, type(None)))
        }
        for name, value in keywords.items():
            if name not in literal and value is not None:
                literal[name] = text_of(value)
        if args and isinstance(args[0], str):
            literal.setdefault("name", args[0])
            literal.setdefault("model_name", args[0])
            literal.setdefault("encoder_name", args[0])
        norm = norms.has_batchnorm(path, literal)
        where = span if norm else None
        items = _modules(values)
        for item in items:
            if where is None and getattr(item, "batchnorm", None) is not None:
                where = item.batchnorm
        owner = Owner(last)
        for item in items:
            if getattr(item, "owner", None) is not None:
                item.owner.parents.append(owner)
        if norm:
            self.layers.setdefault(span, []).append(owner)
            if literal.get("track_running_stats") is False:
                self.always.add(span)
        made = Module(path, owner, where, tuple(items))
        if args and isinstance(args[0], dict):
            made.attrs.update({name: one for name, one in args[0].items() if isinstance(name, str)})
        return made

    def foreign_call(
        self: Machine, path: str, last: str, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        """A call into a package that acclint does not know."""
        span = expr.span
        values = [*args, *keywords.values()]
        if names.is_scaler_name(last) and last[:1].isupper():
            return v.Scaler(last, combined=True)
        if last[:1].isupper() and not self.graph_owners(values) and not self.batch_of(values):
            key = f"{path}@{span.row}"
            made = self.opaque(key, "<" + last)
            if names.is_loss_name(last):
                made.hint = "criterion"
            return made
        self.note_opaque(path, values, span)
        for one in values:
            if type(one) is Closure and self.scanner.has_backward(one.function.body):
                self.engine_driven.append((one, None))
        owners = self.graph_owners(values)
        batch = self.batch_of(values)
        loaders = [
            one for one in values if type(one) is Loader or (type(one) is Opaque and names.is_loader_name(one.name))
        ]
        graph = self.grad_enabled and bool(owners) and (bool(batch) or any(self._graphed(one) for one in values))
        made = self.opaque(
            f"{path}({','.join(self.key(one) for one in args[:3])})", last, owners=owners, graph=graph, batch=batch
        )
        if names.is_loss_name(last):
            made.hint = "criterion"
            if any(self._graphed(one) for one in values):
                made.attrs["<scored>"] = True
        if loaders and not graph:
            made.hint, made.name = "loader", "loader"
        elif not graph and not batch:
            made.name = "<" + last
        made.attrs["<given>"] = {text(one): value for one, value in zip(expr.args, args, strict=False)}
        return made


def _around_yield(body: tuple[p.Stmt, ...]) -> tuple[tuple[p.Stmt, ...], p.Expr | None, tuple[p.Stmt, ...]]:
    """Split a context manager's body at its yield: statements before, the yielded value, statements behind."""
    for at, stmt in enumerate(body):
        if isinstance(stmt, p.Do) and isinstance(stmt.value, p.Yield):
            return body[:at], stmt.value.value, body[at + 1 :]
        if isinstance(stmt, (p.Try, p.With)):
            before, value, after = _around_yield(stmt.body)
            if len(before) < len(stmt.body):
                final = stmt.final if isinstance(stmt, p.Try) else ()
                return (*body[:at], *before), value, (*after, *final, *body[at + 1 :])
    return body, None, ()


def text_of(value: Value) -> str:
    if isinstance(value, Imported):
        return value.path
    return getattr(value, "name", "?")


def _modules(values: list[Value]) -> list[Any]:
    found: list[Any] = []
    for one in values:
        if type(one) in (Module, Instance):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            found += _modules(list(one))
        elif isinstance(one, dict):
            found += _modules(list(one.values()))
    return found


def _flat(value: Value) -> list[Value]:
    if isinstance(value, (list, tuple)):
        return [inner for one in value for inner in _flat(one)]
    if isinstance(value, dict):
        return [inner for one in value.values() for inner in _flat(one)]
    return [value]


def _is_accelerator(name: str) -> bool:
    return "accelerator" in names.words(name)


_NO_GRADIENT = frozenset(
    "argmax argmin argsort eq ne gt lt ge le long int bool any all nonzero isnan isinf isfinite isclose allclose equal "
    "bincount searchsorted count_nonzero multinomial bernoulli logical_and logical_or logical_not one_hot".split()
)
_WITH_INDICES = frozenset("max min topk sort median mode kthvalue cummax cummin".split())
_RESHAPES = frozenset("view reshape flatten permute squeeze unsqueeze transpose t repeat expand".split())
_GRAD_OPS = {"add": "+", "sub": "-", "div": "/", "mul": "*"}
_IN_PLACE = {"add_": "+", "div_": "/", "mul_": "*"}
_KEEPS_GRAD = frozenset("clone detach to cpu cuda float double half view flatten reshape data".split())


_GRADIENT_WORDS = frozenset("grad grads gradient gradients scale average allreduce unscale normalize".split())


def _leaves(value: Value, depth: int = 0) -> list[Value]:
    """What a record (a pair, a small dict) holds."""
    if isinstance(value, (list, tuple)) and depth < 2:
        return [inner for one in value[:16] for inner in _leaves(one, depth + 1)]
    if isinstance(value, dict) and depth < 2:
        return [inner for one in list(value.values())[:16] for inner in _leaves(one, depth + 1)]
    return [value]


class _NotHandled:
    pass


_NOT = _NotHandled()
_MODEL_WORDS = frozenset(
    "model net network module backbone generator discriminator encoder decoder critic actor policy".split()
)
_INDEXED_DATA = frozenset("x y X Y data inputs targets images labels batch tokens dataset samples features".split())
_LIGHTNING = frozenset(
    "optimizers lr_schedulers manual_backward log log_dict clip_gradients toggle_optimizer untoggle_optimizer print".split()
)
_TORCH_TOPS = frozenset(
    "torch torchvision accelerate lightning pytorch_lightning lightning_fabric deepspeed apex itertools math contextlib copy functools collections transformers".split()
)

from acclint.simulate.functions import BUILTINS as _BUILTIN  # noqa: E402
from acclint.simulate.functions import FUNCTIONS as _FUNCTIONS  # noqa: E402
from acclint.simulate.functions import TORCHLIKE as _TORCHLIKE  # noqa: E402
