"""How a network is trained, whatever it is trained towards: the options that `teach` and `train` share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from softcache.errors import UsageError, nearest
from softcache.stream.workers import START_METHODS
from softcache.training.optimization import OPTIMIZERS, SCHEDULES, Optimization

Config = TypeVar("Config")


def configure(kind: type[Config], options: dict[str, Any]) -> Config:
    """The configuration, a dataclass, with these of its fields.

    Errors: ``UsageError`` with the nearest names for an option that it doesn't have.
    """
    known = [own.name for own in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise UsageError(f"{kind.__name__} has no option {name!r}{nearest(name, known)}")
    return kind(**options)


@dataclass(frozen=True)
class FitConfig:
    """Plain values that go into a run's ``config.json`` as they are.

    ``epochs`` passes over the rows; ``lr`` the peak learning rate; ``warmup`` epochs of linear rise to it;
    ``milestones`` the epochs at which the step schedule multiplies it by ``gamma``; ``clip_grad`` a bound on the
    gradient's norm, 0 for none; ``accumulate`` batches per optimizer step.
    """

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    label_smoothing: float = 0.0
    clip_grad: float = 0.0
    accumulate: int = 1
    amp: str = "off"
    channels_last: bool = False
    compile: bool = False
    seed: int = 0
    device: str = "auto"
    workers: int = -1
    resident: str = "auto"
    start_method: str = "auto"
    profile: bool = False

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "lr", "accumulate")
        for name in positive:
            if not getattr(self, name) > 0:  # nan is neither above nor below
                raise UsageError(f"--{name.replace('_', '-')} must be above 0, is {getattr(self, name)}")
        for name in ("weight_decay", "warmup", "clip_grad"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name.replace('_', '-')} can't be negative, is {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--label-smoothing must be at least 0 and below 1, is {self.label_smoothing}")
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("amp", ("off", "bf16", "fp16")),
            ("resident", ("auto", "device", "host", "off")),
            ("start_method", START_METHODS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"--{name.replace('_', '-')} {value!r} is unknown{nearest(value, known)}")

    def optimization(self) -> Optimization:
        """The options that say how parameters are updated."""
        return Optimization(**{own.name: getattr(self, own.name) for own in dataclasses.fields(Optimization)})

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
