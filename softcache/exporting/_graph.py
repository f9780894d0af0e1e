"""A network as a function of tensors in a fixed order, which is what other programs run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softcache.errors import ModelError, UsageError
from softcache.fields import Fields, Inputs
from softcache.inputs import PIXELS, TOKENS, InputField, go_together
from softcache.models._array_model import ArrayModel
from softcache.models._network import Network, logits_of

LOGITS, BATCH = "logits", "batch"
EXAMPLES = 3  # samples of the made-up batch that a graph is traced with; torch takes 1 for a constant
LENGTH = 8  # the least length of its rows, where they have lengths of their own


@dataclass(frozen=True)
class GraphInput:
    """``shape``: sizes, or names of axes that are left open: ``batch``, and ``length`` where rows have lengths."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def open_axes(self) -> dict[int, str]:
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}

    def __str__(self) -> str:
        """``float32 (batch, 3, 32, 32)``"""
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True, eq=False)
class Graph:
    """``module``: from the inputs' tensors, by position, to the output alone, in evaluation mode. ``prepares``: whether
    it standardizes, repeats grey channels and resizes itself. ``example``: made-up inputs to trace it with: no sample
    of the data gets into a file. ``arrange``: from a batch as the dataset gives it to the inputs' tensors."""

    network: Network
    module: nn.Module
    inputs: tuple[GraphInput, ...]
    output: str
    prepares: bool
    example: tuple[Tensor, ...]
    arrange: Callable[[Inputs], tuple[Tensor, ...]]


def graph_of(
    network: Network, sample: Inputs, fields: Mapping[str, InputField], *, prepares: bool, output: str = LOGITS
) -> Graph:
    """The graph of a network that is on the CPU; it is in evaluation mode afterwards.

    sample: some of the inputs as the dataset gives them, for their shapes. fields: dtype and shape of each.
    Errors: ``ModelError`` for a function of arrays, ``UsageError`` for whole numbers, which are not prepared.
    """
    if isinstance(network.model, ArrayModel):
        raise ModelError(f"{network.spec} is a function of arrays and no network: there is nothing to export")
    network.eval()
    if isinstance(sample, Tensor):
        return _of_pictures(network, sample, prepares, output)
    return _of_fields(network, sample, fields, prepares, output)


def _of_pictures(network: Network, pixels: Tensor, prepares: bool, output: str) -> Graph:
    def arrange(inputs: Inputs) -> tuple[Tensor, ...]:
        assert isinstance(inputs, Tensor)
        return (inputs if prepares else network.prepare(inputs),)

    (tensor,) = arrange(pixels[:1])
    given = GraphInput(PIXELS if prepares else "input", _dtype(tensor), (BATCH, *tensor.shape[1:]))
    module = (_Pixels if prepares else _Prepared)(network, output)
    example = torch.zeros(EXAMPLES, *tensor.shape[1:], dtype=tensor.dtype)
    return Graph(network, module.eval(), (given,), output, prepares, (example,), arrange)


def _of_fields(
    network: Network, sample: Fields, fields: Mapping[str, InputField], prepares: bool, output: str
) -> Graph:
    floating = [name for name, tensor in sample.tensors.items() if tensor.is_floating_point()]
    if prepares and not floating:
        raise UsageError(
            f"--preprocess: {', '.join(sample.tensors)} are whole numbers, which the network takes as they are: leave "
            "it out"
        )
    positional, named = network.arguments(network.standardized(sample))
    names = [*(list(sample.tensors) if positional else []), *named]
    # Standardized rows are 0 beyond their own length, so the graph has to know it.
    names += [mask for mask, of in sample.masks.items() if prepares and of in floating and mask not in names]

    def arrange(inputs: Inputs) -> tuple[Tensor, ...]:
        assert isinstance(inputs, Fields)
        found = (inputs if prepares else network.standardized(inputs)).named()
        return tuple(found[name] for name in names)

    tensors = dict(zip(names, arrange(sample), strict=True))
    given = tuple(_field_input(name, tensor, sample, fields) for name, tensor in tensors.items())
    example = tuple(_made_up(one, tensors[one.name], mask=one.name in sample.masks) for one in given)
    if prepares:
        module: nn.Module = _Raw(network, output, tuple(names), sample)
    else:
        module = _Standardized(network, output, tuple(names), len(positional))
    return Graph(network, module.eval(), given, output, prepares, example, arrange)


