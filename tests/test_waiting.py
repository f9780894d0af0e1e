"""How long the teacher waits for the disk: what is measured, and what is said about it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_cache import identity, kept_nothing

from softcache import registry
from softcache.cache.column import Column
from softcache.cache.schema import LOGITS, ColumnRecord
from softcache.cache.writer import BlockWriter, create_or_extend, plan
from softcache.codecs._open import open_codec
from softcache.dumping import waiting
from softcache.dumping.forward import Forward
from softcache.dumping.pipeline import run_blocks
from softcache.dumping.smaller import advice, cure, smaller_codecs
from softcache.dumping.waiting import Recently, Waited
from softcache.dumping.write_behind import WriteBehind
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.views._open import open_viewed

VIEWS, SLOW_S, TEACHER_S = 2, 0.05, 0.02  # a batch
TOLERANCE = 0.1  # of a share, as machines of tests have much else to do


class Notes:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def advance(self, count: int, note: str = "") -> None:
        self.notes.append(note)


class Steady(Forward):
    """Takes the same time for each batch."""

    def __call__(self, pixels):
        time.sleep(TEACHER_S)
        return {LOGITS: torch.zeros(len(pixels), 10)}


def column(shape: list[int], codec: str, name: str = LOGITS, kind: str = "values") -> Column:
    return Column.of(name, ColumnRecord(kind, list(shape), codec, 64), open_codec(codec))


def slow_disk(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Each batch takes so long to be written."""
    write = BlockWriter.write

    def slowly(self: BlockWriter, *given: Any) -> None:
        time.sleep(seconds)
        write(self, *given)

    monkeypatch.setattr(BlockWriter, "write", slowly)


def run(folder: Path, notes: Notes) -> Waited:
    viewed = open_viewed("digits", "train", size=8, augment="crop:pad=1")
    cache = create_or_extend(
        folder, identity(len(viewed), 512, viewed.identity()), views=VIEWS,
        columns={LOGITS: ColumnRecord("classes", [10], "fp32", 512)}, made={}, class_names=viewed.samples.classes,
        labels=viewed.samples.labels, names=None, samples=kept_nothing(8),
    )  # fmt: skip
    network = open_network("cifar:resnet8", classes=10, statistics=viewed.samples.statistics, seed=0).eval()
    forward = Steady(network, [LOGITS], torch.device("cpu"))
    return run_blocks(cache, viewed, forward, plan(cache, VIEWS, [LOGITS]), workers=0, progress=notes)


def test_the_share_is_what_a_slow_disk_adds_to_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SOON_S", 0.5)
    quick, notes = Notes(), Notes()
    undisturbed = run(tmp_path / "quick", quick)
    slow_disk(monkeypatch, SLOW_S)
    found = run(tmp_path / "slow", notes)
    assert found.written == undisturbed.written == VIEWS * len(open_viewed("digits", "train")) * (10 * 4 + 4)
    own = undisturbed.spent - undisturbed.waited  # the teacher's time is the same
    assert found.share == pytest.approx(1 - own / found.spent, abs=TOLERANCE)
    batches = VIEWS * 23
    assert found.spent == pytest.approx(batches * SLOW_S, rel=0.3)
    assert any(notes.notes)
    assert all(note.endswith("of the time waiting for the disk)") for note in notes.notes if note)
    said = [int(note[1:].partition("%")[0]) / 100 for note in notes.notes if note]
    assert said[-1] == pytest.approx(found.share, abs=0.2)  # which also counts the time after the last batch


def test_a_device_that_is_still_at_work_does_not_wait() -> None:
    """The queue of a GPU's batches is always full: they are handed over before they are computed."""
    behind = WriteBehind[int](lambda item: time.sleep(0.02), 1)
    ready = time.monotonic() + 0.3
    for item in range(20):
        behind.put(item, lambda: time.monotonic() > ready)
    behind.close()
    assert behind.waited == pytest.approx(20 * 0.02 - 0.3, abs=0.06)


def test_the_last_while_is_what_a_dump_says() -> None:
    recently, said = Recently(100.0), []
    for second in range(1, 121):
        waited = max(0.0, 0.5 * (second - 60))  # a disk that becomes slow after a minute
        said.append(recently.note(100.0 + second, waited))
    assert not any(said[:66])
    assert said[66] == "(12% of the time waiting for the disk)"  # 3.5 of 30 seconds
    assert said[119] == "(50% of the time waiting for the disk)"


def test_what_is_not_worth_a_word() -> None:
    assert not Waited(1.9, 10.0, 1).notable
    assert not Waited(9.0, 100.0, 1).notable
    assert not Waited().notable
    assert Waited(20.0, 100.0, 1).notable
    both = Waited(20.0, 100.0, 5) + Waited(0.0, 100.0, 6)
    assert (both.share, both.written) == (0.1, 11)


def test_smaller_codecs_are_those_of_the_registry_by_computed_bytes() -> None:
    bytes_of = {choice.codec: choice.key_bytes for choice in smaller_codecs(column([1000], "fp32"), 64)}
    assert {"fp16": 2004, "bf16": 2004, "int8": 1004}.items() <= bytes_of.items()
    assert "fp32" not in bytes_of
    assert list(bytes_of.values()) == sorted(bytes_of.values(), reverse=True)
    assert not {"fp16", "bf16", "fp32"} & {choice.codec for choice in smaller_codecs(column([1000], "fp16"), 64)}
    ragged = Column.of("tags", ColumnRecord("classes", [None, 5], "fp32", 64, "ids"), open_codec("fp32"))
    found = {choice.codec: choice.key_bytes for choice in smaller_codecs(ragged, 10, 70)}
    assert found["fp16"] == round((70 * 5 * 2 + 11 * 8 + 10 * 4) / 10)


def test_the_cure_is_one_column_all_columns_or_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "names", lambda kind: ("fp16", "fp32", "int8"))
    hint, logits = column([64, 8, 8], "fp16", "hint.layer3"), column([1000], "fp32")
    total = 8196 + 4004
    int8 = "hint.layer3 in int8 (4,100 bytes in place of 8,196)"
    assert cure([hint, logits], 64, {}, total - 4096) == f"enough would be {int8}"
    both = f"{int8} and logits in int8 (1,004 bytes in place of 4,004)"
    assert cure([hint, logits], 64, {}, 5104) == f"enough would be {both} together"
    assert cure([hint, logits], 64, {}, 5103).startswith(f"{both} would be 5,104, which is still too much")
    assert "fp16 (2,004" in cure([logits], 64, {}, 2004)
    assert cure([column([1000], "int8")], 64, {}, 100).startswith("no codec keeps less")
    told = advice(Waited(40.0, 100.0, 118_000_000 * 100), [logits], 64, {})
    assert told.startswith("the teacher waited for the disk 40% of the time, at 118.0 MB/s a process")
    assert "2,402 of the 4,004 bytes a key" in told


def test_a_dump_to_a_slow_disk_says_what_would_be_enough(
    here: Path, small_teacher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = small_teacher("teacher")
    caplog.set_level(logging.INFO, "softcache")
    dump(teacher, out="quick", views=1, size=8, workers=0)
    assert "waited for the disk" not in caplog.text
    monkeypatch.setattr(waiting, "LEAST_S", 0.3)
    slow_disk(monkeypatch, 0.1)
    dump(teacher, out="slow", views=1, size=8, workers=0, codec="fp32")
    said = [record.getMessage() for record in caplog.records if "waited for the disk" in record.getMessage()]
    assert len(said) == 1
    assert "of the 44 bytes a key" in said[0]
    assert "bytes in place of 44)" in said[0]
