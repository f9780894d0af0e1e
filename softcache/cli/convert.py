"""``softcache convert``"""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import option, section
from softcache.cli._print import as_json, lost, rows
from softcache.console import counted, size


def _views(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no number: the first N views can be kept and no others, because a view's number says how "
            "its samples were augmented"
        ) from None


@_options.command("convert")
@click.argument("source", metavar="SRC")
@click.argument("out", metavar="OUT", type=click.Path())
@section(
    "Most used",
    option(
        "--codec",
        help="The codec of every column whose own isn't said: fp16, int:bits=5, basis:bytes=225, topk:k=20, …, as for "
        "softcache dump.  [default: each column's own, whose bytes are copied]",
    ),
    option("--views", callback=_views, metavar="N", help="Keep the first N views.  [default: all]"),
    option("--drop-output", multiple=True, metavar="NAME", help="Leave an output out; repeatable."),
    option("--drop-hint", multiple=True, metavar="LAYER", help="Leave a layer's hint out; repeatable."),
    _options.compress,
    _options.json_,
)
@section(
    "Single columns and shards",
    option(
        "--output",
        multiple=True,
        metavar="NAME",
        help="The codec of one output, as NAME:codec=CODEC; repeatable.  [default: --codec, else its own]",
    ),
    option(
        "--hint",
        multiple=True,
        metavar="LAYER",
        help="The codec of one hint, as LAYER:codec=CODEC; repeatable.  [default: --codec, else its own]",
    ),
    option(
        "--shard-rows",
        type=int,
        help="Most rows of a shard, a power of two, at most what the dump was asked for.  [default: as a dump in the "
        "new codec has, or what the column has]",
    ),
    _options.device,
)
def command(json_: bool = False, **options: Any) -> None:
    """Make another cache in OUT from a finished one in SRC: in other codecs, compressed, with fewer columns or views,
    or in shards of another size. No teacher is run, and SRC is only read.

    Run again it goes on after an interruption. What a new codec loses is measured against what SRC has, and `softcache
    info OUT` shows it.
    """
    from softcache.stages.convert import convert

    done = convert(**options)
    if json_:
        columns = {name: dataclasses.asdict(column) for name, column in done.columns.items()}
        sizes = {"bytes_before": done.bytes_before, "bytes_after": done.bytes_after}
        work = {"source": str(done.source), "made_shards": done.shards, "seconds": done.seconds, "converted": columns}
        as_json({**done.info, **work, **sizes})
        return
    what = f"{counted(done.shards, 'shard')} made in {done.seconds:.1f} s" if done.shards else "all of it was there"
    rows(
        [
            ("cache", f"{done.folder} ({what})"),
            ("holds", f"{counted(done.info['rows'], 'row')} × {counted(done.info['views'], 'view')}"),
            *(
                (
                    name,
                    f"{c.before} → {c.after}, {c.bytes_before:,} → {c.bytes_after:,} bytes a key{lost(c.error)}"
                    if c.before != c.after
                    else f"{c.after}, as it was, {c.bytes_after:,} bytes a key{lost(c.error)}",
                )
                for name, c in done.columns.items()
            ),
            ("size", f"{size(done.bytes_before)} → {size(done.bytes_after)}"),
        ]
    )
