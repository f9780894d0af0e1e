"""Options of ``train`` that a command of many students sees otherwise. Nothing here imports torch, for help."""

from __future__ import annotations

# Options of train that may have several values in a sweep, in the order of a table's columns.
GRID = (
    "student", "loss", "T", "alpha", "beta", "targets", "fresh_share", "views", "preset", "epochs", "batch_size",
    "optimizer", "lr", "weight_decay", "momentum", "schedule", "warmup", "gamma", "label_smoothing", "clip_grad",
    "accumulate",
)  # fmt: skip
# Options of train that the command settles for each run by itself.
SETTLED = frozenset({"out", "resume", "profile", "test"})
