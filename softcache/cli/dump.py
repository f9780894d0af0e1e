"""``softcache dump``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._print import as_json, percent, rows


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


@click.command("dump")
@click.option("--teacher", default="resnet50", show_default=True, help="A model, a teacher's or a run's folder.")
@_options.data("the teacher")
@click.option("--split", help="train or test.  [default: train]")
@click.option("--teacher-weights", help="A file of weights, or the name of torchvision's.")
@click.option(
    "--normalize", help="imagenet, dataset, none, or MEANS/STDS.  [default: the weights', else the dataset's]"
)
@click.option("--teacher-size", type=int, help="Side of the teacher's input.  [default: the views', or its own]")
@_options.augment
@click.option("--views", type=int, help="Recorded views of every image.  [default: 4, or what the cache has]")
@click.option("--view-seed", type=int, help="Seed of the views.  [default: 0, or the cache's]")
@click.option("--hint", "hints", multiple=True, metavar="LAYER", help="Keep a layer's activations too; repeatable.")
@click.option("--hint-dtype", type=click.Choice(["float16", "float32"]), help="[default: float16, or the cache's]")
@click.option("--codec", help="How logits lie on disk: fp16, fp32.  [default: fp16, or the cache's]")
@click.option("--batch-size", callback=_batch, metavar="N", help="Rows per forward pass.  [default: auto]")
@click.option("--shard-rows", type=int, help="Rows per shard, a power of two.  [default: by device and size]")
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), help="Of the teacher.  [default: float32, or the cache's]"
)
@click.option("--tf32", is_flag=True, default=None, help="Let a GPU use TF32.")
@click.option("--part", callback=_part, metavar="K/N", help="Compute the K-th of N shares, beside other processes.")
@click.option("--fingerprint", type=click.Choice(["quick", "full"]), help="Of files: names and sizes, or contents.")
@_options.compute
@click.option("--out", type=click.Path(), help="Folder.  [default: caches/TEACHER-DATASET-SPLIT]")
@click.option("--dry-run", is_flag=True, help="Say how much space and time it takes, and stop.")
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
def command(teacher: str, out: str | None, dry_run: bool, json_: bool, **options: Any) -> None:
    """Run the teacher once per key and keep its logits, and hints if asked for.

    Run again it computes what is missing: after an interruption, for more --views, or for another --hint; what isn't
    given again (codec, recipe, batch size, precision) is as the cache has it. On several GPUs or machines run it
    under torchrun, or once for each --part.
    """
    from softcache.stages.dump import dump

    done = dump(teacher, out=out, dry_run=dry_run, **_options.given(options))
    if dry_run:
        assert done.estimate is not None
        if json_:
            as_json(done.estimate.to_json())
        else:
            rows([("cache", str(done.folder)), *done.estimate.describe()])
        return
    if json_:
        as_json({**done.info, "computed_keys": done.keys, "seconds": done.seconds})
        return
    info = done.info
    what = f"{done.keys:,} keys computed in {done.seconds:.1f} s" if done.keys else "all of it was there"
    rows(
        [
            ("cache", f"{done.folder} ({what})"),
            ("holds", f"{info['rows']:,} rows × {info['views']} views, {info['bytes'] / 2**20:.1f} MiB"),
            ("teacher top-1", percent(done.teacher_top1)),
        ]
    )
    if not info["complete"]:
        click.echo(
            f"{info['missing_shards']} of {info['shards']} shards are still missing: other parts, or run it again"
        )
