"""Inputs that are no pictures: the features of a table, from a teacher of any kind to a student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_train import command, weights

from softcache.cache.reader import Cache
from softcache.datasets._index import describe_data
from softcache.datasets._open import open_samples
from softcache.datasets._values import measure_values
from softcache.errors import CacheError, DatasetError, ModelError, SoftcacheError, UsageError
from softcache.fields import Fields
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.stages.keys import Keys
from softcache.stages.teach import _refuse_other_data
from softcache.stages.train import train
from softcache.stages.verify import verify
from softcache.views._open import open_viewed

ROWS, FEATURES, CLASSES = 300, 5, 3
MODELS = """
import numpy as np
import torch
from torch import nn


def student(num_classes):
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, num_classes))


def same(num_classes):
    return nn.Identity()


def centres(num_classes=3):
    '''A teacher without parameters that torch knows: minus the distances to three points.'''
    points = np.eye(3, 5, dtype=np.float32) * 3

    def answer(features):
        assert features.dtype == np.float32, "as they are, not standardized"
        return -((features[:, None] - points) ** 2).sum(-1)

    return answer


def broken(num_classes=3):
    return lambda features: features.nothing


def words(num_classes=3):
    return lambda features: ["a"] * len(features)


def seen(num_classes=10):
    # of pictures

    def answer(pixels):
        assert pixels.dtype == np.uint8 and pixels.shape[1:] == (8, 8, 1), (pixels.dtype, pixels.shape)
        return pixels.reshape(len(pixels), -1)[:, :10].astype(np.float32)

    return answer


def own_width(num_classes=3):
    assert num_classes == 3, "nobody knows another number"
    return lambda features: features[:, :num_classes]


def with_files(files):
    def answer(features):
        return features[:, :3]

    answer.files = files
    return lambda: answer


one_path, no_path, a_number = with_files("weights.bin"), with_files([]), with_files(3)


class Said:
    fingerprint = "version 1"

    def __call__(self, features):
        return {"logits": features[:, :3], "vector": features * 2}


def said():
    return Said()
