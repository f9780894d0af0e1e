"""Pages as a reader follows them: README.md and everything under docs/, as steps to run. Nothing here is a test.

What is a step:

- in a block that is indented by four spaces, each line that begins with a program (`softcache`, `python`, …), with or
  without `$ ` before it; a backslash at the end goes on in the next line. After `$ ` the rest of the block is what the
  command prints;
- a fence ```` ```bash ````, as one script;
- a fence ```` ```python ````; one whose first line is a comment with the name of a file is that file's content;
- a fence ```` ```text ```` right after a step is what that step prints;
- a command in backticks within a sentence is a mention: it is compared with the command line, and run only on pages
  whose place says so.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(?:softcache|torchrun|python3?|pip|ray|make|eval|\.venv/bin/\w+) ")
_FILE = re.compile(r"# (?P<name>[\w./-]+\.(?:py|json|csv|sh))\b[^\n]*\n")
_FENCE = re.compile(r"```(?P<language>\w*)[^`]*")
_MEASURED = re.compile(r" {4}\S.*? {2,}(?P<command>softcache .*)")  # a label, then the command behind a figure
_MENTION = re.compile(r"`((?:softcache|python|torchrun) [^`]+)`")


@dataclass(frozen=True)
class Step:
    """``kind``: ``shell``, ``python``, ``file``, ``measured`` or ``mention``. ``shown``: the lines that the page says
    it prints. ``name``: of the file that is written."""

    page: str
    line: int
    kind: str
    text: str
    shown: tuple[str, ...] = ()
    name: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def steps(name: str, text: str | None = None) -> list[Step]:
    """All steps of a page in their order. ``text``: its content, if not what is in the file."""
    lines = (text if text is not None else (ROOT / name).read_text(encoding="utf-8")).splitlines()
    found: list[Step] = []
    at = 0
    while at < len(lines):
        fence = _FENCE.fullmatch(lines[at])
        if fence:
            end = next(k for k in range(at + 1, len(lines)) if lines[k].startswith("```"))
            _take_fence(name, at, fence["language"], lines[at + 1 : end], found)
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip() or at in _blocks(lines, at)):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            _take_block(name, at, lines[at:end], found)
            at = end
        else:
            found.extend(Step(name, at + 1, "mention", text) for text in _MENTION.findall(lines[at]))
            at += 1
    return found


def _blocks(lines: list[str], at: int) -> tuple[int, ...]:
    """``at``, if the line before it ends a fence or is a heading, else nothing."""
    return (at,) if lines[at - 1].startswith(("#", "```")) else ()


def _take_fence(name: str, at: int, language: str, lines: list[str], found: list[Step]) -> None:
    text = "\n".join(lines) + "\n"
    if language == "python":
        file = _FILE.match(text)
        found.append(Step(name, at + 2, "file" if file else "python", text, name=file["name"] if file else ""))
    elif language == "bash":
        found.append(Step(name, at + 2, "shell", text))
    elif language == "text":
        last = next((k for k in range(len(found) - 1, -1, -1) if found[k].kind in ("shell", "python")), None)
        assert last is not None, f"{name}:{at + 1}: an output without a command before it"
        step = found[last]
        found[last] = Step(step.page, step.line, step.kind, step.text, (*step.shown, *lines), step.name)


def _take_block(name: str, at: int, lines: list[str], found: list[Step]) -> None:
    prompt = False
    while lines:
        taken, number = lines.pop(0), at + 1
        at += 1
        text = taken.strip().removeprefix("$ ")
        measured = _MEASURED.fullmatch(taken)
        if _PROGRAM.match(text + " ") and (taken.strip().startswith("$ ") or not prompt):
            prompt = taken.strip().startswith("$ ")
            while text.endswith("\\") and lines:
                text = f"{text[:-1].rstrip()} {lines.pop(0).strip()}"
                at += 1
            found.append(Step(name, number, "shell", text))
        elif prompt and taken.strip():
            step = found[-1]
            found[-1] = Step(step.page, step.line, step.kind, step.text, (*step.shown, taken[4:]), step.name)
        elif measured:
            found.append(Step(name, number, "measured", measured["command"].strip()))


def words(text: str) -> list[str]:
    """A command's words, without comments and without assignments before it."""
    found = shlex.split(text, comments=True)
    while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
        del found[0]
    return found


def arguments(text: str) -> list[str] | None:
    """What ``softcache`` is given in a command, or None for other programs."""
    found = words(text)
    if found[:1] == ["softcache"]:
        return found[1:]
    if "-m" in found and found[found.index("-m") + 1 :][:1] == ["softcache"]:
        return found[found.index("-m") + 2 :]
    return None


_TIME = re.compile(r"\b\d[\d,.]*(?: ?(?:days?|h|min|ms|s))(?: \d[\d,.]*(?: ?(?:h|min|ms|s)))*\b")
_SIZE = re.compile(r"\b\d[\d,.]* ?(?:bytes|[kKMGT]i?B)")
_NUMBER = re.compile(r"[0-9a-f]{12,}|[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def masked(line: str) -> str:
    """A line without what differs between machines: times, sizes, numbers, and the room that they take."""
    return re.sub("─+", "─", " ".join(_NUMBER.sub("0", _SIZE.sub("0 B", _TIME.sub("0 s", line))).split()))


def missing(shown: tuple[str, ...], printed: str) -> str | None:
    """The first line that a page shows and the program didn't print, in this order; None if there is none. `…` stands
    for any lines, at the end of a line for the rest of it. Numbers and times may differ."""
    rest = iter([masked(line) for line in printed.splitlines()])
    for line in shown:
        wanted = masked(line)
        if wanted in ("", "…"):
            continue
        begin = wanted.removesuffix("…").rstrip()
        if not any(text == wanted or (wanted.endswith("…") and text.startswith(begin)) for text in rest):
            return line
    return None
