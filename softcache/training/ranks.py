"""The processes that torchrun starts, as one training: who is which, and what they tell each other.

Alone, every method gives back what it was given, bit for bit, and no process group is made.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from softcache.distributed import rank, restarted, world
from softcache.errors import OtherRankError, SoftcacheError, UsageError

# How long a rank waits for the others: longer than any of them reads its data, and not for ever.
TIMEOUT = datetime.timedelta(minutes=30)
_LOST = re.compile(r"\bgloo\b|\bNCCL\b|Connection (closed|reset|refused)|Broken pipe|TCPStore|[Ss]ocket")


@dataclass(frozen=True)
class Ranks:
    """Rank ``index`` of ``count``. Tensors on a GPU are sent over NCCL, those on the CPU over gloo."""

    index: int = 0
    count: int = 1

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes the run, and speaks."""
        return self.index == 0

    def mine(self, rows: np.ndarray) -> np.ndarray:
        """This rank's share of rows (N,), neighbours; those of all ranks one after the other are all rows."""
        return rows[len(rows) * self.index // self.count : len(rows) * (self.index + 1) // self.count]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all ranks' tensors of one shape."""
        if self.alone:
            return values
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def gathered(self, values: Tensor, sizes: Sequence[int]) -> Tensor:
        """The tensors (n, …) of all ranks one after the other, ``sizes`` n of each.

        Gradients flow back to each rank's own part. What all ranks compute from it alike is to be in each one's loss
        once: then the mean of the ranks' gradients is the gradient of that loss.
        """
        if self.alone:
            return values
        gathered: Tensor = _Gather.apply(values, tuple(sizes), self)
        return gathered

    def joined(self, values: Tensor) -> Tensor:
        """As ``gathered``, of sizes that the ranks don't know of each other; without a gradient."""
        if self.alone:
            return values
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.index] = len(values)
        with torch.no_grad():
            return self.gathered(values, self.sum(sizes).tolist())

    def texts(self, text: str) -> list[str]:
        """What each rank says."""
        if self.alone:
            return [text]
        sent = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.zeros(0).byte()
        sizes = torch.zeros(self.count, dtype=torch.int64)
        sizes[self.index] = len(sent)
        sizes = self.sum(sizes)
        parts = self.gathered(sent, sizes.tolist()).split(sizes.tolist())
        return [bytes(part.numpy()).decode() for part in parts]

    def of_first(self, text: str) -> str:
        """What the first rank says."""
        return self.texts(text if self.first else "")[0]

    @torch.no_grad()
    def as_first(self, tensors: Sequence[Tensor]) -> None:
        """Gives tensors the values that they have on the first rank."""
        if self.alone:
            return
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """What every rank has to get through before any of them goes on.

        Errors: of the first rank that fails, its own error; of all others ``OtherRankError``.
        """
        why: Exception | None = None
        try:
            yield
        except Exception as error:
            why = error
            if self.alone:
                raise
        if self.alone:
            return
        said = self.texts("" if why is None else str(why) or type(why).__name__)
        failed = [number for number, text in enumerate(said) if text]
        if not failed:
            return
        if why is not None and failed[0] == self.index:
            raise why
        status = why.exit_status if isinstance(why, SoftcacheError) else 1
        raise OtherRankError(f"rank {failed[0]} failed: {said[failed[0]]}", status) from why

    def wrapped(self, module: nn.Module) -> Any:
        """``module``, whose gradients are the means over the ranks after a backward pass.

        Parameters that a step doesn't use are looked for in each step. So networks may leave some out (a layer that is
        dropped at random), and gradients stay in the buckets that they were put into first: a training that is resumed
        adds up in the order of one that wasn't disturbed. Buffers stay each rank's own, see ``as_first``.
        """
        if self.alone:
            return module
        with warnings.catch_warnings():  # newer versions of torch have another name for it, older ones don't know that
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)


ALONE = Ranks()


class _Gather(torch.autograd.Function):
    """All ranks' rows. Backward: this rank's own, times the number of ranks, as their gradients are averaged later."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: tuple[int, ...], ranks: Ranks) -> Tensor:
        own, longest, rest = sizes[ranks.index], max(sizes), values.shape[1:]
        ctx.own, ctx.first, ctx.count, ctx.shape = own, sum(sizes[: ranks.index]), ranks.count, values.shape
        sent = torch.zeros((longest, *rest), dtype=values.dtype, device=values.device)
        sent[:own] = values[:own]
        if not longest:
            return values[:0].clone()
        # As bytes, because gloo doesn't know every dtype.
        flat = sent.flatten().view(torch.uint8)
        parts = [torch.empty_like(flat) for _ in sizes]
        dist.all_gather(parts, flat)
        whole = [part.view(values.dtype).view(sent.shape)[:size] for part, size in zip(parts, sizes, strict=True)]
        return torch.cat(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        own = gradient.new_zeros(ctx.shape)
        own[: ctx.own] = gradient[ctx.first : ctx.first + ctx.own] * ctx.count
        return own, None, None


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of torchrun, which find each other; they stay together until the process ends.

    Errors: ``SoftcacheError`` where another rank has gone.
    """
    if world() == 1:
        yield ALONE
        return
    try:
        if not dist.is_initialized():
            _meet()
            atexit.register(dist.destroy_process_group)
        with warnings.catch_warnings():
            # Of a kernel of one pixel in channels_last, whose gradient is copied; said once, and nothing can be done.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield Ranks(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if not _LOST.search(text):
            raise
        raise SoftcacheError(
            f"rank {rank()} lost another rank, which ended or can't be reached ({text[:120]})"
        ) from error


def _meet() -> None:
    """Makes the process group.

    torchrun keeps one store for all its starts. In it are still the addresses of processes that have ended: a rank that
    read one of these would wait for it for ever, so that each start has names of its own.
    """
    if "MASTER_ADDR" not in os.environ:
        raise UsageError(
            f"WORLD_SIZE is {world()}, but nothing says where the other ranks are: use torchrun, or unset it"
        )
    store, number, count = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"softcache/{restarted()}", store),
        rank=number,
        world_size=count,
        timeout=TIMEOUT,
    )
