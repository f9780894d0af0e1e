"""The table of docs/codecs.md on what compression saves and costs; its figures are no test's business."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zstandard")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.compression import BEGIN, END, PAGE, measured


def test_the_table_of_the_page_has_a_line_for_each_setting(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((512, 100)).astype("<f2")
    lines = measured(tmp_path, "noise", values, 2**20, repetitions=1)
    assert [line.setting.partition(",")[0] for line in lines] == [
        "not compressed", "zstd:level=1", "zstd:level=3", "zstd:level=1", "zstd:level=1",
    ]  # fmt: skip
    assert lines[0].ratio == 1
    assert lines[1].ratio < lines[3].ratio <= 1  # sorted bytes are smaller
    assert all(min(line.written, line.blocks, line.shuffled) > 0 for line in lines)


def test_the_page_has_a_place_for_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert "| numbers | rows | setting |" in text.partition(BEGIN)[2].partition(END)[0]
