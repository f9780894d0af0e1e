"""No augmentation: the evaluation pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from softcache.views._keys import Keys
from softcache.views._move import Motion, still


@dataclass(frozen=True)
class Plain:
    """The image resized and centre-cropped to the view size, as torchvision's reference evaluation does.

    It stands alone, or first before a ``python:`` augmentation that is to get these pixels and not the decoded image.
    """

    kind: ClassVar[str] = "move"
    revision: ClassVar[int] = 1

    def motion(self, keys: Keys, size: int) -> Motion:
        """Nothing moves."""
        return still(len(keys.indices))
