"""Worker processes that make inputs: how they start and end, what memory they share, and how their errors come back.

A source of batches is given to a ``DataLoader`` in this way::

    loader = DataLoader(Shielded(…for_workers(viewed, method)…), worker_init_fn=follow_parent, …)
    batches = started(loader)
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from softcache.errors import SoftcacheError, UsageError
from softcache.fields import Inputs
from softcache.views._open import Viewed
from softcache.views._viewed import ViewedDataset

START_METHODS = ("auto", "fork", "spawn", "forkserver")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def pick_start_method(method: str) -> str:
    """``auto`` is fork on Linux, where it is quick and shares what is in memory, and spawn elsewhere."""
    if method not in START_METHODS:
        raise UsageError(f"--start-method {method!r} is unknown: {', '.join(START_METHODS)}")
    if method == "auto":
        return "fork" if sys.platform == "linux" else "spawn"
    return method


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """While workers start, blocks SIGINT and SIGTERM, and collects no garbage, in them neither.

    Before ``follow_parent`` a signal would end a worker in a traceback, and a collection would free what the parent has
    left. Among it may be a GPU's tensors, from a training before this one: to free one asks the driver, which a forked
    process can't do, so that torch aborts it.
    """
    before, collecting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent(worker: int) -> None:
    """The ``worker_init_fn`` of a DataLoader: the worker ends when its parent does, and says nothing about it. What it
    has inherited is never collected.

    A terminal's Ctrl-C and a scheduler's SIGTERM go to all processes of a group. Only the parent answers them, with a
    message; it then ends its workers, by a second SIGTERM where needed. If the parent is killed, the kernel ends a
    worker at once; on macOS torch's own watchdog does so within 5 s.
    """
    gc.freeze()
    gc.enable()  # a forked worker starts without collection, see ``starting``
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_at_the_next)
    sys.excepthook = _unless_the_parent_hung_up
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # blocked by ``starting``
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # the parent ended before the call
            os._exit(1)


def _end_at_the_next(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def _unless_the_parent_hung_up(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """The thread of multiprocessing that sends tensors would print a traceback if the parent ends meanwhile."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


def for_workers(viewed: Viewed, method: str) -> Viewed | SharedViews:
    """The dataset of keys in the form in which workers that start by ``method`` get it.

    Resized images that are kept are computed now, in this process, so that not every worker computes its own. Errors:
    ``SoftcacheError`` where there is no shared memory in which workers can hand over their inputs.
    """
    _check_shared_memory(method)
    if isinstance(viewed, ViewedDataset) and viewed.samples.images is not None and viewed.keeps_bases:
        viewed.base_images()
    return viewed if method == "fork" else SharedViews(viewed)


def _check_shared_memory(method: str) -> None:
    """Now, in this process: a worker that can't write there ends in torch's own words, or is waited for in vain."""
    try:
        multiprocessing.get_context(method).Lock()
        torch.zeros(1).share_memory_()
    except (OSError, RuntimeError) as error:
        raise SoftcacheError(_no_shared_memory(" ".join(str(error).split())[:160])) from None


def _no_shared_memory(why: str) -> str:
    return (
        f"workers hand their inputs over in shared memory (/dev/shm), and that failed: {why}; make it writable, free "
        "or enlarge it (docker run --shm-size), or use --workers 0"
    )


class SharedViews:
    """A dataset of keys that can be pickled: its images are put into shared memory once, for all workers, and are not
    copied through each worker's pipe."""

    def __init__(self, viewed: Viewed):
        self.viewed = viewed
        self._arrays: dict[str, torch.Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        if self._arrays is None:
            self._arrays = {}
            self._arrays = {name: _shared(array) for name, array in self._in_memory()}
        bare = copy.copy(self.viewed)
        bare.samples = copy.copy(self.viewed.samples)
        if "images" in self._arrays:
            bare.samples.images = None
        bare.samples.values = {
            name: dataclasses.replace(held, values=held.values[:0]) if f"values {name}" in self._arrays else held
            for name, held in bare.samples.values.items()
        }
        return {"viewed": bare, "arrays": self._arrays}

    def _in_memory(self) -> Iterator[tuple[str, np.ndarray]]:
        """What is shared: a mapped file is as it is."""
        samples = self.viewed.samples
        for name, held in samples.values.items():
            if held.mapped is None:
                yield f"values {name}", held.values
        if samples.images is not None and samples.mapped is None:
            yield "images", samples.images
        if isinstance(self.viewed, ViewedDataset) and samples.images is not None and self.viewed.keeps_bases:
            bases = self.viewed.base_images()
            if bases is not samples.images:
                yield "bases", bases

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.viewed, self._arrays = state["viewed"], state["arrays"]
        if "images" in state["arrays"]:
            self.viewed.samples.images = state["arrays"]["images"].numpy()
        for name, held in self.viewed.samples.values.items():
            if f"values {name}" in state["arrays"]:
                held.values = state["arrays"][f"values {name}"].numpy()
        if "bases" in state["arrays"] and isinstance(self.viewed, ViewedDataset):
            self.viewed.keep_bases(state["arrays"]["bases"].numpy())


def _shared(array: np.ndarray) -> torch.Tensor:
    tensor = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype).share_memory_()
    tensor.numpy()[...] = array
    return tensor


@dataclass(frozen=True)
class Failure:
    """A ``SoftcacheError`` that travels out of a worker in place of an item."""

    error: SoftcacheError


class Shielded(Dataset):
    """A dataset that returns ``SoftcacheError``s as ``Failure`` items; ``raising`` raises them in the parent."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, item: Any) -> Any:
        try:
            made = self._dataset[item]
            if get_worker_info() is not None:
                _share(made)
            return made
        except SoftcacheError as error:
            return Failure(error)


def _share(made: Inputs | list[Inputs]) -> None:
    """Moves a worker's tensors to shared memory. torch would do so later, in a thread of its own, where an error is
    printed and the parent waits for ever.

    Errors: ``SoftcacheError`` where there is no room for them.
    """
    try:
        for inputs in made if isinstance(made, list) else [made]:
            inputs.share_memory_()
    except (OSError, RuntimeError) as error:
        raise SoftcacheError(_no_shared_memory(" ".join(str(error).split())[:160])) from None


def started(loader: Iterable[Any]) -> Iterator[Any]:
    """The items of a loader over a ``Shielded`` dataset, whose workers are started now.

    Raises the first error among the items, and ``SoftcacheError`` where there is too little shared memory for a worker
    to start or to go on.
    """
    with _telling_of_memory(), starting():
        items = iter(loader)
    return _raising(items)


def _raising(items: Iterator[Any]) -> Iterator[Any]:
    with _telling_of_memory():
        for item in items:
            if isinstance(item, Failure):
                try:
                    raise item.error
                finally:
                    del item  # or the error would hold itself through this frame, and with it the workers at exit
            yield item


@contextlib.contextmanager
def _telling_of_memory() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "shared memory" in str(error) or "Bus error" in str(error):
            raise SoftcacheError(_no_shared_memory("there is too little of it")) from error
        raise
