"""``softcache train``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._print import as_json, percent, rows


@click.command("train")
@click.option(
    "--student", default="resnet18", show_default=True, help="resnet18, cifar:resnet20, timm:NAME, file.py:factory."
)
@click.option("--cache", multiple=True, help="The cache.  [default: the only one in caches/]")
@click.option("--T", "T", help="Temperature.  [default: 4]")
@click.option("--alpha", help="Weight of the soft loss; 0 trains on labels alone.  [default: 0.9]")
@click.option("--beta", help="Weight of the hard loss.  [default: 1 - alpha]")
@click.option(
    "--loss", "losses", multiple=True, help="kl, ce, hard, mse, dkd, …, with options: kl:weight=0.9,T=2.  [default: kl]"
)
@click.option("--views", type=int, help="Recorded views to visit in turn.  [default: all]")
@click.option("--label-fraction", type=float, help="Share of the labels that the hard loss may use.  [default: 1]")
@click.option("--online", is_flag=True, default=None, help="Run the --teacher live instead of reading a cache.")
@click.option("--teacher", help="The live teacher (with --online).")
@click.option("--teacher-weights", help="Its weights (with --online).")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Of the live teacher.  [default: float32]")
@_options.data
@_options.augment
@click.option("--view-seed", type=int, help="Seed of the views, without a cache.  [default: 0]")
@click.option("--weights", help="Start the student from these.")
@click.option(
    "--normalize", help="imagenet, dataset, none, or MEANS/STDS.  [default: the weights', else the dataset's]"
)
@_options.fitting(8, 64)
@_options.compute
@click.option("--pixels", type=click.Choice(["exact", "close"]), help="Must pixels be the teacher's?  [default: exact]")
@click.option("--verify-reads", is_flag=True, default=None, help="Check each shard's checksums before it is used.")
@click.option("--log-every", type=int, help="Write every n-th step's loss to steps.jsonl.  [default: 0, none]")
@click.option("--out", type=click.Path(), help="Folder.  [default: runs/STUDENT-<n>]")
@click.option("--resume", type=click.Path(), metavar="RUN", help="Go on with an interrupted run, with its options.")
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
def command(student: str, out: str | None, resume: str | None, json_: bool, **options: Any) -> None:
    """Train a student from a cache, at any temperature, as often as you like."""
    from softcache.stages.train import train

    trained = train(student, out=out, resume=resume, **_options.given(options))
    top1 = trained.test.top1 if trained.test else None
    if json_:
        as_json(
            {
                "run": str(trained.folder),
                "test_top1": top1,
                "seconds": trained.seconds,
                "teacher_s": trained.teacher_s,
            }
        )
        return
    rows(
        [
            ("run", f"{trained.folder} ({trained.seconds:.1f} s, {trained.teacher_s:.1f} s of them in the teacher)"),
            ("test top-1", percent(top1)),
        ]
    )