def _field_input(name: str, tensor: Tensor, sample: Fields, fields: Mapping[str, InputField]) -> GraphInput:
    owner = sample.masks.get(name, name)
    length = _length_axis(owner, fields)
    if name in sample.masks:
        return GraphInput(name, _dtype(tensor), (BATCH, length))
    tail = fields[name].tail
    return GraphInput(name, _dtype(tensor), (BATCH, length, *tail) if fields[name].ragged else (BATCH, *tail))


def _length_axis(name: str, fields: Mapping[str, InputField]) -> str:
    """``length``, or where inputs have different lengths the name of one with it."""
    ragged = [own for own, field in fields.items() if field.ragged]
    owners = {own: TOKENS if go_together(own, ragged) else own for own in ragged}
    return "length" if len(set(owners.values())) == 1 else f"{owners.get(name, name)}_length"


def _made_up(given: GraphInput, sample: Tensor, *, mask: bool) -> Tensor:
    """Zeros, or ones of a mask, of the sizes of a sample where those are open: a network may need some length."""
    sizes = [
        EXAMPLES if size == BATCH else max(LENGTH, held) if isinstance(size, str) else size
        for size, held in zip(given.shape, sample.shape, strict=True)
    ]
    return torch.full(sizes, int(mask), dtype=getattr(torch, given.dtype))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _found(made: Any, output: str, spec: str) -> Tensor:
    """An output by its name, without looking at its sizes, which are left open in a graph."""
    if output == LOGITS:
        return logits_of(made, spec)
    found = made if isinstance(made, Tensor) else made.get(output) if isinstance(made, Mapping) else None
    found = getattr(made, output, None) if found is None else found
    if not isinstance(found, Tensor):
        raise ModelError(f"{spec} has no output {output!r}")
    return found


class _Part(nn.Module):
    def __init__(self, network: Network, output: str):
        super().__init__()
        self.network, self.output = network, output

    def found(self, made: Any) -> Tensor:
        return _found(made, self.output, self.network.spec)


class _Prepared(_Part):
    """From normalized floats (B, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return self.found(self.network.model(input))


class _Pixels(_Part):
    """From pixels (B, H, W, C)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self.found(self.network.model(self.network.prepare(pixels)))


class _Standardized(_Part):
    """From inputs that are no pictures, as the architecture takes them; the first ``positional`` by position."""

    def __init__(self, network: Network, output: str, names: tuple[str, ...], positional: int):
        super().__init__(network, output)
        self.names, self.positional = names, positional

    def forward(self, *tensors: Tensor) -> Tensor:
        first, rest = tensors[: self.positional], tensors[self.positional :]
        named = dict(zip(self.names[self.positional :], rest, strict=True))
        return self.found(self.network.model(*first, **named))


class _Raw(_Part):
    """From inputs that are no pictures, as the dataset gives them, and the masks that are needed."""

    def __init__(self, network: Network, output: str, names: tuple[str, ...], like: Fields):
        super().__init__(network, output)
        self.names, self.masks, self.pads = names, dict(like.masks), dict(like.pads)

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        own = {name: tensor for name, tensor in given.items() if name not in self.masks}
        lengths = {self.masks[name]: tensor.sum(1) for name, tensor in given.items() if name in self.masks}
        fields = self.network.standardized(Fields(own, lengths, self.masks, self.pads))
        positional, named = self.network.arguments(fields)
        return self.found(self.network.model(*positional, **named))
