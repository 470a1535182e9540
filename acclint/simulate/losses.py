"""Losses as weighted sums of loss terms: what makes one, arithmetic on them, and where they are kept."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from acclint import program as p
from acclint.knowledge import names
from acclint.program import NOWHERE, Span
from acclint.simulate.core import Frame
from acclint.simulate.ownership import Ownership
from acclint.simulate.values import NOBODY, Maybe, Num, Opaque, Owners, Tensor, Term, Value, numeric, roots_of


class Losses(Ownership):
    """The values of losses and what happens to them before and after backward."""

    def promote_loss(self, value: Value) -> bool:
        """Whether an unknown value is a loss by its name; from then on it carries a graph."""
        if type(value) is not Opaque or value.batch or value.hint == "number" or not self.grad_enabled:
            return False
        if value.graph:
            return True
        if not names.is_loss_name(value.name) or value.owner is not None or value.key in self.numbers:
            return False
        value.owners = self.unseen_owners(value.name)
        value.graph = True
        return True

    def is_loss_like(self, value: Opaque) -> bool:
        """Whether an unknown result with a graph is said to be a loss: by the name of what made it."""
        return value.hint in ("output", "criterion") or "<loss>" in value.attrs

    def has_terms(self, value: Value) -> bool:
        if type(value) is Tensor:
            return value.terms is not None
        return "<loss>" in value.attrs

    def new_term(
        self, owners: Owners, reduction: str, why: str, span: Span, data: frozenset[int] = frozenset()
    ) -> Term:
        term = Term(len(self.run.terms), span, (*self.path, span), owners, reduction, why, self.turns_now())
        term.fetch = self.batches
        term.data = data
        self.run.terms.append(term)
        return term

    def loss(
        self,
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
        return Tensor(owners, True, {self.new_term(owners, reduction, why, span, batch): 1}, batch=batch)

    def as_loss(self, value: Value, span: Span = NOWHERE) -> Tensor:
        """`value` as a weighted sum of loss terms."""
        if type(value) is Tensor:
            if value.terms is None:
                reduction = value.reduction if value.reduction in ("mean", "sum") else "unknown"
                term = self.new_term(value.owners, reduction, value.name, span, value.batch) if value.graph else None
                value.terms = {term: value.factor} if term is not None else {}
            return value
        kept = value.attrs.get("<loss>") if type(value) is Opaque else None
        if type(kept) is Tensor:
            return kept
        if type(value) is Opaque:
            owners = value.owners or frozenset((self.owner_of(value),))
            # A function that is given the model and not its output may return a plain number.
            named = value.hint not in ("", "forward") and (value.hint != "criterion" or "<scored>" in value.attrs)
            why = value.hint if named else value.name
            reduction = "mean" if value.hint == "output" else self.world.reduction(value.name)
            made = Tensor(
                owners,
                True,
                {self.new_term(owners, reduction, why, span, value.batch): 1},
                name=value.name,
                batch=value.batch,
                sure="<unsure>" not in value.attrs,
            )
            value.attrs["<loss>"] = made
            return made
        return Tensor(NOBODY, False, {})

    def scaled(
        self, value: Tensor, factor: Any, divisor: tuple[Any, bool, Span] | None = None, sure: bool = True
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
            doubtful=value.doubtful,
        )

    def tensor_binary(self, op: str, left: Value, right: Value, span: Span, augmented: bool) -> Value:
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
            if op in ("*", "/") and numeric(left if op == "*" and numeric(right) is None else right) is not None:
                data, number = (left, right) if numeric(right) is not None else (right, left)
                made = Tensor(batch=batch, size=getattr(data, "size", None))
                if op == "/" and type(left) is Tensor:
                    made.divisors = ((numeric(right), self.is_k(right), span),)
                made.times = data, op, number
                return made
            return Tensor(batch=batch, size=getattr(left if type(left) is Tensor else right, "size", None))
        if lgraph and rgraph:
            owners = left.owners | right.owners
            has_terms = any(
                self.has_terms(one) or (type(one) is Opaque and self.is_loss_like(one)) for one in (left, right)
            )
            if op in ("+", "-") and has_terms:
                a, b = self.as_loss(left, span), self.as_loss(right, span)
                terms = dict(a.terms or {})
                for term, weight in (b.terms or {}).items():
                    terms[term] = terms.get(term, 0) + (weight if op == "+" else -weight)
                doubtful = self._without_shares(doubts(a) | doubts(b))
                return Tensor(
                    owners,
                    True,
                    terms,
                    batch=batch,
                    sure=not (terms and doubtful.issuperset(terms)),
                    doubtful=doubtful,
                    divisors=a.divisors + b.divisors,
                    name=a.name,
                )
            weighted = self.under_learned_weight(op, left, right)
            if weighted is not None:
                weighted.owners, weighted.batch = owners, batch
                return weighted
            return Tensor(
                owners, True, reduction="none" if "none" in (self._red(left), self._red(right)) else "", batch=batch
            )
        value, other = (left, right) if lgraph else (right, left)
        if op in ("+", "-"):
            if type(value) is Opaque:
                return value if not augmented else self.as_loss(value, span)
            if op == "+" or lgraph:
                return value
            if value.terms is None and value.reduction == "":
                return Tensor(value.owners, True, batch=batch, sure=value.sure)  # no loss yet: `(1 - score).mean()`
            return self.scaled(self.as_loss(value, span), -1)
        per_sample = self._red(value) == "none"
        if op == "/" and lgraph:
            return self.divided(value, other, span, per_sample)
        if op == "*":
            return self.multiplied(value, other, span, per_sample)
        return Tensor(value.owners, True, batch=batch, reduction="none" if per_sample else "")

    def _without_shares(self, doubtful: frozenset[Term]) -> frozenset[Term]:
        """The terms whose weights are not known, but for `a * lam + b * (1 - lam)`: together they are a mean."""
        keys = {self.shares.get(term, "") for term in doubtful}
        rests = {rest[1] for rest in map(_REST.match, keys) if rest is not None}
        shared = rests & keys
        return frozenset(
            term
            for term in doubtful
            if self.shares.get(term) not in shared
            and ((rest := _REST.match(self.shares.get(term, ""))) is None or rest[1] not in shared)
        )

    def under_learned_weight(self, op: str, left: Value, right: Value) -> Tensor | None:
        """The loss in `loss / torch.exp(log_variance)`, `loss * torch.exp(-s)`: a mean stays one."""
        pairs = ((left, right), (right, left)) if op == "*" else ((left, right),) if op == "/" else ()
        for loss, weight in pairs:
            learned = type(weight) is Tensor and weight.name == "exp" and weight.terms is None and not weight.batch
            if learned and type(loss) is Tensor and loss.terms and all(one.reduction == "mean" for one in loss.terms):
                return self.scaled(loss, 1)
        return None

    @staticmethod
    def _red(value: Value) -> str:
        return value.reduction if type(value) is Tensor else ""

    def divided(self, value: Value, other: Value, span: Span, per_sample: bool) -> Value:
        """A loss divided by something: by a number, by a count of its own data (a mean), by something unknown."""
        times = other.times if type(other) is Tensor else other.attrs.get("<times>") if type(other) is Opaque else None
        if times is not None and not per_sample:
            # `sum / (k * count)`: by the count, and by the number.
            count, op, number = times
            made = self.divided(value, count, span, per_sample)
            return self.tensor_binary("/" if op == "*" else "*", made, number, span, False)
        if per_sample:
            return self.divided_each(value, other, span)
        mean = self._mean_of_turns(value, span)
        if mean is not None:
            return mean
        if type(value) is Tensor and self._by_element(value, other):
            return Tensor(value.owners, True, batch=value.batch | self.batch_of(other), sure=False)
        sized = type(other) is Num and "batch" in {self.role_of_root(root) for root in roots_of(other)}
        # `batch_size // micro_batch_size` is no number of samples.
        if self.is_data(other) or (sized and span not in self.world.k_divisions):
            loss = self.as_loss(value, span)
            parts = loss.batch & self.run.cuts  # The size of a whole batch is no count of a part of it.
            if type(other) is Num:
                own = self._counts(other, parts)
            else:
                own = not loss.batch or (other.batch <= loss.batch and (not parts or bool(other.batch & parts)))
            if own and loss.terms and all(term.reduction == "sum" for term in loss.terms):
                steps = self.steps_in(other) if type(other) is Num else 1
                if type(other) is Num:
                    steps *= self._batches_in(other)
                means: dict[Term, Any] = {}
                for term, weight in loss.terms.items():
                    made = self.new_term(loss.owners, "mean", "sum / count", span, loss.batch)
                    made.origins = (term,)
                    means[made] = weight * Fraction(1, steps)
                return Tensor(
                    loss.owners,
                    True,
                    means,
                    batch=loss.batch,
                    divisors=loss.divisors if steps == 1 else (*loss.divisors, (steps, True, span)),
                )
            if type(other) is Num:
                # Sizes that come out as equal only by the numbers of this run divide by nobody knows what.
                factor = Fraction(1, int(other.v)) if other.v else 1
                return self.scaled(loss, factor, (other.v, False, span), sure=other.v != 1)
            return self.scaled(loss, 1, (0, False, span), sure=False)
        number = self.as_number(other)
        if number is None:
            return self.scaled(self.as_loss(value, span), 1, (0, False, span), sure=False)
        amount = numeric(number)
        named = self.is_k(number) or span in self.world.k_divisions
        if not amount:
            return self.scaled(self.as_loss(value, span), 1, (0, False, span), sure=False)
        loss = self.as_loss(value, span)
        factor = Fraction(1, amount) if isinstance(amount, (int, Fraction)) else 1 / amount
        known = not roots_of(number) or all(self.role_of_root(root) for root in roots_of(number)) or named
        return self.scaled(loss, factor, (amount, named, span), sure=known)

    def _mean_of_turns(self, value: Value, span: Span) -> Tensor | None:
        """What a loop has added up, divided by the length of what it went through: one loss, the mean of its turns.

        `for p in heads: loss += crit(p, y)`, and then `loss / len(heads)`: the run may make fewer turns than there are
        heads.
        """
        divisor = _LENGTH.search(self.world.texts.get(span, ""))
        if divisor is None or type(value) is not Tensor or not value.terms:
            return None
        within = [term.loops[len(self.loops)] for term in value.terms if len(term.loops) > len(self.loops)]
        loops = {loop.entry: loop for loop, _ in within if divisor[1] in loop.over}
        if len(within) < len(value.terms) or len(loops) != 1:
            return None
        turns = next(iter(loops.values())).turns
        mean = {term: weight * Fraction(1, turns) for term, weight in value.terms.items()}
        made = self.scaled(value, 1, (turns, False, span))
        first = next(iter(mean))
        if len({(term.site, term.reduction, term.data) for term in mean}) == 1:  # parts of one batch
            whole = self.new_term(made.owners, first.reduction, first.why, span, made.batch)
            whole.origins = tuple(mean)
            made.terms, made.doubtful = {whole: sum(mean.values())}, frozenset((whole,) if made.doubtful else ())
        else:
            made.terms = mean
        return made

    def _counts(self, size: Num, parts: frozenset[int]) -> bool:
        """Whether a number may be that of the samples of a loss; of a part of a batch, it is not that of the whole."""
        known = [one for one in (self.run.parts.get(number) for number in parts) if one is not None]
        widths = {
            one.upper - one.lower
            for one in known
            if one.upper is not None and not isinstance(one.upper, str) and not isinstance(one.lower, str)
        }
        return size.v in widths if widths else True

    def _batches_in(self, samples: Num) -> int:
        """How many micro-batches the samples were counted over: `total += len(x)`, a few times."""
        units = {self.numbers["shape"].v} if samples.roots == {"shape"} else self.run.batch_sizes
        if samples.roots not in ({"shape"}, {"<size>"}) or len(units) != 1 or isinstance(samples.v, float):
            return 1
        (unit,) = units
        return int(samples.v // unit) if unit and samples.v % unit == 0 else 1

    def steps_in(self, size: Num) -> int:
        """The accumulation steps in a product with a batch size (`k * batch_size`), 1 if there are none."""
        numbers = {root: self.numbers[root].v for root in size.roots if root in self.numbers}
        if len(numbers) < len(size.roots) or not all(isinstance(one, int) and one > 0 for one in numbers.values()):
            return 1  # Some of it was read off the data.
        named = [one for root, one in numbers.items() if self.role_of_root(root) == "k"]
        whole = math.prod(numbers.values())
        if not isinstance(size.v, int) or not isinstance(whole, int) or size.v % whole:
            return 1
        literal = size.v // whole
        return math.prod(named) * (literal if literal in self.world.literal_ks else 1)  # type: ignore[return-value]

    def divided_each(self, value: Tensor, other: Value, span: Span) -> Tensor:
        """The losses of single samples divided by a number, which divides their mean or sum, too."""
        number = None if self.is_data(other) else self.as_number(other)
        amount = numeric(number) if number is not None else None
        if not amount:
            return value
        named = self.is_k(number) or span in self.world.k_divisions
        made = Tensor(value.owners, value.graph, None, value.size, "none", value.name, value.batch, value.sure)
        made.factor = value.factor * (Fraction(1, amount) if isinstance(amount, (int, Fraction)) else 1 / amount)
        made.divisors = (*value.divisors, (amount, named, span))
        return made

    def _by_element(self, value: Value, other: Value) -> bool:
        """Whether data multiplies or divides what is no loss yet, element by element."""
        whole = type(value) is Tensor and (value.terms is not None or value.reduction != "")
        return not whole and self.is_data(other) and getattr(other, "name", "") != "size"

    def multiplied(self, value: Value, other: Value, span: Span, per_sample: bool) -> Value:
        batch = value.batch | self.batch_of(other)
        if per_sample:
            made = Tensor(value.owners, value.graph, None, value.size, "none", value.name, batch)
            made.factor, made.divisors = value.factor, value.divisors
            number = None if self.is_data(other) else self.as_number(other)
            amount = numeric(number) if number is not None else None
            roles = {self.role_of_root(root) for root in roots_of(number)}
            if amount and (not roles or roles & {"k", "over k"}):
                made.factor *= amount
                if -1 < amount < 1 and roles:
                    made.divisors = (*made.divisors, (1 / amount, True, span))
            return made
        if self._by_element(value, other):
            # As a mask does: what is summed up later is known then.
            return Tensor(value.owners, True, batch=batch, sure=False)
        loss = self.as_loss(value, span)
        if type(other) is Opaque and other.hint == "width":
            return self.scaled(loss, 1)  # `loss.mean() * y.size(1)`: a weight, not of the window
        if self.is_data(other) or type(other) in (Tensor, Maybe):
            self.shares.update(dict.fromkeys(loss.terms or (), self.key(other)))
            return self.scaled(loss, 1, sure=False)
        number = self.as_number(other)
        amount = numeric(number) if number is not None else None
        if amount is None:
            return self.scaled(loss, 1, sure=False)
        roles = {self.role_of_root(root) for root in roots_of(number)}
        if roles and roles <= {"", "interval"}:
            # A weight of the term (lambda): part of the loss, not of the window's arithmetic.
            return self.scaled(loss, 1)
        if "batch" in roles or "length" in roles:
            return self.scaled(loss, 1, sure=False)
        if isinstance(amount, (int, float, Fraction)) and amount and -1 < amount < 1 and roles & {"k", "over k"}:
            return self.scaled(loss, amount, (1 / amount, True, span))
        return self.scaled(loss, amount)

    def reduced(self, owner: Tensor, name: str, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        """`.mean()` and `.sum()`."""
        if owner.reduction == "stack" and owner.terms:
            count = numeric(owner.size) or 1
            return self.scaled(owner, Fraction(1, int(count)) if name == "mean" else 1)
        axis = args[0] if args else keywords.get("dim", keywords.get("axis"))
        if owner.terms is not None:
            if axis is not None or any(term.reduction != "unknown" or term.why for term in owner.terms):
                return owner
            # Arithmetic on what was no loss yet.
            terms = {
                self.new_term(term.owners, name, f".{name}()", span, owner.batch): weight
                for term, weight in owner.terms.items()
            }
            return Tensor(owner.owners, owner.graph, terms, batch=owner.batch, divisors=owner.divisors)
        if not owner.graph:
            return Tensor(batch=owner.batch)
        if axis is not None:
            if owner.reduction == "":
                return Tensor(owner.owners, True, batch=owner.batch, reduction="none")
            return owner
        term = self.new_term(owner.owners, name, f".{name}()", span, owner.batch)
        return Tensor(owner.owners, True, {term: owner.factor}, batch=owner.batch, divisors=owner.divisors)

    def fresh(self, value: Value, owners: Owners, batch: frozenset[int], span: Span, size: Value) -> Value:
        """A forward pass's result with terms of its own, owned by the module that was called."""
        if value in ([], {}, 0) and value is not False:
            value = None  # It is filled, or summed up, under conditions that the text does not decide.
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
                anew = {term: self.new_term(owners, term.reduction, term.why, span, batch) for term in value.terms}
                made.terms = {anew[term]: weight for term, weight in value.terms.items()}
                made.doubtful = frozenset(anew[term] for term in value.terms if term in value.doubtful)
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

    def watch_division(self, stmt: p.Stmt, value: Value, frame: Frame) -> None:
        """`loss = loss / k` after backward, in whatever form: a variable gets a smaller share of what it held."""
        target = stmt.target if isinstance(stmt, p.Augment) else None
        if isinstance(stmt, p.Assign) and len(stmt.targets) == 1:
            target = stmt.targets[0]
        if type(value) is not Tensor or not value.divisors or not value.terms or target is None:
            return
        if not all(term.sent for term in value.terms):
            return
        held = self.held(target, frame)
        if type(held) is Opaque:
            held = held.attrs.get("<loss>")
        smaller = type(held) is Tensor and held.terms is not None and held.terms.keys() == value.terms.keys()
        if (smaller and len(value.divisors) > len(held.divisors)) or self._sent_in(stmt.span, value):
            self.event("late division", stmt.span, divisor=value.divisors[-1], terms=tuple(value.terms))

    def _sent_in(self, span: Span, value: Tensor) -> bool:
        """Whether a value was divided in a statement, after backward had run in a function that it called."""
        last = self.run.backwards[-1] if self.run.backwards else None
        if last is None or not value.divisors[-1][2].within(span):
            return False
        inside = any(call.within(span) for call in last.event.path)
        return inside and any(term in (value.terms or ()) for term, _ in last.terms)

    def held(self, target: p.Expr, frame: Frame) -> Value:
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

    def changed(self, owner: Tensor, result: Value, span: Span) -> Value:
        """A tensor changed in place: every name of it sees the result."""
        if type(result) is not Tensor or result is owner:
            return owner
        for part in ("owners", "graph", "terms", "reduction", "sure", "divisors", "batch"):
            setattr(owner, part, getattr(result, part))
        self.watch_growth(span, owner.name if owner.name[:1] != "<" else "", owner)
        return owner

    def watch_growth(self, span: Span, target: str, value: Tensor) -> None:
        """A tensor with a graph that holds loss terms of several iterations."""
        if not value.graph or not value.terms or len(value.terms) < 2:
            return
        size = _most_turns(value.terms)
        if size > 1:
            evaluating = all(self.in_evaluation(term.owners) for term in value.terms)
            self.event("keep", span, target=target, terms=tuple(value.terms), size=size, evaluating=evaluating)

    def watch_joined(self, span: Span, parts: list[Value], whole: Value) -> None:
        """`preds = torch.cat((preds, out))`, again and again: what a list of the outputs would keep."""
        if len(parts) < 2:
            return
        _, kept = self.joins.get(id(parts[0]), (parts[0], [parts[0]]))
        self.joins[id(whole)] = (whole, kept)
        for one in parts[1:]:
            kept.append(one)
            self.watch_kept(span, one, kept, self.storing)

    def watch_kept(
        self,
        span: Span,
        value: Value,
        holder: list[Value],
        target: str = "",
        *,
        plain: bool = True,
        kept_in: dict[Any, Value] | None = None,
    ) -> None:
        """A tensor with a graph is put into a container: a list, or the dict `kept_in` with these values."""
        new = [one for one in leaves(value) if type(one) in (Tensor, Opaque) and one.graph]
        for one in new:
            if type(one) is Opaque and self.is_loss_like(one):
                self.as_loss(one, span)
            elif plain and one.batch and (type(one) is Tensor or one.hint == "forward") and not self.has_terms(one):
                kept_term = Term(-1, span, (*self.path, span), one.owners, "output", "", self.turns_now())
                self.outputs[id(one)] = (one, kept_term)
        if not new:
            return
        container = holder if kept_in is None else kept_in
        holds = self.first_of(container) if isinstance(container, list) else id(container)
        self.run.holders[id(container)] = container
        kept: list[Term] = []
        outputs: list[tuple[Value, Term]] = []
        for one in holder[-64:]:
            for inner in leaves(one):
                if type(inner) is Tensor and inner.graph and inner.terms:
                    kept += list(inner.terms)
                elif type(inner) is Opaque and inner.graph and type(inner.attrs.get("<loss>")) is Tensor:
                    kept += list(inner.attrs["<loss>"].terms or ())
                elif id(inner) in self.outputs:
                    outputs.append(self.outputs[id(inner)])
        size = _most_turns(kept)
        if size > 1:
            evaluating = all(self.in_evaluation(term.owners) for term in kept)
            self.event(
                "keep",
                span,
                holder=holds,
                target=target,
                terms=tuple(kept),
                size=size,
                evaluating=evaluating,
            )
        same = [(one, term) for one, term in outputs if term.span == span]
        if len(same) > 1:
            self.event(
                "keep output",
                span,
                target=target,
                holder=holds,
                terms=tuple(term for _, term in same),
                batches=tuple(one.batch for one, _ in same),
                evaluating=all(self.in_evaluation(one.owners) for one, _ in same),
                known=all(type(one) is Tensor for one, _ in same),
            )


_REST = re.compile(r"\(1(?:\.0)? - (.*)\)$")
_LENGTH = re.compile(r"/=? len\(([^()]+)\)\)?$")


def _most_turns(terms: Iterable[Term]) -> int:
    """In how many turns of its loops the place that made most of some terms made them."""
    turns: dict[tuple[Span, ...], set[Any]] = {}
    for term in terms:
        turns.setdefault(term.site, set()).add(term.loops)
    return max(map(len, turns.values()), default=0)


def leaves(value: Value, depth: int = 0) -> list[Value]:
    """What a record (a pair, a small dict) holds."""
    if isinstance(value, (list, tuple)) and depth < 2:
        return [inner for one in value[:16] for inner in leaves(one, depth + 1)]
    if isinstance(value, dict) and depth < 2:
        return [inner for one in list(value.values())[:16] for inner in leaves(one, depth + 1)]
    return [value]


def doubts(loss: Tensor) -> frozenset[Term]:
    """The terms of a loss whose weights are not known."""
    return loss.doubtful if loss.sure else frozenset(loss.terms or ())
