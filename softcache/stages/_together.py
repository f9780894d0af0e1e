"""What several ranks settle before they train together: which run goes on, and what all of them have to see alike."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache.config.record import CONFIG, Record, read_record
from softcache.config.resume import MOVABLE
from softcache.config.train import TrainConfig
from softcache.distributed import restarts
from softcache.errors import SoftcacheError, UsageError
from softcache.localfiles import local_path
from softcache.models._arithmetic import Arithmetic
from softcache.stages._running import record_of
from softcache.stages._training import Prepared
from softcache.training.ranks import Ranks


@dataclass(frozen=True)
class Begun:
    """A run that goes on. ``named``: whether ``--resume`` names it; else it is gone on with because the same command
    began it, as torchrun starts all processes again where one of them ended."""

    folder: Path
    named: bool

    def record(self) -> Record[TrainConfig]:
        """Errors: ``SoftcacheError`` where the folder holds no run."""
        found = read_record(self.folder)
        if not isinstance(found.options, TrainConfig):
            raise SoftcacheError(f"{self.folder} is not a run of softcache train: use another --out")
        return found

    def refuse_other(self, prepared: Prepared, record: Record[TrainConfig]) -> None:
        """Errors: ``SoftcacheError`` that names the options that differ where another command began the run."""
        if self.named:
            return
        ours, theirs = record_of(prepared).options.to_json(), record.options.to_json()
        differing = [name for name in sorted(ours) if name not in (*MOVABLE, "out") and ours[name] != theirs[name]]
        if differing:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in differing)
            raise SoftcacheError(f"{self.folder} holds a run with another {options}: use another --out")

    def __str__(self) -> str:
        return json.dumps([str(self.folder), self.named])

    @classmethod
    def told(cls, text: str) -> Begun | None:
        """From what another rank's is as a string."""
        if not text:
            return None
        folder, named = json.loads(text)
        return cls(Path(folder), named)


def begun_before(options: TrainConfig, ranks: Ranks) -> Begun | None:
    """The run that goes on, None for a new one.

    Errors: ``UsageError`` where torchrun would begin again in another folder each time.
    """
    if options.resume is not None:
        return Begun(local_path(options.resume, "--resume"), named=True)
    folder = local_path(options.out, "--out") if options.out is not None else None
    if ranks.alone:
        return None
    if folder is None:
        if restarts():
            raise UsageError(f"torchrun --max-restarts {restarts()} needs to know which run goes on: give --out")
        return None
    return Begun(folder, named=False) if (folder / CONFIG).exists() else None


def refuse_ranks(prepared: Prepared) -> Prepared:
    """``prepared``. Errors: ``UsageError`` where its batches or its device can't be shared by so many ranks."""
    ranks, device, size = prepared.material.ranks, prepared.material.device, prepared.fitting.batch_size
    if ranks.alone:
        return prepared
    images = size // prepared.parsed.options.views_per_image
    if size < 2 * ranks.count or images < ranks.count:
        raise UsageError(
            f"--batch-size {size} is that of all {ranks.count} ranks together, and each needs at least 2 of it and "
            "one whole image: raise it, or start fewer"
        )
    if device.type == "mps":
        raise UsageError("several ranks can't share --device mps: start one process, or pass --device cpu")
    return prepared


def agreed(prepared: Prepared, ranks: Ranks) -> Prepared:
    """``prepared`` with the precision that the first rank chose.

    Errors: ``SoftcacheError`` that says what differs where a rank sees other data, caches or versions than the first.
    """
    if ranks.alone:
        return prepared
    chosen = [prepared.fitting.arithmetic, prepared.live]
    told = json.loads(ranks.of_first(json.dumps([one and dataclasses.asdict(one) for one in chosen])))
    arithmetic, live = [one and Arithmetic(**one) for one in told]
    options = dataclasses.replace(prepared.parsed.options, amp=arithmetic.amp, channels_last=arithmetic.channels_last)
    prepared = dataclasses.replace(
        prepared,
        parsed=dataclasses.replace(prepared.parsed, options=options),
        fitting=options.fitting(),
        live=live,
    )
    with ranks.agreeing():
        ours = _seen(prepared)
    theirs = json.loads(ranks.of_first(json.dumps(ours)))
    with ranks.agreeing():
        differing = [name for name in ours if ours[name] != theirs[name]]
        if differing:
            raise SoftcacheError(
                f"rank {ranks.index} and rank 0 don't have the same {', '.join(differing)}: give all machines the "
                "same data, caches and versions, under the same paths"
            )
    return prepared


def _seen(prepared: Prepared) -> dict[str, Any]:
    """What a run's record says, as JSON has it."""
    record = record_of(prepared)
    values = {own.name: getattr(record, own.name) for own in dataclasses.fields(record)}
    found: dict[str, Any] = json.loads(json.dumps({**values, "options": record.options.to_json()}))
    return found
