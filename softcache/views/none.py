"""No augmentation: the evaluation pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from softcache.fields import Fields
from softcache.inputs import InputField
from softcache.views._keys import Keys
from softcache.views._move import Motion, still


@dataclass(frozen=True)
class Plain:
    """The image, resized and centre-cropped to the view's size as in torchvision's reference evaluation.

    It stands alone, or before a ``python:`` augmentation that should get these pixels rather than the decoded image.

    >>> import numpy as np
    >>> keys = Keys(seed=0, indices=np.arange(3), view=0, position=0)
    >>> motion = Plain().motion(keys, size=8)
    >>> motion.top.tolist(), motion.mirror.tolist()
    ([0, 0, 0], [False, False, False])
    """

    kind: ClassVar[str] = "move"
    revision: ClassVar[int] = 1

    def motion(self, keys: Keys, size: int) -> Motion:
        """Moves nothing."""
        return still(len(keys.indices))

    def check_fields(self, inputs: Mapping[str, InputField]) -> None:
        """Any inputs can stay as they are."""

    def change_fields(self, fields: Fields, keys: Keys) -> Fields:
        """Changes nothing."""
        return fields
