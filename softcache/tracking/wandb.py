"""``wandb``: runs in Weights & Biases, online or in a folder that ``wandb sync`` sends later."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from softcache.atomic import check_no_link
from softcache.errors import UsageError, nearest
from softcache.tracking._log import FINISHED_S
from softcache.tracking._tracker import OpenRun, Status, TrackedRun, Value

MODES = ("online", "offline")
PROJECT = "softcache"


@dataclass(frozen=True)
class Wandb:
    """``mode``: ``online`` or ``offline``, by default ``$WANDB_MODE``, else online. Files go into ``RUN/wandb``. What
    softcache logs is sent and nothing else: no code, no output of the terminal, nothing about the machine."""

    package: ClassVar[str] = "wandb"
    project: str = PROJECT
    entity: str | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in MODES:
            raise UsageError(f"tracker 'wandb': mode={self.mode} is unknown{nearest(self.mode, MODES)}")

    def load(self) -> None:
        """Errors: ``UsageError`` where nobody is logged in: W&B would ask for a key in the middle of the training."""
        wandb = importlib.import_module("wandb")
        # The library's own settings know $WANDB_MODE and its files of settings. No server is asked: one that can't be
        # reached must not keep a training from beginning.
        mode = self.mode or wandb.setup(wandb.Settings(silent=True)).settings.mode
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise UsageError(
                "--log wandb: nobody is logged in to W&B here: run `wandb login`, set WANDB_API_KEY, or pass "
                "--log wandb:mode=offline"
            )

    def open(self, run: TrackedRun) -> OpenRun:
        check_no_link(run.folder / "wandb")
        return _Open(self, run)


class _Open:
    def __init__(self, tracker: Wandb, run: TrackedRun):
        wandb = importlib.import_module("wandb")
        self.key = run.key or secrets.token_hex(4)
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=FINISHED_S,
            finish_timeout=FINISHED_S,
        )
        self._run: Any = wandb.init(
            project=tracker.project,
            entity=tracker.entity,
            mode=tracker.mode,
            id=self.key,
            name=run.name,
            group=run.group,
            job_type=run.command,
            dir=str(run.folder),
            resume="allow",
            reinit="create_new",  # other students of this process have runs of their own
            config=dict(run.config),
            allow_val_change=True,  # a resumed run may be on another device
            settings=settings,
        )
        self._run.define_metric("*", step_metric="epoch")
        self._run.define_metric("step/*", step_metric="step")

    def log(self, axis: Literal["epoch", "step"], number: int, values: Mapping[str, float]) -> None:
        self._run.log({axis: number, **values})

    def close(self, status: Status, summary: Mapping[str, Value]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if status == "finished" else 1)
