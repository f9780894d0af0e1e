"""Presets: how networks are optimized, as files that can be read and added to (``softcache/presets/NAME.json``)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from softcache import strictjson
from softcache.errors import SoftcacheError, UsageError, nearest
from softcache.localfiles import local_path
from softcache.models._network import Network
from softcache.training.optimization import Optimization

FOLDER = Path(__file__).resolve().parents[1] / "presets"
AUTO = "auto"
# What a preset may say, and what holds where it doesn't; None: it has to.
UNSAID: dict[str, Any] = {"epochs": None, "batch_size": None}
UNSAID |= {own.name: None if own.default is MISSING else own.default for own in fields(Optimization)}
UNSAID |= {"label_smoothing": 0.0}
# Among a preset's options: those that differ where more than labels is learnt from, and those of small networks.
DISTILLED, SMALL = "distilled", "small"
SMALL_BELOW = 2_000_000  # parameters: rates were measured with up to 1.2 million, and with 11 million
del UNSAID["accumulate"]  # how a batch is divided, which depends on the memory and not on the network


@dataclass(frozen=True)
class Preset:
    """``about``: what it is for, in a sentence; ``source``: a paper, a repository, or where it was measured.
    ``options``: those of ``teach`` and ``train``, and among them under ``distilled`` those that differ where a student
    learns from more than labels, and under ``small`` those that differ for a small network (``is_small``), which may
    have ``distilled`` again. ``by_rows``: more of them by the size of the set, as pairs of the largest number of rows
    and the options up to it, in rising order; the last pair has None and holds for all larger sets."""

    name: str
    about: str
    source: str
    options: dict[str, Any]
    by_rows: tuple[tuple[int | None, dict[str, Any]], ...] = field(default=())

    def at(self, rows: int, *, distilled: bool = False, small: bool = False) -> dict[str, Any]:
        """All options for a set of ``rows``. ``distilled``: whether more is learnt from than labels; ``small``:
        whether the network is."""
        more = next((more for limit, more in self.by_rows if limit is None or rows <= limit), {})
        return {**UNSAID, **_merged([self.options, more], distilled=distilled, small=small)}

    def describe(self) -> dict[str, Any]:
        """As JSON. ``options``: for each size of the set the options as they are given on a command line."""
        limits = [limit for limit, _ in self.by_rows] or [None]
        sizes: dict[str, str] = {}
        for limit in limits:
            larger = "all larger sets" if len(limits) > 1 else "all sets"
            size = larger if limit is None else f"up to {limit:,} rows"
            parts = [self.options, dict(self.by_rows).get(limit, {})]
            for small in (False, True) if any(SMALL in part for part in parts) else (False,):
                network = f"{size}, small network" if small else size
                sizes[network] = as_given(_merged(parts, distilled=False, small=small))
                distilled = as_given(_merged(parts, distilled=True, small=small))
                if distilled != sizes[network]:
                    sizes[f"{network}, distilled"] = distilled
        return {"name": self.name, "about": self.about, "source": self.source, "options": sizes}


def _merged(parts: Sequence[Mapping[str, Any]], *, distilled: bool, small: bool) -> dict[str, Any]:
    """Later ones replace earlier ones; what is for small networks the rest, and what is for distilled students that."""
    layers = [parts]
    if small:
        layers.append([part.get(SMALL, {}) for part in parts])
    if distilled:  # of all networks first, then of small ones
        layers += [[part.get(DISTILLED, {}) for part in layer] for layer in layers]
    options = itertools.chain.from_iterable(part.items() for layer in layers for part in layer)
    return {key: value for key, value in options if key not in (DISTILLED, SMALL)}


def as_given(options: Mapping[str, Any]) -> str:
    """Options as they are given on a command line, without those that are empty or have no effect."""
    idle = set() if options.get("optimizer") == "sgd" else {"momentum", "nesterov"}
    idle |= set() if options.get("schedule") == "step" else {"milestones", "gamma"}
    shown = []
    for name in UNSAID:
        if name in idle:
            continue
        value, option = options.get(name), name.replace("_", "-")
        if isinstance(value, bool):
            shown.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, (list, tuple)):
            shown += [f"--{option} {','.join(map(str, value))}"] if value else []
        elif value is not None:
            shown.append(f"--{option} {value:g}" if isinstance(value, float) else f"--{option} {value}")
    return " ".join(shown)


def names() -> list[str]:
    """Those that come with softcache."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def open_preset(name: str) -> Preset:
    """The preset of this name, or in this JSON file.

    Errors: ``UsageError`` for a name that isn't known, ``SoftcacheError`` for a file that is no preset.
    """
    if not name.endswith(".json"):
        if name not in names():
            known = [AUTO, *names()]
            raise UsageError(f"--preset {name!r} is unknown{nearest(name, known)}: {', '.join(known)}, or FILE.json")
        return _parsed(FOLDER / f"{name}.json")
    path = local_path(name, "--preset")
    return _parsed(path)


