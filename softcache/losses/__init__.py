"""Losses on outputs, one file each; ``hints/`` has the losses on activations."""

from softcache.losses._contract import Kind, Need, Scope
from softcache.losses._loss import Loss

__all__ = ["Kind", "Loss", "Need", "Scope"]
