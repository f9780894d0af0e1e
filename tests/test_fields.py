"""Inputs with names, and rows that have lengths of their own: sentences of tokens, from a teacher to a student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_cache import write_shard
from harness_train import command, weights
from torch.utils.data import DataLoader

import softcache.training.learner
from softcache.cache.agreement.data import check_dataset
from softcache.cache.reader import Cache
from softcache.datasets._open import open_samples
from softcache.datasets._values import masks_of, values_of
from softcache.errors import CacheError, DatasetError, ModelError, UsageError
from softcache.fields import Fields
from softcache.inputs import mask_names
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.stages.keys import Keys
from softcache.stages.train import train
from softcache.stages.verify import verify
from softcache.views._fields import ViewedFields
from softcache.views._open import open_viewed

ROWS, WORDS, CLASSES = 240, 50, 3
MODELS = """
import numpy as np
import torch
from torch import nn


class Mean(nn.Module):
    '''The mean of the words' vectors, through a transformer's layer where ``deep``.'''

    def __init__(self, classes, width=16, deep=False, double=False):
        super().__init__()
        self.words = nn.Embedding(50, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 32, 0.0, batch_first=True) if deep else None
        self.answer = nn.Linear(width, classes)

    def forward(self, ids, attention_mask):
        assert ids.shape == attention_mask.shape and attention_mask.dtype == torch.int64
        own = attention_mask.bool()
        x = self.words(ids)
        if self.layer is not None:
            x = self.layer(x, src_key_padding_mask=~own)
        share = own.to(x.dtype) / own.sum(1, keepdim=True).clamp_min(1)
        return self.answer((x * share[..., None]).sum(1))


def teacher(num_classes=3):
    torch.manual_seed(1)
    return Mean(num_classes, deep=True)


def student(num_classes=3):
    return Mean(num_classes)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.answer = nn.Embedding(50, 8), nn.Linear(12, 3)

    def forward(self, features, ids, attention_mask=None):
        x = (self.words(ids) * attention_mask[..., None]).sum(1)
        return self.answer(torch.cat([x, features], 1))


def both(num_classes=3):
    return Both()


def other(num_classes=3):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.answer = nn.Linear(4, 3)

        def forward(self, features, positions):
            return self.answer(features)

    return Other()


def counts(num_classes=3):
    def answer(ids):
        assert isinstance(ids, list) and all(row.dtype == np.int64 and row.ndim == 1 for row in ids)
        return np.array([[(row % 3 == k).sum() for k in range(3)] for row in ids], np.float32)

    return answer


def named(num_classes=3):
    def answer(inputs):
        assert sorted(inputs) == ["features", "ids"] and inputs["features"].shape[1:] == (4,)
        return np.array([[len(ids), ids.sum(), row.sum()] for ids, row in zip(inputs["ids"], inputs["features"])])

    return answer
"""
DUMP: dict[str, Any] = {"device": "cpu", "out": "cache", "codec": "fp32", "batch_size": 16, "shard_rows": 64}
STUDENT: dict[str, Any] = {
    "student": "models.py:student", "device": "cpu", "epochs": 2, "batch_size": 32, "optimizer": "adamw", "lr": 0.02,
    "weight_decay": 0.0, "warmup": 0,
}  # fmt: skip


def rows_of(split: str) -> list[np.ndarray]:
    """Row k of a split is about its label k % 3: most of its words are of that class."""
    rng = np.random.default_rng(len(split))
    return [
        np.where(rng.random(n) < 0.8, rng.integers(0, 16, n) * 3 + k % 3, rng.integers(0, WORDS, n)).astype(np.int64)
        for k, n in enumerate(rng.integers(1, 20, ROWS))
    ]


@pytest.fixture
def text(here: Path) -> str:
    """240 rows of up to 19 words in each split, and the models beside them."""
    folder = here / "text"
    folder.mkdir()
    for split in ("train", "test"):
        rows = rows_of(split)
        np.save(folder / f"{split}_ids.npy", np.concatenate(rows))
        np.save(folder / f"{split}_ids_offsets.npy", np.cumsum([0, *map(len, rows)]))
        np.save(folder / f"{split}_labels.npy", np.arange(ROWS) % CLASSES)
    (here / "models.py").write_text(MODELS)
    return f"arrays:{folder}"


@pytest.fixture
def both(text: str, here: Path) -> str:
    """The same, and four numbers a row."""
    for split in ("train", "test"):
        features = np.random.default_rng(3).normal(2, 3, (ROWS, 4)).astype(np.float32)
        np.save(here / "text" / f"{split}_features.npy", features)
    return text


def saved(here: Path, spec: str = "models.py:teacher") -> str:
    """A file with a teacher's parameters."""
    torch.save(open_network(spec, classes=CLASSES, statistics=((0.0,), (1.0,)), seed=1).model.state_dict(), "t.pt")
    return str(here / "t.pt")


