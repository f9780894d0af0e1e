"""Losses on outputs, one file each; ``hints/`` has the losses on activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softcache.losses._contract import Kind, Need, Scope
from softcache.losses._loss import Loss

if TYPE_CHECKING:
    from softcache.losses._module import LossModule

__all__ = ["Kind", "Loss", "LossModule", "Need", "Scope"]


def __getattr__(name: str) -> Any:
    """``LossModule``, imported when it is first used: it needs torch."""
    if name != "LossModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from softcache.losses._module import LossModule

    return LossModule
