"""The tables of acclint.knowledge against the libraries they speak of (torch), and against names from real scripts."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from acclint.knowledge import frameworks, losses, names, norms, optimizers, schedulers


def test_no_table_imports_torch_or_libcst() -> None:
    modules = "losses optimizers schedulers norms frameworks names"
    code = (
        f"import sys\nfor m in {modules!r}.split():\n    __import__('acclint.knowledge.' + m)\n"
        "assert not {'torch', 'libcst'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_every_torch_loss_class_has_its_real_default_reduction() -> None:
    torch_nn = pytest.importorskip("torch.nn")
    module = torch_nn.modules.loss
    classes = {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, torch_nn.Module) and kind.__module__ == module.__name__
    }
    compared = 0
    for name, kind in classes.items():
        if name.startswith("_"):
            continue
        parameter = inspect.signature(kind.__init__).parameters.get("reduction")
        default = parameter.default if parameter is not None else None
        assert losses.reduction_of(f"torch.nn.{name}") == default, name
        assert losses.reduction_of(f"torch.nn.modules.loss.{name}") == default, name
        compared += default is not None
    assert compared >= 21


def test_every_torch_functional_loss_has_its_real_default_reduction() -> None:
    functional = pytest.importorskip("torch.nn.functional")
    compared = 0
    for name, function in vars(functional).items():
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        parameter = inspect.signature(function).parameters.get("reduction")
        default = parameter.default if parameter is not None else None
        assert losses.reduction_of(f"torch.nn.functional.{name}") == default, name
        compared += default is not None
    assert compared >= 21


def test_no_loss_is_listed_that_torch_does_not_have() -> None:
    torch_nn = pytest.importorskip("torch.nn")
    newest = {"LinearCrossEntropyLoss", "linear_cross_entropy"}  # not in older torch
    for path in losses._TORCH:
        package, _, name = path.rpartition(".")
        if name in newest or package == "torch.nn.modules":
            continue
        owner = {"torch.nn": torch_nn, "torch.nn.modules.loss": torch_nn.modules.loss}.get(package)
        if name != "NLLLoss2d":
            assert hasattr(owner or torch_nn.functional, name), path


@pytest.mark.parametrize(
    ("path", "reduction"),
    [
        ("monai.losses.DiceLoss", "mean"),
        ("monai.losses.dice.DiceCELoss", "mean"),
        ("segmentation_models_pytorch.losses.DiceLoss", "mean"),
        ("timm.loss.LabelSmoothingCrossEntropy", "mean"),
        ("timm.loss.cross_entropy.SoftTargetCrossEntropy", "mean"),
        ("torchvision.ops.sigmoid_focal_loss", "none"),
        ("kornia.losses.FocalLoss", "none"),
        ("pytorch_metric_learning.losses.TripletMarginLoss", "mean"),
        ("torch.nn.Linear", None),
        ("mylib.losses.DiceLoss", None),
        ("monai.losses", None),
        ("", None),
    ],
)
def test_reduction_of_other_paths(path: str, reduction: str | None) -> None:
    assert losses.reduction_of(path) == reduction


@pytest.mark.parametrize(
    ("arguments", "reduction"),
    [
        ({}, "mean"),
        ({"reduction": "sum"}, "sum"),
        ({"reduction": "none"}, "none"),
        ({"reduction": "batchmean"}, "mean"),
        ({"size_average": False}, "sum"),
        ({"size_average": True}, "mean"),
        ({"reduce": False}, "none"),
        ({"reduce": False, "size_average": False}, "none"),
        ({"reduce": True}, "mean"),
        ({"reduction": "nonsense"}, None),
        ({"reduction": None}, None),
        ({"reduction": ["sum"]}, None),
    ],
)
def test_arguments_change_the_reduction(arguments: dict[str, object], reduction: str | None) -> None:
    assert losses.reduction_from_arguments("mean", arguments) == reduction


def test_deprecated_arguments_decide_as_in_torch() -> None:
    torch_nn = pytest.importorskip("torch.nn")
    for average in (None, True, False):
        for reduce in (None, True, False):
            if average is None and reduce is None:
                continue
            with pytest.warns(UserWarning):
                real = torch_nn.MSELoss(size_average=average, reduce=reduce).reduction
            assert losses.reduction_from_arguments("mean", {"size_average": average, "reduce": reduce}) == real


# --- optimizers ------------------------------------------------------------------------------------------------------


def _torch_optimizers() -> dict[str, type]:
    optim = pytest.importorskip("torch.optim")
    return {
        name: kind
        for name, kind in vars(optim).items()
        if inspect.isclass(kind) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer
    }


def test_every_torch_optimizer_is_known_with_its_real_defaults() -> None:
    for name, kind in _torch_optimizers().items():
        known = optimizers.optimizer_kind(f"torch.optim.{name}")
        assert known is not None, name
        assert optimizers.optimizer_kind(f"{kind.__module__}.{name}") == known
        parameters = inspect.signature(kind).parameters
        if "weight_decay" in parameters:
            assert known.decay_default == parameters["weight_decay"].default, name
        if "eps" in parameters and not isinstance(parameters["eps"].default, tuple):
            assert known.eps == parameters["eps"].default, name
        if known.decoupling:
            assert known.decoupling in parameters, name


def _displacement_ratio(kind: type, factor: float, steps: int, **arguments: object) -> float:
    """How far apart two runs end, relative to the first, when every gradient of the second is scaled."""
    torch = pytest.importorskip("torch")
    ends = []
    for scale in (1.0, factor):
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(6, 5, generator=generator, dtype=torch.float64)
        parameter = torch.nn.Parameter(start.clone())
        optimizer = kind([parameter], lr=1e-2, **arguments)
        for _ in range(steps):
            gradient = torch.randn(6, 5, generator=generator, dtype=torch.float64) + 0.5
            parameter.grad = scale * 1e-2 * gradient
            optimizer.step()
        ends.append(parameter.detach() - start)
    return float((ends[1] - ends[0]).norm() / ends[0].norm())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_scale_invariance_is_what_torch_does(decay: float) -> None:
    for name, kind in _torch_optimizers().items():
        if name in ("LBFGS", "SparseAdam"):
            continue  # a closure, sparse gradients
        known = optimizers.optimizer_kind(f"torch.optim.{name}")
        assert known is not None
        arguments: dict[str, object] = {}
        if "weight_decay" in inspect.signature(kind).parameters:
            arguments["weight_decay"] = decay
        moved = max(_displacement_ratio(kind, 4.0, steps, **arguments) for steps in (1, 20))
        assert known.is_invariant(arguments) == (moved < 0.01), (name, arguments, moved)


def test_decoupled_decay_switch_restores_invariance_in_torch() -> None:
    for name, kind in _torch_optimizers().items():
        known = optimizers.optimizer_kind(f"torch.optim.{name}")
        if known is None or not known.decoupling or not known.scale_invariant:
            continue
        arguments: dict[str, object] = {"weight_decay": 0.1, known.decoupling: known.decoupled_value}
        assert known.is_invariant(arguments)
        assert _displacement_ratio(kind, 4.0, 20, **arguments) < 0.01, name


def test_invariance_depends_on_arguments() -> None:
    adam = optimizers.optimizer_kind("torch.optim.Adam")
    adamw = optimizers.optimizer_kind("torch.optim.AdamW")
    assert adam is not None and adamw is not None
    assert adam.is_invariant({})
    assert adam.is_invariant({"weight_decay": 0})
    assert not adam.is_invariant({"weight_decay": 1e-2})
    assert not adam.is_invariant({"weight_decay": None})  # unknown
    assert adamw.is_invariant({"weight_decay": 0.1})
    assert not adamw.is_invariant({"eps": 1e-3})
    assert adamw.is_invariant({"eps": 1e-6})
    assert adamw.is_invariant({"eps": None})


@pytest.mark.parametrize(
    ("path", "invariant"),
    [
        ("torch.optim.SGD", False),
        ("torch.optim.adamw.AdamW", True),
        ("transformers.AdamW", True),
        ("transformers.Adafactor", True),
        ("transformers.optimization.Adafactor", True),
        ("bitsandbytes.optim.AdamW8bit", True),
        ("apex.optimizers.FusedAdam", True),
        ("apex.optimizers.FusedSGD", False),
        ("deepspeed.ops.adam.DeepSpeedCPUAdam", True),
        ("lion_pytorch.Lion", True),
        ("timm.optim.Lamb", True),
        ("timm.optim.lars.Lars", False),
        ("torch_optimizer.MADGRAD", False),
    ],
)
def test_other_optimizers(path: str, invariant: bool) -> None:
    kind = optimizers.optimizer_kind(path)
    assert kind is not None
    assert kind.is_invariant({}) == invariant


def test_unknown_optimizers_and_factories() -> None:
    assert optimizers.optimizer_kind("mylib.Adam") is None
    assert optimizers.optimizer_kind("torch.optim.lr_scheduler.StepLR") is None
    assert optimizers.optimizer_kind("torch.optim.lr_scheduler.Optimizer") is None
    assert optimizers.optimizer_kind("") is None
    assert optimizers.optimizer_kind("timm.optim.create_optimizer_v2") is not None
    lbfgs = optimizers.optimizer_kind("torch.optim.LBFGS")
    assert lbfgs is not None and lbfgs.closure


# --- schedulers ------------------------------------------------------------------------------------------------------


def test_every_torch_scheduler_is_known_with_count_arguments_that_exist() -> None:
    module = pytest.importorskip("torch.optim.lr_scheduler")
    seen = 0
    for name, kind in vars(module).items():
        if not inspect.isclass(kind) or kind.__module__ != module.__name__ or not issubclass(kind, module.LRScheduler):
            continue
        known = schedulers.scheduler_kind(f"torch.optim.lr_scheduler.{name}")
        assert known is not None, name
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        assert parameters[known.optimizer_position].name == "optimizer", name
        for count in known.counts:
            assert count.position is not None
            parameter = parameters[count.position]
            assert parameter.name == count.name, name
            default = parameter.default if isinstance(parameter.default, int) else None
            assert default == count.default, (name, count.name)
        seen += 1
    assert seen >= 15


def test_lengths_of_torch_schedulers_count_calls_of_step() -> None:
    torch = pytest.importorskip("torch")
    for name, arguments in (
        ("CosineAnnealingLR", {"T_max": 10}),
        ("LinearLR", {"total_iters": 10}),
        ("PolynomialLR", {"total_iters": 10}),
        ("ConstantLR", {"total_iters": 10}),
    ):
        known = schedulers.scheduler_kind(f"torch.optim.lr_scheduler.{name}")
        assert known is not None and [count.name for count in known.counts] == list(arguments)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
        rates = []
        for _ in range(11):
            optimizer.step()
            scheduler.step()
            rates.append(scheduler.get_last_lr()[0])
        assert rates[8] != pytest.approx(rates[9]), name  # the 10th call still moves it


@pytest.mark.parametrize(
    ("path", "cadence", "counts"),
    [
        ("transformers.get_linear_schedule_with_warmup", "update", ["num_warmup_steps", "num_training_steps"]),
        ("transformers.get_scheduler", "update", ["num_warmup_steps", "num_training_steps"]),
        (
            "transformers.optimization.get_cosine_schedule_with_warmup",
            "update",
            ["num_warmup_steps", "num_training_steps"],
        ),
        ("diffusers.optimization.get_scheduler", "update", ["num_warmup_steps", "num_training_steps"]),
        ("timm.scheduler.CosineLRScheduler", "either", ["t_initial", "warmup_t"]),
        ("torch.optim.lr_scheduler.ReduceLROnPlateau", "metric", ["patience", "cooldown"]),
        ("torch.optim.lr_scheduler.StepLR", "epoch", ["step_size"]),
        ("pytorch_warmup.LinearWarmup", "update", ["warmup_period"]),
    ],
)
def test_scheduler_cadence(path: str, cadence: str, counts: list[str]) -> None:
    kind = schedulers.scheduler_kind(path)
    assert kind is not None
    assert (kind.cadence, [count.name for count in kind.counts]) == (cadence, counts)


def test_unknown_schedulers() -> None:
    assert schedulers.scheduler_kind("mylib.StepLR") is None
    assert schedulers.scheduler_kind("StepLR") is None
    assert schedulers.scheduler_kind("torch.optim.SGD") is None
    timm = schedulers.scheduler_kind("timm.scheduler.CosineLRScheduler")
    assert timm is not None and timm.absolute


# --- normalisation ---------------------------------------------------------------------------------------------------


def test_batchnorm_layers_of_torch() -> None:
    torch_nn = pytest.importorskip("torch.nn")
    base = torch_nn.modules.batchnorm._BatchNorm
    seen = 0
    for name, kind in vars(torch_nn).items():
        if not inspect.isclass(kind) or not issubclass(kind, torch_nn.Module):
            continue
        path = f"torch.nn.{name}"
        assert norms.is_batchnorm_layer(path) == issubclass(kind, base), path
        if issubclass(kind, base):
            assert norms.has_batchnorm(path, {}) is True
            seen += 1
    assert seen >= 7


def test_torch_layers_listed_as_without_have_none() -> None:
    torch_nn = pytest.importorskip("torch.nn")
    base = torch_nn.modules.batchnorm._BatchNorm
    for path in norms._WITHOUT:
        if path.startswith("torch.nn."):
            kind = getattr(torch_nn, path.removeprefix("torch.nn."))
            assert not issubclass(kind, base)
            assert norms.has_batchnorm(path, {}) is False


@pytest.mark.parametrize(
    ("path", "arguments", "expected"),
    [
        ("torchvision.models.resnet18", {}, True),
        ("torchvision.models.resnet.resnet50", {"weights": None}, True),
        ("torchvision.models.resnet50", {"norm_layer": ...}, None),
        ("torchvision.models.vit_b_16", {}, False),
        ("torchvision.models.vgg16", {}, False),
        ("torchvision.models.vgg16_bn", {}, True),
        ("torchvision.models.get_model", {0: "convnext_tiny"}, False),
        ("torchvision.models.get_model", {"name": "mobilenet_v2"}, True),
        ("torchvision.models.get_model", {0: ...}, None),
        # weights_backbone is given by default, and its BatchNorm is frozen
        ("torchvision.models.detection.fasterrcnn_resnet50_fpn", {}, False),
        ("torchvision.models.detection.fasterrcnn_resnet50_fpn", {"weights": "DEFAULT"}, False),
        ("torchvision.models.detection.fasterrcnn_resnet50_fpn", {"weights": None, "weights_backbone": None}, True),
        ("torchvision.models.detection.fasterrcnn_resnet50_fpn", {"pretrained": True}, None),
        ("torchvision.models.detection.fasterrcnn_resnet50_fpn_v2", {"weights": "DEFAULT"}, True),
        ("torchvision.models.segmentation.deeplabv3_resnet50", {}, True),
        ("torchvision.ops.FrozenBatchNorm2d", {}, False),
        ("torchvision.ops.Conv2dNormActivation", {}, True),
        ("timm.create_model", {0: "resnet50"}, True),
        ("timm.create_model", {0: "resnet50.a1_in1k", "pretrained": True}, True),
        ("timm.create_model", {"model_name": "vit_base_patch16_224"}, False),
        ("timm.create_model", {0: "convnext_tiny"}, False),
        ("timm.create_model", {0: "tf_efficientnet_b0"}, True),
        ("timm.create_model", {0: "resnetv2_50x1_bit"}, None),
        ("timm.create_model", {0: "resnet50_gn"}, None),
        ("timm.create_model", {0: ...}, None),
        ("segmentation_models_pytorch.Unet", {0: "resnet34"}, True),
        ("segmentation_models_pytorch.Unet", {"decoder_use_batchnorm": False}, None),
        ("torch.hub.load", {0: "pytorch/vision:v0.10.0", 1: "resnet18"}, True),
        ("torch.hub.load", {0: "facebookresearch/dinov2", 1: "dinov2_vits14"}, None),
        ("mmcv.cnn.build_norm_layer", {0: {"type": "SyncBN"}}, True),
        ("detectron2.layers.get_norm", {0: "GN"}, False),
        ("torch.nn.Sequential", {}, None),
        ("mylib.ResNet", {}, None),
    ],
)
def test_models(path: str, arguments: dict[str | int, object], expected: bool | None) -> None:
    assert norms.has_batchnorm(path, arguments) is expected


# --- frameworks ------------------------------------------------------------------------------------------------------


def test_frameworks_have_sources_and_are_found() -> None:
    assert len({row.name for row in frameworks.FRAMEWORKS}) == len(frameworks.FRAMEWORKS)
    for row in frameworks.FRAMEWORKS:
        assert row.source and row.roots and row.condition
        assert row.tail in ("user", "exact", "short", "dropped", "carried")
        assert row in frameworks.frameworks_of(row.roots[0])
    assert frameworks.framework("accelerate").divides == "backward"
    assert frameworks.framework("torch.amp.GradScaler").divides == ""
    assert len(frameworks.frameworks_of("lightning.LightningModule")) == 2
    assert frameworks.frameworks_of("mylib.Accelerator") == ()
    with pytest.raises(KeyError):
        frameworks.framework("no such")


# --- names -----------------------------------------------------------------------------------------------------------

_NAMES: dict[str, tuple[str, str]] = {
    "is_accumulation_name": (
        "accum accum_steps accumulation_steps grad_accum gradAccum gradient_accumulation_steps GRAD_ACC grad_acc_steps "
        "accumulate accum_iter iter_size iters_to_accumulate subdivisions update_freq accum_freq "
        "accumulate_grad_batches backward_passes_per_step n_acc acc_steps gradientAccumulationSteps "
        "ACCUMULATION_STEPS num_accum accum_grad "
        "args.grad_accum accumulation num_micro_batches gas virtual_batch train_accum_steps gradient_accumulate_every "
        "grad_accum_every accum_interval ACC_STEPS ga_steps batches_to_accumulate "
        "_accumulative_counts batches_per_step gradient_accumulation_iters acc_freq cfg.gradient_acc",
        "accuracy acc train_acc accumulator accumulated_loss accum_loss acc_loss accumulated_grads accum_grads "
        "loss_accum val_acc best_acc accelerator access account current_accum_step accumulated "
        "is_accumulating total_acc acc_sum "
        "register_post_accumulate_grad_hook set_gradient_accumulation_boundary eval_accumulation_steps "
        "vacuum steps batch_size k",
    ),
    "is_epoch_name": (
        "epoch epochs num_epochs n_epochs max_epoch EPOCHS args.epochs nepoch numEpochs",
        "steps_per_epoch epoch_loss batch epoch_acc step epochal",
    ),
    "is_batch_size_name": (
        "batch_size bs bsz batchSize BATCH_SIZE train_batch_size micro_batch_size batchsize per_gpu_batch_size",
        "batch batches size accum batch_idx num_batches",
    ),
    "is_micro_batch_size_name": (
        "micro_batch_size microbatch_size micro_bsz per_device_train_batch_size train_micro_batch_size_per_gpu",
        "batch_size num_micro_batches micro_batch micro_batches",
    ),
    "is_limit_name": (
        "max_steps total_steps num_training_steps max_iters max_train_steps num_train_optimization_steps t_total "
        "total_iterations max_updates",
        "step global_step log_steps eval_steps accum_steps epochs train_step training_step step_num time_per_step",
    ),
    "is_loader_name": (
        "loader train_loader dataloader train_dataloader trainloader train_dl train_iter data_loader_train batches "
        "trainLoader data_iter self.loader",
        "batch_size dataset n_batches num_batches len_loader max_iter reloader "
        "get_dataloader split_batches build_loader",
    ),
    "is_optimizer_name": (
        "optimizer optim opt optimizer_G opt_d optimizers self.optimizer optimG",
        "optimizer_step lr_optimizer option opt_level adopt get_optimizer build_optimizer",
    ),
    "is_scheduler_name": (
        "scheduler lr_scheduler sched scheduler_G schedulers warmup_scheduler",
        "scheduler_type noise_scheduler lr warmup_steps scheduled get_scheduler",
    ),
    "is_scaler_name": ("scaler grad_scaler loss_scaler amp_scaler gradScaler", "scale std_scaler standard_scaler"),
    "is_loss_name": (
        "loss loss_G d_loss total_loss ce_loss lossD errD losses",
        "running_loss loss_fn avg_loss_meter val_loss loss_weight epoch_loss lossless glossary",
    ),
    "is_interval_name": (
        "log_interval log_every save_steps eval_steps logging_steps print_freq save_freq eval_interval",
        "accum_steps max_steps log logger save interval update_freq",
    ),
    "is_world_size_name": (
        "world_size WORLD_SIZE num_gpus n_gpu num_processes args.world_size worldSize ngpus num_devices",
        "rank gpu local_rank size",
    ),
}


@pytest.mark.parametrize("function", sorted(_NAMES))
def test_names(function: str) -> None:
    judge = getattr(names, function)
    right, wrong = _NAMES[function]
    assert [name for name in right.split() if not judge(name)] == []
    assert [name for name in wrong.split() if judge(name)] == []


@pytest.mark.parametrize("function", sorted(_NAMES))
@pytest.mark.parametrize("name", ["", "_", "__", "123", "été", "x", "名前", "a" * 500])
def test_odd_names_are_nothing(function: str, name: str) -> None:
    assert getattr(names, function)(name) is False


def test_words() -> None:
    assert names.words("gradientAccumulationSteps") == ("gradient", "accumulation", "steps")
    assert names.words("HTTPServer2") == ("http", "server", "2")
    assert names.words("self.args.GRAD_ACC") == ("grad", "acc")
