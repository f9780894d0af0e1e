"""Errors of worker processes as the one line that they are, without the worker's traceback wrapped around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from softcache.errors import SoftcacheError


@dataclass(frozen=True)
class Failure:
    """A user's error on its way out of a worker."""

    error: SoftcacheError


class Shielded(Dataset):
    """A dataset whose ``SoftcacheError``s are handed on as items; ``raising`` turns them back."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._dataset[item]
        except SoftcacheError as error:
            return Failure(error)


def raising(items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loader over a ``Shielded`` dataset; raises the first error among them."""
    for item in items:
        if isinstance(item, Failure):
            raise item.error
        yield item