def fitting_preset(network: Network, *, pretrained: bool) -> str:
    """The name of the preset for training this network. ``pretrained``: whether it starts from parameters that have
    learnt something."""
    if pretrained:
        return "fine-tuning"
    attention = any("attention" in type(module).__name__.lower() for module in network.modules())
    convolution = any(isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for module in network.modules())
    return "transformer" if attention else "convnet" if convolution else "perceptron"


def is_small(network: Network) -> bool:
    """Whether it has few parameters and no grouped convolutions, as networks for pictures of 32 pixels: it learns at
    rates that are too large for others."""
    grouped = any(isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups > 1
                  for module in network.modules())  # fmt: skip
    return not grouped and sum(parameter.numel() for parameter in network.parameters()) < SMALL_BELOW


def _parsed(path: Path) -> Preset:
    try:
        document = strictjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SoftcacheError(f"preset {path} can't be read: {error}") from None
    if not isinstance(document, dict):
        raise SoftcacheError(f"preset {path} is no JSON object")
    known = ("about", "source", "options", "by_rows")
    for key in document:
        if key not in known:
            raise SoftcacheError(
                f"preset {path} has {str(key)[:40]!r}{nearest(str(key), known)}: it may have {', '.join(known)}"
            )
    sizes = document.get("by_rows", [])
    if not isinstance(sizes, list) or not all(isinstance(entry, dict) for entry in sizes):
        raise SoftcacheError(f"preset {path}: by_rows must be a list of objects")
    by_rows = tuple((entry.get("up_to"), {k: v for k, v in entry.items() if k != "up_to"}) for entry in sizes)
    for options in (document.get("options", {}), *(more for _, more in by_rows)):
        _refuse_unknown(options, path)
    limits = [limit for limit, _ in by_rows]
    rising = all(isinstance(limit, int) for limit in limits[:-1]) and limits[:-1] == sorted(limits[:-1])
    if limits and not (rising and limits[-1] is None):
        raise SoftcacheError(f"preset {path}: up_to must rise in by_rows, and its last entry have none")
    for key in ("about", "source"):
        if not isinstance(document.get(key, ""), str):
            raise SoftcacheError(f"preset {path}: {key} must be text")
    return Preset(
        path.stem, document.get("about", ""), document.get("source", ""), document.get("options", {}), by_rows
    )


def _refuse_unknown(options: Any, path: Path, within: str = "options") -> None:
    if not isinstance(options, Mapping):
        raise SoftcacheError(f"preset {path}: {within} must be an object")
    nested = {"options": (DISTILLED, SMALL), SMALL: (DISTILLED,), DISTILLED: ()}[within]
    for name, value in options.items():
        if name in nested:
            _refuse_unknown(value, path, name)
        elif name not in UNSAID:
            raise SoftcacheError(
                f"preset {path} has option {str(name)[:40]!r}{nearest(str(name), list(UNSAID))}: a preset may have "
                f"{', '.join(UNSAID)}"
            )
