"""What ``softcache teach`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from softcache.config.fit import FitConfig


@dataclass(frozen=True, kw_only=True)
class TeachConfig(FitConfig):
    """What ``teach`` was asked for. The defaults reach 98 % on digits with a ResNet-50 (benchmarks/defaults.py).

    ``out``: the folder, by default ``teachers/MODEL-DATASET``.
    """

    model: str = field(default="resnet50", kw_only=False)
    epochs: int = 6
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 1.0
    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    weights: str | None = None
    freeze: bool = False
    normalize: str | None = None
    augment: str | None = None
    size: int | None = None
    out: str | None = None
