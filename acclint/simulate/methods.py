"""Methods of known values, by kind."""

from __future__ import annotations

from acclint import program as p
from acclint.knowledge import schedulers
from acclint.simulate import values as v
from acclint.simulate.core import Frame
from acclint.simulate.scan import text
from acclint.simulate.unknown import Unknown
from acclint.simulate.values import Instance, Loader, Module, Num, Param, ParamSet, Stream, Tensor, Value, numeric
from acclint.simulate.vocabulary import SAME, word_set

_OF_LOSSES = word_set("backward mean sum item detach")
_OF_TEXTS = ("startswith", "endswith")


class Methods(Unknown):
    """The choice of who handles a method."""

    def method(
        self,
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
            held = self.buffers.get(id(owner))
            if held is not None and name == "zero_":
                self.zero(frozenset(held[1]), span, "zero_()")
            elif held is not None and name in ("div_", "mul_") and args:
                self.scale_gradient(frozenset(held[1]), args[0], "/" if name == "div_" else "*", span)
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
        if kind is v.Exits:
            return self.exits_method(owner, name, args, keywords, expr, frame)
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
                self.event("engine", span, name=owner.name, known=True)
                return None
            if name in ("parameters", "named_parameters"):
                return ParamSet(frozenset((owner.owner,)), name.startswith("named"))
            return owner if name in SAME or name == "eval" else self.opaque(f"{owner.name}.{name}()", name)
        if kind is Param:
            return self.param_method(owner, name, args, keywords, span)
        if kind is v.Grad:
            return self.grad_method(owner, name, args, keywords, span)
        if kind is v.LossFunction:
            return owner if name in SAME or name == "eval" else self.loss(owner.reduction, args, span, owner.why)
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
            made = next((one for one in owner if type(one) is Tensor and one.graph), None)
            if made is not None and name in _OF_LOSSES:
                # `loss.mean()` of what a model returned as several: there it was the loss.
                return self.method(made, name, args, keywords, expr, frame)
            return len(owner) if name == "__len__" else self.opaque(f"tuple.{name}", name)
        if isinstance(owner, str) and name in _OF_TEXTS:
            return v.Maybe(text(expr), False, span)  # The names of parameters are only made up.
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
        if name == "backward" and type(owner) is Num:
            # Whatever was taken for a number, it is a loss.
            name = text(expr.func).rpartition(".")[0]
            loss = self.opaque(name, name)
            loss.attrs["<computed>"] = True
            return self.backward_method(loss, args, keywords, span)
        if numeric(owner) is not None:
            return (
                owner
                if name in ("item", "detach", "to", "cpu", "cuda", "float", "clone", "view", "double")
                else self.opaque(f"number.{name}", name)
            )
        return self.opaque(f"{self.key(owner)}.{name}()", name)
