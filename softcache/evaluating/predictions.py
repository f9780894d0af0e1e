"""What networks say of a split's clean rows, computed now or read from a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from softcache.cache.agreement.data import check_dataset
from softcache.cache.agreement.labels import label_difference
from softcache.cache.agreement.samples import check_pixels, recorded_digests
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.datasets._labels import labelled
from softcache.device import autocast
from softcache.errors import CacheError, ModelError, PixelsError
from softcache.losses._target import Leaders
from softcache.models._network import Network
from softcache.ragged import Int64
from softcache.stream.inputs import InputSource
from softcache.stream.parts import in_view
from softcache.views._open import Viewed

BATCH = 256  # rows of a forward pass
PROBED = 64  # rows whose digests are compared with the cache's

# A network, and the precision of autocast that it is evaluated in: bf16, fp16 or off.
Judged = tuple[Network, str]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one network says of rows of a split.

    ``logits``: (N, C) float32 on the CPU. ``labels``: of the same rows, one of the kinds of ``datasets._labels`` as a
    tensor: of classes (N,) int32, -1 where a row has none. ``class_names``: of the classes or outputs, C of them, or
    none where nobody knows them. ``rows``: (N,) int64, in the split's order. ``leaders``: of a cache that keeps the
    largest logits alone, from which those for a temperature follow.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    rows: Int64
    leaders: Leaders | None = None

    def at(self, T: float) -> torch.Tensor:
        """Logits (N, C) for a measure that divides them by ``T``."""
        return self.logits if self.leaders is None else self.leaders.at(T)

    def labelled(self) -> Predictions:
        """The same of the rows that have a label."""
        known = torch.from_numpy(labelled(self.labels.numpy()))
        return dataclasses.replace(
            self,
            logits=self.logits[known],
            labels=self.labels[known],
            rows=self.rows[known.numpy()],
            leaders=self.leaders and self.leaders.each(lambda tensor: tensor[known]),
        )


def predictions(
    judged: Sequence[Judged], viewed: Viewed, inputs: InputSource, device: torch.device
) -> list[Predictions]:
    """What each network says of all rows of ``viewed``, whose clean inputs come from ``inputs`` and are made once.

    Rows with a label come first, in batches of their own, so that scores are to the last bit those of a training, which
    looks at these alone. Errors: ``ModelError`` for a network that gives more than one vector of logits a row.
    """
    known = labelled(viewed.samples.labels)
    order = np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)])
    said: list[list[torch.Tensor]] = [[] for _ in judged]
    for rows in (np.flatnonzero(known), np.flatnonzero(~known)):
        for _, logits in predict(judged, inputs, rows, device):
            for (network, _), own, values in zip(judged, said, logits, strict=True):
                if values.ndim != 2:
                    raise ModelError(
                        f"{network.spec} gives logits of shape {tuple(values.shape)} for {len(values)} samples: one "
                        "vector a sample is evaluated"
                    )
                own.append(values.cpu())
    back = torch.from_numpy(np.argsort(order))
    return [_of(viewed, torch.cat(own)[back]) for own in said]


def cached_predictions(cache: Cache, viewed: Viewed) -> Predictions:
    """What the teacher of ``cache`` said of the clean inputs of ``viewed``.

    Errors: ``CacheError`` where the cache is of another split, other data or other labels, has no logits of one vector
    a row, or where its views are not the clean inputs; ``PixelsError`` where its teacher saw others.
    """
    recipe, ours = cache.manifest.identity.recipe, viewed.identity()
    if recipe["spec"] != "none":
        raise CacheError(
            f"{cache.where} is of views of {recipe['spec']}, and a network is evaluated on clean inputs: make one of "
            f"them with softcache dump --split {viewed.samples.split} --augment none"
        )
    for name in ("size", "resize"):
        if recipe.get(name) != ours.get(name):
            raise CacheError(
                f"{cache.where} is of views of {name} {recipe.get(name)}, the network is evaluated at {ours.get(name)}:"
                f" make it again with --size {viewed.size}"
            )
    check_dataset(cache, viewed)
    differing = label_difference(cache, viewed.samples)
    if differing is not None:
        raise CacheError(f"{cache.where} was made from other labels than {viewed.samples.spec} has now: {differing}")
    layout = cache.layout(LOGITS)
    if layout.ragged or len(layout.shape) != 1:
        raise CacheError(f"{cache.where} has several vectors of logits a row: one vector a row is evaluated")
    if layout.kind != viewed.samples.label_kind and labelled(viewed.samples.labels).any():
        raise CacheError(
            f"the logits of {cache.where} are of kind {layout.kind}, the labels of {viewed.samples.spec} of kind "
            f"{viewed.samples.label_kind}"
        )
    views = cache.complete_views(LOGITS)
    if not views:
        raise CacheError(f"{cache.where} has no complete view of its logits: run the same softcache dump again")
    check_pixels(cache, viewed)
    _check_digests(cache, viewed, views[0])
    column, rows = cache.column(LOGITS), np.arange(len(viewed))
    target = column.target(column.gather(views[0], rows))
    if isinstance(target, Leaders):
        return dataclasses.replace(_of(viewed, target.at(1.0)), leaders=target)
    return _of(viewed, target)


@torch.inference_mode()
def predict(
    judged: Sequence[Judged],
    inputs: InputSource,
    rows: np.ndarray,
    device: torch.device,
    *,
    batch: int = BATCH,
    output: str = LOGITS,
    view: int = 0,
) -> Iterator[tuple[np.ndarray, list[torch.Tensor]]]:
    """Rows (B,) and an output of them in a view, (B, …) float32 on the device, of each network, in evaluation mode and
    in order."""
    was_training = [network.training for network, _ in judged]
    for network, _ in judged:
        network.eval()
    batches = [rows[k : k + batch] for k in range(0, len(rows), batch)]
    try:
        for (part,), _, made in inputs.epoch(in_view(batches, view)):
            said = []
            for network, amp in judged:
                with autocast(device, amp):
                    said.append(network.outputs(made, [output])[output].float())
            yield part.rows, said
    finally:
        for (network, _), training in zip(judged, was_training, strict=True):
            network.train(training)


def _of(viewed: Viewed, logits: torch.Tensor) -> Predictions:
    samples = viewed.samples
    names = tuple(samples.classes) if len(samples.classes) == logits.shape[1] else ()
    labels = torch.from_numpy(np.ascontiguousarray(samples.labels))
    return Predictions(logits.float(), labels, names, np.arange(len(logits)))


def _check_digests(cache: Cache, viewed: Viewed, view: int) -> None:
    rows = np.unique(np.linspace(0, len(viewed) - 1, PROBED).astype(np.int64))
    differing = viewed.digest(viewed.clean(rows)).numpy() != recorded_digests(cache, view, rows)
    if differing.any():
        raise PixelsError(
            f"row {int(rows[differing][0])} has other {cache.input_names} than the teacher of {cache.where} saw: is "
            "this the dataset that the cache was made from?"
        )
