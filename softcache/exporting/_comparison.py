"""Whether a file computes what the network computes, on real samples, and how quickly."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softcache.errors import ModelError
from softcache.exporting._format import Runner
from softcache.exporting._graph import Graph
from softcache.fields import Inputs

TOLERANCE = 1e-4  # of the largest output, or of 1: what float32 loses where sums are formed in another order
_TIMES, _WARM = 15, 3


@dataclass(frozen=True)
class Difference:
    """``largest``: the largest absolute difference of two outputs, and ``scale`` the largest absolute output.
    ``same``: the share of vectors whose largest number is at the same place in both. ``samples``: how many were
    compared, in batches of ``batches`` sizes."""

    largest: float
    scale: float
    same: float
    samples: int
    batches: tuple[int, ...]

    @property
    def allowed(self) -> float:
        """The largest difference that two ways of the same arithmetic may have."""
        return TOLERANCE * max(1.0, self.scale)


@torch.inference_mode()
def compare(graph: Graph, run: Runner, batches: Iterable[Inputs]) -> Difference:
    """The outputs of ``run`` beside those of the network itself, which gets its inputs as the dataset gives them.

    Errors: ``ModelError`` where ``run`` fails on a batch, or answers with another shape.
    """
    largest = scale = 0.0
    same = places = 0
    sizes = []
    for inputs in batches:
        wanted = graph.network.outputs(inputs, [graph.output])[graph.output].float()
        tensors = graph.arrange(inputs)
        try:
            found = run(tensors)
        except Exception as error:  # whatever the format's own runtime raises
            shapes = ", ".join(f"{one.name} {tuple(t.shape)}" for one, t in zip(graph.inputs, tensors, strict=True))
            raise ModelError(f"the file can't be run on {shapes}: {' '.join(str(error).split())[:300]}") from error
        if found.shape != wanted.shape:
            raise ModelError(f"the file answers with {tuple(found.shape)}, the network with {tuple(wanted.shape)}")
        apart = (found.float() - wanted).abs()
        largest = max(largest, math.inf if apart.isnan().any() else apart.max().item())
        scale = max(scale, wanted.abs().max().item())
        same += int((found.argmax(-1) == wanted.argmax(-1)).sum())
        places += wanted[..., 0].numel()
        sizes.append(len(inputs))
    return Difference(largest, scale, same / max(places, 1), sum(sizes), tuple(sizes))


@torch.inference_mode()
def seconds_of(call: Callable[[], Any]) -> float:
    """The median of some calls, after some that aren't counted."""
    taken = []
    for number in range(_WARM + _TIMES):
        began = time.perf_counter()
        call()
        if number >= _WARM:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def runner_of(graph: Graph) -> Runner:
    """The network itself, from the inputs' tensors: PyTorch as it is."""

    @torch.inference_mode()
    def run(tensors: Any) -> Tensor:
        return graph.module(*tensors)

    return run
