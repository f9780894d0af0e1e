"""softcache: an offline soft-target cache for knowledge distillation.

Every public name is here, imported when it is first used, so that ``import softcache`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from softcache._version import __version__

if TYPE_CHECKING:
    from softcache.cache.reader import Cache
    from softcache.config.convert import ConvertConfig
    from softcache.config.dump import DumpConfig
    from softcache.config.teach import TeachConfig
    from softcache.config.train import TrainConfig
    from softcache.datasets._open import open_samples
    from softcache.errors import SoftcacheError
    from softcache.functional import to_input
    from softcache.losses._target import Leaders
    from softcache.models._open import open_network
    from softcache.stages._cohort import train_cohort
    from softcache.stages.compare import compare
    from softcache.stages.convert import convert
    from softcache.stages.dump import dump
    from softcache.stages.eval import evaluate, evaluate_all
    from softcache.stages.export import export
    from softcache.stages.keys import KeyBatch, Keys, KeySampler
    from softcache.stages.report import report
    from softcache.stages.sweep import sweep
    from softcache.stages.teach import teach
    from softcache.stages.train import train
    from softcache.views._fields import ViewedFields
    from softcache.views._viewed import ViewedDataset

_HOMES = {
    "Cache": "softcache.cache.reader",
    "ConvertConfig": "softcache.config.convert",
    "DumpConfig": "softcache.config.dump",
    "KeyBatch": "softcache.stages.keys",
    "KeySampler": "softcache.stages.keys",
    "Keys": "softcache.stages.keys",
    "Leaders": "softcache.losses._target",
    "SoftcacheError": "softcache.errors",
    "TeachConfig": "softcache.config.teach",
    "TrainConfig": "softcache.config.train",
    "ViewedDataset": "softcache.views._viewed",
    "ViewedFields": "softcache.views._fields",
    "compare": "softcache.stages.compare",
    "convert": "softcache.stages.convert",
    "dump": "softcache.stages.dump",
    "evaluate": "softcache.stages.eval",
    "evaluate_all": "softcache.stages.eval",
    "export": "softcache.stages.export",
    "open_network": "softcache.models._open",
    "open_samples": "softcache.datasets._open",
    "report": "softcache.stages.report",
    "sweep": "softcache.stages.sweep",
    "teach": "softcache.stages.teach",
    "to_input": "softcache.functional",
    "train": "softcache.stages.train",
    "train_cohort": "softcache.stages._cohort",
}

__all__ = [
    "Cache",
    "ConvertConfig",
    "DumpConfig",
    "KeyBatch",
    "KeySampler",
    "Keys",
    "Leaders",
    "SoftcacheError",
    "TeachConfig",
    "TrainConfig",
    "ViewedDataset",
    "ViewedFields",
    "__version__",
    "compare",
    "convert",
    "dump",
    "evaluate",
    "evaluate_all",
    "export",
    "open_network",
    "open_samples",
    "report",
    "sweep",
    "teach",
    "to_input",
    "train",
    "train_cohort",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'softcache' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
