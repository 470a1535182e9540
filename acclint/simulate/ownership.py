"""Whose parameters a value is, holds or depends on, and which data it was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from acclint.knowledge import names
from acclint.program import Span
from acclint.simulate import values as v
from acclint.simulate.core import Core
from acclint.simulate.values import (
    NOBODY,
    Instance,
    Module,
    Opaque,
    Owner,
    Owners,
    Param,
    ParamSet,
    Stream,
    Tensor,
    Value,
)
from acclint.simulate.vocabulary import word_set

_MODEL_WORDS = word_set("model net network module backbone generator discriminator encoder decoder critic actor policy")


class Ownership(Core):
    """Parameter owners, their modes, and the data of values."""

    def owner_of(self, value: Opaque) -> Owner:
        """The parameter owner that an unknown object is, made when first asked for."""
        if value.owner is None:
            parent = value.attrs.get("<parent>")
            value.owner = Owner(value.name, self.owner_of(parent) if type(parent) is Opaque else parent)
            value.owner.empty = value.owner.unseen = True
        return value.owner

    def part_of(self, owner: Owner, name: str) -> Owner:
        """Some of an owner's parameters, by the name of what chooses them."""
        kept = self.chosen_parts.get((owner, name))
        if kept is None:
            kept = self.chosen_parts[owner, name] = Owner(name, owner)
        return kept

    def unseen_owners(self, name: str) -> Owners:
        """The parameters that a loss of unknown making depends on: the same ones each time that a place makes it."""
        place = (name, *self.path[-1:])
        return frozenset((self.unseen.setdefault(place, Owner(name)),))

    def without(self, left: Owners, right: Owners) -> Owners:
        """The parameters of some owners without those of others, which may be parts of them."""
        found = set()
        for one in left - right:
            inside = sorted(other.name for other in right if other.within(one))
            found.add(self.part_of(one, f"{one.name} without {', '.join(inside)}") if inside else one)
        return frozenset(found)

    def owners_of(self, value: Value, depth: int = 0) -> Owners:
        """The parameters that a value is, holds, or was computed from with a graph."""
        kind = type(value)
        if kind is Tensor:
            return value.owners if value.graph else NOBODY
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
        if kind is ParamSet:
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

    def graph_owners(self, value: Value, depth: int = 0) -> Owners:
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

    def live(self, owners: Owners) -> Owners:
        """The owners whose parameters ask for a gradient."""
        if not self.frozen:
            return owners
        return frozenset(one for one in owners if not any(one.within(other) for other in self.frozen))

    def set_requires_grad(self, owner: Owner, value: Value) -> None:
        """`requires_grad_` on a whole module or parameter; a part that is thawed leaves the rest in doubt, so live."""
        if v.switch(value) is False:
            self.frozen.add(owner)
        else:
            self.frozen = {one for one in self.frozen if not one.overlaps(owner)}

    def set_mode(self, owner: Owner, training: bool) -> None:
        """train() and eval() of a whole module."""
        if training:
            self.evaluating = {one for one in self.evaluating if not one.within(owner)}
            self.norms_off = {one for one in self.norms_off if not one.within(owner)}
        else:
            self.evaluating.add(owner)

    def batch_of(self, value: Value, depth: int = 0) -> frozenset[int]:
        """The micro-batches whose data a value was made from."""
        kind = type(value)
        if kind is Opaque or kind is Tensor:
            return value.batch  # type: ignore[no-any-return]
        if isinstance(value, (list, tuple)) and depth < 3:
            return frozenset().union(*(self.batch_of(one, depth + 1) for one in value[:64]))
        if isinstance(value, dict) and depth < 3:
            return frozenset().union(*(self.batch_of(one, depth + 1) for one in list(value.values())[:64]))
        return frozenset()

    def is_data(self, value: Value) -> bool:
        return type(value) in (Opaque, Tensor) and bool(value.batch)

    def parameter(self, owner: Owner) -> Param:
        """The one parameter that stands for an owner's: the same object each time, so that it can be a key."""
        return self.parameters.setdefault(owner, Param(owner))

    def parameters_of(self, value: Value) -> list[Value]:
        if type(value) is Param:
            return [value]
        owners = sorted(value.owners, key=lambda owner: (owner.name, owner.number))
        made: list[Value] = [self.parameter(owner) for owner in owners]
        if value.named:
            return [(f"{param.owner.name}.weight", param) for param in made]
        return made

    def covers(self, owners: Owners) -> Callable[[Owner], bool]:
        wild = [self.wild[owner] for owner in owners if owner in self.wild]

        def inside(owner: Owner) -> bool:
            return any(owner.within(one) for one in owners) or any(self.ledger.owns(opt, owner) for opt in wild)

        return inside

    def row_of(self, owner: Owner) -> dict[int, Any]:
        for one, row in self.ledger.rows.items():
            if one.within(owner) or owner.within(one):
                return row
        opt = self.wild.get(owner)
        if opt is not None:
            for one, row in self.ledger.rows.items():
                if self.ledger.owns(opt, one):
                    return row
        return {}

    def in_evaluation(self, owners: Owners) -> bool:
        """Whether all of these modules are in eval mode."""
        return bool(owners) and all(any(one.within(other) for other in self.evaluating) for one in owners)

    def is_model(self, callee: Opaque) -> bool:
        """Whether something unknown is a model: by its name, by eval(), or since an optimizer has its parameters."""
        if any(word in _MODEL_WORDS for word in names.words(callee.name)):
            return True
        owner = callee.owner
        if owner is None:
            return False
        parts = [part for optimizer in self.ledger.optimizers for part in optimizer.parts or ()]
        return owner in self.evaluating or owner in parts

    def is_module_like(self, base: Opaque) -> bool:
        words = names.words(base.name)
        held = base.owner is not None and not base.owner.guessed
        return held or any(word in _MODEL_WORDS for word in words)

    def norm_inside(self, value: Value, depth: int = 0) -> Span | None:
        """The place that made a BatchNorm layer in a module, as it is now."""
        if type(value) not in (Module, Instance) or depth > 4:
            return None
        if value.batchnorm is not None:
            return value.batchnorm  # type: ignore[no-any-return]
        parts = value.items if type(value) is Module else [one for _, one in list(value.attrs.items())[:32]]
        for one in parts:
            found = self.norm_inside(one, depth + 1)
            if found is not None:
                return found
        return None

    def note_batchnorm(self, where: Span | None, training: bool, owner: Owner, args: list[Value], span: Span) -> None:
        if where is None or not self.grad_enabled:
            return
        layers = self.layers.get(where, [owner])
        off = self.evaluating | self.norms_off
        if where not in self.always and (
            not training or all(any(one.within(other) for other in off) for one in layers)
        ):
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

    def carries_graph(self, value: Value) -> bool:
        return type(value) in (Tensor, Opaque) and bool(value.graph)

    def size_of(self, args: list[Value]) -> Value:
        for one in args[:1]:
            if type(one) is Tensor:
                return one.size
            if type(one) is Opaque and "<size>" in one.attrs:
                return one.attrs["<size>"][0]
        return None
