"""``softcache trim``"""

from __future__ import annotations

import click

from softcache.cli import _options
from softcache.cli._options import flag, option, section
from softcache.cli._print import as_json, rows
from softcache.console import counted, size

SHOWN = 20


@_options.command("trim")
@click.argument("cache", required=False)
@section(
    "Most used",
    option("--views", type=int, metavar="N", help="Keep the first N views and remove the others."),
    option("--drop-hint", "drop_hints", multiple=True, metavar="LAYER", help="Remove a layer's hint; repeatable."),
    option("--drop-output", "drop_outputs", multiple=True, metavar="NAME", help="Remove an output; repeatable."),
    option("--codec", help="The codec, if the cache was made with code of your own: my.py:Codec."),
    flag("--dry-run", help="Say what would be removed, and stop."),
    _options.json_,
)
def command(
    cache: str | None = None,
    views: int | None = None,
    drop_hints: tuple[str, ...] = (),
    drop_outputs: tuple[str, ...] = (),
    codec: str | None = None,
    dry_run: bool = False,
    json_: bool = False,
) -> None:
    """Take views, hints or outputs out of a cache. It doesn't ask before it removes them."""
    from softcache.stages.trim import trim

    trimmed = trim(cache, views=views, drop_hints=drop_hints, drop_outputs=drop_outputs, dry_run=dry_run, codec=codec)
    if json_:
        as_json(trimmed.to_json())
        return
    if dry_run:
        for name in trimmed.files[:SHOWN]:
            click.echo(f"would remove {name}")
        if len(trimmed.files) > SHOWN:
            click.echo(f"would remove … and {len(trimmed.files) - SHOWN:,} more (--json lists them all)")
    freed = "would be freed" if dry_run else "freed"
    rows(
        [
            ("cache", str(trimmed.folder)),
            ("keeps", f"{counted(trimmed.views, 'view')}, of {', '.join(trimmed.columns)}"),
            (freed, f"{size(trimmed.bytes)} in {counted(len(trimmed.files), 'file')}"),
        ]
    )
