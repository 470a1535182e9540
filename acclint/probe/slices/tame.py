"""Keeps torch within the measuring child: no files, devices or other processes; settings have their defaults."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils.data
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from acclint.knowledge import names
from acclint.probe.slices.standins import DATA_LOADER, Anything, Value, missing_attribute, world


class OnTheProcessor(TorchFunctionMode):  # type: ignore[misc]
    """Devices that are not there are the processor."""

    def __torch_function__(
        self, func: Callable[..., Any], types_: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("cuda", "pin_memory") and args and isinstance(args[0], Tensor):
            return args[0]
        options = {k: "cpu" if k == "device" else v for k, v in (kwargs or {}).items()}
        if name == "to":
            args = [
                a for a in args if not (isinstance(a, (str, torch.device, int, Anything)) and not isinstance(a, bool))
            ]
            options.pop("device", None)
            if len(args) == 1 and not {"dtype", "other"} & options.keys():
                return args[0]
        return func(*args, **options)


class _Replica(nn.Module):  # type: ignore[misc]
    """Stands for a model on several devices: here there is one."""

    def __init__(self, module: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def no_sync(self) -> Any:
        return Anything("no_sync")

    def __getattr__(self, name: str) -> Any:
        return missing_attribute(self, name)


def tame() -> None:
    """What torch does outside this process, or only with devices, is left out; settings are the defaults."""
    nothing: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    time.sleep = nothing
    torch.save = nothing
    torch.load = lambda *args, **kwargs: Anything("loaded")
    torch.compile = lambda model=None, *args, **kwargs: model
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, nothing)
    for name in ("max_memory_allocated", "memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(torch.cuda, name, lambda *args, **kwargs: 0)
    if torch.distributed.is_available():
        for name in ("init_process_group", "destroy_process_group", "barrier", "all_reduce", "broadcast", "reduce"):
            setattr(torch.distributed, name, nothing)
        torch.distributed.get_rank = lambda *args: 0
        torch.distributed.get_world_size = lambda *args: 1
    if world().spec["models"]:  # how large the gradients of stand-ins are says nothing
        for name in ("clip_grad_norm_", "clip_grad_value_"):
            setattr(nn.utils, name, _unclipped(getattr(nn.utils, name)))
            setattr(nn.utils.clip_grad, name, getattr(nn.utils, name))
    nn.parallel.DistributedDataParallel = _Replica
    nn.DataParallel = _Replica
    if world().spec["lenient"]:
        _tame_tensors()
    _tame_arguments()
    _tame_loaders()
    _tame_modules()
    _tame_optimizers()


def _tame_tensors() -> None:
    """Tensors made of stand-ins are values."""

    def made_of(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except (TypeError, ValueError, RuntimeError):
                return world().batch()

        return wrapper

    for name in (
        "tensor",
        "as_tensor",
        "from_numpy",
        "stack",
        "cat",
        "FloatTensor",
        "LongTensor",
        "linspace",
        "arange",
    ):
        setattr(torch, name, made_of(getattr(torch, name)))


def _unclipped(clip: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        given = [parameters] if isinstance(parameters, Tensor) else parameters
        return clip([p for p in given if isinstance(p, Tensor)], 1e30)

    return wrapper


def _tame_arguments() -> None:
    """Command line arguments have their defaults; those without one are stand-ins."""

    def parse(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        found = argparse.Namespace()
        for action in parser._actions:
            value = action.default
            if action.dest in ("help", "version") or value is argparse.SUPPRESS:
                continue
            if value is None and (action.required or not action.option_strings):
                value = world().number(action.dest)
                value = Anything(action.dest) if value is None else value
            elif isinstance(value, str):
                value = parser._get_value(action, value)
            elif names.is_epoch_name(action.dest) and type(value) is int and value > 2:
                value = 2
            setattr(found, action.dest, value)
        return found

    argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign,assignment]
    argparse.ArgumentParser.parse_known_args = lambda self, *a, **k: (parse(self), [])  # type: ignore[method-assign]


def _tame_loaders() -> None:
    class Loader(DATA_LOADER):  # type: ignore[misc]
        def __new__(cls, dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
            if isinstance(dataset, Anything):
                return world().loader()
            return super().__new__(cls)

        def __init__(self, dataset: Any, *args: Any, **kwargs: Any) -> None:
            for name in ("num_workers", "prefetch_factor", "persistent_workers", "multiprocessing_context"):
                kwargs.pop(name, None)
            args = (*args[:4], 0, *args[5:]) if len(args) > 4 else args  # the fifth is the number of processes
            super().__init__(dataset, *args, **{k: v for k, v in kwargs.items() if not isinstance(v, Anything)})

    torch.utils.data.DataLoader = Loader
    torch.utils.data.dataloader.DataLoader = Loader
    for name in ("RandomSampler", "SequentialSampler", "DistributedSampler", "BatchSampler"):
        original: Any = getattr(torch.utils.data, name)

        class Sampler(original):  # type: ignore[misc]
            def __new__(cls, source: Any = None, *args: Any, **kwargs: Any) -> Any:
                return Anything("sampler") if isinstance(source, Anything) else super().__new__(cls)

        for module in (torch.utils.data, torch.utils.data.distributed):
            if hasattr(module, name):
                setattr(module, name, Sampler)


def _tame_modules() -> None:
    to = nn.Module.to

    def moved(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, Anything) for a in [*args, *kwargs.values()]):
            return module
        return to(module, *args, **kwargs)

    nn.Module.to = moved
    if not torch.cuda.is_available():
        nn.Module.cuda = lambda module, *args, **kwargs: module
    keep = nn.Module.__setattr__

    def kept(module: nn.Module, name: str, value: Any) -> None:
        keep(module, name, value)
        if isinstance(value, Anything) and value._acc_made:  # a part of the model: its parameters are the model's
            module._modules[f"_acc_{name}"] = value._acc_model()

    nn.Module.__setattr__ = kept
    load = nn.Module.load_state_dict

    def loaded(module: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(state, Anything) else load(module, state, *args, **kwargs)

    nn.Module.load_state_dict = loaded


def _tame_optimizers() -> None:
    """Parameters and settings that are stand-ins are those of the stand-in models, and the defaults."""
    original = torch.optim.Optimizer.__init__

    def made(optimizer: torch.optim.Optimizer, params: Any, defaults: dict[str, Any]) -> None:
        defaults = {k: _settled(k, v) for k, v in defaults.items()}
        if isinstance(params, Anything):
            params = _everything(params)
        else:
            params = list(params)
            if any(isinstance(p, (Anything, Value)) for p in params):
                params = [p for p in params if not isinstance(p, (Anything, Value))] or _everything(params[0])
            for group in params:
                if isinstance(group, dict):
                    for key, value in group.items():
                        if key == "params" and isinstance(value, Anything):
                            group[key] = _everything(value)
                        elif key != "params":
                            group[key] = _settled(key, value)
        params = params or _everything(None)
        original(optimizer, params, defaults)

    torch.optim.Optimizer.__init__ = made


def _settled(name: str, value: Any) -> Any:
    if isinstance(value, Anything):
        found = world().number(name)
        return 0.0 if found is None else found
    if isinstance(value, tuple):
        return tuple(0.9 if isinstance(v, Anything) else v for v in value)
    return value


def _everything(params: Any) -> list[nn.Parameter]:
    """The parameters of all stand-in models so far."""
    world().note("owner", params._acc_name if isinstance(params, Anything) else "parameters")
    return [core.weight for core in world().cores] or [world().new_core("model").weight]
