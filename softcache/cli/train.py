"""``softcache train``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._print import as_json, percent, rows


def _shares(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0.7,0.3") from None


def _pairs(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(","))


@click.command("train")
@click.option("--student", help="resnet18, cifar:resnet20, timm:NAME, file.py:factory.  [default: resnet18]")
@click.option("--cache", multiple=True, help="The cache; several are combined.  [default: the only one in caches/]")
@click.option("--teacher-weight", callback=_shares, metavar="W,W", help="Shares of several caches.  [default: equal]")
@click.option("--combine", type=click.Choice(["logits", "probs"]), help="What of several caches is averaged.")
@click.option("--T", "T", help="Temperature, or 8:2:linear, 8:2:cosine.  [default: the loss's, 4 for kl]")
@click.option("--alpha", help="Weight of the soft loss, or a schedule; 0 is without it.  [default: 0.9]")
@click.option("--beta", help="Weight of the hard loss, or a schedule.  [default: 1 - alpha]")
@click.option(
    "--loss", "losses", multiple=True, help="kl, ce, hard, mse, dkd, …, with options: kl:weight=0.9,T=2.  [default: kl]"
)
@click.option(
    "--hint",
    "hints",
    multiple=True,
    metavar="SPEC",
    help="fitnet:teacher=layer3,student=layer2,weight=100; repeatable.",
)
@click.option("--hint-cache", multiple=True, help="Another cache that hints are read from.")
@click.option("--hint-epochs", type=int, help="Epochs on the hints alone, before the others.  [default: 0]")
@click.option(
    "--targets",
    type=click.Choice(["matched", "mean"]),
    help="Recorded views with their own targets, or fresh pixels towards the mean over a row's views.",
)
@click.option("--views", type=int, help="Recorded views to visit in turn.  [default: all]")
@click.option("--views-per-image", type=int, help="Views of an image in one batch, from one decode.  [default: 1]")
@click.option("--shuffle", help="full, or block for a cache larger than memory.  [default: auto]")
@click.option("--label-fraction", type=float, help="Share of the labels that may be used.  [default: 1]")
@click.option("--val-fraction", type=float, help="Share of the rows that are held out to choose the best epoch.")
@click.option("--online", is_flag=True, default=None, help="Run the --teacher live instead of reading a cache.")
@click.option("--teacher", help="The live teacher, or the one to start from.  [default: the cache's]")
@click.option("--teacher-weights", help="A file of its weights.")
@click.option("--teacher-size", type=int, help="Side of its input, with --online.  [default: the views', or its own]")
@click.option("--student-size", type=int, help="Side of the student's input.  [default: the views', or its own]")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Of the live teacher.  [default: float32]")
@_options.data("the cache")
@_options.augment
@click.option("--view-seed", type=int, help="Seed of the views, without a cache.  [default: 0, or the cache's]")
@click.option("--weights", help="Start the student from these.")
@click.option("--init", type=click.Choice(["random", "teacher"]), help="Start from the teacher's, where they fit.")
@click.option(
    "--init-map", callback=_pairs, metavar="S=T,S=T", help="Start the student's layers S from the teacher's T."
)
@click.option("--freeze", multiple=True, metavar="PATTERN", help="Parameters that don't learn: 'layer1.*'; repeatable.")
@click.option(
    "--normalize", help="imagenet, dataset, none, or MEANS/STDS.  [default: the weights', else the dataset's]"
)
@_options.fitting(6, 64)
@_options.compute
@click.option("--pixels", type=click.Choice(["exact", "close"]), help="Must pixels be the teacher's?  [default: exact]")
@click.option("--verify-reads", is_flag=True, default=None, help="Check each shard's checksums before it is used.")
@click.option("--log-every", type=int, help="Write every n-th step's loss to steps.jsonl.  [default: 0, none]")
@click.option("--out", type=click.Path(), help="Folder.  [default: runs/STUDENT-<n>]")
@click.option(
    "--resume",
    type=click.Path(),
    metavar="RUN",
    help="Go on with an interrupted run, with its options; --device, --workers, --resident, --data-dir may be others.",
)
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
def command(student: str | None, out: str | None, resume: str | None, json_: bool, **options: Any) -> None:
    """Train a student from a cache, at any temperature, as often as you like."""
    from softcache.stages.train import train

    trained = train(student, out=out, resume=resume, **_options.given(options))
    if json_:
        as_json(trained.to_json())
        return
    chosen = [("chosen", f"epoch {trained.best_epoch}, {percent(trained.val_top1)} of the held-out rows")]
    rows(
        [
            ("run", f"{trained.folder} ({trained.seconds:.1f} s, {trained.teacher_s:.1f} s of them in the teacher)"),
            *(chosen if trained.best_epoch is not None else []),
            ("test top-1", percent(trained.test.top1 if trained.test else None)),
        ]
    )
