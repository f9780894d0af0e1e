"""Why pixels differ: another decoder, or other pictures."""

from __future__ import annotations

import typing

import numpy as np
import numpy.typing as npt

from softcache.inputs import WHITE
from softcache.views._image import Pixels

NEAR = 3  # steps of 255: what versions of JPEG decoders and of resizing differ by
NEARLY_ALL = 0.98  # of a sample's bytes: at sharp edges of colour, decoders differ by more


def close_samples(ours: Pixels, theirs: Pixels) -> npt.NDArray[np.bool_]:
    """(K,) bool: the samples of which nearly all bytes are nearly the same.

    ours, theirs: (K, H, W, C) uint8 or uint16, the same keys' pixels as they are now and as they were kept; where their
    shapes differ, no sample is close.
    """
    if ours.shape != theirs.shape:
        return np.zeros(len(theirs), dtype=bool)
    # unsigned differences would wrap around
    distance = np.abs(ours.astype(np.int32) - theirs)
    near = (distance * 255 <= NEAR * WHITE[theirs.dtype.name]).reshape(len(distance), -1).mean(axis=1)
    return np.asarray(near >= NEARLY_ALL)


def explain_mismatch(ours: Pixels, theirs: Pixels) -> typing.Literal["close", "other"]:
    """``"close"`` where every sample is close, else ``"other"``. Arguments: as for ``close_samples``."""
    return "close" if bool(close_samples(ours, theirs).all()) else "other"
