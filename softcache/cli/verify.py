"""``softcache verify``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import flag, option, section
from softcache.cli._print import as_json, percent
from softcache.console import duration, size

SHOWN = 20


@_options.command("verify")
@click.argument("cache", required=False)
@section(
    "Most used",
    option("--codec", help="The codec, if the cache was made with code of your own: my.py:Codec."),
    flag("--repair", help="Remove what is damaged; the same dump then computes just that again."),
    option("--threads", type=click.IntRange(1), help="Files read at once.  [default: one a core, at most 8]"),
    _options.json_,
)
@_options.stores
@section(
    "Running the teacher again",
    option("--teacher", help="Also run this teacher on a sample of keys and compare what it says."),
    option("--teacher-weights", help="Its weights, where they are not in its folder."),
    _options.normalize,
    option("--sample", type=int, help="Keys that the teacher is run on.  [default: 256]"),
    option("--seed", type=int, help="Seed of the sample.  [default: 0]"),
    option("--dataset", help="Where the data are, if the cache was made from a path or code of your own."),
    option("--test-fraction", type=float, help="Share of its files that is held out; a cache knows it."),
    option("--data-dir", help="Where torchvision's datasets are.  [default: $SOFTCACHE_DATA or datasets/]"),
    _options.max_image_pixels,
    option("--augment", help="The view recipe, if it is code of your own."),
    _options.device,
)
def command(cache: str | None = None, repair: bool = False, json_: bool = False, **options: Any) -> int:
    """Check every byte of a cache; exit status 0 if all is there and sound, 1 if not."""
    from softcache.cache.schema import MANIFEST
    from softcache.stages.verify import SET_ASIDE, verify

    found = verify(cache, repair=repair, **options)
    if json_:
        as_json(found.to_json())
        return 0 if found.ok else 1
    _list("damaged ", found.damaged)
    _list("missing ", found.missing)
    _list("leftover", [f"{name} (a writer's temporary file)" for name in found.parts])
    _list("foreign ", [f"{name} (belongs to nothing)" for name in found.foreign])
    _list("removed ", [name + (f" (set aside as {SET_ASIDE})" if name == MANIFEST else "") for name in found.removed])
    if found.teacher is not None:
        t = found.teacher
        click.echo(
            f"teacher  {t.keys} keys run again: largest difference {t.largest:.3g} (allowed {t.allowed:.3g}) at row "
            f"{t.row} in view {t.view}"
            + (f", same top-1 {percent(t.same_top1)}" if t.same_top1 is not None else f", of {t.column}")
            + (f"; {t.beyond} keys beyond what is allowed" if t.beyond else "")
            + (f"; {t.other_pixels} keys have other pixels" if t.other_pixels else "")
            + (f"; {t.labels}" if t.labels else "")
            + ("" if t.same_weights else "; its weights are not those of the dump")
        )
    speed = f", {size(found.bytes / found.seconds)}/s" if found.seconds else ""
    click.echo(
        f"{found.where}: {found.files} files, {size(found.bytes)} in {duration(found.seconds)}{speed}: "
        + _verdict(len({d.file for d in found.damaged}), len(found.missing), found.ok)
    )
    if found.damaged and not repair:
        click.echo("softcache verify --repair removes what is damaged; softcache dump then computes it again")
    elif found.missing or found.removed:
        click.echo("run the softcache dump of this cache again: it computes what is missing")
    return 0 if found.ok else 1


def _list(kind: str, items: Sequence[object]) -> None:
    for item in items[:SHOWN]:
        click.echo(f"{kind} {item}")
    if len(items) > SHOWN:
        click.echo(f"{kind} … and {len(items) - SHOWN:,} more (--json lists them all)")


def _verdict(damaged: int, missing: int, ok: bool) -> str:
    if ok:
        return "every byte is as it was written"
    parts = [f"{damaged} damaged"] * bool(damaged) + [f"{missing} missing"] * bool(missing)
    return ", ".join(parts) if parts else "every byte is as it was written, but the teacher says otherwise"
