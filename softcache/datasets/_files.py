"""Image files of a dataset: which there are below a folder, and samples of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from softcache.datasets._labels import Labels
from softcache.datasets._pixels import GREY_STATISTICS, IMAGENET_STATISTICS
from softcache.datasets._samples import Samples
from softcache.errors import DatasetError

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TEST_NAMES = ("test", "val", "valid", "validation")  # of the held-out split; the first that is there is taken
SHOWN = 5


def file_samples(
    spec: str, split: str, root: Path, names: list[str], labels: Labels, classes: tuple[str, ...], bits: int = 8
) -> Samples:
    """Samples of the image files ``root / name``, in this order, as images of 224 pixels: in colour, or grey ones of
    16 ``bits``."""
    return Samples(
        spec=spec,
        split=split,
        classes=classes,
        labels=labels,
        channels=3 if bits == 8 else 1,
        dtype=f"uint{bits}",
        size=224,
        resize=256,
        recipe="rrc+flip",
        statistics=IMAGENET_STATISTICS if bits == 8 else GREY_STATISTICS,
        names=names,
        root=root,
    )


def images_under(folder: Path, root: Path, skipped: list[str], *, deep: bool = True) -> Iterator[str]:
    """Paths, relative to ``root``, of the regular files in ``folder`` with an image's extension; links are followed.

    ``skipped``: takes those of pipes, sockets and devices, which are never opened. ``deep``: also in the folders
    below. Errors: ``DatasetError`` for a link that leads nowhere or to a folder that it lies in.
    """
    prefix = folder.relative_to(root).as_posix()
    start = "" if prefix == "." else prefix + "/"
    yield from _images_in(str(folder), start, skipped, (os.path.realpath(folder),), deep)


def _images_in(folder: str, start: str, skipped: list[str], reached: tuple[str, ...], deep: bool) -> Iterator[str]:
    """``reached``: the real paths of the folders that it was reached through, its own the last."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if deep:
                    real = os.path.join(reached[-1], entry.name)
                    if entry.is_symlink():
                        real = os.path.realpath(entry.path)
                        if real in reached:
                            raise DatasetError(f"{entry.path} is a link to a folder that it lies in: remove it")
                    yield from _images_in(entry.path, f"{start}{entry.name}/", skipped, (*reached, real), deep)
            elif entry.name.lower().endswith(EXTENSIONS):
                if entry.is_file():
                    yield start + entry.name
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    raise DatasetError(f"{entry.path} is a link to a file that is not there: remove or restore it")
                else:
                    skipped.append(start + entry.name)


def say_test_split(owner: Path | str, found: Sequence[str]) -> None:
    """Says which of the names was taken as the test split, the first, unless it is ``test`` and the only one."""
    if list(found) != ["test"]:
        others = f"; {several(found[1:])} {'is' if len(found) == 2 else 'are'} not used" if found[1:] else ""
        log.info(f"the test split of {owner} is {found[0]}{others}")


def warn_of_skipped(root: Path, skipped: Sequence[str]) -> None:
    if skipped:
        log.warning(f"{root}: skipped {several(skipped)}: not a regular file but a pipe, a socket or a device")


def check_text(text: str, what: str, advice: str) -> None:
    """Errors: ``DatasetError`` for a text with bytes that are not UTF-8, as names of files may have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"{what} {os.fsencode(text)!r} is not UTF-8: {advice}") from None


def several(names: Sequence[str]) -> str:
    """``"a, b"``, or the first few and how many there are."""
    shown = ", ".join(names[:SHOWN])
    return f"{shown}, … ({len(names)} in all)" if len(names) > SHOWN else shown
