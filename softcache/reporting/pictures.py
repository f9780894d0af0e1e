"""A sample as it can be shown: its picture within the page, or its numbers as text."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from softcache.datasets._samples import Samples
from softcache.reporting.elements import Element, element

SIDE = 176  # pixels of a picture in the page, twice what it has on a screen of plain resolution
TINY = 64  # a picture that is smaller is shown with its pixels as they are
NUMBERS = 24  # of an input that is no picture
QUALITY = 82  # of JPEG


def shown(samples: Samples, row: int) -> Element:
    """A row of a dataset. Errors: ``DatasetError`` for a picture that can't be decoded."""
    if samples.pictures:
        return picture(samples.image(row), f"sample {row}")
    parts = [f"{name}: {_numbers(held.subset(np.array([row])).values)}" for name, held in samples.values.items()]
    return element("code", "; ".join(parts))


def picture(pixels_hwc: npt.NDArray[Any], told: str) -> Element:
    """Pixels (H, W, C) uint8 or uint16; of other numbers of channels than 1 and 3 the first, as grey. Small pictures
    and those with few colours are PNG, the others JPEG."""
    from PIL import Image

    eight = (pixels_hwc >> 8).astype(np.uint8) if pixels_hwc.dtype == np.uint16 else pixels_hwc
    grey = eight.shape[2] != 3
    image = Image.fromarray(np.ascontiguousarray(eight[:, :, 0] if grey else eight))
    tiny = max(image.size) <= TINY
    if not tiny:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    written, form = io.BytesIO(), "PNG" if tiny else "JPEG"
    image.save(written, form, **({"optimize": True} if tiny else {"quality": QUALITY}))
    data = base64.b64encode(written.getvalue()).decode()
    source = f"data:image/{form.lower()};base64,{data}"
    return element("img", src=source, alt=told, class_="tiny" if tiny else None)


def _numbers(values: npt.NDArray[Any]) -> str:
    flat = np.asarray(values).reshape(-1)
    text = ", ".join(f"{value:.4g}" for value in flat[:NUMBERS].tolist())
    return text + (f", … ({flat.size:,} in all)" if flat.size > NUMBERS else "")
