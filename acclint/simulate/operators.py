"""Binary operators and comparisons."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from acclint import program as p
from acclint.knowledge import names
from acclint.program import NOWHERE, Span
from acclint.simulate import values as v
from acclint.simulate.iteration import LIST_TURNS
from acclint.simulate.scan import text
from acclint.simulate.tensors import Tensors
from acclint.simulate.trace import Limit
from acclint.simulate.values import (
    BATCHES,
    NO_ROOTS,
    Maybe,
    Num,
    Number,
    Opaque,
    Param,
    ParamSet,
    Tensor,
    Value,
    numeric,
    roots_of,
)

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OVER_K = frozenset(("over k",))


class Operators(Tensors):
    """Arithmetic on numbers, and the choice of who handles other values."""

    def binary(self, op: str, left: Value, right: Value, span: Span, augmented: bool = False) -> Value:
        a, b = numeric(left), numeric(right)
        if a is not None and b is not None:
            return self.arithmetic(op, left, right, a, b, span)
        if op in ("+", "-") and (a is not None or b is not None):
            sized = left if a is None else right
            if type(sized) is Opaque and sized.name in ("size", "shape") and sized.batch and sized.hint != "width":
                # Samples are counted: as many as a micro-batch has.
                samples = self.number("shape", "size")
                left, right = (samples, right) if a is None else (left, samples)
                return self.arithmetic(op, left, right, numeric(left), numeric(right), span)
        lt, rt = type(left), type(right)
        if op in ("/", "*") and (b is not None or a is not None):
            self.promote_loss(left if b is not None else right)
        if not augmented and Param in (lt, rt) and (lt in (Tensor, Opaque) or rt in (Tensor, Opaque)):
            # A leaf parameter in a formula.
            left = self.leaf(left) if lt is Param else left
            right = self.leaf(right) if rt is Param else right
            lt, rt = type(left), type(right)
        if op in ("+", "-") and (lt is v.Grad or rt is v.Grad) and (lt is Tensor or rt is Tensor):
            return self.grad_binary(op, left, right, span)
        if lt is Tensor or rt is Tensor or (lt is Opaque and left.graph) or (rt is Opaque and right.graph):
            return self.tensor_binary(op, left, right, span, augmented)
        if lt is v.Grad or rt is v.Grad or lt is v.Delta or rt is v.Delta or lt is Param or rt is Param:
            return self.grad_binary(op, left, right, span)
        if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and op == "+":
            if not isinstance(left, list) or not isinstance(right, list):
                return list(left) + list(right) if isinstance(left, list) else tuple(left) + tuple(right)
            joined, longer = left + right, max(left, right, key=len)
            _, first = self.lists.setdefault(id(longer), (longer, id(longer)))
            self.lists[id(joined)] = (joined, first)
            return joined
        if isinstance(left, (list, tuple)) and op == "*" and b is not None:
            return (list(left) * min(int(b), LIST_TURNS))[:LIST_TURNS]
        if isinstance(left, str) or isinstance(right, str):
            return left + right if isinstance(left, str) and isinstance(right, str) and op == "+" else "<text>"
        if isinstance(left, dict) and isinstance(right, dict) and op == "|":
            return {**left, **right}
        if op == "-" and _holds_parameters(left) and _holds_parameters(right):
            return ParamSet(self.without(self.owners_of(left), self.owners_of(right)))
        if (
            lt is ParamSet
            or rt is ParamSet
            or (isinstance(left, list) and op == "+")
            or (isinstance(right, list) and op == "+")
        ):
            return ParamSet(self.owners_of(left) | self.owners_of(right))
        data = self.is_data(left) or self.is_data(right)
        if not data:
            x, y = self.as_number(left), self.as_number(right)
            if x is not None and y is not None:
                return self.arithmetic(op, x, y, numeric(x), numeric(y), span)
        if lt is Opaque or rt is Opaque:
            key = f"({self.key(left)} {op} {self.key(right)})"
            made = self.opaque(key, "<value>", batch=self.batch_of(left) or self.batch_of(right))
            made.attrs["<computed>"] = True
            if data and op in ("*", "/") and (parts := self.plain_number(left, right, op)) is not None:
                made.attrs["<times>"] = (parts[0], op, parts[1])
            return made
        return self.opaque(f"value:{span.row}:{span.column}", "<value>")

    def plain_number(self, left: Value, right: Value, op: str) -> tuple[Value, Value] | None:
        """The data and the number in a product or quotient: `5 * y.numel()`, `mask.sum() / k`."""
        for data, other in ((left, right), (right, left)) if op == "*" else ((left, right),):
            number = None if self.is_data(other) or not self.is_data(data) else self.as_number(other)
            if number is not None:
                return data, number
        return None

    def usable_window(self, length: Num) -> None:
        """A computed modulus in a loop is a window; its parts are unknown, so it may count as k."""
        roles = {self.role_of_root(root) for root in length.roots}
        if length.roots and length.born != NOWHERE and roles <= {"", "batch", "world", "limit"}:
            self.world.learn(self.world.overrides, self.world.expression(length.born), "k")

    def arithmetic(self, op: str, left: Value, right: Value, a: Any, b: Any, span: Span) -> Value:
        if op == "%" and type(right) is Num and self.loops and not 2 <= b <= 12:
            self.usable_window(right)
        if op in ("/", "//"):
            a, left = self.in_batches(left, a, right, span)
        try:
            if op == "/":
                if span in self.world.k_divisions and not roots_of(left) and not roots_of(right) and b not in (0, 1):
                    return Num(a / b if isinstance(a, float) else Fraction(a) / Fraction(b), OVER_K, span)
                result: Any = (
                    Fraction(a, b) if isinstance(a, (int, Fraction)) and isinstance(b, (int, Fraction)) else a / b
                )
            else:
                if op == "**" and (abs(a) > 1e6 or abs(b) > 64):
                    return self.opaque(f"value:{span.row}:{span.column}", "<value>")
                result = _ARITHMETIC[op](a, b)
            if isinstance(result, complex):  # the root of a negative number
                if self.deciding:
                    raise ValueError
                return math.nan  # A schedule has come to its end.
        except (ZeroDivisionError, TypeError, ValueError, OverflowError, KeyError):
            return self.opaque(f"value:{span.row}:{span.column}", "<value>")
        if op == "%":
            made = self.derived(result, span, left, right)
            b = int(b) if int(b) == b else b  # 4.0
            if type(made) is Num:
                return Num(made.v, made.roots, made.born, (b, roots_of(right), left, span))
            return Num(result, NO_ROOTS, span, (b, roots_of(right), left, span))
        if op == "*" and self.world.overrides.get(self.world.expression(span)) == "length":
            # A number of micro-batches that is a product with k is a multiple of k.
            k = next((n for n, one in ((a, left), (b, right)) if self.is_k(one) or n in self.world.literal_ks), None)
            if isinstance(k, int) and k > 1:
                return Num(3 * k, roots_of(left) | roots_of(right), span)
        made = self.derived(result, span, left, right)
        modulus = modulus_of(left) or modulus_of(right)
        if modulus is not None:
            return Num(numeric(made), roots_of(made), span, modulus)
        return made

    def in_batches(self, left: Value, a: Any, right: Value, span: Span) -> tuple[Any, Value]:
        """The dividend of a division of samples by samples per batch: as many as make a loader of unknown length."""
        known = self.numbers
        divided = span in self.world.sample_divisions
        # What is divided by samples per batch is no loader: `len(train_data) / TRAIN_BS`.
        samples = [
            root
            for root in roots_of(left)
            if root in known
            and root[:4] == "len("
            and (not self.role_of_root(root) or (divided and not names.mentions_loader(root)))
        ]
        sizes = [known[root].v for root in roots_of(right) if root in known and self.role_of_root(root) == "batch"]
        size = numeric(right) if divided else math.prod(sizes) if sizes else None
        if len(samples) != 1 or BATCHES in roots_of(left) or not size or not known[samples[0]].v:
            return a, left
        self.run.sample_divisors.add(size)
        share = Fraction(a) if isinstance(a, (int, Fraction)) else a
        whole = share / known[samples[0]].v * self.world.turns(self.assignment) * size
        return whole, Num(whole, roots_of(left) | {BATCHES}, span)

    def is_open(self, value: Opaque, expr: p.Compare) -> bool:
        """Whether it is left open that an unknown equals a literal: it is no size that anything else depends on."""
        literal = any(isinstance(side, p.Const) for side in (expr.left, *expr.rights))
        return literal and value.key not in self.numbers and not self.world.role_of(value.key, value.name)

    def compare(self, op: str, left: Value, right: Value, expr: p.Compare) -> Value:
        if op in ("is", "is not"):
            same = self.identical(left, right)
            if same is None:
                key = f"{self.key(left)} is {self.key(right)}"
                return Maybe(key, op == "is not", expr.span)
            return same if op == "is" else not same
        if op in ("in", "not in"):
            if isinstance(right, dict) and type(left) is Param:
                left = self.dict_key(left)
            if isinstance(right, (list, tuple, set, dict, str)) and isinstance(
                left, (str, int, float, bool, type(None), Param)
            ):
                try:
                    found = left in right
                except TypeError:
                    found = False
                return found if op == "in" else not found
            return Maybe(f"{self.key(left)} in {self.key(right)}", op == "not in", expr.span)
        if op not in ("==", "!="):
            # The size of some data that a range has taken for a number before.
            left, right = (self.numbers.get(one.key, one) if type(one) is Opaque else one for one in (left, right))
        if self.is_data(left) or self.is_data(right):
            batch = self.batch_of(left) | self.batch_of(right)
            return self.opaque(text(expr), "<mask>", batch=batch)
        a, b = numeric(left), numeric(right)
        if (a is None) != (b is None):
            other = left if a is None else right
            if (
                type(other) is Opaque
                and not other.graph
                and not other.batch
                and not isinstance(a if b is None else b, bool)
                and not (op in ("==", "!=") and self.is_open(other, expr))
            ):
                made = self.number(other.key, other.name)
                a, b = (made.v, b) if a is None else (a, made.v)
                left, right = (made, right) if other is left else (left, made)
        elif type(left) is Opaque and type(right) is Opaque and (op not in ("==", "!=") or self.is_same(left, right)):
            left, right = self.number(left.key, left.name), self.number(right.key, right.name)
            a, b = left.v, right.v
        if a is not None and b is not None:
            if self._counts_up_to(left, right) or self._counts_up_to(right, left):
                return Maybe(text(expr), False, expr.span)
            a, b = self.end_of_chunks(left, a), self.end_of_chunks(right, b)
            self.compared[expr.span] = (left, right)
            self.note_limit(a, b, roots_of(left), roots_of(right))
            outcome = _COMPARE[op](a, b)
            modulus = modulus_of(left) or modulus_of(right)
            roots = roots_of(left) | roots_of(right)
            if modulus is not None:
                return Num(outcome, roots, expr.span, modulus)
            if self.is_k(left) != self.is_k(right):
                # A counter against k.
                k, said, counter = (left, expr.left, right) if self.is_k(left) else (right, expr.rights[-1], left)
                less = isinstance(said, p.Binary) and said.op == "-" and text(said.right) == "1"
                period = numeric(k) + 1 if less else numeric(k)  # A counter from 0 is compared with k - 1.
                where = said.left.span if less and isinstance(said, p.Binary) else said.span
                if isinstance(expr.left, p.Const) or isinstance(expr.rights[-1], p.Const):
                    period = self.whole(k)  # Of a counter that runs down from k to 0, it is where it began.
                return Num(outcome, roots, expr.span, (period, roots_of(k), counter, where))
            return Num(outcome, roots, expr.span) if roots else outcome
        if isinstance(left, (str, bool, type(None), tuple, list)) and isinstance(
            right, (str, bool, type(None), tuple, list)
        ):
            if "<text>" in (left, right):
                return Maybe(f"{text(expr)}", False, expr.span)
            return (left == right) if op == "==" else (left != right) if op == "!=" else Maybe(text(expr))
        negated = op == "!="
        return Maybe(f"{self.key(left)} {'==' if negated else op} {self.key(right)}", negated, expr.span)

    def _counts_up_to(self, samples: Value, limit: Value) -> bool:
        """Whether counted samples are compared with a number of which nobody knows how many micro-batches it is."""
        if "shape" not in roots_of(samples) or not roots_of(limit) or "shape" in roots_of(limit):
            return False
        return not {"k", "batch"} <= {self.role_of_root(root) for root in roots_of(limit)}

    @staticmethod
    def is_same(one: Opaque, other: Opaque) -> bool:
        """Whether two values are one number of the program: a counter that starts from `self.k`, and `self.k`."""
        return one.key == other.key and not (one.graph or one.owners or one.batch or one.hint)

    def whole(self, value: Value) -> Number | None:
        """The accumulation steps that a number was computed from."""
        known = [self.numbers[root].v for root in roots_of(value) if root in self.numbers and self.is_k_root(root)]
        return known[0] if len(known) == 1 else numeric(value)

    def end_of_chunks(self, value: Value, number: Number) -> Number:
        """The number that is compared: of a size that a loop goes through in chunks, where this run ends."""
        for loop in self.loops:
            if loop.end is not None and number == numeric(loop.end[0]) and roots_of(value) == roots_of(loop.end[0]):
                return loop.end[1]
        return number

    def note_limit(self, a: Number, b: Number, roots: frozenset[str], other: frozenset[str]) -> None:
        """Note a counter that is compared with the number at which it ends, such as the number of updates."""
        if a != b and self.loops and not isinstance(a, bool) and not isinstance(b, bool):
            counter, limit, named = (a, b, other) if a < b else (b, a, roots)
            self.run.limits.append(Limit(limit, named, counter, len(self.run.events)))

    def identical(self, left: Value, right: Value) -> bool | None:
        """Whether two values are the same object, None if unknown."""
        left, right = v.switch(left), v.switch(right)
        for one, other in ((left, right), (right, left)):
            if other is None:
                if one is None:
                    return True
                if type(one) is Opaque and self.world.is_accumulation(one.name):
                    return False
                if type(one) is Opaque and (one.graph or one.batch or one.hint):
                    return False
                if type(one) is Opaque and one.owners and not names.is_loading_name(one.key.partition("(")[0]):
                    return False
                if type(one) in (Opaque, Maybe):
                    return None
                return False
        if isinstance(left, (bool, int, str)) and isinstance(right, (bool, int, str)):
            return left == right
        if type(left) is Opaque or type(right) is Opaque:
            return None
        return left is right


def _holds_parameters(value: Value) -> bool:
    """Whether a value is a set of parameters, or a list of single ones."""
    return type(value) is ParamSet or (isinstance(value, list) and any(type(one) is Param for one in value))


def modulus_of(value: Value) -> v.Remainder | None:
    return value.modulus if type(value) is Num else None
