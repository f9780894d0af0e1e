"""Losses on activations, one file each."""

from softcache.losses.hints._hint_loss import HintLoss

__all__ = ["HintLoss"]
