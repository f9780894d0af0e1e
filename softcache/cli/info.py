"""``softcache info``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import section
from softcache.cli._print import as_json, fitted, lost, percent, rows
from softcache.console import of_rows, size
from softcache.errors import CacheError


@_options.command("info")
@click.argument("cache", required=False)
@section("Most used", _options.json_)
@_options.stores
def command(cache: str | None = None, json_: bool = False, **stores: Any) -> None:
    """What a cache is, in a folder or at an address; without a name, all caches in caches/."""
    from softcache.cache.agreement.versions import recorded_versions
    from softcache.cache.description import describe
    from softcache.cache.manifest import find_caches
    from softcache.config.opening import Opening

    if cache is None:
        found = [_described(path) for path in find_caches()]
        if json_:
            as_json(found)
        elif not found:
            click.echo("there is no cache in caches/: make one with softcache dump --teacher resnet50")
        else:
            lines = [
                [
                    f["path"], f["teacher"], f"{f['dataset']}/{f['split']}", f"{f['rows']:,}", str(f["views"]),
                    ", ".join(f["columns"]), size(f["bytes"]), "yes" if f["complete"] else "no",
                ]
                for f in found if "error" not in f
            ]  # fmt: skip
            if lines:
                fitted(["cache", "teacher", "data", "rows", "views", "holds", "size", "complete"], lines)
            for broken in found:
                if "error" in broken:
                    click.echo(f"can't be read: {broken['error']}")
        return
    opened = Opening(**stores).open(cache)
    found_one = describe(opened)
    if json_:
        as_json(found_one)
        return
    identity = opened.manifest.identity
    numerics = identity.teacher.numerics
    versions = ", ".join(f"{name} {version}" for name, version in recorded_versions(opened).items())
    whole = (
        "complete"
        if found_one["complete"]
        else f"{found_one['missing_shards']} of {found_one['shards']} shards missing"
    )
    rows(
        [
            ("cache", f"{found_one['path']} ({whole})"),
            ("cache id", found_one["cache_id"]),
            ("pin", found_one["pin"] or "none, as no listing is there of these files; softcache copy makes one"),
            ("teacher", f"{found_one['teacher']}, weights {identity.teacher.weights[:16]}"),
            ("ran in", f"{numerics.dtype}, amp {numerics.amp}, {numerics.device}, batch {identity.grid.batch}"),
            ("teacher top-1", percent(found_one["teacher_top1"])),
            ("dataset", f"{found_one['dataset']}/{found_one['split']}, {found_one['classes']} classes"),
            ("inputs", "; ".join(f"{name} {field}" for name, field in identity.dataset.inputs.items())),
            ("views", f"{found_one['views']} of {found_one['recipe']}, seed {found_one['view_seed']}"),
            ("keys", f"{found_one['keys']:,} ({found_one['rows']:,} rows)"),
            *((name, _column(name, column)) for name, column in found_one["columns"].items()),
            ("kept samples", f"the {opened.input_names} of {opened.manifest.state.samples:,} rows"),
            ("size", size(found_one["bytes"])),
            ("made", f"{found_one['made'].get('date')} by softcache {found_one['made'].get('softcache')}"),
            ("inputs made by", versions or "unknown versions"),
        ]
    )


def _column(name: str, column: dict[str, Any]) -> str:
    """``10 classes in int:bits=8, mean KL 1.2e-05 at T=1, 8.1e-06 at T=4 against its source, which was in fp16, mean KL
    1.2e-09 at T=1, 8.1e-11 at T=4``."""
    from softcache.cache.schema import share_of

    length, share = "L" if column["stride"] == 1 else f"⌈L/{column['stride']}⌉", share_of(name)
    sizes = column["shape"] if share is None else column["shape"][1:]
    shape = "×".join(length if size is None else str(size) for size in sizes) or "1"
    text = f"{shape} {column['kind']} in {column['codec']}"
    if column["compress"] is not None:
        text += f", {column['compress']}"
    if column["lengths"] is not None:
        text += f", L of {column['lengths']}"
    if share is not None:
        text += f", of {of_rows(share)}"
    text += lost(column["error"])
    for step in reversed(column["converted"]):
        text += f" against its source, which was in {step['codec']}{lost(step['error'])}"
    return text


def _described(path: Path) -> dict[str, Any]:
    """The description of a cache, or the reason why it can't be read: a damaged cache doesn't hide the others."""
    from softcache.cache.description import describe
    from softcache.cache.reader import Cache

    try:
        return describe(Cache(path))
    except CacheError as error:
        return {"path": str(path), "error": str(error)}
