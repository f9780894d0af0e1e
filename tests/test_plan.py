"""``softcache plan``: its bytes and files are those of the cache that a dump then writes; its times are arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from harness_dump import make_setting
from harness_ragged import asked, make_place
from PIL import Image

from softcache.cache.schema import MANIFEST
from softcache.cli.plan import command
from softcache.config.plan import PlanConfig
from softcache.errors import SoftcacheError, UsageError
from softcache.stages import _probing
from softcache.stages.dump import dump
from softcache.stages.plan import Plan, plan

IMAGENET = {"rows": 1_281_167, "classes": 1000, "gpus": 8}


def same_files(found: Plan, folder: Path) -> None:
    """All files are counted; of their bytes those of ``cache.json`` are not."""
    there = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in there if name.startswith(".")]
    assert found.files.files == len(there)
    assert found.files.other == {n: size for n, size in there.items() if "/" not in n and n != MANIFEST}
    by_view = [
        sum(size for name, size in there.items() if name.startswith(f"view-{v:04d}/")) for v in range(found.views)
    ]
    assert by_view == [found.files.view_bytes] * found.views
    assert found.files.shards == sum("/" in name for name in there)
    assert found.files.bytes == sum(there.values()) - there[MANIFEST]


def test_digits_as_the_commands_stand(here: Path, small_teacher) -> None:
    teacher = small_teacher("teacher")
    done = dump(teacher, workers=0)
    same_files(plan(teacher), done.folder)
    assert not list(Path().rglob("*.part"))


def test_hints_in_their_codecs_and_several_views(here: Path, small_teacher) -> None:
    teacher = small_teacher("teacher")
    options: dict[str, Any] = {
        "hint": ("layer2:codec=int8", "fc:in:codec=bf16"), "output": ("logits:codec=fp32",), "views": 3,
        "shard_rows": 256, "keep_samples": 100, "augment": "crop:pad=2",
    }  # fmt: skip
    done = dump(teacher, out="cache", workers=0, **options)
    found = plan(teacher, **options)
    same_files(found, done.folder)
    assert found.files.other.keys() == {"rows.h5", "samples.h5", "cache.h5", "column-hint.layer2.h5"}


def test_rows_that_have_lengths_of_their_own(tmp_path: Path) -> None:
    options = asked(make_place(tmp_path), tmp_path / "cache")
    dump(**options)
    weights = options.pop("teacher_weights")
    assert Path(weights).is_file()
    same_files(plan(**options), tmp_path / "cache")


def test_pictures_in_files_and_code_of_ones_own(here: Path) -> None:
    """Rows have names then. The teacher can't be run without memory, and nothing of it is read."""
    rng = np.random.default_rng(0)
    for split, label, name in [("train", "a", "0"), ("train", "b", "a longer name, with ä"), ("test", "a", "1")]:
        path = Path("data") / split / label / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 30, 3)).astype(np.uint8)).save(path)
    Path("teacher.py").write_text(
        "import torch\n\n\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.last = torch.nn.Linear(3, num_classes)\n\n"
        "    def forward(self, x):\n"
        "        width = 1 + int(x.abs().sum() * 0)\n"
        "        return {'logits': self.last(x.mean((2, 3))), 'embedding': x.mean((2, 3))[:, :width]}\n\n\n"
        "def make(num_classes=2):\n"
        "    return Net(num_classes)\n"
    )
    from runpy import run_path

    torch.save(run_path("teacher.py")["make"]().state_dict(), "weights.pt")
    options: dict[str, Any] = {
        "dataset": "folder:data", "size": 16, "views": 2, "output": ("logits", "embedding:kind=values"),
    }  # fmt: skip
    dump("teacher.py:make", teacher_weights="weights.pt", out="cache", workers=0, **options)
    Path("weights.pt").unlink()
    same_files(plan("teacher.py:make", **options), Path("cache"))


