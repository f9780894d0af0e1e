"""Are these the inputs that the teacher saw? Every key of every batch is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from softcache.errors import PixelsError
from softcache.fields import Inputs
from softcache.views._digest import FieldsDigest, PixelsDigest

HELD_BATCHES = 4096  # then what was put off is looked at, so that it never takes much memory


@dataclass(frozen=True)
class CloseRows:
    """Rows whose pixels may differ from what the teacher saw, as kept samples show that they are close: (N,) bool.

    ``every_view``: whether the sample, which is of view 0, speaks for the row's other views too.
    """

    rows: np.ndarray
    every_view: bool

    def accepts(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """(B,) bool: of keys."""
        return self.rows[rows] & (self.every_view | (views == 0))


class PixelCheck:
    """Checks digests: at once where inputs are made on the host, else at the end of an epoch.

    A GPU would have to be waited for to know of a batch. What needs the bytes is done there batch by batch, in three
    kernels; the rest, and the comparison, once for all batches.
    """

    def __init__(self, digest: PixelsDigest | FieldsDigest, *, at_once: bool, accepted: Sequence[CloseRows] = ()):
        """``digest``: of the inputs. ``accepted``: one for each cache where differing keys may be close, in the order
        of their digests."""
        self._digest = digest
        self._at_once = at_once
        self._accepted = accepted
        self._rows: list[np.ndarray] = []
        self._views: list[tuple[int, ...]] = []
        self._sums: list[torch.Tensor] = []
        self._expected: list[Sequence[torch.Tensor]] = []

    def add(self, rows: np.ndarray, views: tuple[int, ...], inputs: Inputs, expected: Sequence[torch.Tensor]) -> None:
        """Keys: rows (B,), equal parts of them in each of the views in their order; their inputs; ``expected``: digests
        (B,) int64, one tensor a cache.

        Errors: ``PixelsError`` naming the first key that differs.
        """
        if self._at_once:
            ours = self._digest(inputs)
            for number, theirs in enumerate(expected):
                self._refuse(number, ours != theirs, [rows], [views], "batch")
            return
        self._rows.append(rows)
        self._views.append(views)
        self._sums.append(self._digest.sums(inputs))
        self._expected.append(expected)
        if len(self._rows) == HELD_BATCHES:
            self.finish()

    def finish(self) -> None:
        """Looks at what was put off. Errors: as ``add``."""
        rows, views, sums, expected = self._rows, self._views, self._sums, self._expected
        self._rows, self._views, self._sums, self._expected = [], [], [], []
        if not rows:
            return
        ours = self._digest.of_sums(torch.cat(sums))
        for number, theirs in enumerate(zip(*expected, strict=True)):
            self._refuse(number, ours != torch.cat(theirs), rows, views, "epoch")

    def _refuse(
        self, number: int, differs: torch.Tensor, batches: list[np.ndarray], views: list[tuple[int, ...]], of: str
    ) -> None:
        """``differs`` (B,) bool: the keys of these batches whose digests are not those of the ``number``-th cache.
        ``views``: those of each batch."""
        if not bool(differs.any()):
            return
        rows = np.concatenate(batches)
        # A batch has equal parts in each of its views, in their order.
        in_views = [np.repeat(own, len(batch) // len(own)) for batch, own in zip(batches, views, strict=True)]
        view_of = np.concatenate(in_views)
        wrong = differs.cpu().numpy()
        shown = ""
        if self._accepted:
            close = wrong & self._accepted[number].accepts(rows, view_of)
            wrong = wrong & ~close
            shown = f", {int(close.sum())} more are close"
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise PixelsError(
                f"row {int(rows[at])} in view {int(view_of[at])} has other {self._digest.name} than the teacher "
                f"saw ({int(wrong.sum())} of {len(wrong)} keys of this {of} differ{shown})"
            )
