"""What ``softcache teach`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from softcache.config.fit import FitConfig


@dataclass(frozen=True, kw_only=True)
class TeachConfig(FitConfig):
    """What ``teach`` was asked for. What the defaults reach is in docs/defaults.md.

    ``out``: the folder, by default ``teachers/MODEL-DATASET``.
    """

    model: str = field(default="resnet50", kw_only=False)
    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    weights: str | None = None
    freeze: bool = False
    normalize: str | None = None
    augment: str | None = None
    size: int | None = None
    out: str | None = None