def test_rows_alone_are_as_large_as_rows_of_data(tmp_path: Path) -> None:
    setting = make_setting(tmp_path)
    options: dict[str, Any] = {"views": 3, "shard_rows": 64, "size": 8, "hint": ("body.2", "head:in")}
    teacher = f"{tmp_path / 'teacher.py'}:make"
    of_data = plan(teacher, dataset=f"arrays:{setting.root / 'data.npz'}", **options)
    options["hint"] = ("body.2:shape=6x3x3", "head:in:shape=54:codec=fp16")
    assert plan(rows=300, classes=7, **options).columns == of_data.columns
    assert of_data.rows == 300
    assert plan(rows=300, output=("logits:shape=7",), **options).columns == of_data.columns
    unlike = plan(rows=300, output=("logits:kind=binary:shape=7:codec=fp32",), **options).columns
    assert (unlike[0].kind, unlike[0].codec, unlike[0].key_bytes) == ("binary", "fp32", 7 * 4 + 4)


@pytest.mark.parametrize(("views", "gb"), [(1, 2.56), (90, 230.61), (300, 768.70)])
def test_imagenets_logits_are_two_bytes_each(views: int, gb: float) -> None:
    """1,281,167 × 1000 × 2 bytes a view; digests of 4 bytes and at most 6 pages of 4 KiB a shard come on top."""
    found = plan(**IMAGENET, views=views)
    values = 1_281_167 * 1000 * 2 * views
    assert values / 1e9 == pytest.approx(gb, abs=0.005)
    over = found.files.bytes - values - sum(found.files.other.values()) - 4 * 1_281_167 * views
    assert 0 < over < found.files.shards * 6 * 4096
    assert found.files.shards == 40 * views == -(-1_281_167 // 32768) * views


def test_imagenets_maps_come_from_the_architecture_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-50's layer3 is 1024 × 14 × 14 for pictures of 224 pixels: 514 GB a view in fp16."""
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)  # nothing is downloaded
    found = plan("resnet50", **IMAGENET, views=1, output=("none",), hint=("layer3",)).columns
    assert [(column.name, column.shape) for column in found] == [("hint.layer3", [1024, 14, 14])]
    values = 1_281_167 * 1024 * 14 * 14 * 2
    assert values / 1e9 == pytest.approx(514.27, abs=0.005)
    assert 0 < found[0].view_bytes - values - 4 * 1_281_167 < found[0].shards * 6 * 4096
    vit = plan("vit_h_14", rows=10, hint=("encoder.ln",)).columns  # its weights are for pictures of 518 pixels
    assert [column.shape for column in vit] == [[1000], [(518 // 14) ** 2 + 1, 1280]]


def test_times_rates_and_costs_follow_from_the_numbers() -> None:
    found = plan(**IMAGENET, views=90, rate=2500, student_rate=1500, readers=32, epochs=45, price=2.0, disk_rate=1000.0)
    assert found.dumping is not None
    assert found.students is not None
    assert found.paid is not None
    keys = 90 * 1_281_167
    assert found.keys == keys
    assert found.dumping.hours == pytest.approx(keys / 2500 / 8 / 3600)
    assert found.dumping.written_mb_per_s == pytest.approx(found.files.bytes / (found.dumping.hours * 3600) / 1e6)
    assert found.dumping.waiting == 0
    assert found.students.read_mb_per_s == pytest.approx(2004 * 1500 * 32 / 1e6)
    assert found.students.live_factor == pytest.approx(1500 / 2500)
    assert (found.paid.epochs, found.paid.students) == (90, 2)
    assert found.paid.dump_cost == pytest.approx(2 * keys / 2500 / 3600)
    assert found.paid.cost_a_reader == pytest.approx(found.paid.dump_cost / 32)
    assert found.paid.live_cost == pytest.approx(found.paid.dump_cost / 2)  # two students of 45 epochs


def test_a_disk_that_is_too_slow_makes_the_dump_as_long_as_its_bytes_take() -> None:
    found = plan(**IMAGENET, views=90, rate=2500, disk_rate=10.0, epochs=90)
    assert found.dumping is not None
    assert found.paid is not None
    assert found.dumping.hours == pytest.approx(found.files.bytes / 10e6 / 3600)
    assert found.dumping.waiting == pytest.approx(1 - 10 / found.dumping.written_mb_per_s)
    quick = plan(**IMAGENET, views=90, rate=2500, epochs=90)
    assert quick.dumping is not None
    assert found.paid.epochs == pytest.approx(90 * found.dumping.hours / quick.dumping.hours)
    shown = shown_for("--views", "90", "--rate", "2500", "--disk-rate", "10")
    assert "and the disk takes 10.0: the teacher waits 75% of the time" in shown
    (smaller,) = [line for line in shown.splitlines() if "logits would take" in line]
    assert "int8 1,004" in smaller


def test_break_even_is_where_both_ways_take_the_same_steps() -> None:
    """From the two sums themselves: N students of E epochs with a live teacher, and from a cache, in student's steps
    an epoch."""
    views, epochs, k = 300, 90, 0.7
    paid = plan(rows=1000, classes=10, views=views, rate=700.0 / k, student_rate=700.0, epochs=epochs).paid
    assert paid is not None
    assert paid.students is not None

    def live(students: int) -> float:
        return students * epochs * (1 + k)

    def cached(students: int) -> float:
        return views * k + students * epochs

    assert cached(paid.students) <= live(paid.students)
    assert cached(paid.students - 1) > live(paid.students - 1)


def test_json_is_the_plan() -> None:
    options = ("--views", "2", "--rate", "100", "--student-rate", "50", "--readers", "3")
    found = json.loads(shown_for(*options, "--json"))
    asked_for = PlanConfig(**IMAGENET, views=2, rate=100.0, student_rate=50.0, readers=3)
    assert found == json.loads(json.dumps(plan(asked_for).to_json()))
    assert found["keys"] == 2 * 1_281_167


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 5}, r"--output logits: how many numbers are that of a key\? say --classes, or name the --teacher"),
        ({"rows": 5, "classes": 2, "hint": ("layer3",)}, r"say --hint layer3:shape=1024x14x14, or name the --teacher"),
        ({"rows": 5, "output": ("logits:shape=3x",)}, "--output logits:shape=3x: a shape is written as"),
        ({"rows": 5, "output": ("logits:shape=0",)}, "a shape is written as shape=1024x14x14"),
        ({"rows": 0}, "--rows must be above 0, is 0"),
        ({"rows": 5, "dataset": "digits"}, "leave one out"),
        ({"classes": 5}, "--classes goes with --rows"),
        ({"rows": 5, "classes": 2, "gpus": 2, "device": "cpu"}, "--device cpu is none"),
        ({"rows": 5, "classes": 2, "readers": 2}, "--readers needs how much a student reads"),
        ({"rows": 5, "classes": 2, "price": 2.0}, "--price needs how long the dump takes"),
        ({"rows": 5, "classes": 2, "student": "resnet18"}, "--probe measures"),
        ({"rows": 5, "classes": 2, "codec": "fp17"}, "no codec is called 'fp17'"),
        ({"rows": 5, "classes": 2, "shard_rows": 3}, "--shard-rows must be a power of two"),
        ({"rows": 5, "classes": 10, "teacher": "resnet50", "hint": ("layer9",)}, "no layer 'layer9'"),
        ({"rows": 5, "output": ("logits:shape=2048x50257",)}, "392 MiB as float32, and they may be 256"),
        ({**IMAGENET, "views": 9999, "output": ("logits:shape=300000",)}, "a cache has at most 1,048,576 shards"),
    ],
)
def test_what_can_not_be_planned_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftcacheError, match=message) as caught:
        plan(**options)
    assert "\n" not in str(caught.value)


def test_a_probe_of_gpus_is_made_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UsageError, match=r"--probe measures this machine's cpu, and --gpus plans for GPUs: give --rate"
    ):
        plan("resnet18", **IMAGENET, probe=True)


def shown_for(*options: str) -> str:
    done = CliRunner().invoke(command, ["--rows", "1281167", "--classes", "1000", "--gpus", "8", *options])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("probe", [False, True])
def test_a_dump_into_a_store_is_planned_with_no_disk(probe: bool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same plan as of a folder; nothing is asked of the store."""
    monkeypatch.setattr(_probing, "measure_disk", lambda *given: pytest.fail("a disk was measured"))
    found = plan(rows=1000, classes=10, rate=100, out="s3://bucket/cache", probe=probe)
    assert found.disk is None
    assert found.files == plan(rows=1000, classes=10, rate=100, out="cache").files
    assert not list(here.iterdir())
