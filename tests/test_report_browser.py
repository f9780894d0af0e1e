"""A report in a real browser: it sorts, it fits a phone, it is quick, and it says nothing on the console."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness_browser import CHROMIUM, Page, browser
from harness_many import QUICK, small_cache
from harness_report import made_sweep
from harness_train import STUDENT

from softcache.stages.report import report
from softcache.stages.sweep import sweep

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
COLUMN = "[...document.querySelector('#comparison tbody').rows].map(row => row.cells[{}].textContent)"
T = 0
HELD_OUT = 2
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sweep of 32 students."""
    folder = tmp_path_factory.mktemp("page")
    every = made_sweep(folder / "sweep", seeds=2, epochs=60, T=(1.0, 2.0, 4.0, 6.0, 8.0), alpha=(0.0, 0.3, 0.6, 0.9))
    assert len(every) == 32
    report(str(folder / "sweep"), out=str(folder / "report.html"))
    return folder / "report.html"


def test_a_column_sorts_by_a_click_and_by_the_keyboard(tab: Page, written: Path) -> None:
    tab.open(written)
    before = tab.run(COLUMN.format(HELD_OUT))
    numbers = [float(text.split()[0]) for text in before]
    button = f"document.querySelectorAll('#comparison th button')[{HELD_OUT}]"
    tab.run(f"{button}.click()")
    assert _numbers(tab) == sorted(numbers, reverse=True)
    assert tab.run(f"{button}.parentElement.getAttribute('aria-sort')") == "descending"
    tab.run(f"{button}.focus()")
    tab.press("Enter", 13)
    assert _numbers(tab) == sorted(numbers)
    assert tab.run("[...document.querySelectorAll('[aria-sort]')].map(own => own.getAttribute('aria-sort'))") == [
        "ascending"
    ]
    tab.run("document.querySelectorAll('#comparison th button')[0].click()")  # T, of numbers and a dash
    assert tab.run(COLUMN.format(T))[-1] == "–"
    assert [float(text) for text in tab.run(COLUMN.format(T))[:-1]] == sorted([1.0, 2.0, 4.0, 6.0, 8.0] * 3)
    assert tab.errors == []


def _numbers(tab: Page) -> list[float]:
    return [float(text.split()[0]) for text in tab.run(COLUMN.format(HELD_OUT))]


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_as_wide_as_its_window(tab: Page, written: Path, width: int, scheme: str) -> None:
    tab.open(written, width=width, scheme=scheme)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert tab.run("innerWidth") == width
    assert tab.errors == []
    wider = "[...document.querySelectorAll('svg, table, img')].filter(own => own.getBoundingClientRect().width > "
    assert tab.run(f"{wider} innerWidth && !own.closest('.scroll')).length") == 0


def test_figures_have_the_colours_of_the_page(tab: Page, written: Path) -> None:
    fill = "getComputedStyle(document.querySelector('#temperature svg text')).fill"
    line = "[...document.querySelectorAll('#curves svg path')].map(own => getComputedStyle(own).stroke)"
    tab.open(written, scheme="light")
    light = tab.run(fill), set(tab.run(line))
    tab.open(written, scheme="dark")
    dark = tab.run(fill), set(tab.run(line))
    assert light[0] != dark[0]
    assert "rgb(1, 1, 4)" not in light[1] | dark[1]  # none is left as matplotlib wrote it
    assert {"rgb(8, 104, 172)"} <= light[1]


def test_the_page_weighs_little_and_opens_at_once(tab: Page, written: Path) -> None:
    assert written.stat().st_size < 5_000_000
    times = []
    for _ in range(3):
        tab.open(written)
        times.append(tab.run(LOADED))
    assert min(times) < 1000, times
    assert [url for url in tab.requests if url not in ("about:blank", written.as_uri())] == []


def test_it_prints(tab: Page, written: Path, tmp_path: Path) -> None:
    tab.open(written, scheme="dark")
    made = tab.ask("Page.printToPDF")["data"]
    assert len(made) > 10_000
    tab.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.run("getComputedStyle(document.querySelector('#contents')).display") == "none"
    tab.ask("Emulation.setEmulatedMedia", media="")


@pytest.mark.torture
def test_a_sweep_of_32_students_opens_at_once(tab: Page, tmp_path: Path) -> None:
    cache = small_cache(tmp_path)
    done = sweep(student=STUDENT, cache=cache, loss="kl", T=[1, 2, 4, 8], alpha=[0, 0.3, 0.5, 0.7, 0.9], seeds=2,
                 out=str(tmp_path / "sweep"), **{**QUICK, "epochs": 3})  # fmt: skip
    assert done.table.size == 34
    command = [
        sys.executable,
        "-m",
        "softcache",
        "report",
        str(tmp_path / "sweep"),
        "-o",
        str(tmp_path / "report.html"),
    ]
    subprocess.run(command, check=True)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    times = []
    for _ in range(5):
        tab.open(tmp_path / "report.html")
        times.append(tab.run(LOADED))
    assert statistics.median(times) < 1000, times
    assert tab.errors == []
