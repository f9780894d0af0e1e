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

from softcache.evaluating.predictions import Predictions
from softcache.reporting.elements import element, plain
from softcache.reporting.findings import Findings, Left, Said, findings_of
from softcache.reporting.page import page, parts
from softcache.reporting.sections import calibration, classes, disagreement
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
