"""Learning-rate schedulers: how often they are stepped, and in what unit their lengths are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class CountArgument:
    """An argument that is a number (or list of numbers) of something.

    `position` counts from 0 with the optimizer; None for keyword-only. `unit` is "calls" (of step), "epochs" or
    "calls per epoch". `default` is None where the argument is required or has no number as default.
    """

    name: str
    position: int | None
    default: int | None = None
    unit: str = "calls"


@dataclass(frozen=True, slots=True)
class SchedulerKind:
    """How a scheduler is used.

    `cadence`: "update" (made to be stepped once per optimizer update), "epoch", "either", or "metric" (stepped with a
    validation metric). `absolute`: step() is given the position and sets the rate as a function of it, so that calling
    it more often does no harm. `wraps`: its children (argument `schedulers` or `after_scheduler`) tell the cadence.
    """

    name: str
    cadence: str
    counts: tuple[CountArgument, ...] = ()
    optimizer_position: int = 0
    absolute: bool = False
    wraps: bool = False


def _kind(
    name: str,
    cadence: str,
    *counts: str,
    optimizer_position: int = 0,
    absolute: bool = False,
    wraps: bool = False,
) -> SchedulerKind:
    """Counts are written "name@position", "name@position=default" or "name@position:unit"."""
    parsed = []
    for count in counts:
        head, _, unit = count.partition(":")
        head, _, default = head.partition("=")
        argument, _, position = head.partition("@")
        parsed.append(
            CountArgument(
                argument,
                int(position) if position else None,
                int(default) if default else None,
                unit or "calls",
            )
        )
    return SchedulerKind(name, cadence, tuple(parsed), optimizer_position, absolute, wraps)


_TORCH: tuple[SchedulerKind, ...] = (
    _kind("OneCycleLR", "update", "total_steps@2", "epochs@3:epochs", "steps_per_epoch@4:calls per epoch"),
    _kind("CosineAnnealingWarmRestarts", "either", "T_0@1"),
    _kind("CosineAnnealingLR", "either", "T_max@1"),
    _kind("LinearLR", "either", "total_iters@3=5"),
    _kind("ConstantLR", "either", "total_iters@2=5"),
    _kind("PolynomialLR", "either", "total_iters@1=5"),
    _kind("CyclicLR", "update", "step_size_up@3=2000", "step_size_down@4"),
    _kind("SequentialLR", "either", "milestones@2", wraps=True),
    _kind("ChainedScheduler", "either", optimizer_position=1, wraps=True),
    _kind("LambdaLR", "either"),
    _kind("MultiplicativeLR", "either"),
    _kind("StepLR", "epoch", "step_size@1"),
    _kind("MultiStepLR", "epoch", "milestones@1"),
    _kind("ExponentialLR", "epoch"),
    _kind("ReduceLROnPlateau", "metric", "patience@3=10", "cooldown@6=0"),
    _kind("LRScheduler", "either"),
    _kind("_LRScheduler", "either"),
)
"""torch 2.13.0, torch/optim/lr_scheduler.py. T_mult, gamma and the like are factors, not counts."""

_SWA = _kind("SWALR", "epoch", "anneal_epochs@2=10")
"""torch 2.13.0, torch/optim/swa_utils.py. The unit is calls of step, in spite of the name."""

_TRANSFORMERS: tuple[SchedulerKind, ...] = (
    _kind("get_constant_schedule", "update"),
    _kind("get_constant_schedule_with_warmup", "update", "num_warmup_steps@1"),
    _kind("get_linear_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2"),
    _kind("get_cosine_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2"),
    _kind("get_cosine_with_hard_restarts_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2"),
    _kind("get_polynomial_decay_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2"),
    _kind("get_inverse_sqrt_schedule", "update", "num_warmup_steps@1", "timescale@2"),
    _kind("get_cosine_with_min_lr_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2"),
    _kind(
        "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
        "update",
        "num_warmup_steps@1",
        "num_training_steps@2",
    ),
    _kind(
        "get_wsd_schedule",
        "update",
        "num_warmup_steps@1",
        "num_decay_steps@2",
        "num_training_steps@3",
        "num_stable_steps@4",
    ),
    _kind("get_scheduler", "update", "num_warmup_steps@2", "num_training_steps@3", optimizer_position=1),
    _kind("get_reduce_on_plateau_schedule", "metric"),
    _kind("get_greedy_schedule", "metric"),
    _kind("get_adafactor_schedule", "update"),
    _kind("AdafactorSchedule", "update"),
)
"""transformers 5.24.0, transformers/optimization.py."""

_DIFFUSERS: tuple[SchedulerKind, ...] = (
    _kind("get_constant_schedule", "update"),
    _kind("get_constant_schedule_with_warmup", "update", "num_warmup_steps@1"),
    _kind("get_piecewise_constant_schedule", "update"),
    _kind("get_linear_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2"),
    _kind("get_cosine_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2"),
    _kind("get_cosine_with_hard_restarts_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2"),
    _kind("get_polynomial_decay_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2"),
    _kind("get_scheduler", "update", "num_warmup_steps@3", "num_training_steps@4", optimizer_position=1),
)
"""diffusers 0.42.1, diffusers/optimization.py."""

_TIMM: tuple[SchedulerKind, ...] = (
    _kind("CosineLRScheduler", "either", "t_initial@1", "warmup_t@6=0", absolute=True),
    _kind("TanhLRScheduler", "either", "t_initial@1", "warmup_t@8=0", absolute=True),
    _kind("PolyLRScheduler", "either", "t_initial@1", "warmup_t@7=0", absolute=True),
    _kind("StepLRScheduler", "either", "decay_t@1", "warmup_t@3=0", absolute=True),
    _kind("MultiStepLRScheduler", "either", "decay_t@1", "warmup_t@3=0", absolute=True),
    _kind("PlateauLRScheduler", "metric", "patience_t@2=10", "cooldown_t@4=0", "warmup_t@5=0", absolute=True),
    _kind("WSDLRScheduler", "either", "t_initial@1", "decay_t@2", "warmup_t@10=0", absolute=True),
    _kind("create_scheduler", "either", "updates_per_epoch@2=0:calls per epoch", optimizer_position=1, absolute=True),
    _kind(
        "create_scheduler_v2",
        "either",
        "num_epochs@2=300:epochs",
        "warmup_epochs@10=0:epochs",
        "updates_per_epoch@24=0:calls per epoch",
        absolute=True,
    ),
)
"""timm 1.0.31, timm/scheduler/*.py: step(epoch) and step_update(num_updates).

Lengths are in epochs unless t_in_epochs=False.
"""

_PYTORCH_WARMUP: tuple[SchedulerKind, ...] = (
    _kind("LinearWarmup", "update", "warmup_period@1"),
    _kind("ExponentialWarmup", "update", "warmup_period@1"),
    _kind("UntunedLinearWarmup", "update"),
    _kind("UntunedExponentialWarmup", "update"),
    _kind("RAdamWarmup", "update"),
)
"""pytorch_warmup 0.2.0, pytorch_warmup/*.py: dampened once per `with warmup.dampening():`."""

_DEEPSPEED: tuple[SchedulerKind, ...] = (
    _kind("WarmupLR", "update", "warmup_num_steps@3=1000"),
    _kind("WarmupDecayLR", "update", "total_num_steps@1", "warmup_num_steps@4=1000"),
    _kind("WarmupCosineLR", "update", "total_num_steps@1", "warmup_num_steps@3=1000"),
)
"""deepspeed 0.19.6, deepspeed/runtime/lr_schedules.py."""

_GRADUAL_WARMUP = _kind("GradualWarmupScheduler", "either", "total_epoch@2", wraps=True)
_BOLTS = _kind("LinearWarmupCosineAnnealingLR", "either", "warmup_epochs@1", "max_epochs@2")
_WARMUP_RESTARTS = _kind("CosineAnnealingWarmupRestarts", "either", "first_cycle_steps@1", "warmup_steps@5=0")
_TORCHTUNE = _kind("get_cosine_schedule_with_warmup", "update", "num_warmup_steps@1", "num_training_steps@2")

_SINGLE: dict[str, SchedulerKind] = {
    "torch.optim.swa_utils.SWALR": _SWA,
    # pytorch-gradual-warmup-lr, lightning-bolts 0.7 and pytorch-cosine-annealing-with-warmup, counting calls of step.
    "warmup_scheduler.GradualWarmupScheduler": _GRADUAL_WARMUP,
    "warmup_scheduler.scheduler.GradualWarmupScheduler": _GRADUAL_WARMUP,
    "pl_bolts.optimizers.LinearWarmupCosineAnnealingLR": _BOLTS,
    "pl_bolts.optimizers.lr_scheduler.LinearWarmupCosineAnnealingLR": _BOLTS,
    "flash.core.optimizers.LinearWarmupCosineAnnealingLR": _BOLTS,
    "cosine_annealing_warmup.CosineAnnealingWarmupRestarts": _WARMUP_RESTARTS,
    "torchtune.training.get_cosine_schedule_with_warmup": _TORCHTUNE,
    "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup": _TORCHTUNE,
    "torchtune.modules.get_cosine_schedule_with_warmup": _TORCHTUNE,
    # pytorch-transformers 1.2 optimization.py.
    "pytorch_transformers.WarmupLinearSchedule": _kind("WarmupLinearSchedule", "update", "warmup_steps@1", "t_total@2"),
    "pytorch_transformers.WarmupConstantSchedule": _kind("WarmupConstantSchedule", "update", "warmup_steps@1"),
    "pytorch_transformers.WarmupCosineSchedule": _kind("WarmupCosineSchedule", "update", "warmup_steps@1", "t_total@2"),
}

_PACKAGES: tuple[tuple[str, tuple[SchedulerKind, ...]], ...] = (
    ("torch.optim.lr_scheduler", _TORCH),
    ("transformers", _TRANSFORMERS),
    ("transformers.optimization", _TRANSFORMERS),
    ("diffusers.optimization", _DIFFUSERS),
    ("timm.scheduler", _TIMM),
    ("timm.scheduler.scheduler_factory", _TIMM),
    ("timm.scheduler.cosine_lr", _TIMM),
    ("timm.scheduler.step_lr", _TIMM),
    ("timm.scheduler.multistep_lr", _TIMM),
    ("timm.scheduler.poly_lr", _TIMM),
    ("timm.scheduler.tanh_lr", _TIMM),
    ("timm.scheduler.plateau_lr", _TIMM),
    ("timm.scheduler.wsd_lr", _TIMM),
    ("pytorch_warmup", _PYTORCH_WARMUP),
    ("deepspeed.runtime.lr_schedules", _DEEPSPEED),
)


@lru_cache(maxsize=4096)
def scheduler_kind(path: str) -> SchedulerKind | None:
    """What is known about a scheduler class or factory by its dotted path; None for an unknown one."""
    found = _SINGLE.get(path)
    if found is not None:
        return found
    package, _, name = path.rpartition(".")
    for known, kinds in _PACKAGES:
        if package == known:
            for kind in kinds:
                if kind.name == name:
                    return kind
    return None


_FAR = 1 << 20  # steps: more than a schedule has
_ALIKE = 1e-9  # two factors of a learning rate


class End(NamedTuple):
    """The step at which a schedule has fallen as far as it does, and whether it is down to nothing there."""

    step: int
    at_zero: bool


def end_of_decay(factor: Callable[[int], Any]) -> End | None:
    """The first step from which a learning rate's factor falls no more; None if it never falls, jumps, or never ends.

    `factor` gives a number for a step, or None where it has no value, as `(1 - step / total) ** 0.9` behind its end. A
    warm-up before the decay does no harm; one that stays at its height has no end, and neither have steps. A decay that
    is much shorter than what is before it, or a cosine that rises again within half its length, may be missed.
    """

    def level(step: int) -> float:
        value = factor(step)
        return 0.0 if value is None or value != value else max(float(value), 0.0)

    def end_at(step: int) -> End | None:
        gradual = level(step - 2) > level(step - 1) > level(step)
        at_zero = level(step) < _ALIKE
        return End(step, at_zero) if at_zero or gradual else None

    def rests(step: int) -> bool:
        return level(step + 1) >= level(step)

    try:
        if factor(1) is None:
            return None
        last = level(_FAR)
        if level(_FAR + 1) == level(_FAR // 2) == last:  # An unbounded cosine is not the same at all three.
            end = _first(lambda step: abs(level(step) - last) < _ALIKE, 1, _FAR)
            return end_at(end) if level(end - 1) > last else None
        begin = _next(lambda step: not rests(step), 2)
        end = _next(rests, begin)
        return end_at(_first(rests, begin, end)) if end < _FAR else None
    except OverflowError:
        return None


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The first number above `low` for which something holds, as it does for all from there up to `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _next(holds: Callable[[int], bool], step: int) -> int:
    """Some step for which something holds, not far behind the first one; at least `_FAR` if there is none."""
    while step < _FAR and not holds(step):
        step += step // 2
    return step
