"""Items: indexing, slices, lists and dicts."""

from __future__ import annotations

from fractions import Fraction
from itertools import takewhile
from typing import Any

from acclint import program as p
from acclint.knowledge import names
from acclint.program import NOWHERE, Span
from acclint.simulate import values as v
from acclint.simulate.core import Frame
from acclint.simulate.iteration import Iteration
from acclint.simulate.scan import text
from acclint.simulate.trace import TAKEN, Part
from acclint.simulate.values import (
    AnyKey,
    Closure,
    Imported,
    Instance,
    Module,
    Num,
    Opaque,
    Param,
    Tensor,
    Value,
    numeric,
)
from acclint.simulate.vocabulary import word_set

EVERY = "[every key]"  # what a loop over the items of something unknown has put in the place of each
_INDEXED_DATA = word_set("x y X Y data inputs targets images labels batch tokens dataset samples features")

_AXES = 4  # of a tensor whose shape is asked for, where nothing tells
MERGED = "[merged]"  # the last record that was put into something unknown: `batch.update(outputs)`


class Items(Iteration):
    """Reading and writing by index or key."""

    def item(self, value: Value, index: Value, span: Span = NOWHERE) -> Value:
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
            if isinstance(index, str) and (kept := self.under_any_key(value)) is not None:
                return kept
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
            if isinstance(index, str) and EVERY in value.attrs and not names.is_count_name(index):
                return value.attrs[EVERY]
            if isinstance(index, str) and MERGED in value.attrs and names.is_loss_name(index):
                return self.item(value.attrs[MERGED], index, span)
            plain = not value.batch and not value.graph and isinstance(index, int)
            name = index if isinstance(index, str) else "<item>" if plain else value.name
            # What a record counts has no graph, whatever else it holds: `metrics["correct"]`.
            graph = value.graph and not (isinstance(index, str) and names.is_count_name(index))
            made = self.opaque(f"{value.key}[{key}]", name, owners=value.owners, graph=graph, batch=value.batch)
            made.attrs["<parent>"] = value
            if "<size>" in value.attrs:
                made.attrs["<size>"] = value.attrs["<size>"]
            if value.graph and (index == "loss" or (index == 0 and not names.is_metric_name(value.name))):
                made.hint = "output"
            if isinstance(index, tuple) and index and index[0] == "slice" and value.batch:
                self.batches += 1
                self.run.cuts.add(self.batches)
                self.note_part(self.batches, value, self.bound(index[1], 0), self.bound(index[2], None), None)
                made.batch = value.batch | {self.batches}
            elif not value.batch and not value.graph and value.name in _INDEXED_DATA:
                made.batch = v.SOME_DATA
            value.attrs[f"[{key}]"] = made
            return made
        if kind is Tensor:
            if isinstance(index, tuple) and index and index[0] == "slice":
                lower, upper = numeric(index[1]), numeric(index[2])
                size = upper - (lower or 0) if upper is not None else None
                self.batches += 1
                self.run.cuts.add(self.batches)
                self.note_part(
                    self.batches, value, self.bound(index[1], 0), self.bound(index[2], None), numeric(value.size)
                )
                batch = value.batch | {self.batches}
                return Tensor(value.owners, value.graph, size=size, batch=batch, reduction=value.reduction)
            if value.reduction == "stack" or value.terms is not None:
                return value
            if type(index) is Tensor and index.batch and not value.graph:
                # Rows by their numbers: `x[order[i : i + n]]` are the data of that part of the order.
                return Tensor(value.owners, size=index.size, batch=value.batch | index.batch)
            row = self.row(value, known=at is not None)
            if isinstance(at, int) and value.batch and not value.graph:
                row.batch = value.batch | self.taken_row(value, at)
            return row
        if kind is Module:
            if at is not None and value.items:
                return value.items[int(at) % len(value.items)]
            if isinstance(index, str) and index in value.attrs:
                return value.attrs[index]
            return Module(value.path, self.part_of(value.owner, value.name))
        if kind is Instance:
            getter = self.member(value.cls, "__getitem__")
            if type(getter) is Closure and not value.cls.dataset:
                return self.invoke(getter.bind(value), [index], {}, span)
            return self.opaque(f"{value.key}[]", "<item>", batch=v.SOME_DATA if value.cls.dataset else frozenset())
        if kind is v.Bound and value.name == "shape":
            if isinstance(index, tuple) and index and index[0] == "slice":
                lower, upper = numeric(index[1]), numeric(index[2])
                return [self.item(value, at, span) for at in range(int(lower or 0), int(upper or _AXES))]
            size = getattr(value.owner, "size", None)
            return size if size is not None and index == 0 else self.number("shape", "size")
        if kind is v.Dataset:
            return self.opaque("dataset[]", "<item>", batch=v.SOME_DATA)
        if kind is Imported:
            return value
        if kind is Param and at is not None:
            return self.leaf(value)
        return self.opaque(f"{self.key(value)}[]", "<item>")

    def note_part(self, number: int, value: Value, lower: Any, upper: Any, whole: Any) -> None:
        """Remember that the data `number` are a part of `value`."""
        source, _ = self.sources.setdefault(id(value), (len(self.sources), value))
        if not any(isinstance(one, (int, float, Fraction)) and one < 0 for one in (lower, upper)):
            self.run.parts[number] = Part(source, lower, upper, whole)

    def bound(self, value: Value, default: Any) -> Any:
        """A bound of a slice: a number, or the key of an unknown one."""
        if value is None:
            return default
        number = numeric(value)
        return number if number is not None else self.key(value)

    def taken_row(self, value: Tensor, at: Any) -> frozenset[int]:
        """The number of one row that is taken by its index: the same one each time."""
        source, _ = self.sources.setdefault(id(value), (len(self.sources), value))
        number = self.taken.setdefault((source, at), TAKEN - len(self.taken))
        self.note_part(number, value, at, at + 1, numeric(value.size))
        return frozenset((number,))

    def dict_key(self, index: Value) -> Any:
        """What a value counts as when it is the key of a dict: the same object is the same key."""
        if isinstance(index, (str, int, float, bool, tuple)) or index is None:
            return index
        if type(index) is Num:
            return index.v
        if type(index) is Param:
            return self.parameters.setdefault(index.owner, index)
        return index if type(index) is Opaque else f"<{self.key(index)}>"

    def store_item(self, base: Value, index: Value, value: Value, span: Span, target: str) -> None:
        if isinstance(base, dict):
            key = self.dict_key(index)
            key = AnyKey(self.key(key)) if type(key) is Opaque else key
            try:
                before: Any = base.get(key)
                base[key] = value
            except TypeError:
                return
            # What is replaced one after the other is for a while from two turns, and grows no further.
            replaced = type(before) in (Tensor, Opaque) and before.graph
            self.watch_kept(span, value, [value] if replaced else list(base.values()), target, kept_in=base)
        elif isinstance(base, list):
            at = numeric(index)
            if at is not None and base and -len(base) <= at < len(base):
                base[int(at)] = value
            elif at is not None and len(base) < 64:
                base.append(value)
            self.watch_kept(span, value, base, target)
        elif type(base) is Tensor:
            self.write_item(base, value, span, target)
        elif type(base) is v.Grad and base.shared:
            self.write_gradient(base, index, value, span)
        elif type(base) in (Opaque, Instance):
            each = type(index) is Opaque and index.key.startswith((f"item({base.key})", f"item({base.key}."))
            if each and type(base) is Opaque:  # `for name in losses: losses[name] = losses[name] / k`
                for key in [one for one in base.attrs if one[:2] in ("['", '["')]:
                    del base.attrs[key]
                base.attrs[EVERY] = value
            base.attrs[f"[{self.key(index)}]"] = value

    def merge(self, record: Opaque, other: Value) -> None:
        """`record.update(other)` on something unknown: what is said to be a loss comes from the last that has one."""
        if isinstance(other, dict):
            for index, value in other.items():
                record.attrs[f"[{self.key(index)}]"] = value
        elif type(other) is Opaque:
            for key in [one for one in record.attrs if one[:2] in ("['", '["')]:
                del record.attrs[key]
            inner: Value = other
            while type(inner) is Opaque and inner is not record:
                inner = inner.attrs.get(MERGED)
            if inner is not record:
                record.attrs[MERGED] = other

    @staticmethod
    def under_any_key(value: dict[Any, Value]) -> Value:
        """The last item of a dict that was written under a key that is not known; None without one."""
        return next((value[key] for key in reversed(value) if type(key) is AnyKey), None)

    def write_item(self, base: Tensor, value: Value, span: Span, target: str) -> None:
        """Written into a tensor: the graph of what was there before stays, even where it is overwritten."""
        if type(value) is Opaque and self.is_loss_like(value):
            value = self.as_loss(value, span)
        if type(value) is Tensor and value.graph and value.terms:
            if base.terms is None and any(one > 0 for one in base.batch):
                return
            base.name = base.name or target
            self.changed(base, self.scaled(self.tensor_binary("+", base, value, span, True), 1, sure=False), span)
        elif type(value) in (Tensor, Opaque) and value.graph and self.grad_enabled and base.terms is None:
            base.owners |= self.graph_owners(value)
            base.graph = True
            base.batch |= value.batch

    def note_grown(self, owner: list[Value], item: Value, name: str) -> None:
        """A list of records is filled from something unknown: it is as long as that."""
        around = takewhile(lambda loop: loop.level == "quiet" and loop.kind != "call", reversed(self.loops))
        unknown = any(not loop.known_length for loop in around)
        record = type(item) in (Opaque, Instance, str, list, tuple) and not self.batch_of(item)
        record |= type(item) is dict  # `for row in data: rows.append({"text": row["q"]})`: whatever `data` is called
        if unknown and record and not self.graph_owners(item):
            self.grown[id(owner)] = (owner, name)
            if len(owner) == 1:
                owner.append(item)  # Several, where the abstract run makes one: the first may be skipped.

    def drop(self, owner: list[Value], index: Value) -> None:
        """`del queue[0]`, `del queue[5:]`: what is kept does not grow for ever."""
        if any(loop.kind != "call" for loop in self.loops):
            self.run.popped.add(self.first_of(owner))
        if isinstance(index, tuple) and index[:1] == ("slice",):
            lower, upper = (None if one is None else numeric(one) for one in index[1:3])
            del owner[slice(None if lower is None else int(lower), None if upper is None else int(upper))]
        elif (at := numeric(index)) is not None and -len(owner) <= at < len(owner):
            del owner[int(at)]

    def list_method(self, owner: list[Value], name: str, args: list[Value], expr: p.Call, frame: Frame) -> Value:
        span = expr.span
        if name == "append" and args:
            if len(owner) < 400:
                owner.append(args[0])
            target = text(expr.func.value) if isinstance(expr.func, p.Attr) else ""
            self.note_grown(owner, args[0], target)
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
        if name in ("pop", "popleft"):
            if any(loop.kind != "call" for loop in self.loops):
                self.run.popped.add(self.first_of(owner))
            first = name == "popleft" or (bool(args) and args[0] == 0)
            return owner.pop(0 if first else -1) if owner else self.opaque("pop", "<item>")
        if name == "insert" and len(args) == 2:
            owner.insert(0, args[1])
            return None
        if name == "copy":
            return list(owner)
        if name == "__len__":
            return len(owner)
        return self.opaque(f"list.{name}", name)

    def dict_method(
        self, owner: dict[Any, Value], name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "get" and args:
            key = self.dict_key(args[0])
            if type(key) is not Opaque and key in owner:
                return owner[key]
            if not owner or type(args[0]) is Param:
                return args[1] if len(args) > 1 else None
            if isinstance(args[0], str):
                kept = self.under_any_key(owner)
                return kept if kept is not None else args[1] if len(args) > 1 else None
            return self.opaque(f"dict.get:{span.row}", "<item>")
        if name == "setdefault" and args and isinstance(args[0], (str, int)):
            return owner.setdefault(args[0], args[1] if len(args) > 1 else None)
        if name == "items":
            return list(zip(self.keys_of(owner), owner.values(), strict=True))
        if name == "values":
            return list(owner.values())
        if name == "keys":
            return self.keys_of(owner)
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
