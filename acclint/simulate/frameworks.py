"""accelerate, Lightning and gradient scalers."""

from __future__ import annotations

from fractions import Fraction

from acclint.knowledge import names
from acclint.program import NOWHERE, Span
from acclint.simulate import values as v
from acclint.simulate.operators import Operators
from acclint.simulate.trace import Guard
from acclint.simulate.values import Closure, Instance, Num, Opaque, Value, numeric


class Frameworks(Operators):
    """What the objects of frameworks do; the behaviours come from `acclint.knowledge`."""

    def as_accelerator(self, value: Opaque) -> v.Accelerator:
        kept = value.attrs.get("<accelerator>")
        if kept is None:
            steps = self.number(f"{value.key}.gradient_accumulation_steps", "gradient_accumulation_steps")
            kept = value.attrs["<accelerator>"] = v.Accelerator(value.name, steps, False)
            self.lent = kept
        return kept

    def accumulate(self, accelerator: v.Accelerator) -> None:
        """accelerate's `accumulate()`: one more micro-batch; gradients are synchronised on the k-th and the last."""
        accelerator.count += 1
        accelerator.entered = True
        steps = numeric(self.as_number(accelerator.steps))
        boundary = steps is None or steps <= 1 or accelerator.count % int(steps) == 0
        accelerator.sync = boundary or self.last_batch
        if self.last_batch:
            accelerator.count = 0
            self.last_batch = False
        self.event("accumulate", NOWHERE, sync=accelerator.sync)

    def accelerator_method(
        self, owner: v.Accelerator, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "backward" and args:
            steps = numeric(self.as_number(owner.steps)) if owner.steps is not None else 1
            factor = Fraction(1, int(steps)) if steps and steps > 1 else 1
            sure = owner.known or owner.entered
            self.backward(args[0], span, factor, sure, via="accelerator")
            return None
        if name in ("prepare", "prepare_model", "prepare_optimizer", "prepare_data_loader", "prepare_scheduler"):
            owner.prepares = True
            prepared = [self.prepared(one, owner) for one in args]
            return prepared[0] if len(prepared) == 1 else tuple(prepared)
        if name == "accumulate":
            self.accelerator_steps(owner)
            return ("accumulate", owner)
        if name in ("clip_grad_norm_", "clip_grad_value_"):
            self.event("clip", span)
        if name in ("autocast", "no_sync", "join_uneven_inputs", "main_process_first", "local_main_process_first"):
            return ("null",)
        if name in ("unwrap_model", "gather", "reduce", "gather_for_metrics", "pad_across_processes") and args:
            return args[0]
        if name in ("skip_first_batches",) and args:
            return args[0]
        return self.opaque(f"{owner.name}.{name}()", name)

    def prepared(self, value: Value, owner: v.Accelerator) -> Value:
        """What `prepare` makes of an argument: optimizers and schedulers that wait for the end of the window.

        A scheduler is another one then: who keeps the old one steps it on every micro-batch.
        """
        schedules = owner if owner.schedules else None
        if type(value) is v.Scheduler:
            value = value.gated(schedules)
        elif type(value) is v.Optimizer:
            value.gate = owner
        elif type(value) is Opaque and names.is_optimizer_name(value.name):
            self.as_optimizer(value).gate = owner
        elif type(value) is Opaque and names.is_scheduler_name(value.name):
            self.as_scheduler(value).gate = schedules
        return value

    def scaler_method(
        self, owner: v.Scaler, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "scale" and args:
            return args[0]
        if name == "step" and args:
            target = args[0]
            if type(target) is Opaque:
                target = self.as_optimizer(target)
            if type(target) is v.Optimizer:
                self.step(target, args[1:], {}, span)
            return None
        if name in ("update", "unscale_"):
            self.event(name, span)
            return None
        return self.opaque(f"{owner.name}.{name}()", name)

    def lightning_method(
        self, owner: Instance, name: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> Value:
        if name == "optimizers":
            kept = owner.attrs.get("<optimizers>")
            if kept is None:
                maker = self.member(owner.cls, "configure_optimizers")
                result: Value = None
                if type(maker) is Closure:
                    bound = maker.bind(owner)
                    result = self.invoke(bound, [], {}, span)
                found = [one for one in _flat(result) if type(one) is v.Optimizer]
                owner.attrs["<schedulers>"] = [one for one in _flat(result) if type(one) is v.Scheduler]
                if not found:
                    made = self.opaque(f"{owner.key}.optimizer", "optimizer")
                    found = [self.as_optimizer(made, span)]
                    self.ledger.hand(found[0], frozenset((owner.owner,)) if owner.owner is not None else None)
                kept = owner.attrs["<optimizers>"] = found
            return kept[0] if len(kept) == 1 else list(kept)
        if name == "lr_schedulers":
            kept = owner.attrs.get("<schedulers>") or []
            if len(kept) == 1:
                return kept[0]
            return list(kept) if kept else self.opaque(f"{owner.key}.lr_scheduler", "lr_scheduler")
        if name == "clip_gradients":
            self.event("clip", span)
        return self.opaque(f"{owner.name}.{name}()", name)

    def combined_scaler(self, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        """timm's NativeScaler and its relatives: called with loss and optimizer; backward, and a step if asked."""
        if not args:
            return self.opaque(f"call:{span.row}", "<value>")
        if any(self.world.is_accumulation(name) or names.is_turn_name(name) for name in keywords):
            self.event("engine", span, name="scaler")  # A project's own, which counts the micro-batches itself.
            return self.opaque(f"norm:{span.row}", "grad_norm")
        self.backward(args[0], span, via="scaler")
        optimizer = args[1] if len(args) > 1 else keywords.get("optimizer")
        wanted, guards = True, len(self.guards)
        given = [keywords[name] for name in ("need_update", "update_grad", "update", "step") if name in keywords]
        given += [one for one in args[2:] if type(one) is Num and one.modulus is not None]
        if given:
            value = given[0]
            wanted = bool(numeric(value)) if numeric(value) is not None else True
            if type(value) is Num and value.modulus is not None:
                modulus, roots, counter, remainder = value.modulus
                self.learn_k(modulus, roots)
                # As `if (i + 1) % k == 0:` around the update.
                self.guards.append(
                    Guard(value.born, wanted, modulus, value.roots | roots, counter, remainder=remainder)
                )
        if type(optimizer) is Opaque:
            optimizer = self.as_optimizer(optimizer)
        if wanted and type(optimizer) is v.Optimizer:
            self.step(optimizer, [], {}, span)
        del self.guards[guards:]
        return self.opaque(f"norm:{span.row}", "grad_norm")


def _flat(value: Value) -> list[Value]:
    if isinstance(value, (list, tuple)):
        return [inner for one in value for inner in _flat(one)]
    if isinstance(value, dict):
        return [inner for one in value.values() for inner in _flat(one)]
    return [value]
