"""Methods of tensors."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from acclint.program import Span
from acclint.simulate import values as v
from acclint.simulate.attributes import Attributes
from acclint.simulate.values import NOBODY, VECTOR, Num, Opaque, Param, Tensor, Value, numeric, roots_of
from acclint.simulate.vocabulary import NO_GRADIENT, RESHAPES, SAME, WITH_INDICES

_SCALAR = (".mean()", ".sum()")  # where a loss comes from that is one number, whatever it was made of
IN_PLACE = {"add_": "+", "div_": "/", "mul_": "*", "divide_": "/", "true_divide_": "/", "multiply_": "*"}
QUOTIENTS = {
    "div": "/", "divide": "/", "true_divide": "/", "__truediv__": "/", "mul": "*", "multiply": "*", "__mul__": "*",
}  # fmt: skip


class Tensors(Attributes):
    """What a method of a tensor returns."""

    def tensor_method(
        self, owner: Tensor, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "backward":
            self.run.freezes |= "inputs" in keywords
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
            if owner.name == VECTOR:
                return Tensor(owner.owners, name=VECTOR)
            return Tensor(batch=owner.batch, size=owner.size)
        if name in ("mean", "sum"):
            return self.reduced(owner, name, args, keywords, span)
        if name == "clone":
            return self.copied(owner)
        if name in RESHAPES and not self.keeps_batch_axis(owner.size, name, args):
            made = self.copied(owner)
            made.size, made.rest = None, ()
            return made
        if name in SAME:
            return owner
        if name in ("numel", "nelement") and owner.terms and all(term.why in _SCALAR for term in owner.terms):
            return 1
        if name in ("size", "__len__", "numel"):
            if name != "numel" and owner.size is not None and (not args or args[0] == 0):
                return owner.size
            return self.opaque(f"tensor.{name}", "size", batch=owner.batch or v.SOME_DATA)
        if name in ("chunk", "split", "tensor_split") and args:
            return self.chunks(owner, name, args, span, keywords.get("dim"))
        if name in IN_PLACE and args and (name != "add_" or type(args[0]) in (Tensor, Opaque)):
            return self.changed(owner, self.tensor_binary(IN_PLACE[name], owner, args[0], span, True), span)
        if name == "add" and args and type(args[0]) in (Tensor, Opaque):
            return self.tensor_binary("+", owner, args[0], span, False)
        if name in QUOTIENTS and args:
            return self.tensor_binary(QUOTIENTS[name], owner, args[0], span, False)
        if not owner.graph and self.grad_enabled and any(type(one) is Param or self.carries_graph(one) for one in args):
            # Data times a parameter: `x.mm(w)`.
            owner = Tensor(NOBODY, True, size=owner.size, batch=owner.batch)
        if not owner.graph or name in NO_GRADIENT:
            return Tensor(batch=owner.batch, size=owner.size)
        if name in WITH_INDICES and (args or "dim" in keywords):
            return (Tensor(owner.owners, True, batch=owner.batch), Tensor(batch=owner.batch))
        extra = self.graph_owners(args)
        return Tensor(
            owner.owners | extra, True, size=owner.size, batch=owner.batch | self.batch_of(args),
            reduction="none" if owner.reduction == "none" else "", name="exp" if name == "exp" else "",
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
            return number is not None and number == 0
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
            value.doubtful,
        )

    def chunks(self, value: Value, name: str, args: list[Value], span: Span, dim: Value = None) -> Value:
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
        rest = size - (count - 1) * math.ceil(part) if size is not None and part is not None else None
        if part is not None and axis == 0:
            part = Num(part, roots_of(amount), span) if roots_of(amount) else part
        made: list[Value] = []
        for i in range(count):
            batch = self.batch_of(value)
            if axis == 0:
                self.batches += 1
                self.run.cuts.add(self.batches)
                self.note_part(self.batches, value, i, i + 1, count)
                batch = batch | {self.batches}
            if type(value) is Tensor:
                each = part if i + 1 < count or rest is None else rest
                made.append(Tensor(value.owners, value.graph, batch=batch, size=each))
            else:
                one = self.opaque(
                    f"{value.key}.{name}", value.name, owners=value.owners, graph=value.graph, batch=batch
                )
                if part is not None:
                    one.attrs["<size>"] = (part, size_span)
                made.append(one)
        return made
