"""Losses are computed in at least float32, whatever the dtype of autocast and of the networks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function with autocast off and its half-precision tensors as float32; float64 stays float64.

    At least one argument must be a floating-point tensor or a list of them: it tells the device. Tensors that were made
    under ``torch.inference_mode`` are copied, because autograd can't save them for the backward pass.

    >>> total = full_precision(torch.sum)
    >>> total(torch.ones(2, dtype=torch.float16)).dtype
    torch.float32
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(_floating((*args, *kwargs.values()))).device.type
        positional = [_widened(a) for a in args]
        named = {key: _widened(a) for key, a in kwargs.items()}
        if not torch.amp.is_autocast_available(device):
            return function(*positional, **named)
        with torch.autocast(device, enabled=False):
            return function(*positional, **named)

    return wrapped


def _floating(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, list | tuple):
            yield from _floating(value)


def _widened(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_widened(v) for v in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if value.is_inference() and not torch.is_inference_mode_enabled():
        return value.clone()
    return value
