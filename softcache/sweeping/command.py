"""The command line that trains a run on its own."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from softcache.config.train import TrainConfig

# Options that are given once for each of their values; other lists have commas.
REPEATED = ("loss", "hint", "cache", "hint_cache", "freeze")


def train_command(options: Mapping[str, Any], threads: int | None = None) -> str:
    """``softcache train`` with these options. ``threads``: CPU threads, on which the last bits depend."""
    parts = ["softcache", *(["--threads", str(threads)] if threads is not None else []), "train"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None or value == () or name == "log":  # where it is watched is no part of what is trained
            continue
        if isinstance(value, bool):
            if value == getattr(TrainConfig, name):
                continue  # most have no negative form
            negative = "" if value else "no-"
            parts.append(f"--{negative}{name.replace('_', '-')}")
        elif isinstance(value, (list, tuple)):
            many = [str(one) for one in value]
            parts += [part for one in many for part in (flag, one)] if name in REPEATED else [flag, ",".join(many)]
        else:
            whole = isinstance(value, float) and value.is_integer()
            parts += [flag, str(int(value) if whole else value)]
    return shlex.join(parts)
