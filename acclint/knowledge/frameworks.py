"""Who divides the loss, zeroes the gradients, steps the scheduler and gates all that, per framework."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Framework:
    """What a framework does in a user's accumulating loop.

    `divides` names the call that divides the loss by k ("" where nobody does). `gated` are the calls that do nothing
    until the window is full. `condition` says when the row holds. `tail` is what happens to a shorter last window:
    "user", "exact" (r/r), "short" (stepped but divided by k: r/k of the right size), "dropped" or "carried".
    """

    name: str
    roots: tuple[str, ...]
    divides: str
    gated: tuple[str, ...]
    zeroes: str
    scheduler: str
    tail: str
    condition: str
    source: str


FRAMEWORKS: tuple[Framework, ...] = (
    Framework(
        name="torch.amp.GradScaler",
        roots=("torch.amp.GradScaler", "torch.cuda.amp.GradScaler", "torch.cuda.amp.grad_scaler.GradScaler",
               "torch.amp.grad_scaler.GradScaler"),
        divides="",
        gated=(),
        zeroes="user",
        scheduler="user",
        tail="user",
        condition="always",
        source="torch 2.13.0 torch/amp/grad_scaler.py:327",
    ),
    Framework(
        name="DistributedDataParallel",
        roots=("torch.nn.parallel.DistributedDataParallel", "torch.nn.parallel.distributed.DistributedDataParallel"),
        divides="",  # averages over ranks, not over micro-batches
        gated=(),
        zeroes="user",
        scheduler="user",
        tail="user",
        condition="always",
        source="torch 2.13.0 torch/nn/parallel/distributed.py:1659-1685",
    ),
    Framework(
        name="FSDP",
        roots=("torch.distributed.fsdp.FullyShardedDataParallel", "torch.distributed.fsdp.fully_shard",
               "torch.distributed._composable.fsdp.fully_shard"),
        divides="",
        gated=(),
        zeroes="user",
        scheduler="user",
        tail="user",
        condition="always",
        source="torch 2.13.0 torch/distributed/fsdp/fully_sharded_data_parallel.py:1034-1054",
    ),
    Framework(
        name="accelerate",
        roots=("accelerate.Accelerator", "accelerate.accelerator.Accelerator"),
        divides="backward",
        gated=("optimizer.step", "optimizer.zero_grad", "scheduler.step"),
        zeroes="the prepared optimizer, only when gradients are synchronized",
        scheduler="the prepared scheduler, once per real step, num_processes times unless split_batches",
        tail="short",
        condition="gradient_accumulation_steps > 1, objects prepared, body inside accumulate()",
        source="accelerate 1.15.0 accelerator.py:2851, optimizer.py:112, scheduler.py:60-82",
    ),
    Framework(
        name="lightning automatic",
        roots=("lightning.LightningModule", "lightning.pytorch.LightningModule", "pytorch_lightning.LightningModule"),
        divides="training_step's return value",
        gated=("optimizer.step", "optimizer.zero_grad"),
        zeroes="at the first micro-batch of the window",
        scheduler="interval='step': per optimizer step; default 'epoch'",
        tail="short",
        condition="automatic_optimization is not set to False, Trainer(accumulate_grad_batches > 1)",
        source="lightning 2.6.6 pytorch/loops/optimization/automatic.py:81-83,219-222",
    ),
    Framework(
        name="lightning manual",
        roots=("lightning.LightningModule", "lightning.pytorch.LightningModule", "pytorch_lightning.LightningModule"),
        divides="",
        gated=(),
        zeroes="user",
        scheduler="user",
        tail="user",
        condition="self.automatic_optimization = False",
        source="lightning 2.6.6 configuration_validator.py:128",
    ),
    Framework(
        name="fabric",
        roots=("lightning.Fabric", "lightning.fabric.Fabric", "lightning_fabric.Fabric"),
        divides="",
        gated=(),
        zeroes="user",
        scheduler="user",
        tail="user",
        condition="always",
        source="lightning 2.6.6 fabric/fabric.py:482,733",
    ),
    Framework(
        name="deepspeed",
        roots=("deepspeed.initialize", "deepspeed.DeepSpeedEngine", "deepspeed.runtime.engine.DeepSpeedEngine"),
        divides="backward",
        gated=("engine.step",),
        zeroes="engine.step at the window's end",
        scheduler="engine.step at the window's end",
        tail="carried",
        condition="gradient_accumulation_steps in the configuration, scale_wrt_gas is not False",
        source="deepspeed 0.19.6 runtime/engine.py:2996-3002,3363-3383",
    ),
    Framework(
        name="transformers Trainer",
        roots=("transformers.Trainer", "transformers.Seq2SeqTrainer", "transformers.trainer.Trainer"),
        divides="training_step",
        gated=("optimizer.step", "optimizer.zero_grad", "lr_scheduler.step"),
        zeroes="after the step",
        scheduler="per update",
        tail="exact",  # from 4.57.6; "short" in 4.48 to 4.54, "carried" to 4.45
        condition="TrainingArguments(gradient_accumulation_steps > 1); not where compute_loss ignores "
        "num_items_in_batch and the model's forward takes **kwargs",
        source="transformers 5.23.0 trainer.py:1862-1946,2098-2120,2298-2359",
    ),
    Framework(
        name="timm scaler",
        roots=("timm.utils.NativeScaler", "timm.utils.cuda.NativeScaler", "timm.utils.ApexScaler",
               "timm.utils.cuda.ApexScaler"),
        divides="",
        gated=(),  # need_update=False skips the step; the default steps on every call
        zeroes="user",
        scheduler="user",
        tail="user",
        condition="steps on each call unless need_update=False",
        source="timm 1.0.31 utils/cuda.py, train.py:1266-1302",
    ),
    Framework(
        name="apex amp",
        roots=("apex.amp.scale_loss",),
        divides="",
        gated=(),
        zeroes="user",
        scheduler="user",
        tail="user",
        condition="always",
        source="apex amp/handle.py (scale_loss)",
    ),
    Framework(
        name="ignite",
        roots=("ignite.engine.create_supervised_trainer",),
        divides="the update function",
        gated=("optimizer.step", "optimizer.zero_grad"),
        zeroes="at the first micro-batch of the window",
        scheduler="user's handler",
        tail="carried",  # exact: the count runs across epochs
        condition="gradient_accumulation_steps > 1",
        source="ignite 0.5.5 ignite/engine/__init__.py:117-136",
    ),
    Framework(
        name="fastai",
        roots=("fastai.callback.training.GradientAccumulation", "fastai.vision.all.GradientAccumulation",
               "fastai.text.all.GradientAccumulation", "fastai.basics.GradientAccumulation"),
        divides="the callback, by n_acc / batch size: n_acc counts samples",
        gated=("optimizer.step", "optimizer.zero_grad"),
        zeroes="after the step",
        scheduler="per micro-batch, and sized so",
        tail="carried",
        condition="GradientAccumulation(n_acc) among the callbacks",
        source="fastai 2.8.12 callback/training.py:25-36",
    ),
    Framework(
        name="mmengine",
        roots=("mmengine.optim.OptimWrapper", "mmengine.optim.AmpOptimWrapper",
               "mmengine.optim.optimizer.optimizer_wrapper.OptimWrapper"),
        divides="update_params",
        gated=("step", "zero_grad"),
        zeroes="update_params",
        scheduler="ParamScheduler by epoch or by micro-batch",
        tail="dropped",  # exact where initialize_count_status was called
        condition="accumulative_counts > 1, through update_params",
        source="mmengine optim/optimizer/optimizer_wrapper.py:326-398",
    ),
)  # fmt: skip


def framework(name: str) -> Framework:
    """The row of that name; KeyError for an unknown one."""
    for row in FRAMEWORKS:
        if row.name == name:
            return row
    raise KeyError(name)


def frameworks_of(path: str) -> tuple[Framework, ...]:
    """The rows that a dotted path (a class or factory) stands for; Lightning's module has two."""
    return tuple(row for row in FRAMEWORKS if path in row.roots)


