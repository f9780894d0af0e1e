"""One file an augmentation recipe, and the dataset of keys."""
