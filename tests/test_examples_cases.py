"""The classic cases in ``examples/``, on small files in the datasets' original formats."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path

import harness_process
import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from harness_examples import EXAMPLES, example
from harness_torchvision import photo, write_cifar10, write_mnist

from softcache.cache.reader import Cache
from softcache.models._open import open_network


def run(name: str, *arguments: str) -> dict[str, float]:
    """The table that the example prints: top-1 in % by name."""
    done = CliRunner().invoke(example(name).main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = re.findall(r"^(\S.*?\S) {2,}(\d+\.\d\d) % +\d+\.\d s$", done.stdout, re.M)
    return {name: float(top1) for name, top1 in rows}


def recorded(folder: str) -> tuple[dict, float]:
    """A run's options, and its top-1 in %."""
    record = json.loads((Path(folder) / "config.json").read_text())
    result = record["result"]
    return record["options"], 100 * (result["test_top1"] if "test_top1" in result else result["test"]["top1"])


def check(table: dict[str, float], expected: dict[str, str], teacher: str, cache: str) -> None:
    """Each row of the table is the result of the run in its folder; runs alone have alpha 0, the others the cache."""
    assert list(table) == list(expected)
    for name, folder in expected.items():
        options, top1 = recorded(folder)
        assert table[name] == pytest.approx(top1, abs=0.005)
        if name.endswith("alone"):
            assert float(options["alpha"]) == 0
        elif name.endswith("distilled"):
            assert options["cache"] == [str(Path(cache).resolve())]
    assert not Cache(cache).missing(["logits"], Cache(cache).views)
    assert (Path(teacher) / "config.json").exists()


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The md5 sums of CIFAR's files are not those of files written here."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).exists())


def test_cifar10(here: Path, unchecked: None) -> None:
    write_cifar10(here)
    table = run("cifar10", "--data-dir", str(here), "--epochs", "1", "--views", "1")
    teacher, cache = "teachers/small_pictures.py-resnet50-cifar10", "caches/small_pictures.py-resnet50-cifar10-train"
    expected = {
        "teacher resnet50": teacher,
        "resnet18 alone": "runs/small_pictures.py-resnet18-1",
        "resnet18 distilled": "runs/small_pictures.py-resnet18-2",
        "mobilenet_v2 alone": "runs/small_pictures.py-mobilenet_v2-1",
        "mobilenet_v2 distilled": "runs/small_pictures.py-mobilenet_v2-2",
    }
    check(table, expected, teacher, cache)


def test_mnist(here: Path) -> None:
    write_mnist(here)
    table = run("mnist", "--data-dir", str(here), "--teacher-epochs", "1", "--epochs", "1", "--T", "3")
    teacher, cache = "teachers/mnist.py-large-mnist", "caches/mnist.py-large-mnist-train"
    expected = {
        "teacher 1200-1200": teacher,
        "student 128 alone": "runs/mnist.py-small-1",
        "student 128 distilled": "runs/mnist.py-small-2",
    }
    check(table, expected, teacher, cache)
    assert recorded("runs/mnist.py-small-2")[0]["T"] == 3
    assert recorded(teacher)[0]["augment"] == "crop:pad=2"
    assert Cache(cache).manifest.identity.recipe["spec"] == "none"  # only the teacher saw moved pictures


def write_photographs(root: Path) -> str:
    """ImageNet's layout: class folders under train/ and val/."""
    for split, count in (("train", 4), ("val", 2)):
        for name in ("n01440764", "n02979186", "n03000684"):
            for number in range(count):
                photo(root / split / name / f"{name}_{number}.JPEG")
    return f"folder:{root}"


def test_last_layer(here: Path) -> None:
    """The weights are those of another number of classes, as ImageNet's are; all but the classifier stay."""
    trained = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.save(trained, here / "weights.pth")
    options = ["--teacher", "resnet18", "--weights", str(here / "weights.pth"), "--student", "cifar:resnet8"]
    options += ["--teacher-epochs", "1", "--epochs", "1", "--views", "1", "--size", "32"]
    table = run("last_layer", "--dataset", write_photographs(here / "pets"), *options)
    expected = {
        "teacher resnet18": "teachers/resnet18-pets",
        "cifar:resnet8 alone": "runs/cifar-resnet8-1",
        "cifar:resnet8 distilled": "runs/cifar-resnet8-2",
    }
    check(table, expected, "teachers/resnet18-pets", "caches/resnet18-pets-train")
    taught = open_network("teachers/resnet18-pets", classes=3).model.state_dict()
    changed = {key for key in taught if key not in trained or not torch.equal(taught[key], trained[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_missing_data_are_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "mnist.py"), "--data-dir", str(tmp_path)]
    done = harness_process.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: no complete mnist in .*--download fetches it, --data-dir says where it is\n", done.stderr
    )


@pytest.mark.parametrize(
    ("name", "count", "last"),
    # counted by https://github.com/kuangliu/pytorch-cifar for its ResNets; strides don't change torchvision's count
    [("resnet18", 11_173_962, 512), ("resnet50", 23_520_842, 2048), ("mobilenet_v2", 2_236_682, 1280)],
)
def test_networks_for_small_pictures_end_at_4_pixels(name: str, count: int, last: int) -> None:
    network = open_network(f"{EXAMPLES / 'small_pictures.py'}:{name}", classes=10, normalize="none").model
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    seen = {}
    layer = network.features if name == "mobilenet_v2" else network.layer4
    layer.register_forward_hook(lambda module, inputs, output: seen.update(shape=tuple(output.shape)))
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    assert seen["shape"] == (1, last, 4, 4)


