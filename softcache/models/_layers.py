"""The layers of a network that can be hints, with their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softcache.fields import Inputs
from softcache.models._hooks import first_tensor
from softcache.models._network import Network


@dataclass(frozen=True)
class Layer:
    """A module's output: its path, its class, its shape without the batch, its dtype."""

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def list_layers(network: Network, inputs: Inputs) -> list[Layer]:
    """All layers whose output has one row a sample, in the order of definition, from one run on these inputs.

    Left out are modules that only hand their container's output (``layer3.1`` where ``layer3`` gives the same
    tensor) or their own input on (identity, dropout in evaluation).
    """
    seen: dict[str, tuple[Tensor, int]] = {}
    idle: set[str] = set()

    def watch(path: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            tensor, given = first_tensor(output), first_tensor(arguments)
            idle.discard(path)
            if tensor is None:
                seen.pop(path, None)
                return
            # in-place layers give the tensor that they were given, in a later version
            seen[path] = (tensor, tensor._version)
            if tensor is given and versions.get(path) == tensor._version:
                idle.add(path)

        return hook

    versions: dict[str, int] = {}

    def watch_input(path: str) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            given = first_tensor(arguments)
            if given is not None:
                versions[path] = given._version

        return hook

    modules = {path: module for path, module in network.model.named_modules() if path}
    handles = [module.register_forward_hook(watch(path)) for path, module in modules.items()]
    handles += [module.register_forward_pre_hook(watch_input(path)) for path, module in modules.items()]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():  # not inference_mode: tensors have no versions there
            network(inputs)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    layers = []
    for path, module in modules.items():
        if path not in seen or path in idle:
            continue
        tensor, version = seen[path]
        outer = path
        while outer := outer.rpartition(".")[0]:
            if outer in seen and seen[outer][0] is tensor and seen[outer][1] == version:
                break
        if not outer and tensor.ndim > 0 and len(tensor) == len(inputs):
            layers.append(Layer(path, type(module).__name__, tuple(tensor.shape[1:]), tensor.dtype))
    return layers
