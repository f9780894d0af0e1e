"""``config.json`` of a run that somebody edited, or that comes from elsewhere: a line names the file and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_report import write_run
from harness_train import command, config

from softcache.config.record import read_record
from softcache.errors import SoftcacheError

WHOLE: dict[str, Any] = {
    "losses": [{"loss": "kl", "weight": "1", "T": "4"}, {"loss": "dist", "weight": "0:1:linear", "T": "1"}],
    "hints": [{"hint": "mse:student=fc,teacher=fc", "weight": "2"}],
    "caches": [{"path": "/caches/one", "cache_id": "1" * 64}],
    "teachers": [{"teacher": "cifar:resnet20", "weights": "2" * 64}],
    "view_numbers": [0, 1],
    "held_out_rows": 12,
    "live": {"amp": "off", "channels_last": False},
}
# What isn't there, and values of every type of JSON.
ODD: tuple[Any, ...] = (None, 4, 1.5, True, "text", [], [4], {}, {"text": 4})
# Values that are as good as those that were replaced.
GOOD: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("losses", "hints", "caches", "teachers"), ([],)),
    "view_numbers": (None, [], [4]),
    "held_out_rows": (4,),
    "live": (None,),
    "data": (None, {}, {"text": 4}),
    "start": ({}, {"text": 4}),
    "versions": ({}, {"text": 4}),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", {"T": 4.0, "loss": ("kl",)}, np.random.default_rng(0), 1, **WHOLE)
    read_record(tmp_path / "run")
    return tmp_path / "run"


def written(run: Path, record: dict[str, Any]) -> Path:
    (run / "config.json").write_text(json.dumps(record))
    return run


@pytest.mark.parametrize("name", GOOD)
def test_a_field_of_another_type_is_named(name: str, run: Path) -> None:
    record = config(run)
    for value in ODD:
        written(run, {**record, name: value})
        if any(type(value) is type(good) and value == good for good in GOOD[name]):
            read_record(run)
            continue
        with pytest.raises(SoftcacheError) as error:
            read_record(run)
        assert str(error.value).startswith(f"{run / 'config.json'}: {name}"), value
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name in ("losses", "hints", "caches", "teachers") for field in WHOLE[name][0]]
)
def test_a_field_of_an_entry_that_is_missing_or_no_text_is_named(name: str, field: str, run: Path) -> None:
    record = config(run)
    entries = record[name]
    lacking = [{key: value for key, value in entries[-1].items() if key != field}]
    for number, wrong in enumerate([lacking, *([{**entries[-1], field: value}] for value in ODD if value != "text")]):
        written(run, {**record, name: [*entries[:-1], *wrong]})
        with pytest.raises(SoftcacheError) as error:
            read_record(run)
        said = str(error.value)
        assert said.startswith(f"{run / 'config.json'}: {name}: ")
        assert f"entry {len(entries)}" in said
        assert f"{field!r}" in said
        assert ("has no" in said) == (number == 0)


@pytest.mark.parametrize("field", ["weight", "T"])
def test_weights_and_temperatures_are_schedules(field: str, run: Path) -> None:
    record = config(run)
    record["losses"][1][field] = "warm"
    with pytest.raises(SoftcacheError, match=rf"losses: '{field}' of entry 2: 'warm' is not a number, START:END"):
        read_record(written(run, record))


@pytest.mark.parametrize("name", ["eval", "report"])
@pytest.mark.parametrize("entry", [{"loss": "kl", "weight": "1"}, {"loss": 4, "weight": "1", "T": "4"}, "kl", None])
def test_commands_end_with_that_line(
    name: str, entry: Any, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "report":
        pytest.importorskip("matplotlib")
    written(run, {**config(run), "losses": [entry]})
    assert command("-q", name, run) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith(f"softcache: {run / 'config.json'}: losses: ")
