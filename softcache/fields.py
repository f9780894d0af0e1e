"""Inputs that are no pictures, for a batch of keys: named tensors, of which some rows may be shorter than others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from softcache.inputs import PIXELS


@dataclass(frozen=True, eq=False)
class Fields:
    """``tensors``: input → (B, …), or (B, L, …) where rows have lengths of their own: these are filled up to the
    longest with their number in ``pads``, else with 0. ``lengths``: (B,) int64 of each such input, on the same device.
    ``masks``: name of a mask → the input whose lengths it shows."""

    tensors: Mapping[str, Tensor]
    lengths: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)
    pads: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of keys."""
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Fields:
        """Some keys, by a slice or by their places (n,) int64. They stay as long as they are."""
        return self.each(lambda tensor: tensor[rows])

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Fields:
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Fields:
        return self.each(Tensor.pin_memory)

    def share_memory_(self) -> Fields:
        """Moves all tensors into shared memory."""
        return self.each(Tensor.share_memory_)

    def mask(self, name: str) -> Tensor:
        """(B, L) bool: which places of an input are its rows' own."""
        tensor = self.tensors[name]
        return torch.arange(tensor.shape[1], device=tensor.device) < self.lengths[name][:, None]

    def named(self) -> dict[str, Tensor]:
        """All inputs, and their masks (B, L) int64, 1 for a row's own places, as networks of tokens take them."""
        return {**self.tensors, **{mask: self.mask(name).long() for mask, name in self.masks.items()}}

    def arrays(self) -> dict[str, np.ndarray | list[np.ndarray]]:
        """By name an array (B, …) or, where rows have lengths of their own, a list of B arrays."""
        found: dict[str, np.ndarray | list[np.ndarray]] = {}
        for name, tensor in self.tensors.items():
            array = tensor.detach().cpu().numpy()
            lengths = self.lengths.get(name)
            found[name] = (
                array if lengths is None else [row[:n] for row, n in zip(array, lengths.tolist(), strict=True)]
            )
        return found

    def each(self, change: Callable[[Tensor], Tensor]) -> Fields:
        """The same with changed tensors and lengths."""
        return Fields(
            {name: change(tensor) for name, tensor in self.tensors.items()},
            {name: change(lengths) for name, lengths in self.lengths.items()},
            self.masks,
            self.pads,
        )


Inputs = Tensor | Fields  # of a batch of keys: pixels (B, H, W, C) uint8 or uint16, or whatever else the dataset has


def arrays_of(inputs: Inputs) -> dict[str, np.ndarray | list[np.ndarray]]:
    """By name, as ``Fields.arrays``."""
    return inputs.arrays() if isinstance(inputs, Fields) else {PIXELS: inputs.cpu().numpy()}


def joined_inputs(parts: Sequence[Inputs]) -> Inputs:
    """The inputs of several batches as those of one; ragged ones are filled up to the longest of all.

    >>> short, long = (Fields({"ids": torch.ones(1, n)}, {"ids": torch.tensor([n])}) for n in (1, 3))
    >>> joined_inputs([short, long]).tensors["ids"]
    tensor([[1., 0., 0.],
            [1., 1., 1.]])
    """
    if len(parts) == 1:
        return parts[0]
    fields = [part for part in parts if isinstance(part, Fields)]
    if not fields:
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    first = fields[0]
    lengths = {name: torch.cat([part.lengths[name] for part in fields]) for name in first.lengths}
    tensors = {
        name: stacked([part.tensors[name] for part in fields], first.pads.get(name, 0)) for name in first.tensors
    }
    return Fields(tensors, lengths, first.masks, first.pads)


def stacked(tensors: Sequence[Tensor], pad: int) -> Tensor:
    """(B, L, …) each → all rows, filled up with ``pad`` to the longest."""
    longest = max((tensor.shape[1] for tensor in tensors if tensor.ndim > 1), default=0)
    if all(tensor.ndim == 1 or tensor.shape[1] == longest for tensor in tensors):
        return torch.cat(list(tensors))
    found = tensors[0].new_full((sum(map(len, tensors)), longest, *tensors[0].shape[2:]), pad)
    at = 0
    for tensor in tensors:
        found[at : at + len(tensor), : tensor.shape[1]] = tensor
        at += len(tensor)
    return found
