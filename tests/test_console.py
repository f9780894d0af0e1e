"""What a person sees: messages and progress on a terminal, in a log, and in a program that uses softcache."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from softcache.console import Bar, rate

LONG = "a cache was made with view seed 7, found 9: pass --view-seed 7 or use another --out " * 3
TALK = f"""
import logging, time
from softcache.console import bar, show_messages
show_messages()
log = logging.getLogger("softcache.somewhere")
with bar("dump", 100, "keys") as progress:
    for step in range(4):
        progress.advance(25, "view 1")
        log.info("message [%d] %s", step, {LONG!r}.strip())
        time.sleep(0.15)
    log.warning("and a warning")
"""


def on_a_terminal(code: str, **environment: str) -> str:
    """What a process writes to a terminal of 40 columns."""
    ours, theirs = pty.openpty()
    given = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    given |= {"TERM": "xterm-256color", "COLUMNS": "40", **environment}
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=given) as process:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    return seen.decode()


def test_on_a_terminal_messages_come_whole_and_above_the_bar() -> None:
    seen = on_a_terminal(TALK)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).replace("\r", "\n")
    lines = [line for line in plain.split("\n") if line]
    for step in range(4):
        assert f"message [{step}] {LONG}".strip() in lines, "wrapped, cut or torn"
    assert "warning: and a warning" in lines
    assert any("dump" in line and "/100" in line for line in lines)
    assert "\x1b[1;33mwarning: " in seen


def test_no_color_is_respected_and_a_dumb_terminal_gets_plain_lines() -> None:
    assert not re.search(r"\x1b\[[0-9;]*3[0-9](;[0-9]+)*m", on_a_terminal(TALK, NO_COLOR="1"))
    dumb = on_a_terminal(TALK, TERM="dumb")
    assert "\x1b" not in dumb
    assert "warning: and a warning" in dumb.splitlines()


def test_in_a_log_each_message_is_one_plain_line(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        subprocess.run([sys.executable, "-c", TALK], stderr=log, env={**os.environ, "COLUMNS": "20"}, check=True)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [*(f"message [{step}] {LONG}".strip() for step in range(4)), "warning: and a warning"]


def test_a_log_needs_no_rich() -> None:
    code = TALK + "\nimport sys\nassert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=True)


def test_a_program_sees_what_its_logging_shows() -> None:
    code = TALK.replace("show_messages()\n", "\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "and a warning\n"
    assert on_a_terminal(code).splitlines() == ["and a warning"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import logging\nlogging.basicConfig(level='INFO', format='%(name)s %(message)s')" + code,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "softcache.somewhere and a warning"
    assert len(done.stderr.splitlines()) == 5


@pytest.mark.parametrize(
    ("per_second", "shown"),
    [(1250.4, "1,250/s"), (10.0, "10/s"), (2.54, "2.5/s"), (1.0, "1.0/s"), (0.05, "20 s each"), (0.4, "2.5 s each"),
     (1 / 200, "3 min 20 s each"), (0.0, "0/s")],
)  # fmt: skip
def test_rates_below_one_a_second_are_shown_as_the_time_of_each(per_second: float, shown: str) -> None:
    assert rate(per_second) == shown


def test_a_rate_can_name_what_is_counted() -> None:
    assert (rate(1250, "keys"), rate(0.05, "keys")) == ("1,250 keys/s", "20 s a key")


def test_slow_progress_in_a_log_says_how_long_each_takes(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    shown = Bar("train", 100, "steps")
    for _ in range(3):
        now[0] += 20
        shown.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["train: 2/100 steps (2 %), 20 s each, 32 min 40 s left"]
