"""What the inputs of a key may be: their names and dtypes, for datasets that give them and caches that record them."""

from __future__ import annotations

import re

PIXELS = "pixels"  # of pictures: uint8 (H, W, C)
# Dtype → bytes of one number. torch has these in full; it knows uint16 and uint32 only in part.
DTYPES = {
    **{"uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8},
    **{"float16": 2, "float32": 4, "float64": 8},
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_input_name(name: str) -> bool:
    """Whether inputs may be called so. ``index`` is another array of the file that keeps some of them.

    >>> is_input_name("features"), is_input_name("index"), is_input_name("größe")
    (True, False, False)
    """
    return len(name) < 200 and bool(_NAME.fullmatch(name)) and name != "index"
