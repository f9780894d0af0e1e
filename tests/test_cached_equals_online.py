"""The promise of the whole project: training from the cache is training with the teacher in the loop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from softcache.cache.agreement.digests import PixelCheck
from softcache.cache.reader import Cache
from softcache.config.teachers import find_teacher
from softcache.errors import PixelsError
from softcache.losses._terms import parse_term
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.stages.train import train
from softcache.stream.batches import Stream
from softcache.stream.parts import Part
from softcache.stream.targets import CachedTargets
from softcache.views._open import open_viewed

STUDENT = "cifar:resnet8"
RECIPE = "crop:pad=2+flip"
VIEWS = 2


@pytest.fixture(params=["digits", "arrays"])
def dataset(request: pytest.FixtureRequest) -> str:
    return "digits" if request.param == "digits" else request.getfixturevalue("colour_arrays")


@pytest.fixture
def made(here: Path, small_teacher: Callable[..., str], dataset: str) -> dict[str, Any]:
    """A teacher that runs in float64 and is rounded to float32, so that the batch it ran in doesn't show."""
    teacher = small_teacher(here / "teacher", dataset=dataset)
    size = 12 if dataset.startswith("arrays") else 8
    common = {"dataset": dataset, "augment": RECIPE, "size": size}
    done = dump(teacher, views=VIEWS, codec="fp32", dtype="float64", batch_size=50, out="cache", **common)
    assert done.info["complete"]
    return {"teacher": teacher, **common}


def run(out: str, **options: Any) -> dict[str, torch.Tensor]:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 64, "seed": 3, "lr": 1e-3, "log_every": 1, **options}
    train(STUDENT, out=out, **settings)
    return load_file(Path(out) / "student.safetensors")


def online(made: dict[str, Any]) -> dict[str, torch.Tensor]:
    return run("online", online=True, dtype="float64", views=VIEWS, **made)


def cached(made: dict[str, Any]) -> dict[str, torch.Tensor]:
    return run("cached", cache=("cache",), dataset=made["dataset"])


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_weights_after_three_epochs_are_bit_equal(made: dict[str, Any]) -> None:
    assert equal(cached(made), online(made))
    lines = [json.loads(line) for line in Path("cached/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(line["teacher_s"] == 0 for line in lines)
    # Every step agrees, not only the end.
    assert Path("cached/steps.jsonl").read_text() == Path("online/steps.jsonl").read_text()


def give_targets_of_view_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever view a key's pixels are of."""
    begin, targets = CachedTargets.begin, CachedTargets.targets

    def first(part: Part) -> Part:
        return dataclasses.replace(part, views=(0,))

    monkeypatch.setattr(
        CachedTargets, "begin", lambda self, batches: begin(self, [[first(part) for part in of] for of in batches])
    )
    monkeypatch.setattr(CachedTargets, "targets", lambda self, part, *rest: targets(self, first(part), *rest))


def test_unmatched_views_are_another_training(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets of one crop for the pixels of another: the mistake that this project exists to prevent."""
    give_targets_of_view_0(monkeypatch)
    with pytest.raises(PixelsError, match=r"row \d+ in view 1 has other pixels than the teacher saw"):
        run("refused", cache=("cache",), dataset=made["dataset"])
    monkeypatch.setattr(PixelCheck, "add", lambda *arguments: None)
    assert not equal(cached(made), online(made))


def test_float32_teacher_agrees_within_rounding(here: Path, small_teacher: Callable[..., str]) -> None:
    """Other batches give other last bits: 1e-5 in the norm of a row, 1e-4 in a loss at the same weights."""
    teacher = small_teacher(here / "teacher")
    dump(teacher, views=2, codec="fp32", amp="off", batch_size=33, out="cache", size=8)
    viewed = open_viewed("digits", "train", size=8)
    network = find_teacher(teacher, viewed.samples).eval()
    reader, rows = Cache("cache").column("logits"), np.random.default_rng(0).permutation(len(viewed))[:256]
    student = open_network(STUDENT, classes=10, statistics=viewed.samples.statistics, seed=1).eval()
    for view in range(2):
        pixels = viewed.batch(rows, view)
        with torch.inference_mode():
            live, z = network(pixels), student(pixels)
        kept = torch.from_numpy(reader.gather(view, rows)["values"])
        assert ((kept - live).norm(dim=1) <= 1e-5 * live.norm(dim=1)).all()
        for T in (1.0, 4.0):
            a, b = (parse_term("kl")(z, teacher_logits, T) for teacher_logits in (kept, live))
            assert abs(a - b) <= 1e-4 * abs(b)


def test_a_gpu_names_the_first_key_at_the_end_of_the_epoch(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that isn't waited for counts on itself; what it then says is what a CPU says at once."""
    give_targets_of_view_0(monkeypatch)
    with pytest.raises(PixelsError) as at_once:
        run("at-once", cache=("cache",), dataset=made["dataset"])
    start = Stream.__init__

    def later(self: Stream, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        self._at_once = False

    monkeypatch.setattr(Stream, "__init__", later)
    with pytest.raises(PixelsError) as afterwards:
        run("afterwards", cache=("cache",), dataset=made["dataset"])
    key = str(at_once.value).split(" has other")[0]
    assert key in str(afterwards.value)
    assert "keys of this epoch differ" in str(afterwards.value)
