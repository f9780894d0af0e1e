"""Who this process is under ``torchrun``: nothing more."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are, 1 when it is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number on its machine: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))
