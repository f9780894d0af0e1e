"""Recipes: augmentations that are applied one after another, written ``crop:pad=4+flip``."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from softcache import registry
from softcache.errors import UsageError
from softcache.views._augmentation import Augmentation, ImageAugmentation, MixAugmentation, PixelsAugmentation

Numbered = tuple[int, Augmentation]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the pixels of a view are made from a row.

    spec: the canonical spec, with all options. names, augmentations: the components in their order. The random numbers
    of an augmentation depend on its position, so appending another one doesn't change them.
    """

    spec: str
    names: tuple[str, ...]
    augmentations: tuple[Any, ...]

    @functools.cached_property
    def first(self) -> ImageAugmentation | None:
        """The augmentation that takes the decoded image; None where views start from the evaluation pixels."""
        return typing.cast(ImageAugmentation, self.augmentations[0]) if self.augmentations[0].kind == "image" else None

    @functools.cached_property
    def mix(self) -> MixAugmentation | None:
        """The augmentation that mixes rows, if there is one: the last."""
        return typing.cast(MixAugmentation, self.augmentations[-1]) if self.augmentations[-1].kind == "mix" else None

    @functools.cached_property
    def between(self) -> tuple[Numbered, ...]:
        """The other augmentations with their numbers, in order."""
        kinds = enumerate(self.augmentations)
        return tuple((n, s) for n, s in kinds if s is not self.first and s is not self.mix)

    @property
    def moves(self) -> bool:
        """Whether all augmentations only move bytes, so that views can be made on any device by indexing."""
        return all(augmentation.kind == "move" for augmentation in self.augmentations)

    @property
    def revisions(self) -> dict[str, int]:
        """Component → revision."""
        return {name: augmentation.revision for name, augmentation in zip(self.names, self.augmentations, strict=True)}

    def __str__(self) -> str:
        return self.spec


def parse_recipe(text: str) -> Recipe:
    """The recipe of a spec: augmentations ``name:option=value,…``, joined by ``+``.

    Errors: ``UsageError`` for an unknown augmentation or option, and for an augmentation in a wrong position.

    >>> parse_recipe("crop+flip").spec
    'crop:pad=4,fill=0+flip:p=0.5'
    """
    parts = [part.strip() for part in text.split("+")]
    if not all(parts):
        raise UsageError(f"view recipe {text!r} has an empty augmentation: write augmentations as crop+flip, or none")
    parts = [_named(part) for part in parts]
    names = [registry.split_spec(part)[0] for part in parts]
    augmentations = [registry.create("views", part) for part in parts]
    _check(text, names, augmentations)
    if len(augmentations) > 1 and names[0] == "none" and augmentations[1].kind != "image":
        del names[0], augmentations[0]  # it changes nothing, and must not shift the positions of the others
    spec = "+".join(
        registry.canonical(name, augmentation) for name, augmentation in zip(names, augmentations, strict=True)
    )
    return Recipe(spec, tuple(names), tuple(augmentations))


def _named(part: str) -> str:
    """An augmentation's spec; a user's file may be given without the component's name, as for datasets and models."""
    own = part.rpartition(":")[0].endswith(".py") and not part.startswith("python:")
    return f"python:{part}" if own else part


def _check(text: str, names: list[str], augmentations: list[Any]) -> None:
    for place, (name, augmentation) in enumerate(zip(names, augmentations, strict=True)):
        last = place == len(augmentations) - 1
        if augmentation.kind == "move" and names.count(name) > 1:
            raise UsageError(f"view recipe {text!r} has {name!r} twice: leave one out")
        if place and name == "none":
            raise UsageError(f"view recipe {text!r}: 'none' leaves pixels as they are and can only stand first")
        if place and augmentation.kind == "image" and not isinstance(augmentation, PixelsAugmentation):
            raise UsageError(f"view recipe {text!r}: {name!r} takes the decoded image, so it must stand first")
        if augmentation.kind == "mix" and not last:
            raise UsageError(f"view recipe {text!r}: {name!r} mixes finished views, so it must stand last, and alone")
