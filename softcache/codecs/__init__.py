"""Codecs, one file each: how logits are stored on disk."""
