"""What a dump costs and what it saves, as arithmetic of plain numbers. docs/scale.md has the formulas.

All rates are per second: of the teacher on one GPU in inputs, of a student in samples, of a disk in bytes.
"""

from __future__ import annotations

import math


def written_rate(key_bytes: float, rate: float, gpus: int) -> float:
    """Bytes per second that a disk must take for teachers on so many GPUs not to wait.

    >>> written_rate(2004, 2500, 8)
    40080000.0
    """
    return float(key_bytes * rate * gpus)


def waiting_share(needed: float, disk: float) -> float:
    """Of a dump's time, the share in which teachers wait for a disk that takes ``disk`` bytes of ``needed``.

    >>> waiting_share(400e6, 100e6), waiting_share(100e6, 400e6)
    (0.75, 0.0)
    """
    return max(0.0, 1 - disk / needed)


def dump_seconds(keys: int, rate: float, gpus: int, waiting: float = 0.0) -> float:
    """Of a dump on so many GPUs. ``waiting``: the share of the time in which they wait.

    >>> dump_seconds(115_305_030, 2500, 8) / 3600
    1.60145875
    """
    return keys / (rate * gpus) / (1 - waiting)


def read_rate(key_bytes: float, student_rate: float, readers: int) -> float:
    """Bytes per second that so many students read, each from the shards and not from memory.

    >>> read_rate(2004, 1500, 32)
    96192000.0
    """
    return float(key_bytes * student_rate * readers)


def live_factor(rate: float, student_rate: float) -> float:
    """k: the teacher's forward pass over the student's step, so that a step with a live teacher takes 1 + k.

    >>> live_factor(2500, 1500)
    0.6
    """
    return student_rate / rate


def break_even_epochs(views: int, waiting: float = 0.0) -> float:
    """Epochs of all students together from which on a cache has cost less than a live teacher: k is in both.

    A live teacher costs k steps of each epoch, and a dump k steps for each of its views, and what its GPUs wait.

    >>> break_even_epochs(90), break_even_epochs(90, 0.5)
    (90.0, 180.0)
    """
    return views / (1 - waiting)


def break_even_students(views: int, epochs: int, waiting: float = 0.0) -> int:
    """Students of so many epochs each from which on a cache has cost no more than a live teacher.

    >>> break_even_students(300, 90), break_even_students(90, 90), break_even_students(4, 90)
    (4, 1, 1)
    """
    return math.ceil(break_even_epochs(views, waiting) / epochs)
