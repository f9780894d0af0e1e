"""How benchmarks count: pairs, targets, tables. The figures themselves are no test's business."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure", ROOT / "benchmarks" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["measure"]


def test_all_sides_take_turns_and_the_first_round_is_thrown_away(measure) -> None:
    order: list[str] = []

    def side(name: str, seconds: float):
        def run() -> float:
            order.append(name)
            return seconds if len(order) > 3 else 1000.0

        return run

    taken = measure.paired({"a": side("a", 1.0), "b": side("b", 2.0), "c": side("c", 3.0)}, 3)
    assert taken == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}
    rounds = ["".join(order[k : k + 3]) for k in range(0, 12, 3)]
    assert rounds == ["abc", "bca", "cab", "abc"]


def test_ratios_are_taken_within_a_repetition(measure) -> None:
    # the machine gets twice as slow after the first repetition: each pair sees the same machine
    line = measure.ratio("x", [1.0, 2.2, 2.0], [1.0, 2.0, 2.0], "≤ 1.05")
    assert (line.median, line.low, line.high) == (1.0, 1.0, 1.1)
    assert line.met == "yes"


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [(1.03, "≤ 1.03", "yes"), (1.04, "≤ 1.03", "no"), (0.9, "≥ 0.9", "yes"), (0.89, "≥ 0.9", "no"), (5.0, "", "")],
)
def test_a_missed_target_is_shown_as_missed(measure, value: float, target: str, met: str) -> None:
    assert measure.row("x", [value], target).met == met


def test_a_result_is_a_table_and_a_line_of_json(measure, capsys: pytest.CaptureFixture) -> None:
    measure.Result("some", "Title", [measure.row("x", [1.0, 2.0, 4.0], "≤ 1", "a note")]).show()
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[0] == "Title"
    assert printed[3].startswith("| x | 2.000 | 1.000 – 4.000 | ≤ 1 | no |")
    record = json.loads(printed[-1])
    assert record["rows"][0]["median"] == 2.0
    assert record["rows"][0]["met"] == "no"
    assert {"machine", "versions", "date"} <= record.keys()
