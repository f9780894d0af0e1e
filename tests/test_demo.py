"""`make demo`, with networks that are trained in a second."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_demo_shows_its_table_and_reuses_what_is_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.TEACHER = demo.STUDENT = "cifar:resnet8"
    tables = []
    for again in (False, True):
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(here)
            demo.main(epochs=1, size=8)
        told = capsys.readouterr()
        assert told.err.count("reusing demo-output/") == (6 if again else 0)
        tables.append(re.findall(r"^(teacher|student).*\d\.\d\d %", told.out, re.M))
    assert tables[0] == tables[1] == ["teacher", "student", "student", "student", "student"]