def shards(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).glob("view-*/*.h5"))}


def test_sentences_from_a_transformer_to_a_student(text: str, here: Path, capfd: pytest.CaptureFixture) -> None:
    dump("models.py:teacher", teacher_weights=saved(here), dataset=text, **DUMP)
    cache = Cache("cache")
    assert cache.manifest.identity.dataset.inputs["ids"].shape == [None]
    assert cache.lengths("ids").tolist() == [len(row) for row in rows_of("train")]
    index, kept = cache.samples
    assert all(np.array_equal(kept["ids"][place], rows_of("train")[row]) for place, row in enumerate(index))
    assert verify("cache", teacher="models.py:teacher", teacher_weights="t.pt", dataset=text).ok
    run = train(**{**STUDENT, "epochs": 12}, alpha=0, dataset=text, out="alone")
    assert run.test is not None
    assert run.test.top1 > 0.8
    assert command("eval", "alone", "--dataset", text) == 0
    assert command("info", "cache") == 0
    assert "ids L int64" in capfd.readouterr().out


@pytest.mark.parametrize("how", [{}, {"workers": 2}, {"workers": 1, "start_method": "spawn"}])
def test_cached_equals_live_to_the_bit(text: str, here: Path, how: dict[str, Any]) -> None:
    """The teacher computes in float64 and is rounded to float32, as the sizes to which rows are filled up differ
    between the batches of a dump and those of a training."""
    file = saved(here)
    numerics = {"dtype": "float64"}
    dump("models.py:teacher", teacher_weights=file, dataset=text, **DUMP, **numerics)
    train(**STUDENT, cache="cache", dataset=text, out="cached", **how)
    live = {"online": True, "teacher": "models.py:teacher", "teacher_weights": file, "views": 1, **numerics}
    train(**STUDENT, **live, dataset=text, out="live")
    cached, online = weights(Path("cached")), weights(Path("live"))
    assert all(torch.equal(cached[name], online[name]) for name in cached)


def test_a_dump_that_is_resumed_or_divided_has_the_same_bits(text: str, here: Path) -> None:
    """Which rows are filled up together follows from the grid alone."""
    asked = {**DUMP, "teacher_weights": saved(here), "dataset": text}
    dump("models.py:teacher", **asked)
    whole = shards("cache")
    for name in ("view-0000/logits-00001.h5", "view-0000/logits-00003.h5"):
        (Path("cache") / name).unlink()
    dump("models.py:teacher", **asked)
    assert shards("cache") == whole
    for part in (2, 1):
        dump("models.py:teacher", **{**asked, "out": "divided"}, part=(part, 2))
    assert shards("divided") == whole
    dump("models.py:teacher", **{**asked, "out": "workers"}, workers=2)
    assert shards("workers") == whole


def test_padding_is_never_looked_at(text: str, here: Path) -> None:
    """A row's answer beside a longer one is its answer alone, but for rounding."""
    network = open_network(
        "models.py:teacher", classes=CLASSES, statistics=((0.0,), (1.0,)), weights=saved(here), pictures=False
    )
    network = network.double().eval()
    viewed = open_viewed(text, "train")
    rows = np.arange(ROWS)
    with torch.inference_mode():
        together = network(viewed.batch(rows, 0))
        alone = torch.cat([network(viewed.batch(rows[k : k + 1], 0)) for k in range(len(rows))])
    assert torch.allclose(together, alone, rtol=0, atol=1e-13)


