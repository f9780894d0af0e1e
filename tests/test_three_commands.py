"""teach, dump, train as the README has them, in an empty folder; what they print and leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from softcache.cache.reader import Cache
from softcache.cli._main import run
from softcache.models._open import open_network
from softcache.views._open import open_viewed

SMALL = "cifar:resnet8"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the three commands have run, with hardly more than their defaults and a small network."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["teach", "--model", SMALL, "--epochs", "1"]) == 0
        # In float32, so that plain h5py and torch can say what is to be there.
        kept = ["--views", "2", "--hint", "layer3", "--hint", "fc:in", "--amp", "off"]
        assert run(["dump", "--teacher", SMALL, *kept]) == 0
        assert run(["train", "--student", SMALL, "--T", "4", "--epochs", "2", "--log-every", "1"]) == 0
    return folder


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def said(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """A command's JSON."""
    capfd.readouterr()
    assert run([*arguments, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_where_things_are(there: Path) -> None:
    assert (there / "teachers/cifar-resnet8-digits/teacher.safetensors").exists()
    assert (there / "caches/cifar-resnet8-digits-train/cache.json").exists()
    assert (there / "runs/cifar-resnet8-1/student.safetensors").exists()
    assert not list(there.rglob("*.part"))


def test_metrics_and_steps(there: Path) -> None:
    folder = there / "runs/cifar-resnet8-1"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wanted = {"epoch", "loss", "soft_loss", "hard_loss", "test_top1", "epoch_s", "data_s", "teacher_s", "samples"}
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(wanted <= set(line) and line["samples"] == 1438 for line in lines)
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(2 * 45))  # ceil(1438 / 32) steps an epoch
    # An epoch's loss is the mean of its steps'; the soft loss and the hard one (dist, arXiv 2205.10536).
    for epoch, line in enumerate(lines):
        mine = steps[45 * epoch : 45 * (epoch + 1)]
        assert np.isclose(line["loss"], np.mean([step["loss"] for step in mine]), rtol=1e-5)
        assert all(np.isclose(s["loss"], s["soft_loss"] + s["hard_loss"], rtol=1e-4) for s in mine)


def test_info_and_eval_as_json(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    info = said(capfd, "info", "cifar-resnet8-digits-train")
    fields = [
        "cache_id",
        "teacher",
        "dataset",
        "views",
        "rows",
        "keys",
        "classes",
        "columns",
        "bytes",
        "complete",
    ]
    assert set(fields) <= set(info)
    assert (info["rows"], info["views"], info["keys"], info["classes"]) == (1438, 2, 2876, 10)
    assert info["complete"] is True
    assert info["bytes"] == sum(p.stat().st_size for p in Path(info["path"]).rglob("*") if p.is_file())
    assert [cache["cache_id"] for cache in said(capfd, "info")] == [info["cache_id"]]
    found = said(capfd, "eval", "runs/cifar-resnet8-1")
    assert found["samples"] == 359
    last = json.loads(Path("runs/cifar-resnet8-1/metrics.jsonl").read_text().splitlines()[-1])
    assert found["top1"] == last["test_top1"]
    assert found["top1"] <= found["top5"] <= 1


def test_a_teacher_is_known_by_its_name(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same parameters, whichever way they are named; never fresh ones."""
    folder = said(capfd, "eval", "teachers/cifar-resnet8-digits")
    for name in ("cifar-resnet8-digits", "cifar:resnet8"):
        assert {**said(capfd, "eval", name), "model": ""} == {**folder, "model": ""}
    weights = ("--weights", "teachers/cifar-resnet8-digits/teacher.safetensors")
    exact = said(capfd, "eval", "teachers/cifar-resnet8-digits", "--amp", "off")
    assert said(capfd, "eval", "cifar:resnet8", *weights)["top1"] == exact["top1"]
    layers = said(capfd, "layers", "--teacher", "cifar:resnet8")
    assert said(capfd, "layers", "--teacher", "cifar-resnet8-digits") == layers
    assert said(capfd, "layers", "--teacher", "teachers/cifar-resnet8-digits") == layers


def test_layers_match_the_networks_own(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shapes = {layer["layer"]: layer["shape"] for layer in said(capfd, "layers", "--teacher", SMALL)}
    # A CIFAR ResNet halves twice from 32 pixels and has 16, 32, 64 channels (He et al. 2015, section 4.2).
    assert shapes["layer1"] == [16, 32, 32]
    assert shapes["layer2"] == [32, 16, 16]
    assert shapes["layer3"] == [64, 8, 8]
    assert shapes["fc:in"] == [64]


def test_plain_h5py_reads_the_whole_cache(there: Path) -> None:
    """Logits times the final layer: the cache says what the teacher says, read without any of our code."""
    folder = there / "caches/cifar-resnet8-digits-train"
    viewed = open_viewed("digits", "train")
    network = open_network("teachers/cifar-resnet8-digits", classes=10).eval()
    with h5py.File(folder / "cache.h5") as file, torch.inference_mode():
        kept = np.asarray(file["logits/values"])
        vectors = np.asarray(file["hint.fc:in/values"])
        labels = h5py.File(folder / "rows.h5")["label"][:]
        assert kept.shape == (2, 1438, 10)
        rows = np.arange(0, 1438, 7)
        for view in range(2):
            live = network(viewed.batch(rows, view)).numpy()
            assert np.allclose(kept[view, rows], live, rtol=2**-10, atol=1e-3)  # half precision's rounding
            by_hand = vectors[view, rows].astype(np.float32) @ network.model.fc.weight.numpy().T
            assert np.allclose(by_hand + network.model.fc.bias.numpy(), live, atol=2e-2)
    accuracy = float((kept[0].argmax(1) == labels).mean())
    assert accuracy == pytest.approx(Cache(folder).manifest.state.teacher_top1)
    with h5py.File(folder / "view-0001/logits-00000.h5") as shard:
        assert np.array_equal(shard["values"], kept[1])
        assert shard["values"].chunks is None
        assert shard["values"].id.get_offset() % 4096 == 0


def test_running_again_keeps_and_extends(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert said(capfd, "teach", "--model", SMALL, "--epochs", "1")["kept"] is True
    assert said(capfd, "dump", "--teacher", SMALL)["computed_keys"] == 0
    before = (there / "caches/cifar-resnet8-digits-train/view-0001/logits-00000.h5").stat().st_mtime_ns
    assert said(capfd, "dump", "--teacher", SMALL, "--views", "3")["computed_keys"] == 1438
    assert (there / "caches/cifar-resnet8-digits-train/view-0001/logits-00000.h5").stat().st_mtime_ns == before


def test_labels_alone_need_no_cache(here: Path) -> None:
    assert run(["-q", "train", "--student", SMALL, "--alpha", "0", "--epochs", "1", "--label-fraction", "0.05"]) == 0
    line = json.loads((here / "runs/cifar-resnet8-1/metrics.jsonl").read_text())
    assert line["samples"] == 1438, "as many steps as on all rows"
    assert line["soft_loss"] == 0


def test_help_is_quick() -> None:
    """Measured without the machine's noise: no heavy package is imported (test_layout), and it takes no 2 s."""
    done = subprocess.run([sys.executable, "-m", "softcache", "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert "softcache dump  --teacher resnet50" in done.stdout
