"""Activations by module path, and the layer that makes the logits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from softcache.errors import ModelError, nearest

_LAYER = re.compile(r"(.*?)(:in)?(?::pool=([1-9]\d*))?(?::rows=[\d.]+)?", re.DOTALL)


class Taps(Mapping[str, Tensor]):
    """Activations of layers, caught while a network runs.

    ``with Taps(network.model, ["layer3", "fc:in"]) as taps: network(pixels); taps["layer3"]``

    A layer is a module's path; its output, or with ``:in`` its first input. With ``:pool=7`` at its end maps (B, C, H,
    W) are averaged over blocks of positions, to (B, C, 7, 7). With ``:rows=0.25`` after that it is the same: which rows
    are kept of it is not known here. Of tuples, lists and dicts the first tensor is taken; of
    several runs of one module the last. What is caught is a copy (with its gradient), because the layers that follow
    may work in place (``nn.ReLU(inplace=True)`` after a batch norm).

    Errors: ``ModelError`` for a path that names no module, with the nearest; for a layer that didn't run or gives no
    tensor, when it is asked for; for maps that can't be pooled so.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]):
        self.layers = tuple(dict.fromkeys(layers))
        self._modules = {layer: find_module(model, layer) for layer in self.layers}
        self._caught: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        assert not self._handles, "these taps are already open"
        for layer, module in self._modules.items():
            if takes_input(layer):
                self._handles.append(module.register_forward_pre_hook(self._input_hook(layer), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._output_hook(layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def __getitem__(self, layer: str) -> Tensor:
        if layer not in self._modules:
            raise KeyError(layer)
        if layer not in self._caught:
            raise ModelError(f"layer {layer!r} gave no tensor in this run: it isn't used, or its values are no tensor")
        return self._caught[layer]

    def clear(self) -> None:
        """Lets go of what was caught, and so of the graph that it hangs on."""
        self._caught.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def _output_hook(self, layer: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            self._keep(layer, output)

        return hook

    def _input_hook(self, layer: str) -> Any:
        def hook(module: nn.Module, arguments: Any, keywords: Any) -> None:
            self._keep(layer, (arguments, keywords))

        return hook

    def _keep(self, layer: str, values: Any) -> None:
        tensor = first_tensor(values)
        if tensor is not None:
            self._caught[layer] = tensor.clone() if pooled_to(layer) is None else _pooled(tensor, layer)


def find_module(model: nn.Module, layer: str) -> nn.Module:
    """The module of a layer (``layer3``, ``fc:in``, ``layer3:pool=7``, ``layer3:rows=0.25``).

    Errors: ``ModelError`` with the nearest paths.
    """
    path = _parts(layer)[0]
    modules = dict(model.named_modules())
    if not path or path not in modules:
        paths = [name for name in modules if name]
        raise ModelError(f"no layer {path!r} in {type(model).__name__}{nearest(path, paths)}")
    return modules[path]


def takes_input(layer: str) -> bool:
    """Whether a layer is what its module is given.

    >>> takes_input("fc:in"), takes_input("layer3:pool=7")
    (True, False)
    """
    return _parts(layer)[1] is not None


def pooled_to(layer: str) -> int | None:
    """The side of the maps that a layer's are averaged to, if they are.

    >>> pooled_to("layer3:pool=7"), pooled_to("layer3")
    (7, None)
    """
    side = _parts(layer)[2]
    return None if side is None else int(side)


def _parts(layer: str) -> tuple[str, str | None, str | None]:
    """Path, ``:in`` or None, and the side after ``:pool=`` or None."""
    found = _LAYER.fullmatch(layer)
    assert found is not None
    return found[1], found[2], found[3]


def _pooled(maps: Tensor, layer: str) -> Tensor:
    """(B, C, H, W) → (B, C, side, side), means over blocks, computed in at least float32."""
    side = pooled_to(layer)
    assert side is not None
    if maps.dim() != 4 or maps.shape[2] % side or maps.shape[3] % side:
        raise ModelError(
            f"layer {layer!r} gives {tuple(maps.shape[1:])}: maps (C, H, W) are pooled to {side} × {side} where both "
            f"sides are multiples of {side}"
        )
    wide = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
    count, channels, height, width = wide.shape
    blocks = wide.reshape(count, channels, side, height // side, side, width // side)
    return blocks.mean((3, 5))


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor in nested tuples, lists and dicts; None where there is none."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, (tuple, list)):
        return None
    return next((found for found in map(first_tensor, values) if found is not None), None)


def classifier_path(model: nn.Module, classes: int) -> str:
    """Path of the layer that makes the logits: the last linear or convolutional one with so many outputs.

    Errors: ``ModelError`` where there is none.
    """
    paths = [path for path, module in model.named_modules() if _outputs(module) == classes]
    if not paths:
        raise ModelError(f"{type(model).__name__} has no linear or convolutional layer with {classes} outputs")
    return paths[-1]


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None
