"""Losses on logits, one file each; ``hints/`` has the losses on activations."""

from softcache.losses._contract import Need
from softcache.losses._loss import Loss

__all__ = ["Loss", "Need"]