def test_the_perceptrons_are_those_of_their_names() -> None:
    sizes = {"large": [784, 1200, 1200, 10], "small": [784, 128, 10]}
    for name, widths in sizes.items():
        network = getattr(example("mnist"), name)(10)
        expected = sum(a * b + b for a, b in itertools.pairwise(widths))
        assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_letters(here: Path) -> None:
    """On rows that any model can tell apart, in the format of the published file."""
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    lines = ["letter,x_box,y_box," + ",".join(f"f{k}" for k in range(14))]
    for row in range(300):
        values = rng.integers(0, 5, 16) + 10 * (np.arange(16) % 3 == row % 3)
        lines.append(",".join(["ABC"[row % 3], *map(str, values)]))
    (here / "letters.csv").write_text("\n".join(lines) + "\n")
    asked = [str(here / "letters.csv"), "--training", "240", "--epochs", "2", "--seeds", "2"]
    done = CliRunner().invoke(example("letters").main, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = dict(re.findall(r"^(\S.*?\S) {2,}(\d[\d., ]*) %$", done.stdout, re.M))
    assert list(rows) == [
        "teacher, on rows that it was not fitted to",
        *(f"student {how}, {share} % of the labels" for share in (100, 10) for how in ("alone", "distilled")),
    ]
    assert float(rows["teacher, on rows that it was not fitted to"]) > 95
    assert all(text.count(",") == 1 for name, text in rows.items() if name.startswith("student"))
    cache = Cache(next(Path("caches").iterdir()))
    assert cache.manifest.identity.dataset.inputs["features"].shape == [16]
    assert cache.manifest.state.class_names == ["A", "B", "C"]


def test_reviews(here: Path) -> None:
    """On sentences whose words tell the label, in the format of the published files."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 400), ("test", 90)):
        lines = []
        for row in range(count):
            words = [("good", "bad")[row % 2], *rng.choice(["a", "film", "is", "of"], rng.integers(1, 9))]
            lines.append(f"{' '.join(rng.permutation(words))}\t{1 - row % 2}")
        (here / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    asked = [str(here / "train.tsv"), str(here / "test.tsv"), "--epochs", "6", "--seeds", "1"]
    done = CliRunner().invoke(example("reviews").main, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = dict(re.findall(r"^(\S.*?\S) {2,}(\d+\.\d\d) %$", done.stdout, re.M))
    students = [f"student {how}, {share} % of the labels" for share in (100, 10) for how in ("alone", "distilled")]
    assert list(rows) == ["teacher", *students]
    assert float(rows["teacher"]) > 90
    cache = Cache(next(Path("caches").iterdir()))
    assert (cache.views, cache.manifest.identity.dataset.inputs["words"].shape) == (8, [None])


def test_spoken_digits(here: Path) -> None:
    """On tones, one pitch for each digit, in the format of the packed recordings."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 10
    lengths = rng.integers(1500, 6000, 120)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sounds = [
        8000 * np.sin(2 * np.pi * (300 + 300 * digit) * np.arange(length) / 8000) + rng.normal(0, 300, length)
        for digit, length in zip(labels, lengths, strict=True)
    ]
    np.savez(
        here / "tones.npz", samples=np.concatenate(sounds).astype(np.int16), offsets=offsets, label=labels,
        test=np.arange(120) >= 90,
    )  # fmt: skip
    module = example("spoken_digits")
    band = module.spectrogram(sounds[4].astype(np.int16))[:, : lengths[4] // 100 - 3].mean(1).argmax()
    mel = 2595 * np.log10(1 + np.array([1500, 4000]) / 700)  # digit 4 sounds at 1,500 Hz
    assert abs(band - (mel[0] / mel[1] * (module.BANDS + 1) - 1)) <= 1
    done = CliRunner().invoke(module.main, [str(here / "tones.npz"), "--epochs", "3", "--seeds", "1"])
    assert done.exit_code == 0, done.output
    rows = dict(re.findall(r"^(\S.*?\S) {2,}(\d+\.\d\d) %$", done.stdout, re.M))
    assert list(rows) == ["teacher", "student alone", "student distilled"]
    assert float(rows["teacher"]) > 30
    assert Cache(next(Path("caches").iterdir())).manifest.identity.dataset.inputs["spectrogram"].shape == [40, 64]


def test_features(here: Path) -> None:
    """On few pictures: a student that learns the teacher's embedding alone comes near to its nearest neighbours."""
    write_mnist(here)
    asked = ["--dataset", "mnist", "--data-dir", str(here), "--epochs", "2", "--seeds", "2"]
    done = CliRunner().invoke(example("features").main, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = dict(re.findall(r"^(\S.*?\S) {2,}(\d[\d., ]*) %$", done.stdout, re.M))
    assert list(rows) == ["teacher", "student, labels alone", "student, cosine of the embedding alone"]
    assert [text.count(",") for text in rows.values()] == [0, 1, 1]
    cache = Cache(next(Path("caches").iterdir()))
    assert cache.manifest.columns == ["embedding"]
    record = json.loads(Path("runs/features.py-small-3/config.json").read_text())
    assert record["losses"][0]["loss"] == "cosine:of=embedding"
    assert record["model"]["classes"] == 64
