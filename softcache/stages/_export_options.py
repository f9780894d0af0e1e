"""Which files ``softcache export`` is to write, and what can't be combined."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from softcache.errors import UsageError
from softcache.exporting._format import Format, format_class, format_names, open_format

INT8 = "int8"


def open_formats(
    names: Sequence[str], *, preprocess: bool, opset: int | None, quantize: str | None, calibrate: int | None
) -> list[Format]:
    """Errors: ``UsageError`` for options that a format doesn't have, ``MissingExtraError`` where a package isn't
    installed."""
    if len(set(names)) != len(names) or not names:
        raise UsageError(f"--format takes names of formats, each once, found {', '.join(names) or 'none'}")
    if quantize not in (None, INT8):
        raise UsageError(f"--quantize {quantize}: there is {INT8} alone")
    if calibrate is not None and quantize is None:
        raise UsageError("--calibrate is of --quantize int8: leave it out, or add that")
    if calibrate is not None and calibrate < 0:
        raise UsageError(f"--calibrate must be 0 or a number of rows, is {calibrate}")
    classes = {name: format_class(name) for name in names}
    for name, found in classes.items():
        if preprocess and not found.computes:
            raise UsageError(
                f"--preprocess: {name} has parameters and no computation, so that preprocessing can't be in it: leave "
                f"it out, or take {_those('computes')}"
            )
        if quantize is not None and not found.quantizes:
            raise UsageError(f"--quantize int8: {name} has float32 alone, take {_those('quantizes')}")
        if calibrate == 0 and not found.dynamic:
            raise UsageError(f"--calibrate 0: {name} needs rows to calibrate with, take {_those('dynamic')}")
    if opset is not None and not any("opset" in _options_of(found) for found in classes.values()):
        raise UsageError(f"--opset is of onnx: leave it out for --format {','.join(names)}")
    options = {} if opset is None else {"opset": opset}
    return [open_format(name, options, int8=quantize is not None) for name in names]


def is_file(target: Path, names: Sequence[str], formats: Sequence[Format], *, card: bool | None) -> bool:
    """Whether one file is asked for and no folder.

    Errors: ``UsageError`` for a place that is taken, and for a file of another format or of several.
    """
    refuse_taken(target)
    if target.suffix in [made.suffix for made in formats]:
        if len(names) > 1:
            raise UsageError(f"-o {target} is one file, and {', '.join(names)} are several: name a folder")
        if card:
            raise UsageError("--card: a card is the README.md of a folder: name a folder with -o")
        return True
    known = {format_class(name).suffix: name for name in format_names()}
    if target.suffix in known:
        other = known[target.suffix]
        raise UsageError(
            f"-o {target} would be a file of {other}, and --format {','.join(names)} makes none: write --format "
            f"{other}, or name a folder"
        )
    return False


def refuse_taken(target: Path) -> None:
    """Errors: ``UsageError`` where something has this name already."""
    if os.path.lexists(target):
        raise UsageError(f"{target} exists: remove it, or name another place with -o")


def _those(what: str) -> str:
    return " or ".join(name for name in format_names() if getattr(format_class(name), what))


def _options_of(found: type[Format]) -> tuple[str, ...]:
    return tuple(getattr(found, "__dataclass_fields__", {}))