def test_rows_in_a_loop_of_ones_own_have_masks(both: str, here: Path) -> None:
    dump("models.py:both", teacher_weights=saved(here, "models.py:both"), dataset=both, **DUMP)
    keys = Keys("cache", both)
    rows = rows_of("train")
    loader = DataLoader(keys, batch_sampler=keys.sampler(32), collate_fn=keys.collate, num_workers=2)
    seen = set()
    for batch in loader:
        assert set(batch.inputs) == {"ids", "features", "attention_mask"}
        for place, row in enumerate(batch.rows.tolist()):
            own = batch.inputs["attention_mask"][place].bool()
            assert batch.inputs["ids"][place][own].tolist() == rows[row].tolist()
            assert not batch.inputs["ids"][place][~own].any()
            seen.add(row)
    assert len(seen) == ROWS
    items = [(3, 0), (1, 0), (50, 0)]
    joined = Keys.collate([keys[item] for item in items])
    at_once = keys.__getitems__(items)
    assert all(torch.equal(joined.inputs[name], at_once.inputs[name]) for name in at_once.inputs)


def test_functions_get_a_list_of_rows_some_of_which_may_be_empty(both: str, here: Path) -> None:
    offsets = np.load("text/train_ids_offsets.npy")
    offsets[5:9], offsets[-2] = offsets[5], offsets[-1]
    np.save("text/train_ids_offsets.npy", offsets)
    ids = np.load("text/train_ids.npy")
    dump("models.py:named", dataset=both, **DUMP)
    column, rows = Cache("cache").column("logits"), np.split(ids, offsets[1:-1])
    assert verify("cache", teacher="models.py:named", dataset=both).ok
    features = np.load("text/train_features.npy")
    wanted = np.array([[len(ids), ids.sum(), row.sum()] for ids, row in zip(rows, features, strict=True)], np.float32)
    assert np.allclose(column.decode(column.gather(0, np.arange(ROWS))).numpy(), wanted, rtol=1e-6)
    for name in ("train_features", "test_features"):
        (here / "text" / f"{name}.npy").unlink()
    dump("models.py:counts", dataset=both, **{**DUMP, "out": "counts"})
    column = Cache("counts").column("logits")
    wanted = np.array([[(row % 3 == k).sum() for k in range(3)] for row in rows], np.float32)
    assert np.array_equal(column.decode(column.gather(0, np.arange(ROWS))).numpy(), wanted)


def test_several_floating_inputs_are_as_they_are_and_one_is_standardized(both: str, here: Path) -> None:
    features = np.load("text/train_features.npy").astype(np.float64)
    assert np.allclose(open_samples(both, "train").statistics, (features.mean(0), features.std(0)))
    for split in ("train", "test"):
        np.save(here / "text" / f"{split}_more.npy", np.ones((ROWS, 2), np.float32))
    assert open_samples(both, "train").statistics == ((0.0,), (1.0,))


def test_what_a_network_has_no_parameters_for_is_refused(both: str, here: Path) -> None:
    with pytest.raises(ModelError, match=r"takes features, positions, the data has features, ids: call the parameters"):
        dump("models.py:other", teacher_weights=saved(here, "models.py:other"), dataset=both, **DUMP)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids_offsets", lambda a: a + 1, r"offsets go from 1 to \d+, the values from 0 to \d+"),
        ("ids_offsets", lambda a: a.astype(float), "offsets are whole numbers"),
        ("ids_offsets", lambda a: a[:-1], r"offsets go from 0 to \d+, the values from 0 to \d+"),
        ("ids_offsets", lambda a: np.concatenate([a[:3], a[4:2:-1], a[5:]]), "row 3 ends before it begins"),
        ("attention_mask", lambda a: np.ones((ROWS, 19)), "an input is called attention_mask, which is what softcache"),
        ("more_offsets", lambda a: np.arange(3), "has train_more_offsets and no train_more"),
    ],
)
def test_rows_that_can_not_be(text: str, here: Path, name: str, change: Any, message: str) -> None:
    path = here / "text" / f"train_{name}.npy"
    np.save(path, change(np.load(path) if path.exists() else None))
    with pytest.raises(DatasetError, match=message):
        open_viewed(text, "train")


