"""``softcache trim``: what is taken away is gone, what stays is the same bytes, and no kill loses anything."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from harness_dump import DIE_AT_STEP, HINTS, SHARD_ROWS, Setting, Warm, shards
from harness_train import command

from softcache.cache.description import describe
from softcache.cache.locks import writing
from softcache.cache.reader import Cache
from softcache.stages.verify import verify

STEPS = (1, 2, 4, 6, 10, 20, 30, 34, 36, 38)  # of some 40: cache.h5 goes, the manifest, shards, folders, cache.h5 again


@pytest.fixture(scope="module")
def whole(setting: Setting, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three views with two hints."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    assert warm.run(setting.command(folder)).status == 0
    return folder


@pytest.fixture
def cache(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "cache"))


def kept(found: dict[str, str], views: int, dropped: str) -> dict[str, str]:
    """Of all shards, those of the first views but not of a hint."""
    gone = {f"view-{view:04d}" for view in range(views, 3)}
    return {k: v for k, v in found.items() if k.split("/")[0] not in gone and f"/hint.{dropped}-" not in k}


def test_views_and_hints_go_and_the_rest_stays_byte_for_byte(cache: Path, capsys: pytest.CaptureFixture) -> None:
    before, size = shards(cache), sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    gone = {k: (cache / k).stat().st_size for k in before.keys() - kept(before, 2, HINTS[0]).keys()}
    assert len(gone) == 3 * 5 + 2 * 5  # a whole view of three columns, and a hint in two views
    assert command("trim", cache, "--views", "2", "--drop-hint", HINTS[0], "--json") == 0
    said = json.loads(capsys.readouterr().out)
    columns = ["logits", f"hint.{HINTS[1]}"]
    assert (said["views"], said["columns"], said["bytes"]) == (2, columns, sum(gone.values()))
    assert sorted(said["files"]) == sorted(gone)
    assert shards(cache) == kept(before, 2, HINTS[0])
    assert not (cache / "view-0002").exists()
    after = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert size - after >= sum(gone.values())
    found = verify(cache)
    assert found.ok
    assert found.foreign == []
    assert describe(Cache(cache))["complete"]


def test_what_was_trimmed_is_dumped_again_to_the_same_bytes(
    cache: Path, whole: Path, setting: Setting, warm: Warm
) -> None:
    assert command("trim", cache, "--views", "1", "--drop-hint", HINTS[1]) == 0
    assert warm.run(setting.command(cache)).status == 0
    assert shards(cache) == shards(whole)
    for name in ("cache.h5",):
        assert (cache / name).read_bytes() == (whole / name).read_bytes()


def test_a_dry_run_says_the_same_and_changes_nothing(cache: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert command("trim", cache, "--views", "2", "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before
    assert command("trim", cache, "--views", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out) == planned


@pytest.mark.parametrize(
    "step", [k if k in STEPS else pytest.param(k, marks=pytest.mark.torture) for k in range(1, 50)]
)
def test_killed_before_any_step_the_cache_is_valid_and_trim_or_dump_completes_it(
    cache: Path, setting: Setting, warm: Warm, whole: Path, step: int, tmp_path: Path
) -> None:
    command_line = ["trim", str(cache), "--views", "2", "--drop-hint", HINTS[0]]
    ended = warm.run(command_line, prepare=DIE_AT_STEP.format(step=step))
    assert ended.status in (0, -9), ended.output
    opened, before = Cache(cache), shards(whole)
    assert not opened.missing(opened.manifest.columns, opened.views), "what the manifest says is there"
    found = verify(cache)
    assert not found.damaged
    assert not found.missing
    for view in range(opened.views):  # and can be read
        for column in opened.manifest.columns:
            opened.column(column).gather(view, np.arange(opened.rows))
    other = Path(shutil.copytree(cache, tmp_path / "other", symlinks=True))
    again = warm.run(command_line)
    assert (again.status == 0) or "has no hint" in again.output, again.output
    assert shards(cache) == kept(before, 2, HINTS[0])
    assert sorted(path.name for path in cache.iterdir()) == [
        *("cache.h5", "cache.json", "rows.h5", "samples.h5"),
        *("view-0000", "view-0001"),
    ]
    # The hint is asked for in another dtype: what the trim has left of it doesn't fit and is not taken for it.
    dump = warm.run(setting.command(other, "--views", "3", base=True))
    assert dump.status == 0, dump.output
    if HINTS[0] not in Cache(other).manifest.hints:
        hint = ["--hint", f"{HINTS[0]}:codec=fp32"]
        assert warm.run(setting.command(other, "--views", "3", *hint, base=True)).status == 0
        assert Cache(other).manifest.state.columns[f"hint.{HINTS[0]}"].codec == "fp32"
    assert verify(other).ok
    logits = {k: v for k, v in before.items() if "/logits-" in k}
    assert {k: v for k, v in shards(other).items() if "/logits-" in k} == logits


def test_it_is_refused_while_a_dump_is_at_work(cache: Path, capsys: pytest.CaptureFixture) -> None:
    before = shards(cache)
    for part in ((1, 1), (2, 4)):
        with writing(cache, part):
            assert command("trim", cache, "--views", "1") == 1
            assert "is being written by process" in capsys.readouterr().err
    assert shards(cache) == before


def test_links_are_not_followed(cache: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A view's folder that leads to another cache is refused; of a shard that is a link the link goes."""
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    before = shards(other)
    shutil.rmtree(cache / "view-0002")
    (cache / "view-0002").symlink_to(other / "view-0002")
    manifest = (cache / "cache.json").read_bytes()
    assert command("trim", cache, "--views", "2") == 1
    assert "is a link" in capsys.readouterr().err
    assert (cache / "cache.json").read_bytes() == manifest
    (cache / "view-0002").unlink()
    (cache / "view-0001/logits-00000.h5").unlink()
    (cache / "view-0001/logits-00000.h5").symlink_to(other / "view-0001/logits-00000.h5")
    assert command("trim", cache, "--views", "1") == 0
    assert shards(other) == before
    assert not os.path.lexists(cache / "view-0001")


