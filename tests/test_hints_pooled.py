"""``--hint layer1:pool=2``: maps that are kept as means over blocks of their positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness_train import SIZE, command, fit, lines, make_cache, make_teacher, same, weights

from softcache.cache.reader import Cache
from softcache.dumping.signals import parse_hint
from softcache.errors import SoftcacheError, UsageError
from softcache.stages.dump import dump
from softcache.stages.verify import verify

POOLED = "layer1:pool=2"
LOSS = {"hint": (f"fitnet:teacher={POOLED},student={POOLED},weight=1",), "alpha": "0", "beta": "1"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pooled")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=("layer1", POOLED), views=1)
    return folder


def test_a_cache_keeps_means_beside_or_in_place_of_maps(made: Path) -> None:
    cache, rows = Cache(made / "cache"), np.arange(0, 1000, 7)
    whole, pooled = (cache.column(f"hint.{layer}") for layer in ("layer1", POOLED))
    maps = whole.decode(whole.gather(0, rows))
    assert cache.manifest.state.columns[f"hint.{POOLED}"].shape == [6, 2, 2]
    torch.testing.assert_close(pooled.decode(pooled.gather(0, rows)), F.avg_pool2d(maps, 2))
    assert (made / "cache" / f"view-0000/hint.{POOLED.replace(':', '@')}-00000.h5").exists()
    assert verify(made / "cache", teacher=str(made / "teacher")).ok


def test_a_student_learns_from_them_as_from_a_live_teacher(made: Path, tmp_path: Path) -> None:
    """Its own layer is pooled in the same way. The teacher runs in float64, so that its batches don't show."""
    make_cache(tmp_path / "cache", made / "teacher", hint=(POOLED,), views=1, augment="none", dtype="float64")
    fit(tmp_path / "cached", cache=tmp_path / "cache", **LOSS)
    live = {"teacher": str(made / "teacher"), "online": True, "dtype": "float64", "augment": "none", "size": SIZE}
    fit(tmp_path / "online", views=1, **live, **LOSS)
    assert same(weights(tmp_path / "cached"), weights(tmp_path / "online"))
    losses = [line["loss"] for line in lines(tmp_path / "cached")]
    assert losses[-1] < losses[0]


def test_a_student_of_whole_maps_learns_from_pooled_ones(made: Path, tmp_path: Path) -> None:
    """Its regressor makes four positions of sixteen."""
    fit(tmp_path / "run", cache=made / "cache", hint=(f"fitnet:teacher={POOLED},student=layer1",), epochs=1)
    assert lines(tmp_path / "run")


def test_it_is_taken_away_by_its_name(made: Path, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", made / "teacher", hint=("layer1", POOLED), views=1)
    assert command("-q", "trim", tmp_path / "cache", "--drop-hint", POOLED) == 0
    assert Cache(tmp_path / "cache").manifest.columns == ["logits", "hint.layer1"]


def test_plan_counts_what_is_kept(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asking = ("--teacher", made / "teacher", "--output", "none", "--augment", "none", "--size", SIZE)
    assert command("plan", *asking, "--hint", f"{POOLED}:codec=fp32") == 0
    assert f"hint.{POOLED}" in (said := capsys.readouterr().out)
    assert "6×2×2 values in fp32: 100 bytes a key" in said  # 24 numbers and a digest


def test_maps_that_can_not_be_pooled_so_are_refused_and_leave_nothing(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SoftcacheError, match=r"layer 'layer1:pool=3' gives \(6, 4, 4\): maps .* multiples of 3"):
        dump(str(made / "teacher"), out=tmp_path / "cache", size=SIZE, hint=("layer1:pool=3",))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("spec", ["layer1:pool=0", "layer1:pool=2:pool=2", "layer1:pool=2:in", "layer1:pool=20000"])
def test_what_is_no_side_of_a_map_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=r"--hint|is not a module path"):
        parse_hint(spec)
