"""The instruments' places in torch: functions and methods replaced so that the ledger sees what goes through them."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.optim.lr_scheduler
import torch.optim.swa_utils
import torch.utils.data.dataloader
from torch import Tensor

from acclint.probe.instruments.leaves import get_grad, set_grad
from acclint.probe.instruments.ledger import POOL, Ledger
from acclint.probe.instruments.nodes import LOSS, SCALE, graph_tensors, metadata_of, number
from acclint.probe.instruments.records import rate_of
from acclint.probe.instruments.terms import loss_shape


def install(ledger: Ledger) -> None:
    """Patch torch. Harmless while the ledger is not active."""
    _patch_autograd(ledger)
    _patch_gradients(ledger)
    _patch_optimizers(ledger)
    _patch_schedulers(ledger)
    _patch_losses(ledger)
    _patch_tools(ledger)
    _patch_loaders(ledger)
    _patch_modules(ledger)


def _patch_autograd(ledger: Ledger) -> None:
    def backward(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if not ledger.active or ledger.current is not None or ledger.quiet:
                return original(tensors, *args, **kwargs)
            roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            retain = bool(kwargs.get("retain_graph", args[1] if len(args) > 1 else False))
            call = ledger.begin_backward(roots, "backward", retain)
            try:
                original(tensors if isinstance(tensors, Tensor) else roots, *args, **kwargs)
            except BaseException:
                ledger.abandon_backward(call)
                raise
            roots.clear()
            ledger.end_backward(call)
            return None

        return wrapper

    def grad(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            wanted = [inputs] if isinstance(inputs, Tensor) else list(inputs)
            leaves = [p for p in wanted if isinstance(p, Tensor) and p.is_leaf and id(p) in ledger.param_owners]
            leaves += [p for p in wanted if isinstance(p, torch.nn.Parameter) and id(p) not in ledger.param_owners]
            inputs = inputs if isinstance(inputs, Tensor) else wanted
            if not ledger.active or ledger.current is not None or ledger.quiet or not leaves:
                return original(outputs, inputs, *args, **kwargs)
            roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            call = ledger.begin_backward(roots, "grad", bool(kwargs.get("retain_graph", False)))
            try:
                result = original(outputs if isinstance(outputs, Tensor) else roots, inputs, *args, **kwargs)
            except BaseException:
                ledger.abandon_backward(call)
                raise
            with ledger.own_work():
                for param, value in zip(wanted, result, strict=False):
                    leaf = ledger.leaves.get(id(param))
                    if leaf is not None and isinstance(value, Tensor):
                        leaf.receive(call.ordinal, value)
                        leaf.pending = None  # it is only returned; the script may add it to `.grad` itself
                        call.fired.add(id(param))
            call.leaves = {k: v for k, v in call.leaves.items() if any(v is p for p in wanted)}
            ledger.end_backward(call)
            return result

        return wrapper

    _patch(torch.autograd, "backward", backward)
    _patch(torch.autograd, "grad", grad)


def _patch_gradients(ledger: Ledger) -> None:
    def read(param: Tensor) -> Tensor | None:
        if ledger.active and not ledger.quiet and ledger.leaves and id(param) in ledger.leaves:
            ledger.note_read(param)
        return get_grad(param)

    def write(param: Tensor, value: Tensor | None) -> None:
        seen = ledger.active and not ledger.quiet and id(param) in ledger.leaves
        if value is None and seen and get_grad(param) is not None:
            with ledger.zeroing("none", [param]):
                set_grad(param, None)
        else:
            set_grad(param, value)

    def delete(param: Tensor) -> None:
        write(param, None)

    Tensor.grad = property(read, write, delete)

    def clearing(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            value = args[0] if args else kwargs.get("value", 0)
            param = ledger.owner_of_grad(tensor) if ledger.active and not ledger.quiet else None
            if param is None or bool(value != 0):
                return original(tensor, *args, **kwargs)
            with ledger.zeroing("zero_", [param]):
                return original(tensor, *args, **kwargs)

        return wrapper

    _patch(Tensor, "zero_", clearing)
    _patch(Tensor, "fill_", clearing)

    def clearing_all(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            params: list[Tensor] = []
            if ledger.active and not ledger.quiet:
                tensors = list(tensors)
                params = [p for p in (ledger.owner_of_grad(t) for t in tensors) if p is not None]
            if not params:
                return original(tensors, *args, **kwargs)
            with ledger.zeroing("zero_", params):
                return original(tensors, *args, **kwargs)

        return wrapper

    _patch(torch, "_foreach_zero_", clearing_all)

    def hooking(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(tensor: Tensor, hook: Any) -> Any:
            # the ledger's own hook must come first, to see what the loss brings and not what this hook makes of it
            parameter = isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad and tensor.is_leaf
            if ledger.active and parameter and id(tensor) not in ledger.leaves:
                ledger.track(tensor, POOL)
            return original(tensor, hook)

        return wrapper

    _patch(Tensor, "register_hook", hooking)


def _patch_optimizers(ledger: Ledger) -> None:
    optimizer_class = torch.optim.Optimizer

    def add_group(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(optimizer, *args, **kwargs)
            if ledger.active:
                with ledger.own_work():
                    ledger.register_group(optimizer)
            return result

        return wrapper

    _patch(optimizer_class, "add_param_group", add_group)

    def zero_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if not ledger.active or ledger.quiet:
                return original(optimizer, *args, **kwargs)
            with ledger.zeroing("optimizer", [p for g in optimizer.param_groups for p in g["params"]]):
                return original(optimizer, *args, **kwargs)

        return wrapper

    _patch(optimizer_class, "zero_grad", zero_optimizer)

    def zero_module(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(module: Any, *args: Any, **kwargs: Any) -> Any:
            if not ledger.active or ledger.quiet:
                return original(module, *args, **kwargs)
            with ledger.zeroing("module", list(module.parameters())):
                return original(module, *args, **kwargs)

        return wrapper

    _patch(torch.nn.Module, "zero_grad", zero_module)

    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    register_optimizer_step_pre_hook(ledger.before_step)
    register_optimizer_step_post_hook(ledger.after_step)


def _patch_schedulers(ledger: Ledger) -> None:
    module = torch.optim.lr_scheduler

    def init(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            if not ledger.active:
                return original(scheduler, *args, **kwargs)
            ledger.scheduler_depth += 1
            try:
                original(scheduler, *args, **kwargs)
            finally:
                ledger.scheduler_depth -= 1
            if ledger.scheduler_depth == 0:
                ledger.scheduler(scheduler)
            return None

        return wrapper

    def step(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            if not ledger.active or ledger.scheduler_depth:
                return original(scheduler, *args, **kwargs)
            record = ledger.scheduler(scheduler)
            before = rate_of(scheduler)
            place = ledger.places.place()
            ledger.scheduler_depth += 1
            try:
                result = original(scheduler, *args, **kwargs)
            finally:
                ledger.scheduler_depth -= 1
            after = rate_of(scheduler)
            record.lines.append(place[1])
            record.lrs.append(math.nan if after is None else after)
            ordinal = list(ledger.schedulers).index(id(scheduler))
            owners = () if record.optimizer is None else (record.optimizer,)
            ledger.event("scheduler", place, owners, ordinal, before=before, after=after)
            return result

        return wrapper

    def instrument(cls: type) -> None:
        for name, wrapper in (("__init__", init), ("step", step)):
            if name in vars(cls):
                _patch(cls, name, wrapper)

    def init_subclass(cls: type, /, **kwargs: Any) -> None:
        object.__init_subclass__(**kwargs)
        instrument(cls)

    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, module.LRScheduler)]
    for cls in [*dict.fromkeys(classes), torch.optim.swa_utils.SWALR]:
        instrument(cls)
    if "ReduceLROnPlateau" in vars(module) and module.ReduceLROnPlateau not in classes:  # before torch 2.2
        instrument(module.ReduceLROnPlateau)
    module.LRScheduler.__init_subclass__ = classmethod(init_subclass)


def _patch_losses(ledger: Ledger) -> None:
    for name, function in list(vars(F).items()):
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            continue
        if "reduction" in signature.parameters:
            _patch(F, name, functools.partial(_marking, ledger, name, signature))


def _marking(
    ledger: Ledger, name: str, signature: inspect.Signature, original: Callable[..., Any]
) -> Callable[..., Any]:
    """A loss function whose result remembers what it is."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if not ledger.active or not isinstance(result, Tensor) or result.grad_fn is None:
            return result
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        legacy = given.get("size_average") is not None or given.get("reduce") is not None
        if given["reduction"] != "none" and not legacy:
            with ledger.own_work():
                mark = (f"F.{name}", *loss_shape(name, given), ledger.places.place()[1])
            metadata_of(result.grad_fn)[LOSS] = mark
        return result

    return wrapper


