"""``tensorboard``: event files for TensorBoard, through torch's own writer."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from softcache.atomic import check_no_link
from softcache.tracking._names import FINAL, numbers, refuse_comma
from softcache.tracking._tracker import OpenRun, Status, TrackedRun, Value

FOLDER = "tensorboard"


@dataclass(frozen=True)
class Tensorboard:
    """Event files in ``RUN/tensorboard``, so that ``tensorboard --logdir runs`` shows all runs; with ``dir`` in
    ``dir/NAME``, or ``dir/GROUP/NAME`` for students of a sweep or comparison; where another run has that name already,
    a few letters are added to it."""

    package: ClassVar[str] = "tensorboard"
    dir: str | None = None

    def __post_init__(self) -> None:
        if self.dir is not None:
            path = os.path.abspath(os.path.expanduser(self.dir))
            object.__setattr__(self, "dir", refuse_comma(path, "tensorboard:dir"))

    def load(self) -> None:
        importlib.import_module("torch.utils.tensorboard")

    def open(self, run: TrackedRun) -> OpenRun:
        check_no_link(run.folder / FOLDER)
        if self.dir is None:
            return _Open(run.folder / FOLDER, FOLDER, run)
        above, key = Path(self.dir, run.group or ""), run.key or FOLDER
        if run.key is None and (above / run.name).exists():  # runs of several folders may be called alike
            key = secrets.token_hex(3)
        return _Open(above / (run.name if key == FOLDER else f"{run.name}-{key}"), key, run)


class _Open:
    def __init__(self, place: Path, key: str, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        self.key = key
        self._writer: Any = SummaryWriter(str(place))
        self._config = dict(run.config)
        if run.key is None:
            rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in self._config.items())
            self._writer.add_text("config", f"| option | value |\n| --- | --- |\n{rows}")
        self._writer.flush()

    def log(self, axis: Literal["epoch", "step"], number: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        if axis == "epoch":
            self._writer.flush()

    def close(self, status: Status, summary: Mapping[str, Value]) -> None:
        self._writer.add_text(f"{FINAL}status", " ".join([status, str(summary.get(f"{FINAL}reason", ""))]).strip())
        # Beside the run's own file, as a run of its own would be one more in every list.
        self._writer.add_hparams(self._config, numbers(summary), run_name=".")
        self._writer.close()


def _cell(value: Value) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
