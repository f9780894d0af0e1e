"""Every page as a reader follows it, from its first command to its last: `make docs-commands`; a quick one always."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness_follow import Place, reader
from harness_pages import NAMES, Step, missing, steps
from harness_places import PLACES, why_not
from harness_store import environment, s3_server

FOLLOWED = [
    name
    for name in NAMES
    if any(step.kind in ("shell", "python") and not why_not(step, PLACES.get(name, Place())) for step in steps(name))
]
QUICK = ("docs/tutorials/tables.md",)


@contextmanager
def store(folder: Path, wanted: bool) -> Iterator[dict[str, str]]:
    """The environment that leads to a server of S3 with a bucket, where a page needs one."""
    if not wanted:
        yield {}
        return
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3_server(folder) as server:
        yield {**environment(server.url), "BUCKET": server.bucket()}


def whole(step: Step) -> bool:
    """Whether a command in a sentence can run as it stands: it isn't only a name, and has no placeholders."""
    found = step.text.split()
    return found[0] == "softcache" and len(found) > 2 and "…" not in step.text and "--help" not in found


def follow(name: str, folder: Path) -> None:
    """Runs all steps of a page that can run here."""
    place = PLACES.get(name, Place())
    for package in place.needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    with store(folder, place.store) as variables, reader(folder, variables) as there:
        if place.prepare:
            place.prepare(there.there)
        for command in place.commands:
            done, printed = there.run("shell", command)
            assert done, f"{command}\n{printed}"
        before = place.before
        for step in steps(name):
            kinds = ("shell", "python", "file", *(("mention",) if place.mentions and whole(step) else ()))
            if step.kind not in kinds or why_not(step, place):
                continue
            if step.kind == "python" and before:
                done, printed = there.run("python", before)
                assert done, printed
                before = ""
            if step.text == place.anew:
                there.begin(there.there.with_name("anew"))
            began = time.monotonic()
            text = place.text(step).replace("s3://bucket/", f"s3://{variables.get('BUCKET', 'bucket')}/")
            done, printed = there.run(step.kind, text, step.name)
            print(f"{time.monotonic() - began:6.1f} s  {step.where}  {text.splitlines()[0]}")
            assert done, f"{step.where}: {text}\n{printed}"
            line = missing(step.shown, printed.replace(variables.get("BUCKET", "bucket"), "bucket"))
            assert line is None, f"{step.where}: {text}\nthe page shows:  {line}\nit printed:\n{printed}"
        if place.after:
            place.after(there.there, variables)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.docs) for name in FOLLOWED]
)
def test_a_page_is_as_it_says(name: str, tmp_path: Path) -> None:
    follow(name, tmp_path)
