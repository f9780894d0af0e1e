"""How a network is trained, whatever it is trained towards: the options that `teach` and `train` share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from softcache.config.options import Options
from softcache.errors import UsageError, nearest
from softcache.stream.workers import START_METHODS
from softcache.training.optimization import OPTIMIZERS, SCHEDULES, Optimization


@dataclass(frozen=True, kw_only=True)
class FitConfig(Options):
    """How a network is trained.

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
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    seed: int = 0
    device: str = "auto"
    workers: int = -1
    resident: str = "auto"
    start_method: str = "auto"
    profile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
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
