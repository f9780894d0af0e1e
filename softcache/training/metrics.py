"""What a training writes while it runs: a line an epoch, a line every so many steps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from softcache import strictjson
from softcache.atomic import check_in_place, open_in_place, replace_file
from softcache.training.objective import LossValues
from softcache.training.ranks import Ranks
from softcache.training.scores import told

METRICS, STEPS = "metrics.jsonl", "steps.jsonl"
NAMES = ("loss", "soft_loss", "hard_loss", "hint_loss")


@dataclass(frozen=True)
class StepValues:
    """What a step's loss came to, on the device. ``scalars``: (4 + hints,) float32, those of ``NAMES`` and each hint's
    own, 0 where there is none; ``absent``: names of those that there aren't; ``shown``: of losses that have
    parameters, by the loss and what it shows."""

    scalars: torch.Tensor
    absent: frozenset[str]
    shown: Mapping[tuple[str, str], torch.Tensor]

    @classmethod
    def of(cls, parts: LossValues) -> StepValues:
        zero = torch.zeros_like(parts.total)
        values = [zero if value is None else value for value in (parts.total, parts.soft, parts.hard, parts.hint)]
        absent = {name for name, value in (("soft_loss", parts.soft), ("hard_loss", parts.hard)) if value is None}
        every = torch.stack([value.detach().float() for value in (*values, *parts.hints)])
        return cls(every, frozenset(absent), {name: value.detach() for name, value in parts.shown.items()})


class Meter:
    """Sums on the device, read once an epoch, so that no step waits for another.

    ``hints``: names of the hint losses, whose own values are summed too. ``ranks``: whose values are added up.
    """

    def __init__(self, device: torch.device, hints: Sequence[str], ranks: Ranks):
        self._ranks = ranks
        self._sums = torch.zeros(4 + len(hints), dtype=torch.float32, device=device)
        self._hints = list(hints)
        self._shown: dict[tuple[str, str], tuple[torch.Tensor, int]] = {}  # sum and number of steps
        self._absent: Collection[str] = ()
        self._steps = 0
        self._samples = 0

    def add(self, values: StepValues, samples: int) -> None:
        self._sums += values.scalars
        self._absent = values.absent
        for name, value in values.shown.items():
            total, count = self._shown.get(name, (torch.zeros_like(value, dtype=torch.float32), 0))
            self._shown[name] = total + value, count + 1
        self._steps += 1
        self._samples += samples

    def means(self) -> dict[str, Any]:
        """By name; None for a loss that this stage doesn't have. ``learnt``: what losses that have parameters show."""
        values = (self._ranks.sum(self._sums) / max(self._steps, 1)).tolist()
        samples = int(self._ranks.sum(torch.tensor([self._samples])))
        line: dict[str, Any] = named(values, self._absent)
        if self._hints:
            line["hint_losses"] = dict(zip(self._hints, values[4:], strict=True))
        for (spec, name), (total, count) in self._shown.items():
            line.setdefault("learnt", {}).setdefault(spec, {})[name] = float(total) / count
        return {**line, "samples": samples}


class Lines:
    """A file of JSON lines that begins with those given; each line is in it when ``write`` returns.

    Errors: ``SoftcacheError`` where its name is a link, a folder or the like.
    """

    def __init__(self, path: Path, lines: Sequence[dict[str, Any]]):
        self._path, self._lines = path, list(lines)

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        _write_anew(self._path, [strictjson.dumps(line) for line in self._lines])
        return self._write

    def __exit__(self, *exception: object) -> None:
        """Nothing is left to be written."""

    def _write(self, line: dict[str, Any]) -> None:
        _append(self._path, [strictjson.dumps(line)])


class StepLines:
    """``steps.jsonl``: lines of steps that a resumed training does again are dropped, so that none is there twice.

    Errors: ``SoftcacheError`` where its name is a link, a folder or the like.
    """

    def __init__(self, folder: Path, every: int, done: int, ranks: Ranks):
        """``every``: n-th steps that are written, 0 for none; ``done``: steps that stand; ``ranks``: whose values are
        added up, and of which the first writes."""
        self._path, self._every, self._ranks = folder / STEPS, every, ranks
        self._held: list[tuple[int, torch.Tensor, Collection[str]]] = []
        if not ranks.first:
            return
        check_in_place(self._path)
        if self._path.exists():
            _write_anew(self._path, [line for line in self._path.read_text().splitlines() if _step(line) < done])

    def add(self, step: int, values: StepValues) -> None:
        """The values are copied."""
        if self._every and step % self._every == 0:
            self._held.append((step, values.scalars[:4].clone(), values.absent))

    def write(self) -> list[dict[str, Any]]:
        """The lines of all steps since the last time, which are written now; one copy from the device for all."""
        if not self._held:
            return []
        values = self._ranks.sum(torch.stack([some for _, some, _ in self._held])).tolist()
        steps = zip(self._held, values, strict=True)
        lines = [{"step": step, **named(some, gone)} for (step, _, gone), some in steps]
        if self._ranks.first:
            _append(self._path, [strictjson.dumps(line) for line in lines])
        self._held.clear()
        return lines


def named(values: Sequence[float], missing: Collection[str]) -> dict[str, Any]:
    return {name: None if name in missing else value for name, value in zip(NAMES, values[:4], strict=True)}


def describe_epoch(line: dict[str, Any], epochs: int) -> str:
    """One line for people; the parts of the loss only where there are several."""
    parts = [f"{name} {line[f'{name}_loss']:.4f}" for name in ("soft", "hard") if line[f"{name}_loss"]]
    if line.get("hint_losses"):
        parts.append(f"hint {line['hint_loss']:.4f}")
    shown = [f"epoch {line['epoch']:>3}/{epochs}", f"loss {line['loss']:.4f}", *(parts if len(parts) > 1 else ())]
    shown += [f"{name} {value:.4g}" for numbers in line.get("learnt", {}).values() for name, value in numbers.items()]
    for key, value in line.items():
        split, _, name = key.partition("_")
        if split in ("val", "test") and value is not None:
            shown.append(f"{split} {told(name, value)}" if name == "top1" else f"{split} {name} {told(name, value)}")
    return "  ".join([*shown, f"{line['epoch_s']:.1f} s (data {line['data_s']:.1f} s)"])


def _write_anew(path: Path, lines: Sequence[str]) -> None:
    check_in_place(path)
    replace_file(path, "".join(line + "\n" for line in lines).encode())


def _append(path: Path, lines: Sequence[str]) -> None:
    """Past Python's buffers, which on a full disk would be written again, and fail again, when a file is closed."""
    data = memoryview("".join(line + "\n" for line in lines).encode())
    fd = open_in_place(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _step(line: str) -> float:
    """A line's step; infinity for half a line, as an interruption leaves it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
