"""What codecs lose: measured on keys from everywhere, by each process on its own, and added up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness_ragged import asked, make_place
from hypothesis import given
from hypothesis import strategies as st

from softcache.cache.column import Column
from softcache.cache.reader import Cache
from softcache.codecs._open import open_codec
from softcache.dumping import codec_error
from softcache.dumping.codec_error import CodecError, Draw, Measured, picked
from softcache.ragged import offsets_of
from softcache.stages.dump import dump

ID = "5af3" * 16
ROWS, CLASSES = 600, 30
# Sorted by class: to the first half of the rows all classes are equal, so that nothing is lost of their logits.
SORTED = f"""
import numpy as np


def make(num_classes={CLASSES}):
    def answer(features):
        return np.where(features[:, :1] < {ROWS // 2}, np.float32(0), features[:, 1:])

    return answer
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sorted")
    values = np.random.default_rng(0).normal(0, 4, (ROWS, CLASSES)).astype(np.float32)
    for split in ("train", "test"):
        np.save(
            folder / f"{split}_features.npy", np.concatenate([np.arange(ROWS, dtype=np.float32)[:, None], values], 1)
        )
        np.save(folder / f"{split}_labels.npy", np.arange(ROWS) * CLASSES // ROWS)
    (folder / "sorted.py").write_text(SORTED)
    return folder


def dumped(place: Path, out: Path, codec: str = "int:bits=4", **more: Any) -> Cache:
    dump(
        f"{place / 'sorted.py'}:make", dataset=f"arrays:{place}", out=out, codec=codec, batch_size=50, shard_rows=64,
        device="cpu", workers=0, **more,
    )  # fmt: skip
    return Cache(out)


def divergences(place: Path, codec: str, T: float) -> torch.Tensor:
    """(ROWS,) KL from what is said to what is kept, computed without a cache."""
    features = torch.from_numpy(np.load(place / "train_features.npy"))
    said = torch.where(features[:, :1] < ROWS // 2, 0, features[:, 1:])
    coder = open_codec(codec).shaped((CLASSES,))
    kept = coder.encode(said)
    dense = coder.target(kept).at(T) if hasattr(coder, "target") else coder.decode(kept)
    p, q = F.log_softmax(said.double() / T, 1), F.log_softmax(dense.double() / T, 1)
    return (p.exp() * (p - q)).sum(1)


@pytest.mark.parametrize("codec", ["int:bits=4", "topk:k=5"])
def test_the_error_is_that_of_all_keys_at_each_temperature(codec: str, place: Path, tmp_path: Path) -> None:
    """Of ``topk`` with the tail as it is at this temperature: a loss sees no other."""
    error = dumped(place, tmp_path / "cache", codec).manifest.state.columns["logits"].error
    assert error["keys"] == ROWS
    for T in (1, 2, 4, 8):
        wanted = divergences(place, codec, T)
        assert error[f"kl_mean_T{T}"] == pytest.approx(float(wanted.mean()), rel=1e-4)
        assert error[f"kl_p99_T{T}"] == pytest.approx(float(wanted.quantile(0.99)), rel=1e-4)


def test_a_set_that_is_sorted_by_class_is_measured_everywhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first rows nothing is lost, which says nothing of the others."""
    monkeypatch.setattr(codec_error, "MEASURED_KEYS", 150)
    error = dumped(place, tmp_path / "cache").manifest.state.columns["logits"].error
    every = divergences(place, "int:bits=4", 1)
    assert float(every[:150].mean()) == 0
    assert 110 < error["keys"] < 190
    assert error["kl_mean_T1"] == pytest.approx(float(every.mean()), rel=0.3)


def test_parts_of_a_dump_add_up_to_the_whole(place: Path, tmp_path: Path) -> None:
    whole = dumped(place, tmp_path / "whole").manifest.state.columns["logits"].error
    for part in ((1, 3), (3, 3), (2, 3)):
        found = dumped(place, tmp_path / "parts", part=part).manifest.state.columns["logits"].error
    assert found["keys"] == whole["keys"] == ROWS
    for name in ("kl_mean_T1", "kl_mean_T8", "top1_agreement"):
        assert found[name] == pytest.approx(whole[name], rel=1e-9)


def test_keys_are_drawn_over_all_rows_and_views() -> None:
    column = Column("logits", "classes", (10,), open_codec("fp16"), 64)
    draw, rows = Draw(column, ID, 50_000 * 8), np.arange(50_000)
    drawn = [draw.among(view, rows) for view in range(8)]
    counts = [len(found) for found in drawn]
    assert 3800 < sum(counts) < 4400  # 4096 in the mean, 64 the deviation
    assert min(counts) > 400  # 512 in the mean
    assert np.bincount(np.concatenate(drawn) // 5000, minlength=10).min() > 320  # 410 in the mean
    assert not np.array_equal(drawn[0], drawn[1])
    # the same in any batches, and other ones in another cache
    batches = [first + draw.among(3, rows[first : first + 777]) for first in range(0, 50_000, 777)]
    assert np.array_equal(np.concatenate(batches), drawn[3])
    assert not np.array_equal(Draw(column, "cd" * 32, 400_000).among(0, rows), drawn[0])
    assert len(Draw(column, ID, 4096).among(0, rows)) == 50_000


def test_of_large_activations_fewer_keys_are_measured() -> None:
    rows = np.arange(100_000)
    maps = Draw(Column("hint.x", "values", (512, 512), open_codec("fp16"), 64), ID, 100_000)  # 2¹⁸ numbers
    assert 190 < len(maps.among(0, rows)) < 330  # 256 in the mean
    ragged = Draw(Column("x", "values", (512,), open_codec("fp16"), 64, lengths="ids"), ID, 100_000, places=512)
    assert np.array_equal(maps.among(0, rows), ragged.among(0, rows))
    assert len(Draw(Column("hint.x", "values", (2**26,), open_codec("fp16"), 1), ID, 100_000).among(0, rows)) > 3


def test_of_rows_with_lengths_the_drawn_ones_places_are_picked() -> None:
    places = np.array([2, 0, 3, 1])
    values = torch.arange(int(offsets_of(places)[-1]))
    assert picked(values, np.array([2, 3]), places).tolist() == [2, 3, 4, 5]
    assert picked(values, np.array([0, 1, 3]), places).tolist() == [0, 1, 5]
    assert picked(values, np.array([1]), places).tolist() == []


def test_a_ragged_column_is_measured_place_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_error, "MEASURED_KEYS", 30)
    make_place(tmp_path)
    dump(**asked(tmp_path, tmp_path / "cache", output=("logits", "tags:kind=classes:codec=topk:k=2")))
    error = Cache(tmp_path / "cache").manifest.state.columns["tags"].error
    assert 15 < error["keys"] < 45
    assert 0 < error["kl_mean_T1"] < 0.5


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 10)), min_size=1, max_size=30))
def test_what_several_have_measured_is_the_mean_over_all(said: list[tuple[int, float]]) -> None:
    """``said``: who measures one more key, and with which error; all tell it at once."""
    column, before = Measured({}, 0), [Measured({}, 0)] * 3
    sums = [(0, 0.0)] * 3
    for who, value in said:
        sums[who] = (sums[who][0] + 1, sums[who][1] + value)
        now = Measured({"kl": sums[who][1] / sums[who][0]}, sums[who][0])
        column, before[who] = column.changed(now, before[who]), now
    assert column.keys == len(said)
    assert column.error["kl"] == pytest.approx(sum(value for _, value in said) / len(said), abs=1e-9)


def test_a_column_that_was_taken_away_begins_anew() -> None:
    assert Measured({}, 0).changed(Measured({"kl": 2.0}, 9), Measured({"kl": 1.0}, 5)) == Measured({"kl": 2.0}, 9)


def test_rows_without_places_are_counted_and_measured_on_nothing() -> None:
    measure = CodecError(Column("x", "values", (3,), open_codec("fp16"), 64, lengths="ids"))
    measure(torch.zeros(0, 3), 4)
    assert measure.result() == Measured({}, 4)
