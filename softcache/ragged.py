"""Rows that have lengths of their own: end to end as they are kept, or filled up as a network takes and gives them."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from softcache.errors import ModelError

Int64 = npt.NDArray[np.int64]
NUMBERS = 1 << 16  # places of a batch up to which their numbers are kept
Offsets = Mapping[str, Int64]  # name of a column → (B + 1,) where the places of a batch's rows begin end to end


def places_of(lengths: npt.ArrayLike, stride: int) -> Int64:
    """How many places rows of these lengths have: ceil(n / ``stride``) each, int64.

    >>> places_of([0, 1, 4, 5], 4).tolist()
    [0, 1, 1, 2]
    """
    return -(-np.asarray(lengths, np.int64) // stride)


def offsets_of(places: Int64) -> Int64:
    """(B,) places of rows that lie end to end → (B + 1,) where each of them begins, and where the last one ends.

    >>> offsets_of(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    found = np.empty(len(places) + 1, np.int64)
    found[0] = 0
    np.add.accumulate(places, out=found[1:])  # half the time of cumsum for a batch
    return found


def counts_of(offset: npt.ArrayLike) -> Int64:
    """(B + 1,) → (B,): the other way."""
    bounds = np.asarray(offset, np.int64)
    return bounds[1:] - bounds[:-1]


def own_places(values: torch.Tensor, places: Int64, what: str) -> torch.Tensor:
    """Values (B, L, …) filled up to the longest row → (P, …), the rows' own places (B,) end to end, on the same device,
    which is not waited for. ``what``: whose values these are, for a message.

    Errors: ``ModelError`` where there are not as many places as the longest row has. Rows that are all empty may have
    one, as their inputs do.
    """
    longest = int(places.max(initial=0))
    if longest == 0 and values.shape[1:2] == (1,):
        longest = 1
    if values.ndim < 2 or values.shape[:2] != (len(places), longest):
        raise ModelError(
            f"{what} is {tuple(values.shape)} for {len(places)} rows of which the longest has {longest} places: "
            f"expected ({len(places)}, {longest}, …)"
        )
    return values.flatten(0, 1).index_select(0, on_device(_index(places, longest), values.device))


def runs_of(first: Int64, offset: Int64) -> Int64:
    """(P,) the places of runs that begin at ``first`` (B,) and lie end to end in what is made of them; ``offset``:
    (B + 1,) where each begins there.

    >>> runs_of(np.array([7, 0]), np.array([0, 2, 5])).tolist()
    [7, 8, 0, 1, 2]
    """
    begins = offset[:-1]
    at = (first - begins).repeat(offset[1:] - begins)
    at += _numbers()[: len(at)] if len(at) <= NUMBERS else np.arange(len(at))
    return at


@functools.cache
def _numbers() -> Int64:
    """0, 1, 2, …, kept because a batch of short rows is read in a few microseconds."""
    return np.arange(NUMBERS)


def padded(values: torch.Tensor, offset: npt.ArrayLike, pad: int = 0) -> torch.Tensor:
    """(P, …) of rows end to end → (B, L, …) filled up to the longest with ``pad``, at least one place, on the same
    device. ``offset``: (B + 1,).

    >>> padded(torch.arange(1, 6), [0, 2, 2, 5])
    tensor([[1, 2, 0],
            [0, 0, 0],
            [3, 4, 5]])
    """
    places = counts_of(offset)
    longest = max(1, int(places.max(initial=0)))
    made = values.new_full((len(places) * longest, *values.shape[1:]), pad)
    made.index_copy_(0, on_device(_index(places, longest), values.device), values)
    return made.unflatten(0, (len(places), longest))


def row_means(values: torch.Tensor, offset: npt.ArrayLike) -> torch.Tensor:
    """(P, …) of rows end to end → (R, …) the mean of each row's places, of the R rows that have any, in their order.
    ``offset``: (B + 1,).

    >>> row_means(torch.tensor([1.0, 3.0, 5.0]), [0, 2, 2, 3])
    tensor([2., 5.])
    """
    places = counts_of(offset)
    places = places[places > 0]
    sums = padded(values, offsets_of(places)).sum(1)
    count = on_device(places, values.device).to(values.dtype)
    return sums / count.view(len(places), *[1] * (sums.ndim - 1))


def on_device(numbers: Int64, device: torch.device) -> torch.Tensor:
    """Numbers of the host's on a device, which is not waited for."""
    found = torch.from_numpy(numbers)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


def mask_of(offset: npt.ArrayLike) -> torch.Tensor:
    """(B, L) int64, 1 for the places that are a row's own in what ``padded`` makes.

    >>> mask_of([0, 2, 2, 5])
    tensor([[1, 1, 0],
            [0, 0, 0],
            [1, 1, 1]])
    """
    places = counts_of(offset)
    return torch.from_numpy((np.arange(max(1, int(places.max(initial=0)))) < places[:, None]).astype(np.int64))


def _index(places: Int64, longest: int) -> Int64:
    """(P,) where the places of rows that are filled up to ``longest`` lie among all of theirs."""
    return runs_of(np.arange(len(places)) * longest, offsets_of(places))
