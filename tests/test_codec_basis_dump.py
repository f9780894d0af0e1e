"""The codec ``basis`` in a dump: options that column or values decide, places, a teacher that runs again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from harness_dump import DIE_AT_STEP, Setting, Warm, shards
from harness_ragged import asked, make_place
from harness_train import command

from softcache.cache.reader import Cache
from softcache.codecs._open import settled_codec
from softcache.errors import UsageError
from softcache.stages.dump import dump
from softcache.stages.verify import verify

TEACHER = """
import numpy as np

rng = np.random.default_rng(0)
first, second = rng.standard_normal((6, 30)), rng.standard_normal((30, 40))


def make(num_classes=40):
    def answer(features):
        hidden = np.maximum(features @ first, 0)
        return {"logits": (hidden @ second).astype(np.float32), "hidden": hidden.astype(np.float32)}

    return answer
"""


@pytest.fixture
def place(here: Path) -> list[str]:
    (here / "mixed.py").write_text(TEACHER)
    features = np.random.default_rng(1).standard_normal((400, 6)).astype(np.float32)
    np.savez(here / "data.npz", train_features=features, train_labels=np.arange(400) % 40)
    return ["-q", "dump", "--teacher", "mixed.py:make", "--dataset", f"arrays:{here}/data.npz", "--device", "cpu"]


def codecs(folder: str) -> dict[str, str]:
    return {name: record.codec for name, record in Cache(Path(folder)).manifest.state.columns.items()}


def test_options_are_settled_by_the_kind_of_a_column(place: list[str]) -> None:
    outputs = ("--output", "logits:codec=basis:bytes=24", "--output", "hidden:codec=basis:bytes=20")
    assert command(*place, "--out", "cache", *outputs) == 0
    assert codecs("cache") == {"hidden": "basis:bytes=20,top=0", "logits": "basis:bytes=24,top=1"}
    error = Cache(Path("cache")).manifest.state.columns["hidden"].error
    assert error["cosine"] > 0.98
    assert verify("cache").ok
    assert command("-q", "verify", "cache", "--teacher", "mixed.py:make") == 0
    before = shards(Path("cache"))
    assert command(*place, "--out", "cache", *outputs) == 0  # what is asked for is there
    assert command(*place, "--out", "cache", "--output", "logits:codec=basis") == 0
    assert shards(Path("cache")) == before
    assert command(*place, "--out", "cache", "--output", "logits:codec=basis:bytes=25") == 1


def test_leaders_of_what_are_no_classes_are_refused(place: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert command(*place, "--out", "cache", "--output", "hidden:codec=basis:bytes=20,top=2") == 2
    assert "top=2 is for columns of classes, this one is of values: leave it out" in capfd.readouterr().err


def test_the_size_is_settled_by_what_the_teacher_says(place: list[str]) -> None:
    asking = (*place, "--out", "cache", "--codec", "basis:max_kl=0.02")
    assert command(*asking) == 0
    found = codecs("cache")["logits"]
    assert found.startswith("basis:bytes=")
    assert found.endswith(",max_kl=0.02")
    record = Cache(Path("cache")).manifest.state.columns["logits"]
    assert 0.004 < record.error["kl_mean_T1"] < 0.02
    lost = Path("cache/column-logits.h5")
    before, content = shards(Path("cache")), lost.read_bytes()
    lost.unlink()
    assert command(*asking) == 0
    assert lost.read_bytes() == content
    assert shards(Path("cache")) == before
    assert verify("cache").ok


def test_killed_and_divided_dumps_equal_an_undisturbed_one(setting: Setting, warm: Warm, tmp_path: Path) -> None:
    codec = ("--codec", "basis:bytes=6")
    assert warm.run(setting.command(tmp_path / "whole", *codec)).status == 0
    killed = setting.command(tmp_path / "killed", *codec)
    for step in (11, 40):
        assert warm.run(killed, prepare=DIE_AT_STEP.format(step=step)).status in (-9, 0)
    assert warm.run(killed).status == 0
    for part in (1, 2):
        assert warm.run(setting.command(tmp_path / "parts", *codec, "--part", f"{part}/2")).status == 0
    assert shards(tmp_path / "killed") == shards(tmp_path / "parts") == shards(tmp_path / "whole")


def test_places_of_rows_that_have_lengths_of_their_own(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    dump(**asked(place, tmp_path / "small", output=("states:codec=basis:bytes=8", "logits:codec=basis:bytes=9")))
    dump(**asked(place, tmp_path / "exact", output=("states", "logits"), codec="fp32"))
    for column in ("states", "logits"):
        ours, theirs = (Cache(tmp_path / name).column(column) for name in ("small", "exact"))
        values, wanted = (reader.decode(reader.gather(0, np.arange(ours.cache.rows))) for reader in (ours, theirs))
        assert values.shape == wanted.shape
        assert float((values - wanted).norm()) < 0.1 * float((wanted - wanted.mean(0)).norm())
    assert verify(tmp_path / "small").ok


def test_single_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="single numbers have no directions"):
        settled_codec("basis", "values", ())