"""


@pytest.fixture
def table(here: Path) -> str:
    """300 rows around three points, and the models beside them."""
    rng = np.random.default_rng(2)
    folder = here / "table"
    folder.mkdir()
    for split, count in (("train", ROWS), ("test", 90)):
        labels = np.arange(count) % CLASSES
        points = np.eye(3, FEATURES)[labels] * 3 + rng.normal(0, 0.7, (count, FEATURES))
        np.save(folder / f"{split}_features.npy", points.astype(np.float32))
        np.save(folder / f"{split}_labels.npy", labels)
    (here / "models.py").write_text(MODELS)
    return f"arrays:{folder}"


DUMP = {"teacher": "models.py:centres", "device": "cpu", "out": "cache", "codec": "fp32"}
STUDENT: dict[str, Any] = {
    "student": "models.py:student", "device": "cpu", "epochs": 6, "batch_size": 32, "optimizer": "adamw", "lr": 0.01,
    "weight_decay": 0.0, "warmup": 0,
}  # fmt: skip


def test_a_table_from_a_function_of_arrays_to_a_student(table: str, here: Path) -> None:
    made = dump(**DUMP, dataset=table)
    cache = Cache("cache")
    assert cache.views == 1
    assert cache.manifest.identity.dataset.inputs["features"].shape == [FEATURES]
    features = np.load(here / "table" / "train_features.npy")
    points = np.eye(3, FEATURES, dtype=np.float32) * 3
    wanted = -((features[:, None] - points) ** 2).sum(-1)
    column = cache.column("logits")
    arrays = column.gather(0, np.arange(ROWS))
    assert np.array_equal(column.decode(arrays).numpy(), wanted)
    assert np.array_equal(
        arrays["digest"], open_viewed(table, "train").digest(Fields({"features": torch.from_numpy(features)}))
    )
    index, kept = cache.samples
    assert np.array_equal(kept["features"], features[index])
    assert made.teacher_top1 == pytest.approx(float((wanted.argmax(1) == np.arange(ROWS) % 3).mean()))
    assert verify("cache", teacher="models.py:centres", dataset=table).ok
    run = train(**STUDENT, cache="cache", dataset=table, out="run")
    assert run.test is not None
    assert run.test.top1 > 0.9
    assert command("eval", "run", "--dataset", table) == 0
    (batch,) = Keys("cache", table).sampler(ROWS)
    keys = Keys("cache", table)
    assert torch.equal(keys.__getitems__(batch).inputs["features"], torch.from_numpy(features[[r for r, _ in batch]]))


@pytest.mark.parametrize("how", [{"workers": 2}, {"resident": "off", "workers": 0}])
def test_cached_equals_live_to_the_bit_however_inputs_are_made(table: str, how: dict[str, Any]) -> None:
    dump(**DUMP, dataset=table)
    train(**STUDENT, cache="cache", dataset=table, out="cached")
    train(**STUDENT, online=True, teacher="models.py:centres", dataset=table, views=1, out="live")
    train(**STUDENT, cache="cache", dataset=table, out="other", **how)
    cached, live, other = (weights(Path(out)) for out in ("cached", "live", "other"))
    assert all(torch.equal(cached[name], live[name]) for name in cached)
    assert all(torch.equal(cached[name], other[name]) for name in cached)


def test_other_rows_are_refused(table: str, here: Path, capfd: pytest.CaptureFixture) -> None:
    dump(**DUMP, dataset=table)
    path = here / "table" / "train_features.npy"
    features = np.load(path)
    changed = features.copy()
    changed[200, 3] += 1e-3
    np.save(path, changed)
    asked = ("train", "--student", "models.py:student", "--cache", "cache", "--dataset", table, "--epochs", 1)
    assert command(*asked, "--out", "run") == 1
    assert "row 200 in view 0 has other features than the teacher saw" in capfd.readouterr().err
    np.save(path, features[::-1].copy())
    assert command(*asked, "--out", "run") == 1
    assert "is this the dataset that the cache was made from, in the same order?" in capfd.readouterr().err
    assert command(*asked, "--pixels", "close", "--out", "run") == 2
    assert "are no pictures" in capfd.readouterr().err


def test_floats_are_standardized_by_the_train_split_and_whole_numbers_are_not(table: str, here: Path) -> None:
    features = np.load(here / "table" / "train_features.npy").astype(np.float64)
    mean, deviation = features.mean(0), features.std(0)
    for split in ("train", "test"):
        found = open_samples(table, split).statistics
        assert np.allclose(found, (mean, deviation), rtol=1e-6)
    network = open_network("models.py:same", classes=5, statistics=found, pictures=False, seed=0)
    batch = open_viewed(table, "test").clean(np.arange(4))
    wanted = (np.load(here / "table" / "test_features.npy")[:4] - mean) / deviation
    assert np.allclose(network(batch).numpy(), wanted, atol=1e-5)
    whole = torch.arange(10).view(2, 5)
    assert torch.equal(network(Fields({"features": whole})), whole)
    with pytest.raises(ModelError, match="is for inputs of 5 numbers, these have 4"):
        network(Fields({"features": torch.zeros(2, 4)}))


def test_statistics_of_values_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(1e4, 0.01, (5000, 3)).astype(np.float32)
    rows[:, 2] = 7
    mean, deviation = measure_values(rows)
    wide = rows.astype(np.float64)
    assert np.allclose(mean, wide.mean(0), rtol=1e-9)
    assert np.allclose(deviation[:2], wide.std(0)[:2], rtol=1e-6)
    assert deviation[2] == 1
    waves = rng.normal(0, 2, (40, 6, 50))
    assert np.allclose(np.ravel(measure_values(waves)), (waves.mean(), waves.std()))
    assert measure_values(np.zeros((3, 4), np.int64)) == ((0.0,), (1.0,))


def test_a_function_is_known_by_its_code_its_files_or_what_it_says(table: str, here: Path) -> None:
    def weights_of(spec: str) -> str:
        dump(spec, dataset=table, device="cpu", out=f"cache-{len(list(here.glob('cache-*')))}")
        return Cache(sorted(here.glob("cache-*"))[-1]).manifest.identity.teacher.weights

    said, coded = weights_of("models.py:said"), weights_of("models.py:centres")
    text = (here / "models.py").read_text()
    (here / "models.py").write_text(text + "\n# another line\n")
    assert weights_of("models.py:said") == said
    assert weights_of("models.py:centres") != coded
    (here / "models.py").write_text(text.replace("version 1", "version 2"))
    assert weights_of("models.py:said") != said
    filed = text.replace('fingerprint = "version 1"', 'files = ["forest.bin"]')
    (here / "models.py").write_text(filed)
    with pytest.raises(ModelError, match=r"forest\.bin, a file of .*models\.py:said, can't be read"):
        dump("models.py:said", dataset=table, out="none")
    found = []
    for content in (b"1", b"2", b"1"):
        (here / "forest.bin").write_bytes(content)
        found.append(weights_of("models.py:said"))
    assert found[0] == found[2] != found[1]


def test_a_function_gets_the_pixels_of_pictures(table: str) -> None:
    dump("models.py:seen", dataset="digits", size=8, views=1, codec="fp32", device="cpu", out="cache")
    column = Cache("cache").column("logits")
    found = column.decode(column.gather(0, np.arange(20)))
    recipe = Cache("cache").manifest.identity.recipe["spec"]
    pixels = open_viewed("digits", "train", size=8, augment=recipe).batch(np.arange(20), 0)
    assert torch.equal(found, pixels.reshape(20, -1)[:, :10].float())


def test_files_that_are_no_paths_are_refused_and_one_is_enough(table: str, here: Path) -> None:
    for name in ("no_path", "a_number"):
        with pytest.raises(ModelError, match="files must be one path or several"):
            dump(f"models.py:{name}", dataset=table, out="cache")
    (here / "weights.bin").write_bytes(b"1")
    dump("models.py:one_path", dataset=table, device="cpu", out="cache")
    (here / "weights.bin").write_bytes(b"2")
    with pytest.raises(CacheError, match=r"teacher\.weights"):
        dump("models.py:one_path", dataset=table, device="cpu", out="cache")


def test_held_out_rows_of_inputs_that_do_not_fit_the_memory(table: str) -> None:
    dump(**DUMP, dataset=table)
    options = {**STUDENT, "epochs": 1, "val_fraction": 0.2, "cache": "cache", "dataset": table}
    resident = train(**options, out="resident").lines
    mapped = train(**options, resident="off", workers=0, out="mapped").lines
    assert mapped[0]["val_top1"] == resident[0]["val_top1"]


def test_several_outputs_of_a_function(table: str) -> None:
    dump("models.py:said", dataset=table, output=("logits", "vector"), codec="fp32", device="cpu", out="cache")
    keys = Keys("cache", table, outputs=["vector"])
    batch = keys.__getitems__([(7, 0), (2, 0)])
    assert torch.equal(batch.targets["vector"], 2 * batch.inputs["features"])


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("broken", "the teacher raised AttributeError"),
        ("words", "the teacher answered with list of"),
    ],
)
def test_a_function_that_fails_is_one_line(table: str, teacher: str, message: str, capfd: Any) -> None:
    assert command("dump", "--teacher", f"models.py:{teacher}", "--dataset", table, "--out", "cache") == 1
    (line,) = capfd.readouterr().err.strip().splitlines()[-1:]
    assert message in line
    assert not Path("cache").exists()


def test_a_function_is_no_student(table: str, capfd: pytest.CaptureFixture) -> None:
    for asked in (("train", "--student", "models.py:centres", "--alpha", 0), ("teach", "--model", "models.py:centres")):
        assert command(*asked, "--dataset", table, "--out", "made") == 2
        assert "has no parameters that could be trained" in capfd.readouterr().err
        assert not Path("made").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, 0], "expected an array of rows"),
        (lambda a: a > 0, "bool is no dtype that a network takes"),
        (lambda a: a.astype(np.uint16), "uint16 is no dtype"),
        (lambda a: a.astype(">f4"), "native dtype"),
        (lambda a: np.where(a == a[9, 1], np.nan, a), "row 9 has numbers that are not finite"),
        (lambda a: a.astype(np.float64), "train_features is 5 float64"),
    ],
)
def test_arrays_that_can_not_be_inputs(table: str, here: Path, change: Any, message: str) -> None:
    path = here / "table" / "train_features.npy"
    np.save(path, change(np.load(path)))
    split = "test" if "train_features" in message else "train"  # which is compared with that of training
    with pytest.raises(DatasetError, match=message):
        open_samples(table, split)


def test_what_only_pictures_have_is_refused(table: str, here: Path) -> None:
    with pytest.raises(UsageError, match="'crop' is for pictures, and the features of"):
        dump(**DUMP, dataset=table, augment="crop+flip")
    with pytest.raises(UsageError, match="--size 8: the features of"):
        dump(**DUMP, dataset=table, size=8)
    np.save(here / "table" / "train_more.npy", np.zeros((ROWS + 1, 2)))
    with pytest.raises(DatasetError, match="different numbers of rows: features 300, more 301"):
        dump(**DUMP, dataset=table)


def test_inputs_without_labels_and_an_answer_without_classes(table: str, here: Path) -> None:
    (here / "table" / "train_labels.npy").unlink()
    (here / "table" / "test_labels.npy").unlink()
    dump("models.py:said", dataset=table, output=("vector",), device="cpu", out="cache")
    assert json.loads(Path("cache/cache.json").read_text())["state"]["class_names"] == []
    assert len(Keys("cache", table, outputs=["vector"])) == ROWS
    dump("models.py:own_width", dataset=table, device="cpu", out="logits")
    assert Cache("logits").layout("logits").shape == (3,)


def test_inputs_of_another_width_are_refused(table: str, here: Path) -> None:
    dump(**DUMP, dataset=table)
    path = here / "table" / "train_features.npy"
    np.save(path, np.load(path)[:, :4])
    with pytest.raises(CacheError, match=r"with inputs features 5 float32, .* has features 4 float32"):
        Keys("cache", table)


def test_what_a_teacher_was_trained_on_has_its_labels(table: str, here: Path) -> None:
    """The fingerprint of the inputs has not, and a training that goes on must see the labels that it began with."""
    began = describe_data(open_samples(table, "train"))
    path = here / "table" / "train_labels.npy"
    np.save(path, (np.load(path) + 1) % CLASSES)
    relabelled = describe_data(open_samples(table, "train"))
    (here / "table" / "classes.txt").write_text("a\nb\nc\n")
    renamed = describe_data(open_samples(table, "train"))
    assert began["fingerprint"] == relabelled["fingerprint"] == renamed["fingerprint"]
    assert len({began["labels"], relabelled["labels"], renamed["labels"]}) == 3
    with pytest.raises(SoftcacheError, match=r"was begun on other data .* \(labels differ\)"):
        _refuse_other_data(here, began, relabelled)


@pytest.mark.parametrize("name", ["index", "größe", "pixels", "a-b"])
def test_names_that_a_cache_could_not_keep(table: str, here: Path, name: str) -> None:
    (here / "table" / "train_features.npy").rename(here / "table" / f"train_{name}.npy")
    with pytest.raises(DatasetError, match="can't be the name of an input"):
        open_samples(table, "train")
