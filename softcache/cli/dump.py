"""``softcache dump``"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from softcache.cli import _options
from softcache.cli._options import flag, option, rows_or_all, section
from softcache.cli._print import as_json, percent, rows
from softcache.console import counted

if TYPE_CHECKING:
    from softcache.stages._on_ray import Shared


def _part(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        k, n = value.split("/")
        return int(k), int(n)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form 1/4") from None


def _batch(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None or value == "auto":  # found on a GPU, by size on a CPU, and what a cache has recorded
        return None
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither auto nor a number of rows") from None


def _shared(shared: Shared) -> str:
    lost = f", {shared.lost} lost on the way" if shared.lost else ""
    return f"{counted(shared.actors, 'actor')} on Ray{lost}"


@_options.command("dump")
@section(
    "Most used",
    option("--teacher", help="A model, a teacher's or a run's folder.  [default: resnet50]"),
    option(
        "--views",
        type=int,
        help="Recorded views of every image.  [default: the cache's, else 4; 1 with --augment none; "
        "docs/real.md has what other numbers reach]",
    ),
    option(
        "--output",
        multiple=True,
        metavar="NAME",
        help="What is kept of the teacher's answer, as NAME[:kind=classes|binary|values][:codec=CODEC]; repeatable; "
        "none keeps hints alone.  [default: logits, or the cache's]",
    ),
    option(
        "--hint",
        multiple=True,
        metavar="LAYER",
        help="Keep a layer's activations too, as LAYER[:pool=7][:rows=0.25][:codec=CODEC]; repeatable.",
    ),
    option("--out", help="The cache's folder or s3://BUCKET/NAME.  [default: caches/TEACHER-DATASET-SPLIT]"),
    flag("--dry-run", help="Estimate space and time, and stop."),
    _options.json_,
)
@section(
    "Data",
    _options.data("the teacher"),
    option("--split", help="train or test.  [default: train]"),
    _options.augment,
    option("--view-seed", type=int, help="Seed of the views.  [default: 0, or the cache's]"),
    option(
        "--fingerprint",
        type=click.Choice(["quick", "full"]),
        help="Fingerprint of files: quick, over names and sizes, or full, over contents.  [default: quick]",
    ),
)
@section(
    "Teacher",
    option("--teacher-weights", help="A file of weights, or the name of torchvision's."),
    _options.normalize,
    option("--teacher-size", type=int, help="Side of the teacher's input.  [default: the views', or its own]"),
    option("--dtype", type=click.Choice(["float32", "float64"]), help="The teacher's dtype.  [default: float32]"),
    _options.tf32,
)
@section(
    "Storage",
    option(
        "--codec",
        help="How it is stored where --output and --hint don't say: fp16, bf16, fp32; int:bits=8|6|5|4 (range of each "
        "row), int8 (range of each channel), basis:bytes=225 (principal directions), topk:k=20 (the largest logits), "
        "my.py:Codec; auto:max_kl=1e-3 chooses the smallest that loses no more.  "
        "[default: fp16, or the cache's]",
    ),
    _options.compress,
    option("--shard-rows", type=int, help="Most rows of a shard, a power of two.  [default: by device and size]"),
    option(
        "--keep-samples",
        callback=rows_or_all,
        metavar="N|all",
        help="Rows whose pixels are kept, which train --pixels close compares.  [default: 64, or what the cache has]",
    ),
)
@section(
    "Device and speed",
    option("--batch-size", callback=_batch, metavar="N", help="Rows per forward pass.  [default: auto]"),
    option(
        "--bucket/--no-bucket",
        default=None,
        help="Run rows of like length together, where rows have lengths of their own.  [default: no-bucket, or as the "
        "cache has it]",
    ),
    option(
        "--staging",
        metavar="DIR",
        help="Where shards lie until they are stored, if --out is an address.  [default: ~/.cache/softcache/staging]",
    ),
    option("--part", callback=_part, metavar="K/N", help="Compute the K-th of N shares, beside other processes."),
    option(
        "--on",
        type=click.Choice(["ray"]),
        help="Compute on the actors of a running Ray cluster: one a GPU, or one for as many CPUs as --threads says.",
    ),
    _options.device,
    _options.amp,
    _options.channels_last,
    _options.compiled,
    _options.workers,
)
def command(dry_run: bool = False, json_: bool = False, **options: Any) -> None:
    """Run the teacher once per key and keep its logits, and other outputs and hints if asked for.

    Run again it computes what is missing: after an interruption, for more --views, another --output or --hint; what
    isn't given again (codec, recipe, batch size, precision) is as the cache has it. On several GPUs or machines run it
    under torchrun, once for each --part, or --on ray (docs/scale.md).
    """
    from softcache.stages.dump import dump

    done = dump(dry_run=dry_run, **options)
    if dry_run:
        assert done.estimate is not None
        if json_:
            as_json(done.estimate.to_json())
        else:
            rows([("cache", done.info.get("path", str(done.folder))), *done.estimate.describe()])
        return
    if json_:
        shared = {} if done.shared is None else {"actors": done.shared.actors, "lost_actors": done.shared.lost}
        as_json({**done.info, "computed_keys": done.keys, "seconds": done.seconds, **shared})
        return
    info = done.info
    what = f"{done.keys:,} keys computed in {done.seconds:.1f} s" if done.keys else "all of it was there"
    rows(
        [
            ("cache", f"{info['path']} ({what})"),
            (
                "holds",
                f"{counted(info['rows'], 'row')} × {counted(info['views'], 'view')}, {info['bytes'] / 2**20:.1f} MiB",
            ),
            ("teacher top-1", percent(done.teacher_top1)),
            *([("pin", f"{info['pin']}  (--expect takes it)")] if info["pin"] is not None else []),
            *([] if done.shared is None else [("computed by", _shared(done.shared))]),
        ]
    )
    beyond = [view for view in info["incomplete_views"] if view >= done.views]
    if len(beyond) < len(info["incomplete_views"]):
        click.echo(
            f"{info['missing_shards']} of {info['shards']} shards are still missing: other parts, or run it again"
        )
    elif beyond:
        which = f"view {beyond[0]} is" if len(beyond) == 1 else f"views {', '.join(map(str, beyond))} are"
        click.echo(
            f"{which} incomplete, beyond the {done.views} that were asked for: the same dump with --views "
            f"{info['views']} computes what is missing, `softcache trim {shlex.quote(str(done.folder))} --views "
            f"{done.views}` takes the views from {done.views} on away"
        )
