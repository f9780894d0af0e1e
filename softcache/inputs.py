"""What the inputs of a key may be: their names, dtypes and shapes, for datasets that give them and caches that record
them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softcache.errors import UsageError

PIXELS = "pixels"  # of pictures: (H, W, C)
WHITE = {"uint8": 255, "uint16": 65535}  # a picture's dtype → its largest value; the smallest is 0
MAX_CHANNELS = 1024  # of a picture; sensors of many wavelengths have hundreds
# Dtype of other inputs → bytes of one number. torch has these in full; it knows uint16 and uint32 only in part.
DTYPES = {
    **{"uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8},
    **{"float16": 2, "float32": 4, "float64": 8},
}
MAX_LENGTH = 2**31 - 1  # of a row that has a length of its own
TOKENS = "input_ids"
MASK = "attention_mask"  # the name by which most networks of tokens take it
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class InputField:
    """An input's dtype and its shape in one sample: None for a first axis that each row has a length of its own in.

    In a batch such a row is filled up to the longest one with ``pad``, which a mask shows.
    """

    dtype: str
    shape: list[int | None]
    pad: int = 0

    @property
    def ragged(self) -> bool:
        """Whether rows have lengths of their own."""
        return bool(self.shape) and self.shape[0] is None

    @property
    def tail(self) -> tuple[int, ...]:
        """The axes of one sample whose sizes are the same in all rows."""
        return tuple(size for size in self.shape if size is not None)

    def __str__(self) -> str:
        """``16 float32``, ``L int64``: L is a row's own length; ``L int64 filled up with 1``."""
        sizes = "×".join("L" if size is None else str(size) for size in self.shape) or "1"
        return f"{sizes} {self.dtype}" + (f" filled up with {self.pad}" if self.pad else "")


def number_bytes(dtype: str) -> int:
    """Bytes of one number of an input; 0 for dtypes that none has.

    >>> number_bytes("uint16"), number_bytes("complex64")
    (2, 0)
    """
    return 2 if dtype == "uint16" else DTYPES.get(dtype, 0)


def mask_names(ragged: Sequence[str]) -> dict[str, str]:
    """Name of a mask → the input whose rows' lengths it shows. It follows from names alone, so that all splits agree.

    ``ragged``: names of inputs whose rows have lengths of their own. The mask of ``input_ids``, or else of the first
    name, is ``attention_mask``, others have the names of their inputs. Names that end in ``_ids`` beside ``input_ids``
    (``token_type_ids``) have its lengths, and need no mask of their own.

    >>> mask_names(["a", "b"]), mask_names(["a", "input_ids", "token_type_ids"])
    ({'attention_mask': 'a', 'b_mask': 'b'}, {'attention_mask': 'input_ids', 'a_mask': 'a'})
    """
    if not ragged:
        return {}
    first = TOKENS if TOKENS in ragged else min(ragged)
    others = [name for name in sorted(ragged) if name != first and not go_together(name, ragged)]
    return {MASK: first, **{f"{name}_mask": name for name in others}}


def bucket_input(inputs: Mapping[str, InputField], spec: str) -> str:
    """The input by whose lengths rows are put together: the one that ``attention_mask`` is of.

    Errors: ``UsageError`` where no rows have lengths of their own. ``spec``: of the dataset, for the message.
    """
    masks = mask_names([name for name, given in inputs.items() if given.ragged])
    if MASK not in masks:
        raise UsageError(
            f"--bucket puts rows of like length together, and those of {spec} have no lengths of their own: leave it "
            "out"
        )
    return masks[MASK]


def go_together(name: str, ragged: Sequence[str]) -> bool:
    """Whether the rows of an input must be as long as those of ``input_ids``, which is among them."""
    return TOKENS in ragged and name.endswith("_ids")


def is_input_name(name: str) -> bool:
    """Whether inputs may be called so. ``index`` is another array of the file that keeps some of them.

    >>> is_input_name("features"), is_input_name("index"), is_input_name("größe")
    (True, False, False)
    """
    return len(name) < 200 and bool(_NAME.fullmatch(name)) and name != "index"
