"""The first layer of a network of pictures, and pictures of other than one or three channels."""

from __future__ import annotations

from typing import Any

from torch import nn

from softcache.errors import ModelError

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


def input_channels(model: nn.Module, given: int | None) -> int:
    """Channels that the first convolution takes, where that is 1 or 3; else as many as the data have, ``given``, and 3
    for grey data or where nobody knows: the convolution that was made first may lie deeper inside. Where the data have
    other than 1 or 3, and some convolution takes as many, that one is the first."""
    found = _first_convolution(model)
    if given not in (None, 1, 3) and any(c.in_channels == given for c in model.modules() if isinstance(c, nn.Conv2d)):
        return given
    if found is not None and found[1].in_channels in (1, 3):
        return found[1].in_channels
    return given if given is not None and given > 1 else 3


def take_channels(model: nn.Module, channels: int, spec: str) -> None:
    """Makes the first convolution one of this many channels, with random parameters; all else stays.

    Grey and colour pictures go to networks of three channels, so only other numbers change a network. Errors:
    ``ModelError`` for a network that doesn't begin with a plain convolution.
    """
    found = _first_convolution(model)
    if found is not None and found[1].in_channels == channels:
        return
    if found is None or found[1].groups != 1 or isinstance(found[1], nn.LazyConv2d):
        raise ModelError(f"{spec} doesn't begin with a convolution that could take {channels} channels")
    path, old = found
    geometry: dict[str, Any] = {name: getattr(old, name) for name in _GEOMETRY}
    new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **geometry)
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, new)


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    return next(((path, part) for path, part in model.named_modules() if isinstance(part, nn.Conv2d)), None)
