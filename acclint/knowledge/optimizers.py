"""Optimizers: does a constant factor on every gradient change what they do?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

LARGE_EPS = 1e-5
"""An eps above this is felt beside gradients of ordinary size (AdamW eps=1e-3: end point off by .064)."""


@dataclass(frozen=True, slots=True)
class OptimizerKind:
    """What an optimizer does with the scale of its gradients.

    `scale_invariant`: multiplying every gradient by one constant leaves the updates as they are. `coupled_decay`: a
    `weight_decay` other than 0 is added to the gradient and breaks that. `decoupling` is the keyword that switches to
    decoupled decay, `decoupled_value` its value for that. `eps` is the default added to the denominator (None: none).
    `closure`: step() needs a closure that calls backward. `schedule` is the argument that holds the length, in updates,
    of a learning-rate schedule of its own; "" if it has none.
    """

    name: str
    scale_invariant: bool
    coupled_decay: bool = False
    decay_default: float = 0.0
    decoupling: str = ""
    decoupled_value: bool = True
    eps: float | None = None
    closure: bool = False
    schedule: str = ""

    def is_invariant(self, arguments: dict[str, object]) -> bool:
        """Whether the optimizer built with these keyword arguments is scale-invariant.

        `arguments` maps each keyword that was given to its literal value, or to None where the value is not known; an
        unknown weight decay counts as present, an unknown eps as the default. Errors are on the careful side: False.
        """
        if not self.scale_invariant:
            return False
        eps = arguments.get("eps", self.eps)
        if isinstance(eps, (tuple, list)):
            eps = eps[0] if eps else None
        if isinstance(eps, (int, float)) and eps > LARGE_EPS:
            return False
        if not self.coupled_decay:
            return True
        if self.decoupling and arguments.get(self.decoupling) is self.decoupled_value:
            return True
        decay = arguments.get("weight_decay", self.decay_default)
        return isinstance(decay, (int, float)) and decay == 0


def _kinds(text: str) -> dict[str, OptimizerKind]:
    """Rows of: name, "invariant" or "scaled", then coupled | eps=x | decay=x | closure | decoupling=keyword[=False]."""
    kinds: dict[str, OptimizerKind] = {}
    for row in text.strip().splitlines():
        name, scale, *words = row.split()
        options: dict[str, str] = dict(word.partition("=")[::2] for word in words)
        switch, _, value = options.get("decoupling", "").partition("=")
        kinds[name] = OptimizerKind(
            name=name,
            scale_invariant=scale == "invariant",
            coupled_decay="coupled" in options,
            decay_default=float(options.get("decay", 0.0)),
            decoupling=switch,
            decoupled_value=value != "False",
            eps=float(options["eps"]) if "eps" in options else None,
            closure="closure" in options,
        )
    return kinds


_TORCH = _kinds("""
ASGD scaled coupled
Adadelta scaled coupled eps=1e-6
Adafactor invariant
Adagrad invariant coupled eps=1e-10
Adam invariant coupled eps=1e-8 decoupling=decoupled_weight_decay
AdamW invariant decay=0.01 eps=1e-8
Adamax invariant coupled eps=1e-8
LBFGS scaled closure
Muon invariant decay=0.1 eps=1e-7
NAdam invariant coupled eps=1e-8 decoupling=decoupled_weight_decay
RAdam scaled coupled eps=1e-8 decoupling=decoupled_weight_decay
RMSprop invariant coupled eps=1e-8
Rprop invariant
SGD scaled coupled
SparseAdam invariant eps=1e-8
""")
"""torch 2.13.0, torch/optim/*.py; measured with all gradients times 4 in float64 over 1 and 50 steps.

Scaled: Adadelta 1.1 (its eps of 1e-6 stands beside squared gradients), RAdam 4.0 in its first, un-adapted steps.
torch.optim.Adafactor's eps is relative (None, 1e-3) and no obstacle.
"""

_TIMM = _kinds("""
AdaBelief scaled eps=1e-16 decay=0
Adafactor invariant eps=1e-30
AdafactorBigVision invariant
Adahessian scaled eps=1e-8
AdamP invariant eps=1e-8
AdamWLegacy invariant decay=0.01 eps=1e-8
Adan invariant eps=1e-8
Adopt invariant coupled eps=1e-6 decoupling=decoupled
Lamb invariant decay=0.01 eps=1e-6
LaProp invariant eps=1e-15
Lars scaled coupled eps=1e-8
Lion invariant
MADGRAD scaled coupled eps=1e-6
Mars invariant eps=1e-8
Muon invariant eps=1e-7
NAdamLegacy invariant coupled eps=1e-8
NAdamW invariant decay=0.01 eps=1e-8
NvNovoGrad invariant eps=1e-8
RAdamLegacy scaled eps=1e-8
RMSpropTF scaled coupled eps=1e-10
SGDP scaled coupled eps=1e-8
SGDW scaled
""")
"""timm 1.0.31, timm/optim/*.py; measured as above. Lars: 4.0 without weight decay, .8 to .9 with it."""

_TORCH_OPTIMIZER = _kinds("""
A2GradExp scaled
A2GradInc scaled
A2GradUni scaled
AccSGD scaled coupled
AdaBelief scaled eps=1e-8
AdaBound scaled coupled eps=1e-8
AdaMod invariant eps=1e-8
Adafactor invariant
AdamP invariant eps=1e-8
AggMo scaled coupled
Apollo scaled coupled eps=1e-4
DiffGrad scaled coupled eps=1e-8
LARS scaled coupled eps=1e-8
Lamb invariant eps=1e-6
MADGRAD scaled coupled eps=1e-6
NovoGrad invariant eps=1e-8
PID scaled coupled
QHAdam invariant coupled eps=1e-8
QHM scaled coupled
RAdam scaled eps=1e-8
SGDP scaled coupled eps=1e-8
SGDW scaled
SWATS scaled coupled eps=1e-3
Shampoo scaled coupled
Yogi scaled coupled eps=1e-3
""")
"""torch_optimizer 0.3.0, torch_optimizer/*.py; measured as above."""

_TRANSFORMERS = _kinds("""
AdamW invariant eps=1e-6
Adafactor invariant
""")
"""transformers optimization.py: AdamW (old; decoupled decay, eps 1e-6), Adafactor 5.24.0 (the same, relative eps)."""

_BITSANDBYTES = _kinds("""
AdEMAMix invariant decay=0.01 eps=1e-8
AdEMAMix8bit invariant decay=0.01 eps=1e-8
Adagrad invariant coupled eps=1e-10
Adagrad8bit invariant coupled eps=1e-8
Adam invariant eps=1e-8
Adam32bit invariant eps=1e-8
Adam8bit invariant eps=1e-8
AdamW invariant decay=0.01 eps=1e-8
AdamW32bit invariant decay=0.01 eps=1e-8
AdamW8bit invariant decay=0.01 eps=1e-8
LAMB invariant eps=1e-8
LAMB8bit invariant eps=1e-8
LARS scaled coupled
LARS8bit scaled coupled
Lion invariant
Lion32bit invariant
Lion8bit invariant
PagedAdam invariant eps=1e-8
PagedAdam32bit invariant eps=1e-8
PagedAdam8bit invariant eps=1e-8
PagedAdamW invariant decay=0.01 eps=1e-8
PagedAdamW32bit invariant decay=0.01 eps=1e-8
PagedAdamW8bit invariant decay=0.01 eps=1e-8
PagedLion invariant
PagedLion32bit invariant
PagedLion8bit invariant
RMSprop invariant coupled eps=1e-8
RMSprop8bit invariant coupled eps=1e-8
SGD scaled coupled
SGD8bit scaled coupled
""")
"""bitsandbytes optim/*.py and csrc/kernels.cu (the two-state kernels decay after the update; not run)."""

_APEX = _kinds("""
FusedAdagrad invariant coupled eps=1e-10 decoupling=adagrad_w_mode
FusedLAMB invariant decay=0.01 eps=1e-6
FusedNovoGrad invariant eps=1e-8
FusedSGD scaled coupled
""")
"""apex optimizers/fused_*.py (not run)."""

_FUSED_ADAM = OptimizerKind("FusedAdam", scale_invariant=True, eps=1e-8)
"""Adam whose adam_w_mode (apex, deepspeed) is True by default: decoupled decay."""

_DEEPSPEED = _kinds("""
DeepSpeedCPUAdagrad invariant coupled eps=1e-10
DeepSpeedCPUAdam invariant eps=1e-8
DeepSpeedCPULion invariant
FusedLamb invariant eps=1e-8
FusedLion invariant
""")
"""deepspeed ops/adam, ops/adagrad, ops/lamb, ops/lion (not run)."""

# Its rate goes to 0 over t_total calls of step() (pytorch-pretrained-bert 0.6.2, optimization.py).
_BERT_ADAM = OptimizerKind("BertAdam", scale_invariant=True, decay_default=0.01, eps=1e-6, schedule="t_total")
_OPENAI_ADAM = replace(_BERT_ADAM, name="OpenAIAdam")
_SINGLE: dict[str, OptimizerKind] = {
    # lion-pytorch 0.2.5 (measured), schedulefree and pytorch_optimizer's relatives by their documented update rule.
    "lion_pytorch.Lion": OptimizerKind("Lion", scale_invariant=True),
    "lion_pytorch.lion_pytorch.Lion": OptimizerKind("Lion", scale_invariant=True),
    "schedulefree.AdamWScheduleFree": OptimizerKind("AdamWScheduleFree", scale_invariant=True, eps=1e-8),
    "schedulefree.SGDScheduleFree": OptimizerKind("SGDScheduleFree", scale_invariant=False, coupled_decay=True),
    "apex.optimizers.FusedAdam": _FUSED_ADAM,
    "deepspeed.ops.adam.FusedAdam": _FUSED_ADAM,
    "colossalai.nn.optimizer.HybridAdam": OptimizerKind("HybridAdam", scale_invariant=True, eps=1e-8),
    "colossalai.nn.optimizer.FusedAdam": _FUSED_ADAM,
    "pytorch_transformers.AdamW": OptimizerKind("AdamW", scale_invariant=True, eps=1e-6),
    "pytorch_pretrained_bert.BertAdam": _BERT_ADAM,
    "pytorch_pretrained_bert.optimization.BertAdam": _BERT_ADAM,
    "pytorch_pretrained_bert.OpenAIAdam": _OPENAI_ADAM,
    "pytorch_pretrained_bert.optimization_openai.OpenAIAdam": _OPENAI_ADAM,
    "adabelief_pytorch.AdaBelief": OptimizerKind("AdaBelief", scale_invariant=False, eps=1e-16),
    "fairseq.optim.adafactor.Adafactor": OptimizerKind("Adafactor", scale_invariant=True),
}

_FACTORIES: dict[str, OptimizerKind] = {
    # timm 1.0.31 optim/_optim_factory.py: create_optimizer_v2(model_or_params, opt="sgd", ...).
    "timm.optim.create_optimizer_v2": OptimizerKind("create_optimizer_v2", scale_invariant=False),
    "timm.optim.create_optimizer": OptimizerKind("create_optimizer", scale_invariant=False),
}

# What takes an optimizer, and steps and zeroes as that one does: NVIDIA/apex, apex/fp16_utils/fp16_optimizer.py (it is
# copied into many projects); jettify/pytorch-optimizer, torch_optimizer/lookahead.py; horovod/torch/optimizer.py;
# pytorch/contrib, torchcontrib/optim/swa.py. Not apex's LARC, which scales the gradients of each layer.
_WRAPPERS = frozenset(("horovod.torch.DistributedOptimizer", "torchcontrib.optim.SWA"))
_WRAPPING_CLASSES = frozenset(("FP16_Optimizer", "Lookahead"))

_PACKAGES: tuple[tuple[str, dict[str, OptimizerKind]], ...] = (
    ("torch.optim", _TORCH),
    ("timm.optim", {**_TORCH, **_TIMM}),
    ("torch_optimizer", _TORCH_OPTIMIZER),
    ("transformers", _TRANSFORMERS),
    ("transformers.optimization", _TRANSFORMERS),
    ("bitsandbytes.optim", _BITSANDBYTES),
    ("apex.optimizers", _APEX),
    ("deepspeed.ops.adam", _DEEPSPEED),
    ("deepspeed.ops.adagrad", _DEEPSPEED),
    ("deepspeed.ops.lamb", _DEEPSPEED),
    ("deepspeed.ops.lion", _DEEPSPEED),
)


OTHER = OptimizerKind("another optimizer", scale_invariant=False, schedule="t_total")  # BertAdam, copied
"""One that nothing is known about: taken as one whose updates grow with its gradients."""


@lru_cache(maxsize=4096)
def optimizer_kind(path: str) -> OptimizerKind | None:
    """What is known about an optimizer class or factory by its dotted path; None for an unknown one.

    An unknown optimizer must be taken as one whose updates grow with its gradients.
    """
    found = _SINGLE.get(path) or _FACTORIES.get(path)
    if found is not None:
        return found
    package, _, name = path.rpartition(".")
    for known, kinds in _PACKAGES:
        # Also from the class's own file: torch.optim.adamw.AdamW.
        if package == known or (package.startswith(known + ".") and package.count(".") == known.count(".") + 1):
            kind = kinds.get(name)
            if kind is not None:
                return kind
    if package == "timm.optim.optim_factory" or package == "timm.optim._optim_factory":
        return _FACTORIES.get(f"timm.optim.{name}")
    return None


def is_wrapper(path: str) -> bool:
    """Whether a class, by its dotted path, wraps the optimizer it is given and is used in its place."""
    return path in _WRAPPERS or path.rpartition(".")[2] in _WRAPPING_CLASSES
