"""``mlflow``: runs in MLflow, on a tracking server or in a database."""

from __future__ import annotations

import importlib
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from softcache.errors import UsageError
from softcache.tracking._names import FINAL, numbers, refuse_comma
from softcache.tracking._tracker import OpenRun, Status, TrackedRun, Value

EXPERIMENT = "softcache"
SQLITE = "sqlite:///"
PROFILES = ("databricks", "databricks-uc", "uc")  # servers that MLflow knows by these names
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 6000  # that MLflow takes at once, and of a text
_REFUSED = re.compile(r"[^\w.\- :/]")  # what MLflow refuses in the name of a metric


@dataclass(frozen=True)
class Mlflow:
    """``uri``: of the tracking server or a database, by default ``$MLFLOW_TRACKING_URI``, else MLflow's own
    default. ``experiment``: in which the runs are."""

    package: ClassVar[str] = "mlflow"
    uri: str | None = None
    experiment: str = EXPERIMENT

    def __post_init__(self) -> None:
        if self.uri is None:
            return
        if "@" in self.uri or "?" in self.uri:
            raise UsageError(
                "--log mlflow:uri=… with a user, a password or a query: these would be written into the run's "
                "config.json: leave uri out and set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        if self.uri.startswith(SQLITE):  # a database of this machine
            path = os.path.abspath(os.path.expanduser(self.uri.removeprefix(SQLITE)))
            object.__setattr__(self, "uri", SQLITE + refuse_comma(path, "mlflow:uri"))
        elif ":" not in self.uri and self.uri not in PROFILES:
            raise UsageError(
                f"--log mlflow:uri={self.uri} is a folder, and MLflow keeps runs in no folder any more: "
                "write uri=sqlite:///runs.db, or the address of a server"
            )

    def load(self) -> None:
        importlib.import_module("mlflow.tracking")
        for name in ("alembic", "mlflow.store.db.utils"):  # they tell of each table of a database that is new
            logging.getLogger(name).setLevel(logging.WARNING)

    def open(self, run: TrackedRun) -> OpenRun:
        return _Open(self, run)


class _Open:
    def __init__(self, tracker: Mlflow, run: TrackedRun):
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        # A client and no active run of the process, as several students may be trained in one.
        self._last = run.epochs
        self._client: Any = mlflow.MlflowClient(tracking_uri=tracker.uri)
        if run.key is not None:
            self.key = run.key
            self._client.update_run(self.key, status="RUNNING")
            return
        tags = {"softcache.command": run.command, **({"softcache.group": run.group} if run.group else {})}
        made = self._client.create_run(_experiment(self._client, tracker.experiment), run_name=run.name, tags=tags)
        self.key = made.info.run_id
        param = self._entities.Param
        params = [param(_REFUSED.sub("_", name), str(value)[:LONGEST]) for name, value in run.config.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.key, params=params[first : first + MOST_PARAMS])

    def log(self, axis: Literal["epoch", "step"], number: int, values: Mapping[str, float]) -> None:
        self._last = number if axis == "epoch" else self._last
        now, metric = int(time.time() * 1000), self._entities.Metric
        metrics = [metric(_REFUSED.sub("_", name), float(value), now, number) for name, value in values.items()]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self.key, metrics=metrics[first : first + MOST_METRICS])

    def close(self, status: Status, summary: Mapping[str, Value]) -> None:
        self.log("epoch", self._last, numbers(summary))
        for name, value in summary.items():
            if isinstance(value, str):
                self._client.set_tag(self.key, f"softcache.{name.removeprefix(FINAL)}", value[:LONGEST])
        self._client.set_terminated(self.key, status=STATUS[status])


def _experiment(client: Any, name: str) -> str:
    """The id of the experiment, which is made where it isn't there."""
    found = client.get_experiment_by_name(name)
    if found is None:
        refused = importlib.import_module("mlflow.exceptions").MlflowException
        try:
            return str(client.create_experiment(name))
        except refused:
            # Another process has made it in the meantime, or it can't be made: then it isn't there now either.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)
