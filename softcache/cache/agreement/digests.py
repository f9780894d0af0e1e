"""Are these the pixels that the teacher saw? Every key of every batch is checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from softcache.errors import PixelsError
from softcache.views._digest import digest, digest_of_sums, digest_sums

HELD_BATCHES = 4096  # then what was put off is looked at, so that it never takes much memory


class PixelCheck:
    """Checks digests: at once where pixels are made on the host, else at the end of an epoch.

    A GPU would have to be waited for to know of a batch. What needs the bytes is done there batch by batch, in three
    kernels; the rest, and the comparison, once for all batches.
    """

    def __init__(self, *, at_once: bool):
        self._at_once = at_once
        self._rows: list[np.ndarray] = []
        self._sums: list[torch.Tensor] = []
        self._expected: list[Sequence[torch.Tensor]] = []

    def add(
        self, rows: np.ndarray, views: tuple[int, ...], pixels: torch.Tensor, expected: Sequence[torch.Tensor]
    ) -> None:
        """A batch: rows (B,), equal parts of them in each of the views in their order; pixels (B, H, W, C) uint8;
        ``expected``: digests (B,) int64, one tensor a cache.

        Errors: ``PixelsError`` naming the first key that differs.
        """
        if self._at_once:
            ours = digest(pixels)
            for theirs in expected:
                _refuse(ours != theirs, [rows], views, "batch")
            return
        self._rows.append(rows)
        self._sums.append(digest_sums(pixels))
        self._expected.append(expected)
        if len(self._rows) == HELD_BATCHES:
            self.finish(views)

    def finish(self, views: tuple[int, ...]) -> None:
        """Looks at what was put off. Errors: as ``add``."""
        rows, sums, expected = self._rows, self._sums, self._expected
        self._rows, self._sums, self._expected = [], [], []
        if not rows:
            return
        ours = digest_of_sums(torch.cat(sums))
        for theirs in zip(*expected, strict=True):
            _refuse(ours != torch.cat(theirs), rows, views, "epoch")


def _refuse(differs: torch.Tensor, batches: list[np.ndarray], views: tuple[int, ...], of: str) -> None:
    if not bool(differs.any()):
        return
    at = int(differs.nonzero()[0, 0])
    for rows in batches:
        if at < len(rows):
            view = views[at * len(views) // len(rows)]
            raise PixelsError(
                f"row {int(rows[at])} in view {view} has other pixels than the teacher saw "
                f"({int(differs.sum())} of {len(differs)} keys of this {of} differ)"
            )
        at -= len(rows)
