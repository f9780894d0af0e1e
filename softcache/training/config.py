"""How a network is trained, whatever it is trained towards: the options that `teach` and `train` share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from softcache.errors import UsageError, nearest

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step", "constant")
START_METHODS = ("auto", "fork", "spawn", "forkserver")

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

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one.

    Errors: ``UsageError`` for a device that torch doesn't know or doesn't have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r} is unknown: auto, cpu, cuda, cuda:1, mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this machine has no CUDA device, or torch can't see it")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine's CUDA devices are 0 to {torch.cuda.device_count() - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has none, or torch can't see it")
    return device


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The autocast context of ``--amp bf16|fp16|off``."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[amp]
    return torch.autocast(device.type, dtype if amp != "off" else torch.bfloat16, enabled=amp != "off")


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU's matrix products and convolutions may use TF32; the caller's own choice comes back after it."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