def test_a_split_must_have_the_inputs_of_the_train_split(both: str, here: Path) -> None:
    np.save(here / "text" / "test_features.npy", np.ones((ROWS, 3), np.float32))
    with pytest.raises(DatasetError, match="train_features is 4 float32, test_features 3 float32"):
        open_samples(both, "test")
    (here / "text" / "test_features.npy").unlink()
    with pytest.raises(DatasetError, match="train has features, ids, test has ids"):
        open_samples(both, "test")


def test_names_of_masks_follow_from_names_alone(text: str, here: Path) -> None:
    """Whatever lengths rows happen to have in a split, a network gets the masks that it learnt with."""
    for split, lengths in (("train", [1, 2]), ("test", [2, 2])):
        for name, counts in (("a", lengths), ("b", [2, 2])):
            np.save(here / "text" / f"{split}_{name}.npy", np.arange(sum(counts)))
            np.save(here / "text" / f"{split}_{name}_offsets.npy", np.cumsum([0, *counts]))
        np.save(here / "text" / f"{split}_labels.npy", np.array([0, 1]))
        for name in ("ids", "ids_offsets"):
            (here / "text" / f"{split}_{name}.npy").unlink()
        assert open_viewed(text, split).batch([0, 1], 0).masks == {"attention_mask": "a", "b_mask": "b"}
    assert mask_names(["token_type_ids", "input_ids"]) == {"attention_mask": "input_ids"}
    values = {"input_ids": values_of([[1, 2], [3]], "x"), "token_type_ids": values_of([[0, 0], [0, 0]], "x")}
    with pytest.raises(DatasetError, match="row 1 has 2 places of token_type_ids and 1 of input_ids"):
        masks_of(values)


