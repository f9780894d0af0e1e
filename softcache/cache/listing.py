"""``files.json``: the size and sha256 of every file of a cache, so that one number stands for all of its bytes.

It lists the manifest too. Whoever knows the sha256 of ``files.json`` itself, the cache's *pin*, can tell whether any
file is another than it was when the listing was made. docs/format.md is the specification.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from softcache import strictjson
from softcache.cache.constants import constants_name
from softcache.cache.manifest import Manifest
from softcache.cache.schema import (
    COLUMN,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    ROWS,
    SAMPLES,
    VERSION,
    VIRTUAL,
    shard_name,
    short,
)
from softcache.errors import CacheError, IntegrityError, UsageError

LISTING = "files.json"
MAX_LISTING_BYTES = 128 * 2**20
MAX_FILE_BYTES = 2**50
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(
    rf"cache\.json|rows\.h5|samples\.h5|cache\.h5|column-(?:{COLUMN.pattern})\.h5"
    rf"|view-\d{{4,5}}/(?:{COLUMN.pattern})-\d{{5,7}}\.h5"
)


@dataclass(frozen=True)
class Listed:
    """``size`` in bytes."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """The files of a cache by their names."""

    cache_id: str
    files: Mapping[str, Listed]

    @property
    def pin(self) -> str:
        """The number that stands for every byte of the cache."""
        return hashlib.sha256(self.render()).hexdigest()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    def render(self) -> bytes:
        """The one way in which a listing is written: a line a file, in the order of names."""
        lines = [f'  {json.dumps(name)}: [{file.size}, "{file.sha256}"]' for name, file in sorted(self.files.items())]
        inner = ",\n".join(lines)
        return (
            f'{{\n "softcache": {VERSION},\n "cache_id": "{self.cache_id}",\n "files": {{\n{inner}\n }}\n}}\n'.encode()
        )

    @classmethod
    def parse(cls, content: bytes, where: str) -> Listing:
        """Errors: ``CacheError`` for another version, ``IntegrityError`` for what no listing can say. ``where``: of the
        file, for messages."""
        try:
            document = strictjson.loads(content)
            version = document["softcache"]
            if version != VERSION:
                raise CacheError(f"{where} has format {short(version)}, this softcache reads format {VERSION}")
            files = {name: Listed(*entry) for name, entry in document["files"].items()}
            listing = cls(document["cache_id"], files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{where} is no listing of a cache's files: {short(error)}") from None
        for name, file in files.items():
            sound = isinstance(file.size, int) and not isinstance(file.size, bool) and isinstance(file.sha256, str)
            if not _FILE.fullmatch(name) or not sound or not 0 <= file.size <= MAX_FILE_BYTES:
                raise IntegrityError(f"{where} lists {short(name)!r} as no file of a cache can be")
            if not _SHA256.fullmatch(file.sha256):
                raise IntegrityError(f"{where} lists {short(name)!r} with no sha256")
        if MANIFEST not in files or files[MANIFEST].size > MAX_MANIFEST_BYTES or listing.render() != content:
            raise IntegrityError(f"{where} is not as softcache writes it")
        return listing

    def check(self, name: str, content: bytes, where: str) -> None:
        """Errors: ``IntegrityError`` where a file's content isn't what is listed."""
        listed = self.files.get(name)
        if listed is None or listed != Listed(len(content), hashlib.sha256(content).hexdigest()):
            raise IntegrityError(f"{where}/{name} is not the file that {where}/{LISTING} lists")


def is_cache_file(name: str) -> bool:
    """Whether a cache may have a file of this name, relative to its folder."""
    return _FILE.fullmatch(name) is not None


def names_of(manifest: Manifest, there: Iterable[str]) -> list[str]:
    """Of files that are there those that belong to the cache, but for manifest and listing; what a reader needs first
    comes first."""
    present, state = set(there), manifest.state
    named = [ROWS, SAMPLES, *(constants_name(n) for n, column in state.columns.items() if column.constants)]
    shards = (
        shard_name(view, column, number)
        for view in range(state.views)
        for column in manifest.columns
        for number in range(manifest.shards(column))
    )
    return [name for name in (*named, *shards, VIRTUAL) if name in present]


def check_expected(expected: Iterable[str]) -> tuple[str, ...]:
    """Errors: ``UsageError`` for what is no pin."""
    for pin in expected:
        if not _SHA256.fullmatch(pin):
            raise UsageError(f"--expect {short(pin)}: a pin has 64 digits from 0 to f, as softcache copy prints it")
    return tuple(expected)


def refuse_other_pin(pin: str, expected: Iterable[str], where: str) -> None:
    """Errors: ``IntegrityError`` where pins are expected, and this is none of them."""
    expected = check_expected(expected)
    if expected and pin not in expected:
        raise IntegrityError(
            f"{where} is not the cache that --expect names: its pin is {pin}, not {', '.join(expected)}"
        )