def test_other_files_stay(cache: Path) -> None:
    (cache / "view-0002/notes.txt").write_text("mine")
    assert command("trim", cache, "--views", "1") == 0
    assert [str(path.relative_to(cache)) for path in cache.glob("view-*/*.txt")] == ["view-0002/notes.txt"]
    assert not (cache / "view-0001").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to take away"),
        (["--views", "0"], "must be at least 1"),
        (["--views", "4"], "has 3 views, and trim only takes away"),
        (["--drop-hint", "layer9"], "has no hint 'layer9': it has logits, hint.body.2, hint.head:in"),
    ],
)
def test_what_can_not_be_taken_away(
    cache: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    before = shards(cache)
    assert command("trim", cache, *arguments) == 2
    assert said in capsys.readouterr().err
    assert shards(cache) == before


def test_a_dump_of_fewer_views_names_the_view_that_is_incomplete(
    cache: Path, setting: Setting, capsys: pytest.CaptureFixture
) -> None:
    """A view was deleted by hand: nothing that was asked for is missing, and running it again would not help."""
    shutil.rmtree(cache / "view-0002")
    dump = setting.command(cache, "--views", "2", base=True)
    assert command(*dump) == 0
    said = capsys.readouterr().out
    assert "all of it was there" in said
    assert "view 2 is incomplete" in said
    assert f"softcache trim {cache} --views 2" in said
    assert "--views 3" in said
    assert "run it again" not in said
    assert command("trim", cache, "--views", "2") == 0
    capsys.readouterr()
    assert command(*dump) == 0
    assert "incomplete" not in capsys.readouterr().out
    assert len(shards(cache)) == 2 * 3 * (300 // SHARD_ROWS + 1) + 2
