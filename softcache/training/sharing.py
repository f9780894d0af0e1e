"""How worker processes come by the images: one copy in the machine, however many workers there are."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import torch

from softcache.errors import UsageError
from softcache.training.config import START_METHODS
from softcache.views._viewed import ViewedDataset


def pick_start(method: str) -> str:
    """``auto`` forks on Linux, where a fork is quick and shares what is in memory, and spawns elsewhere."""
    if method not in START_METHODS:
        raise UsageError(f"--start-method {method!r} is unknown: {', '.join(START_METHODS)}")
    if method == "auto":
        return "fork" if sys.platform == "linux" else "spawn"
    return method


def for_workers(viewed: ViewedDataset, method: str) -> ViewedDataset | SharedViews:
    """A dataset of keys to be handed to workers that are started by ``method``.

    Resized images are computed now, in this process, so that not every worker computes its own.
    """
    if viewed.samples.images is not None and viewed.keeps_bases:
        viewed.base_images()
    return viewed if method == "fork" else SharedViews(viewed)


class SharedViews:
    """A dataset of keys that can be pickled to other processes: its images go into memory that all of them share,
    once, instead of through each one's pipe."""

    def __init__(self, viewed: ViewedDataset):
        self.viewed = viewed
        self._arrays: dict[str, torch.Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        if self._arrays is None:
            self._arrays = {}
            images = self.viewed.samples.images
            if images is not None and self.viewed.samples.mapped is None:  # a mapped file is shared as it is
                self._arrays["images"] = _shared(images)
            if images is not None and self.viewed.keeps_bases and self.viewed.base_images() is not images:
                self._arrays["bases"] = _shared(self.viewed.base_images())
        bare = copy.copy(self.viewed)
        bare.samples = copy.copy(self.viewed.samples)
        if "images" in self._arrays:
            bare.samples.images = None
        return {"viewed": bare, "arrays": self._arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.viewed, self._arrays = state["viewed"], state["arrays"]
        if "images" in state["arrays"]:
            self.viewed.samples.images = state["arrays"]["images"].numpy()
        if "bases" in state["arrays"]:
            self.viewed.keep_bases(state["arrays"]["bases"].numpy())


def _shared(array: np.ndarray) -> torch.Tensor:
    tensor = torch.empty(array.shape, dtype=torch.uint8).share_memory_()
    tensor.numpy()[...] = array
    return tensor
