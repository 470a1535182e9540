"""Gradients and parameters in the hands of the program: `p.grad /= k`, `p.data -= lr * p.grad`."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from acclint import program as p
from acclint.program import Span
from acclint.simulate import values as v
from acclint.simulate.trace import Event
from acclint.simulate.updates import Updates
from acclint.simulate.values import NOBODY, Closure, Opaque, Owners, Param, Tensor, Value, numeric, roots_of
from acclint.simulate.vocabulary import word_set

_GRAD_OPS = {"add": "+", "sub": "-", "div": "/", "mul": "*"}
_KEEPS_GRAD = word_set("coalesce to_dense clone detach to cpu cuda float double half view flatten reshape data")
# With these a gradient is copied, for work of its own: several losses' gradients, joined to one direction.
_COPIES_GRAD = word_set("clone numpy tolist")

# What a function names that reads or writes gradients of its own.
_ELSEWHERE = frozenset({"grad", "zero_grad", "backward", "step"})


PROBE = -1  # stands for a backward call, to see what a hook makes of its gradient


class Gradients(Updates):
    """Arithmetic and methods of gradients and parameters."""

    def grad_binary(self, op: str, left: Value, right: Value, span: Span) -> Value:
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
                known = all(self.role_of_root(root) in ("k", "over k") for root in roots_of(number))
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

    def augment_gradient(self, base: Value, name: str, op: str, value: Value, span: Span) -> bool:
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

    def scale_gradient(self, owners: Owners, value: Value, op: str, span: Span) -> None:
        number = self.as_number(value) if not self.is_data(value) else None
        amount = numeric(number) if number is not None else None
        if amount == 0 and op == "*":
            self.zero(owners, span, "grad *= 0")
            return
        factor: Any = 1  # in place of one that is not known
        if amount:
            factor = (
                amount if op == "*" else (Fraction(1, amount) if isinstance(amount, (int, Fraction)) else 1 / amount)
            )
        known = bool(amount) and all(self.role_of_root(root) for root in roots_of(number))
        event = self.event("edit", span, how="scale", factor=factor if known else None)
        self.ledger.edit(self.covers(owners), lambda a: a * factor, event)
        if not known:
            self.unsure_edit(owners, event)

    def write_gradient(self, gradient: v.Grad, index: Value, value: Value, span: Span) -> None:
        """`p.grad[:] = 0`; what else is written into a gradient may be anything."""
        owners = frozenset((gradient.owner,))
        if numeric(value) == 0 and isinstance(index, tuple) and index[1:] == (None, None, None):
            self.zero(owners, span, "grad[:] = 0")
        else:
            event = self.event("edit", span, how="unknown", what="grad")
            self.ledger.edit(self.covers(owners), lambda a: a, event)
            self.unsure_edit(owners, event)

    def unsure_edit(self, owners: Owners, event: Event) -> None:
        event.data["unsure"] = True

    def augment_parameter(self, param: Param, op: str, value: Value, span: Span) -> bool:
        """An update written by hand."""
        if type(value) in (v.Grad, v.Delta) and value.row and op == "-":
            event = self.event("update", span, optimizer=None, added=getattr(value, "added", frozenset()))
            self.ledger.manual_step(param.owner, value.row, event)
            return True
        return op in ("-", "+", "*", "/")

    def param_method(self, owner: Param, name: str, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        owners = frozenset((owner.owner,))
        if name == "detach":
            return Tensor(owners, size=owner.size)
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
        if name == "requires_grad_" and (args[0] if args else keywords.get("requires_grad", True)) is not False:
            self.set_requires_grad(owner.owner, True)
        if name == "register_hook" and args and type(args[0]) is Closure and self.hook_scales(owner, args[0], span):
            return self.opaque("handle", "handle")
        if name == "register_hook" and args and type(args[0]) is Closure and self._sees_one(args[0]):
            self.hooked.add(owner.owner)
        elif name == "register_hook" or name == "register_post_accumulate_grad_hook":
            self.event("hook", span)
        if name in ("size", "numel", "__len__", "dim"):
            return owner.size if name == "size" and owner.size is not None else self.number("shape", "size")
        return owner

    def _sees_one(self, hook: Closure) -> bool:
        """Whether a hook of this file works on the gradient it is given only: it can scale it, and zeroes nothing."""
        return _ELSEWHERE.isdisjoint(self.scanner.reach(hook.function.body))

    def grad_method(self, owner: v.Grad, name: str, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        if name in _COPIES_GRAD:
            self.run.kept.update(number for number in owner.row if number != PROBE)
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

    def hook_scales(self, param: Param, hook: Closure, span: Span) -> bool:
        """Whether a hook multiplies each gradient by a known number, which is noted."""
        if not isinstance(hook.function.body[-1], p.Return) or len(hook.function.body) > 1:
            return False
        made = self.call_value(hook, [v.Grad(param.owner, {PROBE: 1})], span)
        factor = made.row.get(PROBE) if type(made) is v.Grad else None
        if factor is None or factor == 1:  # An unknown factor is taken for 1.
            return False
        self.ledger.factors[param.owner] = self.ledger.factors.get(param.owner, 1) * factor
        return True

    def _ascends(self, args: list[Value], keywords: dict[str, Value]) -> bool:
        """Whether `p.add_(...)` goes along the gradient (an adversarial step, SAM), not against it."""
        for factor in (keywords.get("alpha", keywords.get("value")), args[0] if len(args) > 1 else None):
            if factor is not None:
                known = numeric(factor)
                return known >= 0 if known is not None else not self.key(factor).startswith("-")
        return all(amount > 0 for one in args if type(one) in (v.Grad, v.Delta) for amount in one.row.values())

    def leaf(self, value: Param) -> Tensor:
        """A parameter as the tensor it is in a formula."""
        return Tensor(frozenset((value.owner,)) if self.grad_enabled else NOBODY, self.grad_enabled, size=value.size)
