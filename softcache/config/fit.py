"""How a network is trained, whatever it is trained towards: the options that `teach` and `train` share."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from softcache.config.options import Options, refuse_seed
from softcache.config.presets import AUTO, UNSAID, as_given, fitting_preset, is_small, open_preset
from softcache.errors import UsageError, nearest
from softcache.fields import Inputs
from softcache.models._arithmetic import AMP, Arithmetic, pick_arithmetic
from softcache.models._network import Network
from softcache.models._norms import warn_of_slow_norms
from softcache.stream.workers import START_METHODS
from softcache.tracking._specs import canonical_trackers
from softcache.training.optimization import OPTIMIZERS, SCHEDULES, Optimization

log = logging.getLogger(__name__)
Config = TypeVar("Config", bound="FitConfig")


@dataclass(frozen=True, kw_only=True)
class FitConfig(Options):
    """How a network is trained. ``None``: as ``preset`` has it, or where that says nothing, as ``presets.UNSAID``.

    ``preset``: one of softcache's, a JSON file, or ``auto``: the one for this kind of network and start. ``epochs``
    passes over the rows; ``lr`` the peak learning rate; ``warmup`` epochs of linear rise to it; ``milestones`` the
    epochs at which the step schedule multiplies it by ``gamma``; ``clip_grad`` a bound on the gradient's norm, 0 for
    none; ``accumulate`` batches per optimizer step. ``amp`` ``auto`` and ``channels_last`` ``None``: the fastest that
    costs no accuracy (``models._arithmetic``). ``cuda_graphs``: whether a GPU's steps are recorded and replayed; None
    where that is known to be right. ``log``: trackers that are told of the training while it runs.
    """

    preset: str = AUTO
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    schedule: str | None = None
    warmup: float | None = None
    milestones: tuple[int, ...] | None = None
    gamma: float | None = None
    label_smoothing: float | None = None
    clip_grad: float | None = None
    accumulate: int = 1
    amp: str = "auto"
    tf32: bool = False
    channels_last: bool | None = None
    compile: bool = False
    cuda_graphs: bool | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = -1
    resident: str = "auto"
    start_method: str = "auto"
    profile: bool = False
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "log", canonical_trackers(self.log))
        for name in ("epochs", "batch_size", "lr", "accumulate"):
            value = getattr(self, name)
            if value is not None and not value > 0:  # nan is neither above nor below
                raise UsageError(f"--{name.replace('_', '-')} must be above 0, is {value}")
        refuse_seed(self.seed)
        for name in ("weight_decay", "warmup", "clip_grad", "momentum"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"--{name.replace('_', '-')} can't be negative, is {value}")
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--label-smoothing must be at least 0 and below 1, is {self.label_smoothing}")
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("amp", AMP),
            ("resident", ("auto", "device", "host", "off")),
            ("start_method", START_METHODS),
        ):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise UsageError(f"--{name.replace('_', '-')} {value!r} is unknown{nearest(value, known)}")

    def settled(self: Config, network: Network, rows: int, *, pretrained: bool, distilled: bool = False) -> Config:
        """With all that was left to the preset. ``rows``: of the training set; ``pretrained``: whether the network
        starts from parameters that have learnt something; ``distilled``: whether it learns from more than labels.

        Errors: ``UsageError`` for a preset that isn't known or leaves an option open, and for another optimizer than
        the preset's without a learning rate.
        """
        open_ones = [name for name in UNSAID if getattr(self, name) is None]
        if not open_ones:
            return self
        name = fitting_preset(network, pretrained=pretrained) if self.preset == AUTO else self.preset
        said = open_preset(name).at(rows, distilled=distilled, small=is_small(network))
        for option in open_ones:
            if said[option] is None:
                raise UsageError(f"--preset {name} doesn't say --{option.replace('_', '-')}: give it")
        if self.optimizer is not None and self.lr is None and _family(self.optimizer) != _family(said["optimizer"]):
            raise UsageError(
                f"--optimizer {self.optimizer}: the learning rate of preset {name}, {said['lr']:g}, is for "
                f"{said['optimizer']}: give --lr, and --weight-decay in place of {said['weight_decay']:g}"
            )
        chosen = {option: _plain(said[option]) for option in open_ones}
        try:
            settled = dataclasses.replace(self, **chosen)
        except UsageError as error:
            raise UsageError(f"--preset {name}: {error}") from None
        log.info(f"preset {name}: {as_given({option: getattr(settled, option) for option in UNSAID})}")
        return settled

    def warn_of(self, network: Network, rows: int, *, pretrained: bool) -> None:
        """Warns of what makes a network of random parameters fail in a training like this. All has to be settled."""
        assert self.batch_size is not None
        assert self.epochs is not None
        if not pretrained:
            warn_of_slow_norms(network, rows, self.batch_size, self.epochs)

    def as_recorded(self: Config, recorded: Config) -> Config:
        """With all that was left open as a folder of the same preset has it."""
        if self.preset != recorded.preset:
            return self
        values = {name: getattr(recorded, name) for name in UNSAID if getattr(self, name) is None}
        if self.amp == "auto":
            values["amp"] = recorded.amp
        if self.channels_last is None:
            values["channels_last"] = recorded.channels_last
        return dataclasses.replace(self, **values)

    def with_arithmetic(self: Config, network: Network, inputs: Inputs, device: torch.device) -> Config:
        """With precision and memory format chosen, where they were left open. The batch size has to be settled.
        ``inputs``: of some samples."""
        assert self.batch_size is not None
        chosen = pick_arithmetic(
            network, inputs, self.batch_size, device, amp=self.amp, channels_last=self.channels_last
        )
        return dataclasses.replace(self, amp=chosen.amp, channels_last=chosen.channels_last)

    def records(self, pure: bool, device: torch.device) -> bool:
        """Whether steps are recorded as CUDA graphs. ``pure``: whether nothing in them is code that may do something on
        the host that a recording leaves out.

        Errors: ``UsageError`` where it is asked for without a GPU.
        """
        if self.cuda_graphs and device.type != "cuda":
            raise UsageError(f"--cuda-graphs needs a CUDA device, this is {device}")
        return device.type == "cuda" and (pure if self.cuda_graphs is None else self.cuda_graphs)

    def fitting(self) -> Fitting:
        """The numbers of options that are settled."""
        values = {name: getattr(self, name) for name in (*UNSAID, "accumulate", "channels_last", "amp")}
        assert None not in values.values()
        own = {field.name: values[field.name] for field in dataclasses.fields(Optimization)}
        return Fitting(
            values["epochs"],
            values["batch_size"],
            values["label_smoothing"],
            Optimization(**own),
            Arithmetic(values["amp"], values["channels_last"]),
        )


@dataclass(frozen=True)
class Fitting:
    """How a network is trained, with nothing left open."""

    epochs: int
    batch_size: int
    label_smoothing: float
    optimization: Optimization
    arithmetic: Arithmetic


def _family(optimizer: str | None) -> bool:
    """Adam and AdamW take rates of one size, SGD others."""
    return optimizer in ("adam", "adamw")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
