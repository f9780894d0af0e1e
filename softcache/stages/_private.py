"""A cache without what only its owner's machine has to know: what ``softcache copy`` publishes."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from softcache.atomic import commit
from softcache.cache.attributes import rows_attributes
from softcache.cache.label_form import label_form
from softcache.cache.listing import Listing
from softcache.cache.manifest import Manifest
from softcache.cache.schema import MANIFEST, ROWS, SAMPLES, State, length_array
from softcache.cache.sending import fetched
from softcache.cache.shard import open_shard, read_array, write_temporary
from softcache.cache.whereabouts import Described
from softcache.errors import CacheError, UsageError, nearest
from softcache.remembered import portable
from softcache.store.local import Local
from softcache.store.overlaid import Overlaid
from softcache.store.store import Store

PRIVATE = ("command", "paths", "names", "samples")
_SAID = (  # of how it was made
    "softcache", "torch", "torchvision", "numpy", "pillow", "libjpeg", "h5py", "python", "device", "date",
    "fingerprint", "spent",
)  # fmt: skip


def check_include(include: Sequence[str], published: bool) -> None:
    """Errors: ``UsageError`` for what there isn't, and where nothing is left out."""
    for what in include:
        if what not in PRIVATE:
            raise UsageError(f"--include {what!r} is unknown{nearest(what, PRIVATE)}")
    if include and not published:
        raise UsageError("--include says what a published copy doesn't leave out: add --card, or leave it out")


@contextlib.contextmanager
def without_private(
    store: Store, whole: Described, sizes: Mapping[str, int], include: Collection[str]
) -> Iterator[tuple[Store, Described]]:
    """The store of a cache, and the cache that is then in it, without the command and the paths that it was made with,
    the names of its files and the inputs of its kept samples, but for what ``include`` names. ``sizes``: of the files
    in the store."""
    manifest = whole.manifest
    state = _without(manifest.state, include)
    with tempfile.TemporaryDirectory(prefix="softcache-publish-") as folder:
        above = Local(Path(folder) / "above")
        above.folder.mkdir()
        hidden = set() if "samples" in include else {SAMPLES}
        if manifest.state.name_bytes and "names" not in include:
            _write_rows(store, manifest, above.folder)
        changed = Manifest(manifest.identity, state)
        changed.save(above.folder)
        content = (above.folder / MANIFEST).read_bytes()
        known = None
        if whole.listing is not None:
            kept = {n: file for n, file in whole.listing.files.items() if n not in hidden and above.size(n) is None}
            known = Listing(whole.listing.cache_id, kept)
        yield Overlaid(store, sizes, above, hidden), Described(changed, content, known)


def _without(state: State, include: Collection[str]) -> State:
    made = _made(state.made, include)
    kept: dict[str, Any] = {}
    if "names" not in include:
        kept["name_bytes"] = 0
    if "samples" not in include:
        kept |= {"samples": 0, "samples_lengths": dict.fromkeys(state.samples_lengths, 0)}
    return dataclasses.replace(state, made=made, **kept)


def _made(made: dict[str, Any], include: Collection[str]) -> dict[str, Any]:
    """What is said of how it was made: what is known to be harmless, and what was asked for."""
    found = {name: value for name, value in made.items() if name in _SAID}
    if "command" in include:
        found |= {name: made[name] for name in ("command",) if name in made}
    for name in ("dataset", "teacher"):
        if isinstance(made.get(name), str):
            found[name] = made[name] if "paths" in include else _named(made[name])
    return found


def _named(spec: str) -> str:
    """A spec without where things lie: of a folder its name."""
    told = portable(spec)
    return Path(told).name if told.startswith("/") else told


def _write_rows(store: Store, manifest: Manifest, folder: Path) -> None:
    """``rows.h5`` without the names of files."""
    size = store.size(ROWS)
    if size is None:
        raise CacheError(f"{store.where} has no {ROWS}: run softcache verify on it")
    there = folder.parent / ROWS
    fetched(store, ROWS, size, None, there)
    rows, inputs = manifest.identity.dataset.rows, manifest.identity.dataset.inputs
    arrays = {"label": label_form(there, rows, len(manifest.state.class_names))}
    arrays |= {length_array(name): ("<i8", (rows,)) for name, given in inputs.items() if given.ragged}
    named = {"name": (f"S{manifest.state.name_bytes}", (rows,))}
    attributes = rows_attributes(manifest.cache_id, manifest.state.labels)
    with open_shard(there, attributes, arrays | named) as file:
        held = {name: read_array(file, name) for name in arrays}
    commit(write_temporary(folder / ROWS, attributes, held), folder / ROWS)
