"""Each tracker, as its own library reads back what it was told: the numbers of ``metrics.jsonl`` and no others.

Everything stays on this machine: event files, W&B's offline mode, MLflow in SQLite, Trackio's own database.
"""

from __future__ import annotations

import importlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness_train import config, fit, lines, make_cache, make_teacher, same, weights

from softcache.stages.train import train
from softcache.tracking import _log
from softcache.tracking._kept import KeptFile
from softcache.tracking._names import scalars
from softcache.training.learner import Learner

# What the libraries warn of is theirs, and a training goes on.
pytestmark = pytest.mark.filterwarnings("ignore")

Read = dict[str, dict[int, float]]  # name → number of the epoch or step → value


@dataclass(frozen=True)
class Found:
    """What a library says of a run. ``curves``: by name and number; ``config``, ``summary``: values by name."""

    curves: Read
    config: dict[str, Any]
    summary: dict[str, Any]
    status: str | None = None
    group: str | None = None


def tensorboard(run: Path, here: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "tensors": 0})
    events.Reload()
    curves = {tag: {one.step: one.value for one in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    text = {
        tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    rows = [row.strip("| ").split(" | ") for row in text["config/text_summary"].splitlines()[2:]]
    final = {name: values[0] for name, values in curves.items() if name.startswith("final/")}
    status = text.get("final/status/text_summary")
    curves = {name: values for name, values in curves.items() if name not in final}
    return Found(curves, {row[0]: row[1] for row in rows if len(row) == 2}, final, status)


def wandb(run: Path, here: Path) -> Found:
    """The files of W&B's offline mode: LevelDB's log of protocol buffers, read here by hand."""
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    curves: Read = {}
    settings: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    status = group = None
    decode = __import__("json").loads
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for data in leveldb_records(file.read_bytes()):
            record = records.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                values = {one.key or "/".join(one.nested_key): decode(one.value_json) for one in record.history.item}
                number = values.get("step", values.get("epoch"))
                for name, value in values.items():
                    if number is not None and name not in ("step", "epoch") and not name.startswith("_"):
                        curves.setdefault(name, {})[number] = value
            elif kind == "run":
                group = record.run.run_group
                settings |= {one.key or one.nested_key[0]: decode(one.value_json) for one in record.run.config.update}
            elif kind == "config":
                settings |= {one.key or one.nested_key[0]: decode(one.value_json) for one in record.config.update}
            elif kind == "summary":
                summary |= {
                    one.key or "/".join(one.nested_key): decode(one.value_json) for one in record.summary.update
                }
            elif kind == "exit":
                status = {0: "finished"}.get(record.exit.exit_code, "failed")
            assert kind not in ("output", "output_raw", "stats", "files"), kind  # nothing else is sent
    return Found(curves, settings, {n: v for n, v in summary.items() if n.startswith("final/")}, status, group)


def leveldb_records(data: bytes) -> list[bytes]:
    """Records of a log whose blocks have 32 KiB; W&B's header of 7 bytes lies in the first block."""
    assert data[:4] == b":W&B"
    found, part, at = [], b"", 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            found.append(part)
            part = b""
        at += 7 + length
    return found


def mlflow(run: Path, here: Path) -> Found:
    client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{here}/runs.db")
    spec = f"mlflow:uri=sqlite:///{here}/runs.db,experiment=softcache"
    found = client.get_run(KeptFile(run).of(spec).key)
    curves = {
        name: {one.step: one.value for one in client.get_metric_history(found.info.run_id, name)}
        for name in found.data.metrics
    }
    final = {name: found.data.metrics[name] for name in curves if name.startswith("final/")}
    curves = {name: values for name, values in curves.items() if name not in final}
    group = found.data.tags.get("softcache.group")
    return Found(curves, dict(found.data.params), final, found.info.status.lower(), group)


def trackio(run: Path, here: Path) -> Found:
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    name = KeptFile(run).of("trackio:project=softcache").key
    curves: Read = {}
    for row in storage.get_logs("softcache", name):
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                curves.setdefault(key, {})[row["step"]] = value
    final = {key: list(values.values())[-1] for key, values in curves.items() if key.startswith("final/")}
    curves = {key: values for key, values in curves.items() if key not in final}
    settings = storage.get_run_config("softcache", name)
    return Found(curves, settings, final, final.get("final/status"), settings["_Group"])


READERS: dict[str, Callable[[Path, Path], Found]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
    "trackio": trackio,
}


@pytest.fixture(params=list(READERS))
def tracker(request: pytest.FixtureRequest, here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    pytest.importorskip(name)
    if name == "trackio":  # its folder is settled on import
        for module in ("trackio.utils", "trackio.sqlite_storage"):
            monkeypatch.setattr(importlib.import_module(module), "TRACKIO_DIR", here / "trackio")
    return name


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    make_teacher(folder / "teacher")
    return make_cache(folder / "cache", folder / "teacher", hint=("layer1",))


def spec(name: str, here: Path) -> str:
    return {"wandb": "wandb:mode=offline", "mlflow": f"mlflow:uri=sqlite:///{here}/runs.db"}.get(name, name)


def written(run: Path) -> Read:
    """What the run's own files say, by name."""
    found: Read = {}
    for line in lines(run):
        for name, value in scalars(line, "epoch").items():
            found.setdefault(name, {})[line["epoch"]] = value
    if (run / "steps.jsonl").exists():
        for line in lines(run, "steps.jsonl"):
            for name, value in scalars(line, "step").items():
                found.setdefault(f"step/{name}", {})[line["step"]] = value
    return found


def alike(curves: Read, run: Path, name: str) -> None:
    """``name``: of the tracker. Event files keep float32, and MLflow refuses some characters of a name."""
    expected = written(run)
    if name == "mlflow":
        expected = {key.replace("=", "_").replace(",", "_"): values for key, values in expected.items()}
    assert curves.keys() == expected.keys()
    for key, values in expected.items():
        assert curves[key] == pytest.approx(values, rel=1e-6 if name == "tensorboard" else 1e-12, abs=1e-30)


def test_the_library_reads_back_what_the_files_say(tracker: str, cache: Path, here: Path) -> None:
    hint = "fitnet:teacher=layer1,student=layer1"
    run = fit(
        here / "run", cache=cache, log=spec(tracker, here), log_every=6, hint=hint, loss=("kl",), T=2, val_fraction=0.2
    )
    found = READERS[tracker](run.folder, here)
    alike(found.curves, run.folder, tracker)
    recorded = config(run.folder)
    for name in ("epochs", "lr", "batch_size", "seed"):
        assert float(found.config[name]) == recorded["options"][name]
    assert found.config["loss"] == "kl"
    assert found.config["cache_id"] == recorded["caches"][0]["cache_id"]
    assert found.config["dataset_fingerprint"] == recorded["data"]["fingerprint"]
    assert found.status == "finished"
    for name in ("test_top1", "val_top1", "best_epoch"):
        assert float(found.summary[f"final/{name}"]) == pytest.approx(recorded["result"][name], rel=1e-6)


def test_a_run_that_goes_on_is_one_run(tracker: str, cache: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log, "STOPPED_S", 60.0)  # a database of MLflow takes seconds to make on a machine that is busy
    keep = Learner.keep

    def keep_and_leave(self: Learner, *arguments: Any) -> None:
        keep(self, *arguments)
        if self.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "keep", keep_and_leave)
        with pytest.raises(KeyboardInterrupt):
            fit(here / "run", cache=cache, log=spec(tracker, here), log_every=8, epochs=4)
    stopped = READERS[tracker](here / "run", here)
    alike(stopped.curves, here / "run", tracker)
    assert stopped.status in {"wandb": ["failed"], "mlflow": ["killed"]}.get(
        tracker, ["stopped", "stopped ended from outside"]
    )
    run = train(resume=here / "run")
    whole = READERS[tracker](run.folder, here)
    alike(whole.curves, run.folder, tracker)
    assert sorted(whole.curves["loss"]) == [1, 2, 3, 4]
    assert whole.status == "finished"
    untold = fit(here / "untold", cache=cache, epochs=4)
    assert same(weights(run.folder), weights(untold.folder))


def test_nothing_of_a_tracker_is_printed_to_standard_output(
    tracker: str, cache: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """There results go, for scripts."""
    fit(here / "run", cache=cache, log=spec(tracker, here), epochs=1)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("key", ["", "0" * 40], ids=["nobody logged in", "server out of reach"])
def test_before_a_training_wandb_is_asked_for_a_key_and_no_server(here: Path, key: str) -> None:
    """In a process with an empty home. Port 9 of this machine answers nobody."""
    pytest.importorskip("wandb")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    variables |= {"HOME": str(here), "WANDB_BASE_URL": "http://127.0.0.1:9", **({"WANDB_API_KEY": key} if key else {})}
    variables["PYTHONPATH"] = str(Path(__file__).parents[1])
    code = "from softcache.tracking._specs import check_trackers; check_trackers(['wandb'])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if key:
        assert done.returncode == 0, done.stderr
    else:
        assert "--log wandb: nobody is logged in to W&B here" in done.stderr
