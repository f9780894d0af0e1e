"""The page of the benchmark of codecs: what is made of records, and what is said of those that are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs scipy, of the extra [bench]")
pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra [bench]")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import codecs_page, codecs_tables  # noqa: E402
from benchmarks.codecs_rows import FLAT_TAIL, students  # noqa: E402
from benchmarks.codecs_schemes import for_classes, for_values  # noqa: E402
from benchmarks.codecs_sets import EMBEDDING, LOGITS_SET  # noqa: E402
from benchmarks.measure import machine  # noqa: E402
from benchmarks.rows import recorded  # noqa: E402

TEMPERATURES = (1, 2, 4, 8)


def measured() -> dict[str, dict[str, Any]]:
    """Made figures of all schemes of a set of logits and one of embeddings."""
    found: dict[str, dict[str, Any]] = {}

    def add(key: str, table: str, name: str, **more: Any) -> None:
        found[key] = {"key": key, "table": table, "name": name, **more, **machine()}

    shape = {"rows": 4096, "fitted": 4096}
    add("1", "sets", LOGITS_SET, kind="classes", numbers=100, entropy=1.5, directions=99, **shape)
    add("2", "sets", EMBEDDING, kind="values", numbers=114, **shape)
    for place, scheme in enumerate(for_classes(100)):
        lost = 0.0 if scheme.name == "fp32" else None if scheme.family == "sampled" else 1e-6 * 2**place
        error = {f"kl_T{T}": lost for T in TEMPERATURES} | {f"kl_T{T}_p99": lost for T in TEMPERATURES}
        error |= {f"reverse_T{T}": 0.25 for T in TEMPERATURES} | {"agreement": 0.987}
        size = {"bytes": 400 / (1 + place), "constant_bytes": 40_000 if scheme.family == "basis" else 0}
        rates = {"encode": [12_345.0, 10_000.0, 13_000.0], "decode": [2e6, 1e6, 3e6]}
        add(f"e{place}", "errors", scheme.name, set=LOGITS_SET, family=scheme.family, error=error, **size, **rates)
        losses = {
            "hard": {"value": 0.0, "cosine": 1.0, "gradient": 0.0},
            "mse": {"value": 0.1, "cosine": 0.97, "gradient": 0.3 if "top" in scheme.name else 0.02},
        }
        add(f"l{place}", "losses", scheme.name, set=LOGITS_SET, family=scheme.family, losses=losses)
    for place, scheme in enumerate(for_values(114)):
        error = {"cosine": 0.999, "relative": 0.0123, "relative_p99": 0.0456}
        add(
            f"v{place}", "errors", scheme.name, set=EMBEDDING, family=scheme.family, error=error, bytes=114.0,
            constant_bytes=0, encode=[1.0, 1.0, 1.0], decode=[1.0, 1.0, 1.0],
        )  # fmt: skip
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(codecs_page, "PAGE", tmp_path / "codecs.md")
    return tmp_path


def lines_of(page: str) -> dict[str, str]:
    """By the first cell; of several lines the first."""
    found: dict[str, str] = {}
    for line in page.splitlines():
        if line.startswith("| "):
            found.setdefault(line.split(" | ")[0].removeprefix("| "), line)
    return found


def test_tables_say_what_was_recorded(place: Path) -> None:
    page = codecs_page.page(measured())
    lines = lines_of(page)
    assert lines["`fp32`"].startswith("| `fp32` | 400 | 0 / 0 | 0 / 0 | 0 / 0 | 0 / 0 | 98.70 % | 12.3k (10k – 13k) |")
    assert "∞ / ∞" in lines["12 samples (RS-KD)"]
    assert ", once 40k |" in lines["`basis:bytes=45`"]
    assert "| 0.999000 | 1.23 % | 4.56 % |" in page
    assert (place / "codecs.png").stat().st_size > 10_000
    assert "Not measured yet" not in page.partition("### Losses on embeddings")[0]


def test_losses_that_a_codec_harms_are_named(place: Path) -> None:
    page = codecs_page.page(measured())
    assert lines_of(page)["`mse`"].count("30 %, 0.970") == 3  # topk twice, and the flat tail
    assert lines_of(page)["`hard`"].count("< 0.1 %") == 10
    assert "- `topk:k=10`: `mse`\n" in page
    assert f"- {FLAT_TAIL}: `mse`\n" in page
    free = next(line for line in page.splitlines() if line.startswith("- none: "))
    assert "`int:bits=4`" in free
    assert "topk" not in free


def test_students_are_compared_with_fp32_and_a_flat_tail(place: Path) -> None:
    done = measured()
    reached = {"fp32": 0.5, "fp16": 0.5, FLAT_TAIL: 0.48, "int:bits=4": 0.49}
    for trial in students():
        loss, _, codec = trial.name.partition(", ")
        if loss == "kl" and codec in reached:
            done[trial.key] = {
                "key": trial.key, "table": "students", "top1": reached[codec] + trial.seed / 1000, **machine()
            }  # fmt: skip
    page = codecs_page.page(done)
    part = page.partition("### `kl`")[2].partition("### `dist`")[0]
    lines = lines_of(part)
    assert "A single run scatters by 0.10 points (8 degrees of freedom)." in part
    assert "| +2.00 ± 0.19: better | +0.00 ± 0.19: as good |" in lines["fp16"]
    assert "| +1.00 ± 0.19: better | -1.00 ± 0.19: worse |" in lines["int:bits=4"]
    assert (
        f"Shown to differ from `fp32`: int:bits=4 by -1.00, {FLAT_TAIL} by -2.00 points. Of the others nothing is "
        "shown: what they differ by is within ± 0.19 points, and may be noise."
    ) in part
    assert f"- Not run yet: {len(students()) - 12} of {len(students())} runs." in page


def test_a_page_of_nothing_says_so(place: Path) -> None:
    page = codecs_page.page({})
    assert page.count("Not measured yet.") >= 3
    assert page.count("Not run yet.") == 2
    assert not list(place.glob("*.png"))


@pytest.mark.parametrize(
    ("value", "text"), [(None, "∞"), (0.0, "0"), (0.0123, "0.012"), (2.34e-4, "2e-4"), (1.5, "1.5")]
)
def test_divergences_are_written_shortly(value: float | None, text: str) -> None:
    assert codecs_tables.small(value) == text


def test_the_page_is_what_was_recorded(place: Path) -> None:
    done = recorded(codecs_page.FILE)
    assert (ROOT / "docs" / "codecs.md").read_text(encoding="utf-8") == codecs_page.page(done)
