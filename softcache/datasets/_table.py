"""A table of files, labels and splits, whatever file it was read from."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softcache.datasets._files import TEST_NAMES, check_text, file_samples, say_test_split, several
from softcache.datasets._fraction import fraction_option
from softcache.datasets._labels import Labels, differing_rows, label_kind, labelled
from softcache.datasets._outputs import Outputs
from softcache.datasets._pixels import open_regular
from softcache.datasets._samples import Samples
from softcache.datasets._subset import held_out_files
from softcache.errors import DatasetError

COLUMNS = {"file": ("file", "image", "path"), "label": ("label", "class"), "split": ("split",)}
_WHOLE = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Table:
    """``columns``: ``file``, and ``label`` and ``split`` where they are there, a text a row, and outputs that are asked
    for by their names; ``places``: what messages call each row."""

    columns: Mapping[str, Sequence[str]]
    places: Sequence[str]


def read_table_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Errors: ``DatasetError`` where there is none or it can't be read.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError:
        raise DatasetError(f"no file at {path}") from None
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror or error}") from None


def pick_columns(path: Path, header: Sequence[str], outputs: Outputs | None = None) -> dict[str, int]:
    """Which of the columns in ``header`` is the file, the label, the split; upper and lower case are the same. With
    ``outputs`` their columns, by name, in place of the label.

    Errors: ``DatasetError`` where there is no column of files or outputs, or two for one of the three.
    """
    found = {}
    for column, names in COLUMNS.items():
        places = [at for at, title in enumerate(header) if title.strip().lower() in names]
        if len(places) > 1:
            titles = " and ".join(header[at].strip() for at in places)
            raise DatasetError(f"{path} has more than one column for the {column}, {titles}: keep one of them")
        if places:
            found[column] = places[0]
    if "file" not in found:
        there = several([title.strip() for title in header]) or "none"
        raise DatasetError(f"{path} has no column file, image or path in its header, found {there}")
    if outputs is not None:
        columns = [title.strip() for title in header]
        outputs.refuse_lacking(columns, str(path))
        found.pop("label", None)
        if taken := set(outputs.names) & found.keys():
            raise DatasetError(f"{path}: the column {min(taken)!r} can't be a label too")
        found |= {name: columns.index(name) for name in outputs.names}
    return found


def table_samples(
    path: Path, table: Table, split: str, *, source: str, fraction: float | None, outputs: Outputs | None = None
) -> Samples:
    """One split of a table that was read from ``path``. Errors: ``DatasetError`` as ``Csv`` says."""
    check_text(str(path), "the path", "rename it")
    names = [_name(path, text, place) for text, place in zip(table.columns["file"], table.places, strict=True)]
    if outputs is None:
        labels, classes = _labels(path, table)
    else:
        labels, classes = outputs.of_texts(table.columns, table.places, str(path)), outputs.names
    train, test = _parts(path, table, names, labels, fraction)
    chosen = np.flatnonzero(test if split == "test" else train).tolist()
    if not chosen:
        raise DatasetError(f"{path} has no {split} split: none of its {len(names)} rows is in it")
    if split == "test" and not labelled(labels[test]).any():
        raise DatasetError(f"{path}: the test split has no labels, nothing can be evaluated on it")
    known = set(labels[train].tolist()) - {-1} if outputs is None else set()
    if known and (lacking := sorted(set(labels[test].tolist()) - known - {-1})):
        shown = several([classes[label] for label in lacking])
        raise DatasetError(f"{path}: the train split lacks classes of the test split: {shown}")
    _check_conflicts(path, table, names, labels, test)
    for row in chosen:
        _check_file(path, names[row], table.places[row])
    spec = f"{source}:{path}{outputs.option if outputs else ''}{fraction_option(fraction)}"
    return file_samples(spec, split, path.parent, [names[row] for row in chosen], labels[chosen], classes)


def _name(path: Path, text: str, place: str) -> str:
    """A file as a path relative to the table's folder, or an absolute one that lies outside."""
    if not text or "\0" in text:
        raise DatasetError(f"{path}, {place}: {'no file' if not text else 'the name of the file has a NUL'}")
    if text.startswith("/"):
        name = posixpath.normpath(text)
        folder = f"{path.parent.as_posix().rstrip('/')}/"
        return name.removeprefix(folder)
    name = posixpath.normpath(text)
    if name == ".." or name.startswith("../"):
        raise DatasetError(
            f"{path}, {place}: {text} leads out of {path.parent}: write an absolute path if that is meant"
        )
    return name


def _labels(path: Path, table: Table) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) int32, -1 for none, and the class names: sorted, by value where all are whole numbers."""
    if "label" not in table.columns:
        return np.full(len(table.places), -1, dtype=np.int32), ()
    texts = [text.strip() for text in table.columns["label"]]
    distinct = set(texts) - {""}
    numeric = all(_WHOLE.fullmatch(text) for text in distinct)
    if numeric:
        distinct -= {"-1"}
        if negative := sorted(text for text in distinct if text.startswith("-")):
            place = table.places[texts.index(negative[0])]
            raise DatasetError(f"{path}, {place}: label {negative[0]} is below -1, which stands for no label")
    classes = tuple(sorted(distinct, key=(lambda text: (int(text), text)) if numeric else None))
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number.get(text, -1) for text in texts], dtype=np.int32), classes


def _parts(
    path: Path, table: Table, names: list[str], labels: Labels, fraction: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the train and of the test split, (N,) bool each; a row may be in neither."""
    # Which rows are held out is the same whichever columns are labels, where these are no classes.
    groups = labels if label_kind(labels) == "classes" else np.zeros(len(labels), np.int32)
    if "split" not in table.columns:
        if fraction is None:
            raise DatasetError(
                f"{path} has no column split: --test-fraction 0.2 holds out a fifth of the rows as the test split (0 "
                "trains on all)"
            )
        held = held_out_files(names, groups, fraction)
        return ~held, held
    said = np.array([text.strip().lower() for text in table.columns["split"]])
    for text, place in zip(said, table.places, strict=True):
        if text != "train" and text not in TEST_NAMES:
            raise DatasetError(f"{path}, {place}: split {str(text)!r} is neither train nor {', '.join(TEST_NAMES)}")
    tests = [name for name in TEST_NAMES if name in said]
    if not tests:
        held = held_out_files(names, groups, fraction or 0.0)
        return ~held, held
    if fraction is not None:
        raise DatasetError(f"{path} has a test split in its column split, {tests[0]}: leave out --test-fraction")
    say_test_split(path, tests)
    return said == "train", said == tests[0]


def _check_conflicts(path: Path, table: Table, names: list[str], labels: Labels, test: np.ndarray) -> None:
    """Errors: ``DatasetError`` for a file that has two labels, or is in both splits."""
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        other = first.setdefault(name, row)
        same = other == row or not differing_rows(labels[[other]], labels[[row]]).any()
        if not same or test[other] != test[row]:
            raise DatasetError(
                f"{path}, {table.places[row]}: {name} has another label or split in {table.places[other]}: keep one"
            )


def _check_file(path: Path, name: str, place: str) -> None:
    try:
        status = os.stat(path.parent / name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}, {place}: {path.parent / name} can't be read: {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError(f"{path}, {place}: {path.parent / name} is not a regular file")
