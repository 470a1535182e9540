"""Modules: forward passes and methods."""

from __future__ import annotations

from typing import Any

from acclint import program as p
from acclint.knowledge import names
from acclint.program import Span
from acclint.simulate import values as v
from acclint.simulate.core import Frame
from acclint.simulate.frameworks import Frameworks
from acclint.simulate.values import (
    Closure,
    Instance,
    Module,
    ParamSet,
    PyRaise,
    Tensor,
    Value,
    numeric,
    resolution_order,
)
from acclint.simulate.vocabulary import SAME

# Events that each call of a module repeats, and that nothing outside of it asks for but those about its layers.
_OF_A_FORWARD_PASS = frozenset({"norm", "loop", "loop end"})


class Modules(Frameworks):
    """Calls of modules and of instances of the file's own classes."""

    def forward(self, module: Module, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        values = [*args, *keywords.values()]
        owners = self.live(frozenset((module.owner,))) | self.graph_owners(values)
        batch = self.batch_of(values)
        self.note_batchnorm(self.norm_inside(module), module.training, module.owner, values, span)
        if not self.grad_enabled or not owners:
            return Tensor(batch=batch, size=self.size_of(args))
        if module.path.startswith("torch.nn.") or module.items:
            return Tensor(owners, True, size=self.size_of(args), batch=batch)
        return self.opaque(f"{module.name}()", "outputs", owners=owners, graph=True, batch=batch)

    def call_instance(
        self, value: Instance, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        method = self.member(value.cls, "__call__") or self.member(value.cls, "forward")
        values = [*args, *keywords.values()]
        if value.owner is None:
            if type(method) is Closure:
                bound = method.bind(value)
                return self.invoke(bound, args, keywords, expr.span)
            return self.opaque(f"{value.key}()", "<value>", batch=self.batch_of(values))
        owners = self.live(frozenset((value.owner,))) | self.graph_owners(values)
        batch = self.batch_of(values)
        result: Value = None
        if type(method) is not Closure or not self.worth_running(value, method):
            self.note_batchnorm(self.norm_inside(value), value.training, value.owner, values, expr.span)
        else:
            key = (id(value), value.training, self.grad_enabled, len(args), tuple(keywords), expr.span)
            kept = self.templates.get(key)
            if kept is not None:
                result, layers = kept
                for layer in layers:
                    self.event("norm", layer.span, **layer.data)
                if type(result) is Instance and result.owner is None:
                    # A record of outputs: each pass makes one of its own.
                    size, record = self.size_of(args), v.replaced(result, {})
                    record.attrs = {
                        name: self.fresh(one, getattr(one, "owners", owners), batch, expr.span, size)
                        for name, one in result.attrs.items()
                    }
                    return record
            else:
                bound = method.bind(value)
                events, before = len(self.run.events), dict(value.attrs)
                try:
                    result = self.invoke(bound, args, keywords, expr.span)
                except PyRaise:
                    result = None
                made = self.run.events[events:]
                keeps = any(self.carries_graph(one) and one is not before.get(at) for at, one in value.attrs.items())
                if not keeps and all(event.kind in _OF_A_FORWARD_PASS for event in made):
                    self.templates[key] = result, [event for event in made if event.kind == "norm"]
        return self.fresh(result, owners, batch, expr.span, self.size_of(args))

    def worth_running(self, module: Instance, forward: Closure) -> bool:
        """Whether the forward pass tells more than that it is one: a model of another file mostly does not."""
        if not p.file_of(forward.function.span):
            return True
        init = self.member(module.cls, "__init__")
        methods = [one.function for one in (init, forward) if type(one) is Closure]
        scores = names.is_loss_name(module.cls.name) or "criterion" in names.words(module.cls.name)
        return any(map(self.scanner.matters, methods)) or (scores and any(map(self.scanner.reduces, methods)))

    def module_method(
        self, owner: Any, name: str, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        span = expr.span
        if name == "<super>":
            return v.Bound(owner, "<super>")
        if type(owner) is Instance and name.startswith("<"):
            return None
        if name in ("parameters", "named_parameters", "trainable_parameters"):
            return ParamSet(frozenset((owner.owner,)), name == "named_parameters")
        if names.is_zeroing_name(name):
            if owner.owner is not None:
                self.zero(frozenset((owner.owner,)), span, "module zero_grad")
            else:
                self.may_zero(name, span)
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
        if name in ("toggle_optimizer", "untoggle_optimizer"):
            given = args[0] if args else keywords.get("optimizer")
            self.toggle(given if name == "toggle_optimizer" else None)
            return None
        if name in ("forward", "__call__"):
            if type(owner) is Module:
                return self.forward(owner, args, keywords, span)
            return self.call_instance(owner, args, keywords, expr, frame)
        if name in ("add_module", "register_module") and len(args) == 2:
            self.store_attribute(owner, str(args[0]), args[1], span)
            return None
        if name in ("append", "insert", "extend") and args and type(owner) is Module:
            for item in modules_in(list(args)):
                owner.items = (*owner.items, item)
                if item.owner is not None:
                    item.owner.join(owner.owner)
            return owner
        if name == "requires_grad_":
            if type(owner) is Instance or "<of>" not in owner.attrs:
                self.set_requires_grad(owner.owner, args[0] if args else keywords.get("requires_grad", True))
            return owner
        if name == "apply" or name in SAME:
            return owner
        if name == "_replace" and type(owner) is Instance and not args:
            return v.replaced(owner, keywords)
        if type(owner) is Instance and self.is_lightning(owner):
            return self.lightning_method(owner, name, args, keywords, span)
        if names.may_zero(name):
            self.may_zero(name, span)
        return self.opaque(f"{owner.name}.{name}()", name)

    def super_method(
        self,
        instance: Instance,
        name: str,
        args: list[Value],
        keywords: dict[str, Value],
        expr: p.Call,
        frame: Frame,
    ) -> Value:
        """`super().name(...)`: the method of a base class of the file, or what a torch module does."""
        order = resolution_order(instance.cls)
        cls = frame.cls if frame.cls is not None else instance.cls
        for base in order[order.index(cls) + 1 :] if cls in order else ():
            found = base.members.get(name)
            if type(found) is Closure:
                bound = found.bind(instance)
                return self.invoke(bound, args, keywords, expr.span)
        if instance.owner is not None and name in ("train", "eval", "zero_grad", "parameters", "named_parameters"):
            return self.module_method(instance, name, args, keywords, expr, frame)
        if name == "__iter__":
            return self.stream_of_data(instance.key)  # a loader of torch with something around it
        if name == "__init__":
            instance.attrs["<base>"] = (args, keywords)
        return self.opaque(f"<super>.{name}()", name)


def modules_in(values: list[Value]) -> list[Any]:
    found: list[Any] = []
    for one in values:
        if type(one) in (Module, Instance):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            found += modules_in(list(one))
        elif isinstance(one, dict):
            found += modules_in(list(one.values()))
    return found
