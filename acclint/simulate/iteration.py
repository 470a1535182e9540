"""What loops go through, and how many turns are worth running."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from acclint import program as p
from acclint.knowledge import names
from acclint.program import NOWHERE, Span, file_of
from acclint.simulate import values as v
from acclint.simulate.gradients import Gradients
from acclint.simulate.scan import bodies, text, within
from acclint.simulate.trace import Loop
from acclint.simulate.values import (
    NO_ROOTS,
    Closure,
    Imported,
    Instance,
    Loader,
    Module,
    Num,
    Opaque,
    Param,
    ParamSet,
    PyRaise,
    Range,
    Stream,
    Tensor,
    Value,
    numeric,
    roots_of,
)

QUIET_TURNS = 2
_FILLS = frozenset({"append", "extend", "add", "appendleft", "put"})
EVALUATED = 3  # micro-batches of a pass over data that does not train
LIST_TURNS = 64
_MANY = 1 << 60  # Python counts no longer ranges


class Iteration(Gradients):
    """Iterators over known and unknown values."""

    def iterate(self, value: Value, loop: Loop, stmt: p.For) -> Iterator[Value]:
        """The items of one entry into a `for` loop, as many as are worth running."""
        level, wanted = loop.level, self.wanted_turns(loop.level)
        if type(value) is Imported:
            value = self.opaque(value.path, value.path.rpartition(".")[2])
        if type(value) is Range:
            counts = any(isinstance(one, p.Augment) and isinstance(one.value, p.Const) for one in stmt.body)
            batching = level == "quiet" and "append" in self.scanner.scan(stmt.body).attrs
            return self.iterate_range(value, loop, wanted, LIST_TURNS if counts else self.many_turns(), batching)
        if isinstance(value, (list, tuple, dict, set)):
            loop.kind = "list"
            items = self.keys_of(value) if isinstance(value, dict) else list(value)
            # Else made of data of unknown length.
            loop.known_length = len(items) != self.world.turns(self.assignment) and id(value) not in self.grown
            feeds = any(type(item) is Opaque and item.batch for item in items[:1])
            loop.fetched = feeds
            if level == "outer" and len(items) > 4 and not feeds:
                items = items[:4]
            return self._last_marked(items[:LIST_TURNS], feeds)
        if type(value) is Loader:
            loop.kind = "loader"
            loop.fetched = True
            loop.named = True
            loop.known_length = bool(numeric(value.length)) and not roots_of(value.length)
            batches = self.batches_of(value)
            return batches if level != "quiet" or self._fills(stmt) else self._limited(batches, EVALUATED, loop)
        if type(value) is Stream:
            loop.kind = "loader" if value.feeds else "other"
            loop.fetched = value.feeds
            loop.known_length = value.length is not None and not roots_of(value.length)
            limit = wanted if level == "outer" else (QUIET_TURNS if level == "quiet" and not value.feeds else 70)
            if value.endless:
                limit = 3 * max([self.assignment.k, *self.world.literal_ks]) + 2 if level != "outer" else wanted
            return self._limited(value.pull, limit, loop, endless=value.endless)
        if self.is_group(value):
            loop.kind, loop.known_length = "list", True
            return iter([value])
        if type(value) is ParamSet or type(value) is Param:
            loop.kind = "list"
            return iter(self.parameters_of(value))
        if type(value) in (v.Module, Instance):
            return self.iterate_object(value, loop, wanted)
        if isinstance(value, str):
            return iter([value[:1]])
        if type(value) is Tensor:
            loop.kind = "list"
            count = numeric(value.size)
            total = int(count) if count is not None and 0 < count <= 32 else wanted
            return self.rows(value, total)
        if type(value) is Opaque:
            return self.iterate_unknown(value, loop, wanted, stmt)
        return iter([self.opaque(f"item:{loop.span.row}", "<item>") for _ in range(min(wanted, QUIET_TURNS))])

    def not_empty(self, items: Iterator[Value], loop: Loop, own: bool) -> Iterator[Value]:
        """The items of a loop that trains. Where there are none, it was the abstract run that did not see them.

        Unless the loop had some before: an iterator may be used up. `own`: an iterator of the project makes them.
        """
        before = self.run.loops.get(loop.span)
        count, last = 0, None
        for last in items:
            count += 1
            yield last
        if count == 0 and (before is None or not before.turns):
            loop.known_length = False
            yield from self.batches_of(Loader(f"batches@{loop.span.row}", self.wanted_turns(loop.level)))
        elif 0 < count <= QUIET_TURNS and own and loop.level == "micro" and self.is_plain_data(last):
            # An iterator of the project over data of unknown length, of which the run has made a few for all.
            loop.known_length = False
            for _ in range(count, self.wanted_turns(loop.level)):
                last = self.more_of(last)
                yield last

    def is_plain_data(self, value: Value) -> bool:
        """Whether a value is data, or several, perhaps numbered: nothing that may be the last, or of so many."""
        if isinstance(value, tuple) and len(value) == 2 and type(value[0]) is int:
            return self.is_plain_data(value[1])
        if isinstance(value, (tuple, list, dict)):
            parts = list(value.values() if isinstance(value, dict) else value)
            return bool(parts) and all(map(self.is_plain_data, parts))
        return type(value) in (Opaque, Tensor) and not value.graph

    def more_of(self, value: Value) -> Value:
        """Data like `value`, of the next micro-batch."""
        self.batches += 1
        fresh = frozenset((self.batches,))

        def like(one: Value) -> Value:
            if isinstance(one, (tuple, list)):
                return type(one)(map(like, one))
            if isinstance(one, dict):
                return {key: like(item) for key, item in one.items()}
            if type(one) is int:
                return one + 1
            if type(one) is Opaque:
                return self.opaque(one.key, one.name, batch=fresh)
            return Tensor(batch=fresh, size=one.size)

        return like(value)

    @staticmethod
    def _fills(stmt: p.For) -> bool:
        """Whether a loop that does not train keeps what it goes through for later, or counts its turns."""
        kept = {text(one) for one in getattr(stmt.target, "items", (stmt.target,))}
        todo = list(reversed(stmt.body))
        while todo:
            inner = todo.pop()
            todo += [one for body in reversed(bodies(inner)) for one in reversed(body)]
            if isinstance(inner, p.Augment) and isinstance(inner.value, p.Const):
                return True
            stored: p.Expr | None = None
            if isinstance(inner, p.Do) and isinstance(inner.value, p.Call) and inner.value.args:
                known = text(inner.value.func).rpartition(".")[2] in _FILLS
                stored = inner.value.args[-1] if known else None
            elif isinstance(inner, p.Augment) or (isinstance(inner, p.Assign) and isinstance(inner.value, p.Binary)):
                stored = inner.value if any(isinstance(one, p.Sequence) for one in within(inner.value)) else None
            elif isinstance(inner, p.Assign):
                if isinstance(inner.targets[0], p.Index):
                    stored = inner.value
                elif text(inner.value) in kept:
                    kept |= {text(one) for one in getattr(inner.targets[0], "items", inner.targets)}
            if stored is not None and not kept.isdisjoint(map(text, within(stored))):
                return True
        return False

    def batches_of(self, loader: Loader) -> Iterator[Value]:
        """The micro-batches of one pass over a loader."""
        length = numeric(loader.length)
        count = int(length) if length else self.world.turns(self.assignment)  # None or 0: not known
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

    def iterate_object(self, value: Value, loop: Loop, wanted: int) -> Iterator[Value]:
        if type(value) is Module:
            return iter(value.items or [Module(value.path, self.part_of(value.owner, value.name))])
        maker = self.member(value.cls, "__iter__")
        if type(maker) is Closure:
            result = self.invoke(maker.bind(value), [], {}, loop.span)
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

    def stream(self, value: Value, span: Span) -> Stream:
        """An iterator over a value."""
        if type(value) is Imported:
            value = self.opaque(value.path, value.path.rpartition(".")[2])
        kind = type(value)
        if kind is Stream:
            return value  # type: ignore[no-any-return]
        if kind is Loader:
            return Stream(self.batches_of(value), value.length, True, value)
        if isinstance(value, (list, tuple, dict, set, str)):
            items = self.keys_of(value) if isinstance(value, dict) else list(value)
            feeds = bool(items) and bool(self.batch_of(items[0]))
            return Stream(iter(items), len(items), feeds)
        if kind is Range:
            items = self.listed(value)
            return Stream(iter(items), len(items))
        if kind in (ParamSet, Param):
            return Stream(iter(self.parameters_of(value)))
        if self.is_group(value):
            return Stream(iter([value]), 1)
        if kind is Opaque and not value.graph:
            if value.batch and not names.is_loader_name(value.name):
                return Stream(iter([self.item_of(value) for _ in range(self.assignment.k)]), None, False)
            value.hint = value.hint or ("loader" if names.is_loader_name(value.name) else "")
            length = self.length_of(value, "length")
            return Stream(self.batches_of(Loader(value.key, length)), length, True)
        if kind is Opaque:  # What a model has returned: its parts are scales or heads of one batch.
            return Stream(iter([self.item_of(value)]))
        if kind is Instance:
            maker = self.member(value.cls, "__iter__")
            if type(maker) is Closure:
                result = self.invoke(maker.bind(value), [], {}, span)
                if result is not value:
                    return self.stream(result, span)
            return self.stream_of_data(value.key)
        if kind is Tensor:
            size = numeric(value.size)
            count = int(size) if size is not None and 0 < size <= 64 else 2
            return Stream(self.rows(value, count), count)
        if kind is Module:
            return Stream(iter(value.items))
        return Stream(iter([self.opaque(f"item:{span.row}", "<item>")]))

    def stream_of_data(self, key: str) -> Stream:
        """One pass over data of unknown length."""
        length = self.number(f"len({key})", "length", "length")
        return Stream(self.batches_of(Loader(key, length)), length, True)

    def pull(self, stream: Stream, rest: list[Value]) -> Value:
        try:
            return next(stream.pull)
        except StopIteration:
            if rest:
                return rest[0]
            if not stream.feeds and not numeric(stream.length):
                return self.opaque("next(<empty>)", "<item>")  # `next(one for one in things if ...)`: it will be there
            if stream.feeds and self.loops and not self.handlers:
                # A program that is run as it stands has data enough: it was the abstract run that took too little.
                self.batches += 1
                return self.opaque("next(<data>)", "batch", batch=frozenset((self.batches,)))
            raise PyRaise("StopIteration") from None

    def _limited(self, pull: Iterator[Value], limit: int, loop: Loop, endless: bool = False) -> Iterator[Value]:
        for turn, item in enumerate(pull):
            if turn >= limit:
                loop.cut = True
                return
            yield item
        loop.cut = endless

    def _last_marked(self, items: list[Value], feeds: bool) -> Iterator[Value]:
        for i, item in enumerate(items):
            if feeds:
                self.last_batch = i + 1 == len(items)
            yield item

    def iterate_unknown(self, value: Opaque, loop: Loop, wanted: int, stmt: p.For) -> Iterator[Value]:
        made = names.words(value.name)[-1:] in (("batches",), ("minibatches",))  # `data.get_batches(...)`
        loaderish = names.is_loader_name(value.name) or value.hint == "loader" or made
        if loop.level in ("micro", "window") and (loaderish or loop.level == "micro") and not value.graph:
            loop.kind = "loader" if loaderish else "other"
            loop.fetched = True
            loop.named = loaderish
            value.hint = "loader"
            wants = wanted if loop.level == "micro" or not loaderish else self.world.turns(self.assignment)
            if loop.level == "window" and loaderish:
                # A whole pass over a loader before the update.
                wants = self.world.turns(self.assignment)
            length = self.length_of(value, "length" if loop.level == "micro" or loaderish else "")
            return self.batches_of(Loader(value.key, length if wants == length.v else wants))
        loop.kind = "other"
        loop.fetched = bool(value.batch) or not value.graph
        count = wanted
        if loop.level == "quiet" and loaderish and not value.graph and (made or not value.batch):
            loop.kind, loop.named = "loader", True
            kept = EVALUATED if self.scanner.scan(stmt.body).grows else QUIET_TURNS
            count = self.world.turns(self.assignment) if self._fills(stmt) else kept
            return self.batches_of(Loader(value.key, count))
        if loop.level == "quiet":
            count = QUIET_TURNS if loaderish else 1
        return iter([self.item_of(value) for _ in range(count)])

    def item_of(self, value: Opaque) -> Opaque:
        made = self.opaque(f"item({value.key})", value.name, owners=value.owners, graph=value.graph, batch=value.batch)
        made.hint = value.hint if value.hint in ("forward", "output") else ""
        return made

    def many_turns(self) -> int:
        """The number of turns of a loop that cannot train, above which a few of them stand for all.

        In another file they are the layers of a network, mostly.
        """
        return 4 if self.stack and file_of(self.stack[-1].span) else 8

    def iterate_range(
        self, value: Range, loop: Loop, wanted: int, many: int, batching: bool = False
    ) -> Iterator[Value]:
        """The numbers of a range. `batching`: a list is filled from it, with batches where it has a stride."""
        loop.kind = "count"
        loop.count = value.stop
        start = 0 if roots_of(self.as_number(value.start)) else numeric(self.as_number(value.start))
        stop_value = self.as_number(value.stop)
        stop, step = numeric(stop_value), numeric(self.as_number(value.step))
        if start is None or stop is None or step is None or int(step) == 0:
            return iter(range(wanted))
        count = len(range(*(int(max(-_MANY, min(one, _MANY))) for one in (start, stop, step))))
        loop.total = count
        roots = roots_of(stop_value) | roots_of(value.start) | roots_of(value.step)
        strided = step != 1 or bool(roots_of(value.step))
        loop.fetched = strided
        loop.named = self.is_k(stop_value)
        loop.known_length = not roots
        if roots and loop.level != "quiet":
            role = {"micro": "length", "window": "k", "outer": "epochs"}[loop.level]
            known_roles = {self.role_of_root(root) for root in roots}
            fits = count == wanted or (loop.level == "window" and "k" in known_roles and count > 1)
            chunks = any(one.kind == "loader" and one is not loop for one in self.loops)  # of a batch: they end with it
            if strided and (loop.level == "window" or (loop.level == "micro" and chunks)):
                fits = fits or count > 1
            if loop.level == "outer":
                fits = 1 < count <= 8
            if loop.level == "micro" and "length" in known_roles and count <= 70:
                fits = True
            if (
                loop.level == "micro"
                and known_roles == {"k"}
                and type(stop_value) is Num
                and stop_value.born != NOWHERE
            ):
                fits = fits or 2 < count <= 70  # `len(loader) // k` of a loader that is known
            if not fits:
                if strided:
                    loop.bounds = roots | roots_of(self.as_number(value.step))
                    loop.end = (stop_value, int(start) + wanted * int(step))
                    return self._strided(int(start), int(step), wanted)
                single = next(iter(roots)) if len(roots) == 1 else None
                known = self.numbers.get(single) if single is not None else None
                # `range(n)`, and `range(1, n + 1)`
                counts_to = type(stop_value) is Num and (
                    stop_value.born == NOWHERE or (known is not None and stop - start == known.v)
                )
                if single is not None and counts_to:
                    if self.world.role_of(single, single.rpartition(".")[2]) in ("", "limit", "interval"):
                        self.world.learn(self.world.roles, single, role)
                elif type(stop_value) is Num and stop_value.born != NOWHERE:
                    self.world.learn(self.world.overrides, self.world.expression(stop_value.born), role)
                if loop.level == "window" and single is not None:
                    loop.count = stop_value
                    return iter(range(int(start), int(start) + min(count, 24)))
                cut = min(count, wanted) if count else wanted
                loop.cut = cut != count
                return iter(range(int(start), int(start) + cut))
            loop.bounds = roots | roots_of(self.as_number(value.step)) if strided else NO_ROOTS
            return iter(range(int(start), int(stop), int(step)))
        if loop.level == "quiet" and strided and batching and self._batches(stop_value, count):
            loop.cut = True
            return self._strided(int(start), int(step), self.world.turns(self.assignment))
        if loop.level == "quiet" and roots and count < QUIET_TURNS:
            # It only comes out (almost) empty by the numbers of this run.
            loop.cut = True
            return iter(range(int(start), int(start) + QUIET_TURNS * int(step), int(step)))
        if loop.level == "quiet":
            shown = QUIET_TURNS if count > many else count
            loop.cut = shown != count
            return iter(range(int(start), int(start) + shown * int(step), int(step)))
        if loop.level == "outer" and count > 8:
            loop.cut = True
            return iter(range(int(start), int(start) + wanted * int(step), int(step)))
        if count > 64:
            # A literal count: run fewer turns with the same remainder, and end with the true last index.
            k = max([1, *self.world.literal_ks])
            fewer = 2 * k + count % k if k > 1 else wanted
            loop.cut = True
            last = int(start) + (count - 1) * int(step)
            head = [int(start) + i * int(step) for i in range(fewer - 1)]
            return iter([*head, last])
        return iter(range(int(start), int(stop), int(step)))

    def _batches(self, stop: Value, count: int) -> bool:
        """Whether a range with a stride makes batches of data of unknown length: as many as a loader has.

        Where data is fetched around it, it is parts of that: as many as the sizes of both say.
        """
        roles = {self.role_of_root(root) for root in roots_of(stop)}
        fetched = any(loop.fetched for loop in self.loops)
        return bool(roles) and not fetched and (roles <= {"", "length"} or count < 2)

    @staticmethod
    def _strided(start: int, step: int, wanted: int) -> Iterator[Value]:
        return iter([start + i * step for i in range(wanted)])

    def listed(self, value: Value) -> list[Value]:
        """The items of a value that a comprehension or a builtin goes through."""
        if isinstance(value, (list, tuple)):
            return list(value[:LIST_TURNS])
        if isinstance(value, dict):
            return self.keys_of(value)[:LIST_TURNS]
        if type(value) is Range:
            start, stop, step = (numeric(self.as_number(one)) for one in (value.start, value.stop, value.step))
            if start is None or stop is None or not step:
                return [0, 1]
            shown = range(int(start), int(stop), int(step))
            strided = step != 1 or roots_of(self.as_number(value.step))
            if strided and self._batches(self.as_number(value.stop), len(shown)):
                return list(self._strided(int(start), int(step), self.world.turns(self.assignment)))
            return list(shown[:LIST_TURNS])
        if type(value) is Stream:
            return self.drain(value, LIST_TURNS)
        if type(value) in (ParamSet, Param):
            return self.parameters_of(value)
        if type(value) is Loader:
            return list(self.batches_of(value))[:LIST_TURNS]
        if type(value) is v.Module and value.items:
            return list(value.items)
        if self.is_group(value):
            return [value]
        if type(value) is Opaque:
            return [self.item_of(value), self.item_of(value)] if value.batch else [self.item_of(value)]
        if type(value) is Tensor:
            return [Tensor(value.owners, value.graph, batch=value.batch)]
        return [self.opaque("item", "<item>")]

    def length_of(self, value: Opaque, role: str) -> Num:
        """The number of items of something unknown."""
        key = f"len({value.key})"
        if role and key in self.numbers and not self.role_of_root(key):
            self.world.learn(self.world.roles, key, role)  # It was asked for before it was known for a loader.
        return self.number(key, "length", role)

    def keys_of(self, value: dict[Any, Value]) -> list[Value]:
        """The keys of a dict; those that are not known are unknown values."""
        return [self.opaque(one.name, "key") if type(one) is v.AnyKey else one for one in value]

    @staticmethod
    def is_group(value: Value) -> bool:
        """Whether something unknown is called `optimizers` or `schedulers`: it stands for the one that is in it."""
        plain = type(value) is Opaque and not value.batch and not value.graph
        return plain and names.is_group_name(value.name)

    def wanted_turns(self, level: str) -> int:
        if level == "micro":
            return self.world.turns(self.assignment)
        if level == "window":
            return self.assignment.k
        if level == "outer":
            return max(self.assignment.epochs, self.world.outer_turns)
        return QUIET_TURNS

    @staticmethod
    def row(value: Tensor, known: bool = True) -> Tensor:
        """One item along the first axis; `known` says that it is one whole item."""
        made = Tensor(value.owners, value.graph, batch=value.batch, reduction=value.reduction)
        if known and value.rest:
            made.size, made.rest = value.rest[0], value.rest[1:]
        return made

    def rows(self, value: Tensor, count: int) -> Iterator[Tensor]:
        """The items along the first axis, in turn: data of their own, if they are data."""
        for _ in range(count):
            made = self.row(value)
            if not value.graph:
                part = self.made_up()
                self.run.cuts |= part
                made.batch = value.batch | part
            yield made
