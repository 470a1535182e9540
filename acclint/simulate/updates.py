"""Backward calls, zeroing and optimizers: what the events of a window are."""

from __future__ import annotations

from typing import Any

from acclint import program as p
from acclint.knowledge import names, optimizers
from acclint.program import NOWHERE, Span
from acclint.simulate import values as v
from acclint.simulate.losses import doubts
from acclint.simulate.scan import text
from acclint.simulate.schedules import Schedules
from acclint.simulate.trace import Backward
from acclint.simulate.values import NOBODY, Closure, Instance, Opaque, Owner, Owners, ParamSet, Tensor, Value
from acclint.simulate.vocabulary import HANDLES_GRADIENTS, ZEROING
from acclint.simulate.world import Restart

_OPTIMIZER_BASES = ("torch.optim.Optimizer", "torch.optim.optimizer.Optimizer")
# What an optimizer class may have besides step(), and step() may not do, to be one like torch's own.
_OWN_METHODS = frozenset(("step", "state_dict", "load_state_dict", "add_param_group", "get_lr"))
_MORE_THAN_UPDATES = frozenset(("step", "backward", "zero_")) | ZEROING
_BEFORE_STEP, _AFTER_STEP = "register_step_pre_hook", "register_step_post_hook"


class Updates(Schedules):
    """What reads and writes gradients by the usual calls."""

    def backward(self, value: Value, span: Span, factor: Any = 1, sure: bool = True, via: str = "") -> None:
        """A backward call on a loss."""
        hidden = {loop.span for loop in self.loops if loop.level == "quiet"} - self.world.loud
        if hidden:
            # A backward call behind a closure or a table of functions: these loops train after all.
            self.world.loud |= hidden
            raise Restart
        if type(value) is Opaque and "<computed>" in value.attrs:
            sure = False  # Arithmetic that was taken for that of data: it may hold the division.
        loss = self.as_loss(value, span)
        only = self.only_optimizer()
        # Where the file says which tensors ask for gradients, a loss may be of a leaf that is no parameter.
        if only is not None and only.parts and not (loss.graph and loss.owners) and not self.run.freezes:
            # A program that is run as it stands has a graph here: it was the abstract run that lost it.
            term = self.new_term(only.parts, "unknown", loss.name, span, loss.batch)
            loss = Tensor(only.parts, True, {term: 1}, name=loss.name, batch=loss.batch, sure=False)
        terms = tuple((term, weight * factor) for term, weight in (loss.terms or {}).items())
        owners = NOBODY.union(*(term.owners for term, _ in terms)) if terms else loss.owners
        if not loss.graph:
            owners = NOBODY
        number = len(self.run.backwards)
        event = self.event("backward", span, number=number, via=via, batch=loss.batch)
        for term, _ in terms:
            for one in (term, *term.origins):
                one.sent += 1
        reached = owners
        parts = only.parts if only is not None and only.parts else NOBODY
        held = [part for one in self.ledger.optimizers for part in one.parts or ()]
        if owners and only is not None and not any(owner.overlaps(part) for owner in owners for part in held):
            # The loss comes from something unknown: with one optimizer it can only be meant for that one.
            reached = parts
            models = [owner for owner in owners if not names.is_criterion_name(owner.name)]
            if only.guessed and len(models) == 1:
                # Whoever zeroes that module zeroes these. Of several (a critic, a teacher) nobody knows whose they are.
                self.wild[models[0]] = only
        reached = self.live(reached)  # What is frozen by now gets no gradient, though the loss came through it.
        sure = sure and not any(owner.overlaps(one) for owner in reached for one in self.hooked)
        self.run.backwards.append(
            Backward(number, event, terms, reached, sure and _known_scale(loss), loss.divisors, self.replaying > 0)
        )
        self.ledger.backward(number, reached)
        self.sent[id(loss)] = (loss, number)

    def only_optimizer(self) -> v.Optimizer | None:
        """The one optimizer of known parameters that a loss can be meant for: the file's, or the object's own.

        The others are then those of other objects that nothing in the file makes: trainers, of which one is run.
        """
        known = list(self.ledger.optimizers)
        running = self.selves[-1] if self.selves else None
        if len(known) > 1 and type(running) is Instance:
            theirs = {id(one) for made in self.instances.values() if made is not running for one in made.attrs.values()}
            known = [one for one in known if id(one) not in theirs]
            if not any(one is value for one in known for value in running.attrs.values()):
                return None
        return known[0] if len(known) == 1 and known[0].parts else None

    def zero(self, owners: Owners, span: Span, what: str, optimizer: v.Optimizer | None = None) -> None:
        event = self.event("zero", span, what=what, optimizer=optimizer, owners=owners)
        if optimizer is not None:
            self.ledger.zero(lambda owner: self.ledger.owns(optimizer, owner), event)
        else:
            self.ledger.zero(self.covers(owners), event)

    def toggle(self, optimizer: Value) -> None:
        """Lightning's toggle: the parameters of all other optimizers ask for no gradient; None: as it was before."""
        if self.untoggled is not None:
            self.frozen, self.untoggled = self.untoggled, None
        if type(optimizer) is v.Optimizer and optimizer.parts:
            self.untoggled = set(self.frozen)
            others = {part for one in self.ledger.optimizers if one is not optimizer for part in one.parts or ()}
            self.frozen |= {one for one in others if not any(one.overlaps(part) for part in optimizer.parts)}

    def may_zero(self, what: str, span: Span, again: bool = False) -> None:
        """A call of something unknown that may zero gradients, nobody knows which.

        `again`: it does so behind an update, if at all, so that it matters only where nothing else zeroes.
        """
        self.event("hook", span, what=what, again=again)

    def step(self, optimizer: v.Optimizer, args: list[Value], keywords: dict[str, Value], span: Span) -> None:
        closure = args[0] if args else keywords.get("closure")
        if not optimizer.known and self.is_computed(closure):
            # A differentiable optimizer: it takes the loss and works by itself, on copies of the parameters.
            self.event("engine", span, name=optimizer.name)
            return
        if type(closure) is Closure:
            optimizer.replays = True
            self.replaying += 1
            try:
                self.invoke(closure, [], {}, span)
            finally:
                self.replaying -= 1
        gate = self.gate_of(optimizer)
        if gate is not None and not gate.sync:
            return
        if not optimizer.known and set(keywords) - {"closure"}:
            self.may_zero("step", span, again=True)  # `optimizer.step(zero=True)` is none of torch.
        self.run_hooks(optimizer, _BEFORE_STEP, span)
        event = self.event("update", span, optimizer=optimizer)
        self.ledger.step(optimizer, event)
        if "<schedule>" in optimizer.attrs:
            self.schedule(optimizer.attrs["<schedule>"], [], span)
        self.run_hooks(optimizer, _AFTER_STEP, span)
        if gate is not None and gate.engine:
            self.zero(NOBODY, span, "step", optimizer)

    @staticmethod
    def is_computed(value: Value) -> bool:
        """Whether a value was computed from data or by a model: a loss, and no closure."""
        return type(value) is Tensor or (type(value) is Opaque and (value.graph or bool(value.batch)))

    def run_hooks(self, optimizer: v.Optimizer, name: str, span: Span) -> None:
        """The hooks that the file has registered around the step of an optimizer."""
        for hook in optimizer.attrs.get(name, ()):
            self.call_value(hook, [optimizer, (), {}], span)

    def as_optimizer(self, value: Opaque, span: Span = NOWHERE) -> v.Optimizer:
        kept = value.attrs.get("<optimizer>")
        if kept is None:
            kept = v.Optimizer(len(self.run.optimizers), value.name, "unknown", value.owners or None, span, False)
            value.attrs["<optimizer>"] = kept
            self.run.optimizers.append(kept)
            self.ledger.add(kept)
            self.own_schedule(kept, value.attrs.get("<length>"), value.attrs.get("<made>", span))
        return kept

    def recognise(self, value: Value) -> None:
        """What was made from parameters and is called an optimizer is one, before it is first used."""
        if type(value) is not Opaque or value.graph or not names.is_optimizer_name(value.name):
            return
        receiver = value.attrs.get("<receiver>")
        if not value.owners and type(receiver) is Opaque and self.is_module_like(receiver):
            # `optimizer = model.configure_optimizer(...)`
            value.owners = frozenset((self.owner_of(receiver),))
        if value.owners:
            self.as_optimizer(value)

    def make_optimizer(
        self, path: str, kind: Any, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> v.Optimizer:
        given = args[0] if args else keywords.get("params", keywords.get("model"))
        parts = self.owners_of(given) if given is not None else NOBODY
        made = v.Optimizer(
            len(self.run.optimizers), "<optimizer>", path, parts or frozenset((Owner("<parameters>"),)), span, True
        )
        made.guessed = not parts or (type(given) is Opaque and not given.owners)
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
        self.own_schedule(made, keywords.get(kind.schedule), span)
        return made

    def updates_only(self, cls: v.ClassValue) -> bool:
        """Whether an optimizer class of the project is like torch's: its step() reads gradients and changes parameters.

        One that keeps gradients over several steps, zeroes them, has steps of other names (SAM) or drives another
        optimizer does more.
        """
        step = cls.members.get("step")
        if type(step) is not Closure or not any(getattr(base, "path", "") in _OPTIMIZER_BASES for base in cls.bases):
            return False
        methods = {name for name, one in cls.members.items() if type(one) is Closure and name[:1] != "_"}
        said = self.scanner.reach(step.function.body)
        found = self.scanner.scan(step.function.body)
        more = bool(said & _MORE_THAN_UPDATES) or found.remainder or found.sets_grad
        return methods <= _OWN_METHODS and "grad" in said and not more

    def steps_as_base(self, cls: v.ClassValue) -> bool:
        """Whether each call of step() makes one update as the class above does; rates may be set beside it."""
        step = cls.members.get("step")
        if type(step) is not Closure:
            return True
        body = step.function.body
        found = self.scanner.scan(body)
        more = self.scanner.reach(body) & (_MORE_THAN_UPDATES - {"step"}) or found.grad or found.remainder
        calls = [stmt.value for stmt in body if isinstance(stmt, (p.Do, p.Return, p.Assign))]
        above = [one for one in calls if isinstance(one, p.Call) and text(one.func).endswith(".step")]
        return not more and len(above) == 1 and text(above[0].func).startswith("super(")

    def own_optimizer(self, cls: v.ClassValue, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        """An object of an optimizer class of the project. What it makes of the scale of its gradients is not known."""
        made = self.make_optimizer(f"{_OPTIMIZER_BASES[0]}: {cls.name}", optimizers.OTHER, args, keywords, span)
        made.known, made.own = False, True
        return made

    def param_groups(self, optimizer: v.Optimizer) -> Value:
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

    def could_be_optimizer(self, value: Value) -> bool:
        return type(value) is v.Optimizer or (type(value) is Opaque and names.is_optimizer_name(value.name))

    def optimizer_method(
        self, owner: v.Optimizer, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "step":
            self.step(owner, args, keywords, span)
        elif names.is_zeroing_name(name) or names.may_zero(name):
            gate = self.gate_of(owner)
            if gate is None or (gate.sync and not gate.engine):
                self.zero(NOBODY, span, "zero_grad", owner)
        elif name == "backward" and args:
            self.backward(args[0], span, sure=False, via="optimizer")
        elif name == "add_param_group" and args:
            self.ledger.hand(owner, (owner.parts or NOBODY) | self.owners_of(args[0]))
            owner.attrs.pop("<parts>", None)
            owner.attrs.pop("<groups>", None)
        elif name in ("train", "eval"):
            return None
        elif name in (_BEFORE_STEP, _AFTER_STEP) and args and type(args[0]) is Closure:
            owner.attrs.setdefault(name, []).append(args[0])
        elif name.startswith("register_"):
            self.event("hook", span)
        elif name == "clip_master_grads":
            self.event("clip", span)
        elif not owner.known and HANDLES_GRADIENTS & set(names.words(name)):
            self.event("opaque", span, what=name, value=owner)
        return self.opaque(f"{owner.name}.{name}()", name)


def _known_scale(loss: Tensor) -> bool:
    """Whether the weight of what weighs most in a loss is known; other parts may be scaled by anything."""
    most: Any = max((abs(float(weight)) for weight in (loss.terms or {}).values()), default=0)
    heaviest = {term for term, weight in (loss.terms or {}).items() if abs(float(weight)) == most}
    return loss.sure and not (heaviest and doubts(loss).issuperset(heaviest))
