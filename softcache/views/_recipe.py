"""A recipe: stages in a row, written ``crop:pad=4+flip``."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from softcache import registry
from softcache.errors import UsageError
from softcache.views._stage import ImageStage, MixStage, Stage

Numbered = tuple[int, Stage]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a view's pixels are made from a row.

    spec: canonical, with every option spelled out. names, stages: the components in their order; a stage's place is
    part of what its keys draw, so appending a stage leaves the others' numbers as they were.
    """

    spec: str
    names: tuple[str, ...]
    stages: tuple[Any, ...]

    @functools.cached_property
    def first(self) -> ImageStage | None:
        """The stage that takes the decoded image; None where views start from the evaluation pixels."""
        return typing.cast(ImageStage, self.stages[0]) if self.stages[0].kind == "image" else None

    @functools.cached_property
    def mix(self) -> MixStage | None:
        """The stage that mixes rows, if there is one: the last."""
        return typing.cast(MixStage, self.stages[-1]) if self.stages[-1].kind == "mix" else None

    @functools.cached_property
    def between(self) -> tuple[Numbered, ...]:
        """The other stages with their numbers, in order."""
        kinds = enumerate(self.stages)
        return tuple((n, s) for n, s in kinds if s is not self.first and s is not self.mix)

    @property
    def moves(self) -> bool:
        """Whether bytes are only moved, so that views can be made on any device by indexing."""
        return all(stage.kind == "move" for stage in self.stages)

    @property
    def revisions(self) -> dict[str, int]:
        """Component → revision."""
        return {name: stage.revision for name, stage in zip(self.names, self.stages, strict=True)}

    def __str__(self) -> str:
        return self.spec


def parse_recipe(text: str) -> Recipe:
    """The recipe of a spec, ``name:option=value,…`` joined by ``+``.

    Errors: ``UsageError`` for an unknown stage or option, and for stages that can't stand where they do.
    """
    parts = [part.strip() for part in text.split("+")]
    if not all(parts):
        raise UsageError(f"view recipe {text!r} has an empty stage: write stages as crop+flip, or none")
    parts = [_named(part) for part in parts]
    names = [registry.split_spec(part)[0] for part in parts]
    stages = [registry.create("views", part) for part in parts]
    _check(text, names, stages)
    if len(stages) > 1 and names[0] == "none" and stages[1].kind != "image":
        del names[0], stages[0]  # it says what holds anyway, and shouldn't shift the others' numbers
    spec = "+".join(registry.canonical(name, stage) for name, stage in zip(names, stages, strict=True))
    return Recipe(spec, tuple(names), tuple(stages))


def _named(part: str) -> str:
    """A stage's spec; a file of one's own may be given as datasets and models take it, without the component's name."""
    own = part.rpartition(":")[0].endswith(".py") and not part.startswith("python:")
    return f"python:{part}" if own else part


def _check(text: str, names: list[str], stages: list[Any]) -> None:
    for place, (name, stage) in enumerate(zip(names, stages, strict=True)):
        last = place == len(stages) - 1
        if stage.kind == "move" and names.count(name) > 1:
            raise UsageError(f"view recipe {text!r} has {name!r} twice: leave one out")
        if place and name == "none":
            raise UsageError(f"view recipe {text!r}: 'none' leaves pixels as they are and can only stand first")
        if place and stage.kind == "image" and not hasattr(stage, "change"):
            raise UsageError(f"view recipe {text!r}: {name!r} takes the decoded image, so it must stand first")
        if stage.kind == "mix" and not last:
            raise UsageError(f"view recipe {text!r}: {name!r} mixes finished views, so it must stand last, and alone")