ENGINES = frozenset({"ignite.engine.Engine", "ignite.engine.engine.Engine"})
"""Classes whose first argument is called with one batch after the other (ignite 0.5.5, ignite/engine/engine.py)."""


META_LEARNING = ("higher.", "learn2learn.", "torchmeta.")
"""Packages of differentiable inner loops: the meta-gradient is a sum over tasks (Finn et al. 2017, algorithm 1)."""


# Packages with a trainer class that runs the loop and calls the methods of what is derived from it.
_TRAINERS = frozenset({
    "TTS", "accelerate", "adapters", "allennlp", "axolotl", "catalyst", "colossalai", "composer", "deepspeed",
    "detectron2", "espnet", "espnet2", "fairseq", "fastai", "flair", "ignite", "lightning", "llamafactory",
    "llmtuner", "megatron", "mmcv", "mmdet", "mmengine", "mmseg", "monai", "nemo", "nnunet", "nnunetv2", "optimum",
    "peft", "pytorch_lightning", "pytorch_metric_learning", "ray", "sentence_transformers", "setfit", "skorch",
    "stable_baselines3", "swift", "torchrl", "torchtune", "transformers", "trl", "ultralytics", "unsloth",
})  # fmt: skip


def is_trainer_package(path: str) -> bool:
    """Whether a class of this full name ending in `Trainer` is a framework's."""
    return path.partition(".")[0] in _TRAINERS


_NO_MODULES = ("builtins.", "abc.", "typing.", "collections.", "enum.")


def is_module_base(path: str, has_forward: bool) -> bool:
    """Whether a base class, by its dotted path, makes a class a torch module; `has_forward`: the class defines forward.

    A class with a forward pass and a base that nothing is known of is one (`class Net(MessagePassing)`), but no
    function of autograd.
    """
    last = path.rpartition(".")[2]
    if last.endswith(("Module", "Model")) or path.startswith("torch.nn."):
        return True
    if has_forward:
        return not last.endswith("Function") and not path.startswith(_NO_MODULES)
    return path.startswith("transformers.") and "For" in last  # RobertaForSequenceClassification
