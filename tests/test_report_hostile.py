"""Names and texts in a report come from folders that anyone may have made: they stay text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_browser import CHROMIUM, browser
from harness_report import is_self_contained, made_sweep, parsed
from harness_train import command

from softcache.evaluating.predictions import Predictions
from softcache.reporting.elements import element, plain
from softcache.reporting.findings import Findings, Left, Said, findings_of
from softcache.reporting.page import page, parts
from softcache.reporting.sections import calibration, classes, disagreement, temperature
from softcache.reporting.students import read_source
from softcache.views._open import open_viewed, view_samples

pytest.importorskip("matplotlib")
HOSTILE = (
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>", "a\x00b\x1b[31m",
    "$\\frac{", "\u202egnp.exe", "名前 🦊", "\ud800", "&lt;b&gt;", "]]><!--",
)  # fmt: skip


def hostile_findings(folder: Path) -> Findings:
    """Real predictions on the digits, whose ten classes have names of an attacker."""
    made_sweep(folder, T=(1.0, 4.0), alpha=(0.0, 0.5))
    found = findings_of([read_source(str(folder))], "now")
    clean = open_viewed("digits", "test").samples
    viewed = view_samples(dataclasses.replace(clean, classes=HOSTILE), "none")
    random = torch.Generator().manual_seed(0)
    labels = torch.from_numpy(clean.labels)
    rows = np.arange(len(labels))
    said = [
        Predictions(3 * torch.randn(len(labels), 10, generator=random), labels, HOSTILE, rows) for _ in range(3)
    ]  # student, alone, teacher
    return dataclasses.replace(found, said=Said(viewed, *said))


def test_names_of_classes_are_text_wherever_they_stand(tmp_path: Path) -> None:
    findings = hostile_findings(tmp_path / "sweep")
    made = [(part, part.section(findings)) for part in parts()]
    assert {type(one) for part, one in made if part in (calibration, classes, disagreement)} != {Left}
    (tmp_path / "page.html").write_bytes(page(HOSTILE[0], HOSTILE[1], [(HOSTILE[2],) * 3], made))
    found = parsed(tmp_path / "page.html")
    assert is_self_contained(found)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    text = (tmp_path / "page.html").read_text("utf-8")
    assert not {"\x00", "\x1b", "\u202e"} & set(text)
    for name in ("classes", "disagreement"):
        assert "<script>alert(1)" in found.sections[name] or "<script>al…" in found.sections[name]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_runs_nothing_of_them(tmp_path: Path) -> None:
    findings = hostile_findings(tmp_path / "sweep")
    made = [(part, part.section(findings)) for part in parts()]
    (tmp_path / "page.html").write_bytes(page(HOSTILE[0], HOSTILE[1], [(HOSTILE[2],) * 3], made))
    with browser(tmp_path / "browser") as tab:
        tab.open(tmp_path / "page.html")
        assert tab.run("document.title") == HOSTILE[0]
        assert tab.errors == []
        assert [url for url in tab.requests if not url.startswith("data:")] == [(tmp_path / "page.html").as_uri()]
        # A script that got in by any other way is not run: the policy knows the page's own by its hash.
        tab.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.hit = 1'}))")
        assert tab.run("typeof window.hit") == "undefined"
        tab.run("new Image().src = 'https://example.org/x.png'; fetch('https://example.org/').catch(() => 0)")
        assert any("Content Security Policy" in error for error in tab.errors)


def test_files_of_a_sweep_from_anywhere_give_one_line_or_text(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    every = made_sweep(folder, T=(1.0, 4.0), alpha=(0.5,))
    path = folder / "runs" / every[0].name / "config.json"
    record: dict[str, Any] = json.loads(path.read_text())
    record["options"] |= {"student": HOSTILE[0], "loss": [HOSTILE[1]], "cache": ["../../etc/passwd"]}
    record["versions"] = {HOSTILE[0]: HOSTILE[1]}
    path.write_text(json.dumps(record))
    made = findings_of([read_source(str(folder))], "now")
    done = page("t", "a", [], [(part, part.section(made)) for part in parts()])
    (tmp_path / "page.html").write_bytes(done)
    assert [tag for tag, _ in parsed(tmp_path / "page.html").tags].count("script") == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"result": {}}, "result is not what a run came to"),
        ({"result": {"test_top1": 0.5, "seconds": 1.0}}, "result is not what a run came to"),
        ({"result": {"val_top1": 0.5, "test_top1": "x"}}, "result is not what a run came to"),
        ({"result": {"val_top1": True}}, "result is not what a run came to"),
        ({"result": [0.5]}, "result is not what a run came to"),
        ({"caches": ["x"]}, 'caches: entry 1 is not an object, but "x"'),
        ({"caches": [{"path": "x"}]}, "caches: entry 1 has no 'cache_id'"),
        ({"caches": [{"path": "x", "cache_id": 5}]}, "caches: 'cache_id' of entry 1 is not a text, but 5"),
    ],
)
def test_a_record_that_no_run_wrote_is_refused_in_a_line(
    changed: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = made_sweep(tmp_path / "sweep", T=(1.0, 4.0), alpha=(0.5,))
    folder = tmp_path / "sweep" / "runs" / every[0].name
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    for named in (folder, tmp_path / "sweep"):
        assert command("-q", "report", named, "--out", tmp_path / "page.html") == 1
        out, err = capsys.readouterr()
        assert (out, len(err.strip().splitlines())) == ("", 1)
        assert f"{path}: {message}" in err


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("T", ["0", "nan", "inf", "-1", "1e999"])
def test_a_temperature_that_no_loss_can_have_is_left_out_of_the_map(T: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    made_sweep(folder, T=(1.0, 2.0, 8.0), alpha=(0.5,))
    (path,) = (folder / "cohorts").glob("*.json")
    cohort = json.loads(path.read_text())
    hostile = [run for run in cohort["runs"] if run["options"]["T"] in (2.0, "2.0", "2")]
    assert hostile
    for run in hostile:
        run["options"]["T"] = T
    path.write_text(json.dumps(cohort))
    section = temperature.section(findings_of([read_source(str(folder))], "now"))
    assert not isinstance(section, Left)
    told = " ".join(section.itertext()) + " ".join(str(one.attrib) for one in section.iter())
    assert "1: " in told
    assert "8: " in told
    assert f"{T}: " not in told


@pytest.mark.parametrize("rows", [5, "text", {"runs": ["a"]}, [5, {"runs": 5}], True])
def test_a_table_of_anything_names_no_runs(rows: Any, tmp_path: Path) -> None:
    made_sweep(tmp_path / "sweep", T=(1.0, 4.0), alpha=(0.5,))
    (tmp_path / "sweep" / "table.json").write_text(json.dumps({"rows": rows, "searched": [], "chosen": rows}))
    source = read_source(str(tmp_path / "sweep"))
    assert {student.phase for student in source.students} == {""}


def test_the_policy_names_the_script_by_its_hash(tmp_path: Path) -> None:
    made_sweep(tmp_path / "sweep")
    findings = findings_of([read_source(str(tmp_path / "sweep"))], "now")
    text = page("t", "a", [], [(part, part.section(findings)) for part in parts()]).decode()
    script = text.partition("<script>")[2].partition("</script>")[0]
    wanted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(own["content"] for tag, own in parsed(_written(tmp_path, text)).tags if own.get("http-equiv"))
    assert policy is not None
    assert f"script-src 'sha256-{wanted}'" in policy
    assert "default-src 'none'" in policy


def _written(folder: Path, text: str) -> Path:
    (folder / "page.html").write_text(text)
    return folder / "page.html"


def test_plain_text_can_be_written_and_read_again() -> None:
    for name in HOSTILE:
        shown = plain(name)
        assert shown.encode("utf-8").decode("utf-8") == shown
    assert plain("s3://me:word@bucket/x") == "s3://bucket/x"
    assert element("p", "a", element("b", "c"), "d").find("b").tail == "d"  # type: ignore[union-attr]