def _patch_tools(ledger: Ledger) -> None:
    def clip(original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not ledger.active or ledger.quiet:
                return original(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            params = given["parameters"]
            params = [params] if isinstance(params, Tensor) else list(params)
            given["parameters"] = params
            owners = {o for p in params for o in ledger.param_owners.get(id(p), ())}
            limit = number(given.get("max_norm", given.get("clip_value")))
            event = ledger.event("clip", None, owners, limit=limit, function=original.__name__)
            if ledger.closure_of is not None:
                event["data"]["closure"] = True
            result = original(**given)
            event["data"]["norm"] = number(result)
            return result

        return wrapper

    for name in ("clip_grad_norm_", "clip_grad_value_"):
        _patch(torch.nn.utils.clip_grad, name, clip)
        setattr(torch.nn.utils, name, getattr(torch.nn.utils.clip_grad, name))

    def tell(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(tool: Any, *args: Any, **kwargs: Any) -> Any:
            # a scaler's step unscales by itself: that is not the script's own unscale_
            if not ledger.active or not getattr(tool, "_enabled", True) or ledger.in_scaler_step:
                return original(tool, *args, **kwargs)
            owner = ledger.optimizer_ids.get(id(args[0])) if args else None
            scale = number(getattr(tool, "_scale", None))
            ledger.event(kind, None, () if owner is None else (owner,), scale=scale)
            ledger.in_scaler_step = kind == "scaler_step"
            try:
                return original(tool, *args, **kwargs)
            finally:
                ledger.in_scaler_step = False

        return wrapper

    def scale(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(scaler: Any, outputs: Any) -> Any:
            result = original(scaler, outputs)
            factor = number(getattr(scaler, "_scale", None))
            if ledger.active and getattr(scaler, "_enabled", False) and factor:
                for tensor in graph_tensors(result):
                    if tensor.grad_fn is not None:
                        metadata_of(tensor.grad_fn)[SCALE] = factor
            return result

        return wrapper

    scaler: Any = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler  # before torch 2.3
    _patch(scaler, "scale", scale)
    _patch(scaler, "unscale_", functools.partial(tell, "unscale"))
    _patch(scaler, "step", functools.partial(tell, "scaler_step"))
    _patch(scaler, "update", functools.partial(tell, "scaler_update"))
    _patch(torch.optim.swa_utils.AveragedModel, "update_parameters", functools.partial(tell, "ema"))

    def batch_norm(original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if ledger.active and torch.is_grad_enabled():
                given = signature.bind(*args, **kwargs)
                given.apply_defaults()
                x = given.arguments["input"]
                if given.arguments["training"] and isinstance(x, Tensor) and x.dim() >= 2:
                    key = (x.shape[0], x.numel() // max(x.shape[1], 1))
                    ledger.batch_norms[key] = ledger.batch_norms.get(key, 0) + 1
            return original(*args, **kwargs)

        return wrapper

    _patch(F, "batch_norm", batch_norm)


def _patch_loaders(ledger: Ledger) -> None:
    module = torch.utils.data.dataloader

    def init(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(loader: Any, *args: Any, **kwargs: Any) -> Any:
            original(loader, *args, **kwargs)
            if ledger.active and loader.num_workers:  # the same batches, in this process
                for name, value in (("num_workers", 0), ("timeout", 0), ("persistent_workers", False)):
                    object.__setattr__(loader, name, value)

        return wrapper

    def begin(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(loader: Any) -> Any:
            iterator = original(loader)
            if ledger.active:
                ordinal = ledger.loaders.setdefault(id(loader), len(ledger.loaders))
                ledger.kept[id(loader)] = loader
                try:
                    real: int | None = whole(loader)
                except (TypeError, NotImplementedError):
                    real = None
                used = None if real is None else ledger.shortened(real)
                sizes = {"length": used, "real_length": real, "batch_size": loader.batch_size}
                ledger.event("loader_begin", None, (), ordinal, **sizes)
                ledger.iterators[iterator] = [ordinal, 0, used if used != real else None]
                ledger.shadow.begin(iterator, loader.batch_size)
                if real is not None and used is not None and used < real:
                    leave_out(iterator, used - 1, real - used)
            return iterator

        return wrapper

    def leave_out(iterator: Any, first: int, count: int) -> None:
        """Skip `count` batches after the `first` ones, so that the last, perhaps smaller, batch is used."""
        sampler = getattr(iterator, "_sampler_iter", None)
        if sampler is not None and iterator._dataset_kind == module._DatasetKind.Map:
            iterator._sampler_iter = itertools.chain(
                itertools.islice(sampler, first), itertools.islice(sampler, count, None)
            )

    def advance(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(iterator: Any) -> Any:
            try:
                state = ledger.iterators.get(iterator) if ledger.active else None
                if state is not None and state[2] is not None and state[1] >= state[2]:
                    raise StopIteration
                batch = ledger.shadow.fetch(iterator, original) if ledger.active else original(iterator)
            except StopIteration:
                state = ledger.iterators.pop(iterator, None) if ledger.active else None
                if state is not None:
                    ledger.event("loader_end", None, (), state[0], batches=state[1])
                raise
            if ledger.active and iterator in ledger.iterators:
                ledger.iterators[iterator][1] += 1
            return batch

        return wrapper

    def length(original: Callable[..., int]) -> Callable[..., int]:
        def wrapper(loader: Any) -> int:
            real = original(loader)
            return ledger.shortened(real) if ledger.active else real

        return wrapper

    whole = module.DataLoader.__len__
    _patch(module.DataLoader, "__len__", length)
    _patch(module._BaseDataLoaderIter, "__len__", length)
    _patch(module.DataLoader, "__init__", init)
    _patch(module.DataLoader, "__iter__", begin)
    _patch(module._BaseDataLoaderIter, "__next__", advance)


def _patch_modules(ledger: Ledger) -> None:
    def call(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(module: Any, *args: Any, **kwargs: Any) -> Any:
            if ledger.call_depth or not ledger.active:
                return original(module, *args, **kwargs)
            ledger.call_depth += 1
            try:
                output = original(module, *args, **kwargs)
            finally:
                ledger.call_depth -= 1
            if ledger.active and torch.is_grad_enabled():
                with ledger.own_work():
                    ledger.graphs.after_forward(output)
            return output

        return wrapper

    _patch(torch.nn.Module, "__call__", call)

    def load(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(module: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(module, *args, **kwargs)
            for leaf in ledger.leaves.values():  # loading is no update by hand
                leaf.data = None
            return result

        return wrapper

    _patch(torch.nn.Module, "load_state_dict", load)

    def forward(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(replica: Any, *args: Any, **kwargs: Any) -> Any:
            if ledger.active and torch.is_grad_enabled():
                ledger.ranks.called(replica)
            return original(replica, *args, **kwargs)

        return wrapper

    _patch(torch.nn.parallel.DistributedDataParallel, "forward", forward)


def _patch(target: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(target, name)
    setattr(target, name, functools.wraps(original)(make(original)))
