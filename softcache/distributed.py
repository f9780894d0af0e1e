"""The rank of this process under ``torchrun``."""

from __future__ import annotations

import os

from softcache.errors import UsageError


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return _number("RANK", 0)


def world() -> int:
    """How many processes there are, 1 when it is alone."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number on its machine: which GPU is its own."""
    return _number("LOCAL_RANK", 0)


def local_world() -> int:
    """How many processes share this machine, 1 when it is alone."""
    return _number("LOCAL_WORLD_SIZE", 1)


def restarts() -> int:
    """How often torchrun may start all processes again, when one of them ends."""
    return _number("TORCHELASTIC_MAX_RESTARTS", 0)


def restarted() -> int:
    """How often torchrun has started them again so far."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def refuse_several(command: str) -> None:
    """Errors: ``UsageError`` where torchrun has started several processes of a command that works in one."""
    if world() > 1:
        raise UsageError(
            f"softcache {command} trains in one process, and WORLD_SIZE is {world()}: start it without torchrun, "
            "one training for each GPU (--device cuda:1)"
        )


def _number(name: str, alone: int) -> int:
    text = os.environ.get(name, str(alone))
    if not text.isdecimal() or int(text) < alone:
        raise UsageError(f"the environment's {name} is {text!r}, not a number of torchrun's: unset it or use torchrun")
    return int(text)
