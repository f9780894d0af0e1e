"""Augmentations, one file each, and the dataset of keys."""