def test_a_training_that_is_killed_goes_on(both: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump("models.py:both", teacher_weights=saved(here, "models.py:both"), dataset=both, **DUMP)
    options = {**STUDENT, "student": "models.py:both", "epochs": 3, "cache": "cache", "dataset": both}
    train(**options, out="whole")
    saving = softcache.training.learner.save_checkpoint

    def dying(folder: Path, state: dict[str, Any]) -> None:
        saving(folder, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(softcache.training.learner, "save_checkpoint", dying)
        with pytest.raises(KeyboardInterrupt):
            train(**options, out="killed")
    train(resume="killed")
    whole, resumed = weights(Path("whole")), weights(Path("killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_parameters_that_the_data_has_nothing_for_are_named(text: str, here: Path) -> None:
    (here / "more.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self, num_classes=3):\n"
        "        super().__init__(4, 3)\n\n    def forward(self, ids, mask):\n        return ids\n"
    )
    with pytest.raises(ModelError, match="needs mask too, the data has ids, attention_mask: call the parameters"):
        train(**{**STUDENT, "student": "more.py:Net"}, alpha=0, dataset=text, out="run")


def test_noise_and_mixup_of_floating_numbers(both: str) -> None:
    samples = open_samples(both, "train")
    del samples.values["ids"]
    plain = ViewedFields(samples)
    rows = np.arange(ROWS)
    clean = plain.batch(rows, 0).tensors["features"].numpy()
    noisy = ViewedFields(samples, "noise:std=0.5", seed=7)
    first, second = (noisy.batch(rows, view).tensors["features"].numpy() for view in (0, 1))
    for view in (first, second):
        assert abs((view - clean).mean()) < 0.05
        assert abs((view - clean).std() - 0.5) < 0.02
    assert not np.array_equal(first, second)
    assert np.array_equal(noisy.batch(rows[::-3], 0).tensors["features"].numpy(), first[::-3]), "whatever the batch"
    mixed = ViewedFields(samples, "noise:std=0.5+mixup:alpha=1", seed=7)
    partners, share = mixed.mixing(rows, 1) or (rows, rows)
    made = mixed.batch(rows, 1).tensors["features"].numpy()
    wanted = share[:, None] * second + (1 - share[:, None]) * second[partners]
    assert np.allclose(made, wanted, atol=1e-6)
    assert (partners != rows).all()


def test_views_that_inputs_can_not_have_are_refused(both: str) -> None:
    with pytest.raises(UsageError, match="mixup': ids is L int64, and only floating numbers can be mixed"):
        open_viewed(both, "train", augment="mixup")
    samples = open_samples(both, "train")
    del samples.values["features"]
    with pytest.raises(UsageError, match="noise' changes floating numbers of a fixed shape, and there are none: ids L"):
        ViewedFields(samples, "noise")


OWN = """
import numpy as np


def drop():
    def change(sample):
        sample["ids"][np.random.random(len(sample["ids"])) < 0.5] = 0
        return sample

    return change


def shorter():
    return lambda sample: {**sample, "ids": sample["ids"][1:]}
"""


def test_a_function_of_ones_own_makes_views(both: str, here: Path) -> None:
    (here / "own.py").write_text(OWN)
    viewed = open_viewed(both, "train", augment="own.py:drop", view_seed=3)
    assert isinstance(viewed, ViewedFields)
    rows = np.arange(1, 40)
    made, again, other = viewed.batch(rows, 0), viewed.batch(rows, 0), viewed.batch(rows, 1)
    clean = viewed.clean(rows)
    assert torch.equal(made.tensors["ids"], again.tensors["ids"])
    assert not torch.equal(made.tensors["ids"], other.tensors["ids"])
    gone = (made.tensors["ids"] != clean.tensors["ids"]) & clean.mask("ids")
    assert 0.4 < gone.sum() / (clean.tensors["ids"] > 0).sum() < 0.6
    assert not made.tensors["ids"][gone].any()
    assert torch.equal(made.tensors["features"], clean.tensors["features"])
    with pytest.raises(DatasetError, match=r"must give .*ids int64 \(\d+,\), gave .*ids int64 \(\d+,\)"):
        open_viewed(both, "train", augment="own.py:shorter").batch(rows, 0)


def test_a_noisy_table_is_trained_on_and_checked(both: str, here: Path) -> None:
    for name in ("train_ids", "test_ids", "train_ids_offsets", "test_ids_offsets"):
        (here / "text" / f"{name}.npy").unlink()
    (here / "line.py").write_text(
        "from torch import nn\n\n\ndef make(num_classes=3):\n    return nn.Linear(4, num_classes)\n"
    )
    file = saved(here, "line.py:make")
    for augment in ("noise:std=0.3", "mixup"):
        out = f"cache-{augment[:5]}"
        dump("line.py:make", teacher_weights=file, dataset=both, **{**DUMP, "out": out}, augment=augment, views=3)
        options = {**STUDENT, "student": "line.py:make", "dataset": both}
        train(**options, cache=out, out=f"{out}-cached")
        live = {"online": True, "teacher": "line.py:make", "teacher_weights": file, "views": 3, "augment": augment}
        train(**options, **live, out=f"{out}-live")
        cached, online = (weights(Path(f"{out}-{how}")) for how in ("cached", "live"))
        assert all(torch.equal(cached[name], online[name]) for name in cached), augment


SETS = """
import numpy as np


class Items:
    classes = ["even", "odd"]

    def __init__(self, rows, keys):
        self.rows, self.keys = rows, keys

    def __len__(self):
        return self.rows

    def __getitem__(self, k):
        if not 0 <= k < self.rows:
            raise IndexError(k)
        row = {"ids": list(range(k % 4)), "wave": np.ones(k % 3 + 1), "more": np.full(2, float(k)), "label": k % 2}
        return {name: row[name] for name in self.keys}


def items(split):
    return Items(9 if split == "train" else 4, ["ids", "wave", "more", "label"])


def one(split):
    return Items(9 if split == "train" else 4, ["more", "label"])


def arrays(split):
    rows = items(split)
    made = {name: [rows[k][name] for k in range(len(rows))] for name in ("ids", "wave")}
    return {**made, "more": np.stack([r["more"] for r in rows]), "labels": [r["label"] for r in rows]}


def odd(split):
    return {"ids": [[1, 2], [1.5]], "labels": [0, 1]}


def empty(split):
    return {"labels": [0, 1]}


def nested(split):
    return {"ids": [[1, [2]], [3]]}


def number(split):
    return {"ids": 5}


def wider(split):
    return {"x": np.ones((4, 2 if split == "train" else 3)), "labels": [0, 1, 0, 1]}
"""


def test_dictionaries_of_ones_own_code_are_inputs(here: Path) -> None:
    (here / "sets.py").write_text(SETS)
    for name in ("items", "arrays"):
        samples = open_samples(f"sets.py:{name}", "train")
        assert {name: str(held.field) for name, held in samples.values.items()} == {
            "ids": "L int64", "more": "2 float64", "wave": "L float64",
        }  # fmt: skip
        viewed = ViewedFields(samples)
        assert [row.tolist() for row in viewed.batch([5, 2], 0).arrays()["ids"]] == [[0], [0, 1]]
        assert viewed.batch([5, 2], 0).masks == {"attention_mask": "ids", "wave_mask": "wave"}
        assert samples.labels.tolist() == [k % 2 for k in range(9)]
    assert open_samples("sets.py:items", "train").classes == ("even", "odd")
    train, test = (open_samples("sets.py:one", split) for split in ("train", "test"))
    assert train.statistics == test.statistics
    assert np.allclose(train.statistics, ((4.0, 4.0), (np.std(range(9)),) * 2))
    with pytest.raises(DatasetError, match=r"row 1 is float64 \(1,\), another int64 \(2,\)"):
        open_samples("sets.py:odd", "train")
    for name in ("nested", "number"):
        with pytest.raises(DatasetError, match=r"sets\.py:\w+: ids: expected an array, or a list of rows of numbers"):
            open_samples(f"sets.py:{name}", "train")
    with pytest.raises(DatasetError, match="train_x is 2 float64, test_x 3 float64"):
        open_samples("sets.py:wider", "test")
    with pytest.raises(DatasetError, match="gives no inputs: found labels"):
        open_samples("sets.py:empty", "train")


def test_parts_of_fields_keep_their_lengths() -> None:
    fields = Fields({"ids": torch.arange(6).view(2, 3)}, {"ids": torch.tensor([3, 1])}, {"attention_mask": "ids"})
    assert fields[1:].named()["attention_mask"].tolist() == [[1, 0, 0]]
    assert [row.tolist() for row in fields[torch.tensor([1, 0])].arrays()["ids"]] == [[3], [0, 1, 2]]


def test_lengths_that_no_rows_can_have_are_found_by_verify(text: str, here: Path) -> None:
    dump("models.py:counts", dataset=text, **DUMP)
    cache = Cache("cache")
    labels, lengths = cache.labels, cache.lengths("ids")
    attributes = cache.file_attributes("rows")
    for wrong, damaged in ((-lengths, "rows.h5"), (lengths + 1, "samples.h5"), (lengths * 2**58, "rows.h5")):
        (here / "cache" / "rows.h5").unlink()
        write_shard(here / "cache" / "rows.h5", attributes, {"label": labels, "length/ids": wrong})
        found = verify("cache")
        assert [damage.file for damage in found.damaged] == [damaged]
    (here / "cache" / "rows.h5").unlink()
    write_shard(here / "cache" / "rows.h5", attributes, {"label": labels, "length/ids": lengths})
    assert verify("cache").ok


def test_what_rows_were_filled_up_with_belongs_to_the_inputs(text: str) -> None:
    dump("models.py:counts", dataset=text, **DUMP)
    viewed = open_viewed(text, "train")
    check_dataset(Cache("cache"), viewed)
    viewed.samples.values["ids"].pad = 3
    with pytest.raises(CacheError, match=r"with inputs ids L int64, .* has ids L int64 filled up with 3"):
        check_dataset(Cache("cache"), ViewedFields(viewed.samples))
