"""Leaving things as they were: a model, its optimizer and the random number generators around a measurement."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module, optimizer: Any = None) -> Iterator[None]:
    """Put everything back on leaving, after an exception too.

    That is: parameters (the same tensors with the same values), gradients, buffers, train or eval mode and all other
    plain attributes of every module; the optimizer's state and settings; the random number generators of torch (all
    devices in use), numpy and random; torch's default dtype. What lies inside a container that the model holds itself
    is not looked at, nor are schedulers and scalers.
    """
    modules = [(module, _attributes(module)) for module in model.modules()]
    tensors = [_Kept(tensor) for tensor in _tensors(model)]
    saved = None if optimizer is None else _optimizer_state(optimizer)
    generators = _generator_states()
    dtype = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        for module, attributes in modules:
            _restore_attributes(module, attributes)
        with torch.no_grad():
            for kept in tensors:
                kept.restore()
        if saved is not None:
            _restore_optimizer(optimizer, saved)
        _restore_generators(generators)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    found = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return list(found.values())


class _Kept:
    """A parameter or buffer with its storage, values, gradient and hooks."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.data = tensor.data
        self.values = tensor.detach().clone()
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad
        self.grad_values = None if tensor.grad is None else tensor.grad.detach().clone()
        self.hooks = dict(getattr(tensor, "_post_accumulate_grad_hooks", None) or {})

    def restore(self) -> None:
        self.tensor.grad = None  # it may have another dtype by now, which the assignment below would not allow
        self.tensor.data = self.data
        self.data.copy_(self.values)
        if self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        if self.grad is not None and self.grad_values is not None:
            self.grad.detach().copy_(self.grad_values)
            self.tensor.grad = self.grad
        if self.hooks:
            self.tensor._post_accumulate_grad_hooks.update(self.hooks)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Every attribute, dictionaries (parameters, buffers, submodules, hooks) with what was in them."""
    return {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in vars(module).items()}


def _restore_attributes(module: nn.Module, attributes: dict[str, tuple[Any, Any]]) -> None:
    current = vars(module)
    current.clear()
    for name, (value, content) in attributes.items():
        if content is not None:
            value.clear()
            value.update(content)
        current[name] = value


def _optimizer_state(optimizer: Any) -> tuple[dict[str, Any], dict[Any, Any], list[tuple[dict[str, Any], list[Any]]]]:
    groups = [
        # an lr that is a tensor is changed in place
        ({k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items()}, list(group["params"]))
        for group in optimizer.param_groups
    ]
    state = {param: copy.deepcopy(values) for param, values in optimizer.state.items()}
    return dict(vars(optimizer)), state, groups


def _restore_optimizer(
    optimizer: Any, saved: tuple[dict[str, Any], dict[Any, Any], list[tuple[dict[str, Any], list[Any]]]]
) -> None:
    attributes, state, groups = saved
    vars(optimizer).clear()
    vars(optimizer).update(attributes)
    optimizer.state.clear()
    optimizer.state.update(state)
    del optimizer.param_groups[len(groups) :]
    for group, (settings, params) in zip(optimizer.param_groups, groups, strict=True):
        group.clear()
        group.update(settings, params=params)


def _generator_states() -> dict[str, Any]:
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "random": random.getstate()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if hasattr(torch, "mps") and torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    return states


def _restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["random"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])
