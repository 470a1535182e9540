"""Attributes: reading and storing them, and the submodules that storing makes."""

from __future__ import annotations

from acclint.knowledge import names
from acclint.program import Span, file_of
from acclint.simulate import values as v
from acclint.simulate.items import EVERY, Items
from acclint.simulate.values import (
    ClassValue,
    Closure,
    Imported,
    Instance,
    Loader,
    Maybe,
    Module,
    Opaque,
    Owner,
    Param,
    ParamSet,
    Stream,
    Tensor,
    Value,
    numeric,
)
from acclint.simulate.vocabulary import word_set

_MODULE_METHODS = word_set(
    "parameters named_parameters train eval to cuda cpu zero_grad state_dict load_state_dict modules named_modules "
    "children named_children requires_grad_ apply half float double bfloat16 forward buffers named_buffers "
    "register_buffer add_module register_module append insert extend compile share_memory __call__ extra_repr "
    "get_parameter trainable_parameters"
)
_LIGHTNING = word_set(
    "optimizers lr_schedulers manual_backward log log_dict clip_gradients toggle_optimizer untoggle_optimizer print"
)


class Attributes(Items):
    """Reading and writing by attribute name."""

    def accelerator_steps(self, owner: v.Accelerator) -> Value:
        """The accumulation steps. Where nobody sets them, but the window is used, the launcher or environment does."""
        if owner.steps is None and self.world.accumulates:
            owner.told = False
            owner.steps = self.number(f"{owner.name}.gradient_accumulation_steps", "gradient_accumulation_steps")
        return 1 if owner.steps is None else owner.steps

    def attribute(self, value: Value, name: str, span: Span) -> Value:
        kind = type(value)
        if kind is v.Bound and (value.name, name) == ("state", "deepspeed_plugin"):
            return None  # `accelerator.state.deepspeed_plugin is None`: DeepSpeed is the launcher's choice
        if kind is Opaque:
            return self.opaque_attribute(value, name)
        if kind is Imported:
            return self.linked(file_of(span), f"{value.path}.{name}")
        if kind is Instance:
            return self.instance_attribute(value, name)
        if kind is ClassValue:
            found = self.member(value, name)
            if type(found) is Closure and found.kind == "class":
                return Closure(found.function, found.scope, value, found.no_grad, value, found.defaults, "class")
            return found if found is not None else self.opaque(f"{value.name}.{name}", name)
        if kind is Module:
            if name in value.attrs:
                return value.attrs[name]
            if name in _MODULE_METHODS:
                return v.Bound(value, name)
            if name in ("weight", "bias"):
                return self.parameter(value.owner)
            if name == "module":
                return value
            if name == "training":
                return value.training
            made = Module(f"{value.path}.{name}", Owner(name, value.owner))
            value.attrs[name] = made
            return made
        if kind is Tensor:
            return self.tensor_attribute(value, name)
        if kind is Param:
            if name in ("grad", "_grad"):
                return v.Grad(value.owner, dict(self.row_of(value.owner)), True)
            if name == "data":
                return value
            if (value.owner, name) in self.attached:
                return self.attached[value.owner, name]
            if name == "requires_grad":
                return bool(self.live(frozenset((value.owner,))))
            return v.Bound(value, name)
        if kind is v.Grad:
            return value if name == "data" else v.Bound(value, name)
        if kind is v.Optimizer:
            if name == "param_groups":
                return self.param_groups(value)
            if name in value.attrs:
                return value.attrs[name]
            if name == "optimizer":
                return value
            return v.Bound(value, name)
        if kind is v.Accelerator:
            if name in ("sync_gradients", "gradient_accumulation_steps"):
                steps = self.accelerator_steps(value)
                value.told = True  # Who reads it expects that the launcher sets the number.
                return value.sync if name == "sync_gradients" else steps
            if name == "num_processes":
                return self.number(f"{value.name}.{name}", name, "world")
            if name == "optimizer_step_was_skipped":
                return False  # Only where a loss scaler met an overflow.
            if name in ("is_main_process", "is_local_main_process"):
                return Maybe(f"{value.name}.{name}", False, span)
            return v.Bound(value, name)
        if kind is Loader:
            if name == "batch_size":
                return value.batch_size
            if name == "dataset":
                return v.Dataset(None)
            if name in value.attrs:
                return value.attrs[name]
            return v.Bound(value, name)
        if kind is v.Engine:
            return value.attrs.get(name, v.Bound(value, name))
        if kind in (v.Scheduler,):
            return value.attrs.get(name, v.Bound(value, name))
        if name == "value" and (isinstance(value, str) or numeric(value) is not None):
            return value  # Of a member of an Enum, which stands for its value here.
        if isinstance(value, tuple) and len(value) == 2 and name in ("values", "indices"):
            return value[0 if name == "values" else 1]
        if isinstance(value, (list, tuple, dict, str, set)) or kind in (
            v.Scaler,
            v.Fabric,
            ParamSet,
            Stream,
            v.LossFunction,
            v.Bound,
            v.Exits,
            Closure,
        ):
            return v.Bound(value, name)
        if numeric(value) is not None:
            return v.Bound(value, name)
        return self.opaque(f"{self.key(value)}.{name}", name)

    def opaque_attribute(self, value: Opaque, name: str) -> Value:
        if name == "module" and self.is_module_like(value) and not value.batch and not value.graph:
            return value  # What DataParallel and the like have around.
        kept = value.attrs.get(name)
        if kept is not None or name in value.attrs:
            return kept
        if name == "grad" and not value.batch:
            return v.Grad(self.owner_of(value), dict(self.row_of(self.owner_of(value))), True)
        if name == "data":
            if value.graph:
                return self.opaque(f"{value.key}.data", value.name, batch=value.batch)
            return value
        if EVERY in value.attrs and names.is_loss_name(name):
            return value.attrs[EVERY]  # A dictionary with attributes.
        if name == "loss" and value.graph:
            made = self.opaque(f"{value.key}.loss", "loss", owners=value.owners, graph=True, batch=value.batch)
            made.hint = "output"
            if "<unsure>" in value.attrs:
                made.attrs["<unsure>"] = True
            value.attrs[name] = made
            return made
        # `data["train"].dataloader`: what holds a loader is no batch.
        batch: frozenset[int] = frozenset() if names.is_loader_name(name) else value.batch
        if name == "shape" and value.graph:
            return self.opaque(f"{value.key}.shape", "size", batch=value.batch or v.SOME_DATA)
        made = self.opaque(f"{value.key}.{name}", name, owners=value.owners, graph=value.graph, batch=batch)
        if "<size>" in value.attrs:
            made.attrs["<size>"] = value.attrs["<size>"]
        made.attrs["<parent>"] = value
        value.attrs[name] = made
        return made

    def instance_attribute(self, value: Instance, name: str) -> Value:
        if name in value.attrs:
            return value.attrs[name]
        found = self.member(value.cls, name)
        if type(found) is Closure:
            bound = found.bind(value)
            if found.kind == "property":
                return self.invoke(bound, [], {}, found.function.span)
            if found.kind == "static":
                bound.bound = None
            return bound
        if found is not None:
            return found
        if name == "__dict__":
            return value.attrs
        if name == "_replace":
            return v.Bound(value, name)
        if value.owner is not None and (name in _MODULE_METHODS or name == "training"):
            return value.training if name == "training" else v.Bound(value, name)
        if self.is_lightning(value) and name in _LIGHTNING:
            return v.Bound(value, name)
        if name == "module" and value.owner is not None:
            return value  # It was wrapped: by DistributedDataParallel, DataParallel or an engine.
        made = self.opaque(f"{value.key}.{name}", name)
        made.attrs["<parent>"] = value.owner
        value.attrs[name] = made
        return made

    def tensor_attribute(self, value: Tensor, name: str) -> Value:
        if name == "data":
            return Tensor(batch=value.batch, size=value.size)
        if name == "shape":
            return v.Bound(value, "shape")
        if name == "loss" and value.graph:
            return value
        if name in ("T", "mT"):
            return value
        if name == "grad":
            return None
        return v.Bound(value, name)

    def store_attribute(self, base: Value, name: str, value: Value, span: Span) -> None:
        if type(base) is v.Grad and base.shared and name == "data":
            base, name = self.parameter(base.owner), "grad"  # `p.grad.data = x` is `p.grad = x`.
        kind = type(base)
        if getattr(value, "name", "")[:1] == "<" and isinstance(getattr(value, "name", None), str):
            value.name = name
            self.recognise(value)
        if (name == "grad" and kind in (Param, Opaque)) or (name == "_grad" and kind is Param):
            owner = base.owner if kind is Param else self.owner_of(base)
            if value is None:
                self.zero(frozenset((owner,)), span, "grad = None")
            elif type(value) is v.Grad:
                self.event("edit", span, how="replace", added=value.added)
                self.ledger.replace(owner, value.row)
            elif type(value) in (Tensor, Opaque):
                self.zero(frozenset((owner,)), span, "grad = tensor")
                self.run.notes.append(("gradients are set by hand", span))
            return
        if name == "requires_grad" and kind in (Param, Opaque):
            if v.switch(value) is not False:
                self.set_requires_grad(base.owner if kind is Param else self.owner_of(base), True)
            return
        if kind is Param and name != "data":
            self.attached[base.owner, name] = value
            return
        if kind is Imported:
            self.store_linked(file_of(span), base.path, name, value)
            return
        if kind is ClassValue:
            base.members[name] = value
            return
        holds = kind in (Module, Instance, Opaque) and base.owner is not None
        if self.frozen and holds and type(value) in (Module, Instance, Opaque, Param):
            # A new part of a frozen module has parameters of its own.
            self.frozen = {one for one in self.frozen if not base.owner.within(one)}
        if kind is Instance:
            base.attrs[name] = value
            if base.owner is not None:
                self.adopt(base, base.owner, value)
            return
        if kind is v.Accelerator and name == "gradient_accumulation_steps":
            base.steps = value
            return
        if kind in (Opaque, Module, v.Optimizer, v.Scheduler, v.Accelerator, Loader, v.Engine):
            base.attrs[name] = value
            if kind is Module and type(value) is Module:
                value.owner.join(base.owner)
                value_norm = self.norm_inside(value)
                if base.batchnorm is None and value_norm is not None:
                    base.batchnorm = value_norm

    def adopt(self, base: Instance, owner: Owner, value: Value) -> None:
        """A submodule or parameter stored on a module, whose owner is `owner`, belongs to it."""
        kind = type(value)
        if kind in (Module, Instance) and value.owner is not None and value.owner is not owner:
            if not owner.within(value.owner):
                value.owner.join(owner)
            if value.batchnorm is not None and base.batchnorm is None:
                base.batchnorm = value.batchnorm
        elif kind is Param and value.owner is not owner:
            value.owner.join(owner)
        elif kind is Opaque and not value.batch and not value.graph:
            part = self.owner_of(value)
            if part is not owner and not owner.within(part):
                part.join(owner)
        elif isinstance(value, (list, tuple)):
            for one in value[:16]:
                self.adopt(base, owner, one)
        elif isinstance(value, dict):
            for one in list(value.values())[:16]:
                self.adopt(base, owner, one)
