"""Why pixels differ: another decoder, or other pictures."""

from __future__ import annotations

import typing

import numpy as np
import numpy.typing as npt

NEAR = 3  # steps of 255: what versions of JPEG decoders and of resizing differ by
NEARLY_ALL = 0.98  # of a sample's bytes: at sharp edges of colour, decoders differ by more


def explain_mismatch(ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> typing.Literal["close", "other"]:
    """``"close"`` where in every sample nearly all bytes are nearly the same, else ``"other"``.

    ours, theirs: (K, H, W, C) uint8, the same keys' pixels as they are now and as they were kept.
    """
    if ours.shape != theirs.shape:
        return "other"
    # uint8 differences would wrap around
    distance = np.abs(ours.astype(np.int16) - theirs)
    near = (distance <= NEAR).reshape(len(distance), -1).mean(axis=1)
    return "close" if bool((near >= NEARLY_ALL).all()) else "other"
