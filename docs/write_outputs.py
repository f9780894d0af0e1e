"""Writes what the commands of a page print: `python docs/write_outputs.py docs/tutorials/pictures.md …`.

Follows a page as `make docs-commands` does. Each empty ```` ```text ```` block after a command gets what the command
printed; blocks that have lines stay, so that an output is renewed by emptying it. Lines that are too many may then be
replaced by `…`.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

WIDTH = 110
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from harness_follow import Place, reader  # noqa: E402
from harness_pages import Step, steps  # noqa: E402
from harness_places import PLACES, why_not  # noqa: E402
from test_pages_followed import store  # noqa: E402


def fill(text: str, printed: dict[int, str]) -> str:
    """A page with its empty outputs filled. ``printed``: by the line at which a step begins."""
    steps_at = [step.line for step in steps("", text) if step.kind in ("shell", "python")]
    lines = text.splitlines()
    for at in range(len(lines) - 1, 0, -1):
        if lines[at - 1 : at + 1] == ["```text", "```"]:
            line = max(begin for begin in steps_at if begin < at)
            lines[at:at] = shown(printed.get(line, ""))
    return "\n".join(lines) + "\n"


def shown(printed: str) -> list[str]:
    """The lines of an output that a page shows: without those that depend on how busy the machine is, of many epochs
    the first and the last two, and no line wider than a page."""
    lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
    lines = [line for line in lines if not re.match(r"(\d+ )?CPU thread|bottleneck: |\w+: [\d,]+/[\d,]+ ", line)]
    epochs = [at for at, line in enumerate(lines) if re.match(r"epoch +\d+/\d+ ", line)]
    if len(epochs) > 4:
        lines[epochs[1] : epochs[-2]] = ["…"]
    return [line if len(line) <= WIDTH else line[: line.rindex(" ", 0, WIDTH - 2)] + " …" for line in lines]


def follow(name: str, text: str, folder: Path) -> dict[int, str]:
    """What each step of a page printed, by its line."""
    place, found = PLACES.get(name, Place()), {}
    with store(folder, place.store) as variables, reader(folder, variables) as there:
        if place.prepare:
            place.prepare(there.there)
        for step in steps(name, text):
            if step.kind not in ("shell", "python", "file") or why_not(step, place):
                continue
            done, printed = run(there, step, place, variables)
            print(f"{step.where}: {step.text.splitlines()[0]}\n{printed}", flush=True)
            if not done:
                print(f"{step.where} failed", flush=True)
                break
            found[step.line] = printed
    return found


def run(there, step: Step, place: Place, variables) -> tuple[bool, str]:  # type: ignore[no-untyped-def]
    text = place.text(step)
    bucket = variables.get("BUCKET", "bucket")
    done, printed = there.run(step.kind, text.replace("s3://bucket/", f"s3://{bucket}/"), step.name)
    return done, printed.replace(bucket, "bucket")


if __name__ == "__main__":
    for given in sys.argv[1:]:
        page = Path(given).resolve()
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            printed = follow(str(page.relative_to(ROOT)), text, Path(folder))
        page.write_text(fill(text, printed), encoding="utf-8")
