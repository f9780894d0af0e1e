"""``softcache train``"""

from __future__ import annotations

import os
from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import flag, option, section
from softcache.cli._print import as_json, rows
from softcache.distributed import rank, world


@_options.command("train")
@section(
    "Most used",
    option("--student", help="resnet18, cifar:resnet20, timm:NAME, file.py:factory.  [default: resnet18]"),
    option("--cache", multiple=True, help="The cache; several are combined.  [default: the only one in caches/]"),
    option(
        "--T",
        "T",
        help="Temperature, or 8:2:linear, 8:2:cosine.  [default: the loss's own, 4 for dist and kl]",
    ),
    option(
        "--alpha",
        help="Weight of the soft loss, or a schedule; 0 trains on labels alone.  [default: that of the loss's paper]",
    ),
    option(
        "--beta",
        help="Weight of the labels' loss, or a schedule.  [default: 1 - alpha; the paper's where that isn't given]",
    ),
    option(
        "--loss",
        multiple=True,
        help="kl, ce, hard, mse, dkd, …, my.py:Loss, with options: kl:weight=0.9,T=2, cosine:of=embedding.  [default: "
        "dist, of those that were tried the best on CIFAR-100 and Fashion-MNIST, docs/defaults.md; kl for 2 classes, "
        "binary_kl for a sigmoid each, mse for values]",
    ),
    option("--out", type=click.Path(), help="The run's folder.  [default: runs/STUDENT-<n>]"),
    option(
        "--resume",
        type=click.Path(),
        metavar="RUN",
        help="Go on with an interrupted run, with its own options; --device, --workers, --resident, --start-method, "
        "--cuda-graphs, --data-dir, --download, --log, --max-image-pixels and --profile may be others.",
    ),
    _options.json_,
)
@section(
    "Targets",
    option("--views", type=int, help="Recorded views to visit in turn.  [default: all]"),
    option(
        "--targets",
        type=click.Choice(["matched", "mean", "both"]),
        help="matched: recorded views, each with its own targets. mean: fresh views, with the mean of the targets of "
        "the row's recorded views. both: in each batch some of either.  [default: matched; docs/real.md has what "
        "each reaches]",
    ),
    option(
        "--fresh-share",
        metavar="SHARE",
        help="With --targets both: the share of each batch in fresh views, or a schedule.  [default: 0.5]",
    ),
    option(
        "--strong-cache",
        metavar="CACHE",
        help="Another cache of the dataset, of a stronger recipe: a batch has each row in a view of either.",
    ),
    option(
        "--teacher-weight",
        callback=_options.numbers("0.7,0.3", float),
        metavar="W,W",
        help="Shares of several caches.  [default: equal]",
    ),
    option(
        "--combine",
        type=click.Choice(["logits", "probs"]),
        help="Average the logits of several caches, or their probabilities.  [default: logits]",
    ),
    option(
        "--labels",
        type=click.Choice(["dataset", "cache"]),
        help="Whose labels to use where the dataset was relabelled after the dump.  [default: stop if they differ]",
    ),
    option("--label-fraction", type=float, help="Share of the labels that may be used.  [default: 1]"),
    option("--val-fraction", type=float, help="Share of the rows held out to choose the best epoch.  [default: 0]"),
    option(
        "--test/--no-test",
        default=None,
        help="Whether to look at the test split; `softcache eval RUN` does it later.  [default: test]",
    ),
    option(
        "--pixels",
        type=click.Choice(["exact", "close"]),
        help="exact: stop if a byte differs from what the teacher saw. close: tolerate another decoder's "
        "differences in rows whose pixels the cache keeps.  [default: exact]",
    ),
)
@section(
    "Hints",
    option("--hint", multiple=True, metavar="SPEC", help="fitnet:teacher=layer3,student=layer2,weight=10; repeatable."),
    option("--hint-cache", multiple=True, help="Another cache that hints are read from; repeatable."),
    option("--hint-epochs", type=int, help="Epochs on the hints alone, before the others.  [default: 0]"),
)
@section(
    "Data",
    _options.data("the cache"),
    _options.augment,
    option("--view-seed", type=int, help="Seed of the views, without a cache.  [default: 0, or the cache's]"),
    option(
        "--order-seed",
        type=int,
        help="Seed of the order of rows and of --label-fraction: with one, students of several --seed see the same "
        "batches.  [default: --seed]",
    ),
)
@section(
    "Student",
    option(
        "--weights", help="Start from these: DEFAULT (torchvision's), or a file. A classifier for other classes is new."
    ),
    option(
        "--init",
        type=click.Choice(["random", "teacher"]),
        help="teacher: start from the teacher's parameters where they fit.  [default: random]",
    ),
    option(
        "--init-map",
        callback=_options.words,
        metavar="S=T,S=T",
        help="Start the student's layers S from the teacher's layers T.",
    ),
    option("--freeze", multiple=True, metavar="PATTERN", help="Parameters that don't learn: 'layer1.*'; repeatable."),
    _options.normalize,
    option("--student-size", type=int, help="Side of the student's input.  [default: the views', or its own]"),
)
@section(
    "Live teacher",
    flag("--online", help="Run the --teacher live instead of reading a cache."),
    option("--teacher", help="The live teacher, or the one to start from.  [default: the cache's]"),
    option("--teacher-weights", help="A file of its weights."),
    option("--teacher-size", type=int, help="Side of its input, with --online.  [default: the views', or its own]"),
    option("--dtype", type=click.Choice(["float32", "float64"]), help="Its dtype, with --online.  [default: float32]"),
)
@_options.stores
@_options.fitting
@_options.running
@section(
    "Other",
    option(
        "--bucket/--no-bucket",
        default=None,
        help="Batches of rows of like length, where rows have lengths of their own.  [default: no-bucket]",
    ),
    option(
        "--shuffle",
        help="full; block for a cache larger than memory; shards:N, N whole shards at a time, for one in a store that "
        "is larger than --local-size.  [default: auto]",
    ),
    option("--views-per-image", type=int, help="Views of an image in one batch, from one decode.  [default: 1]"),
    option("--codec", help="The codec of a cache that was made with code of your own: my.py:Codec."),
    flag("--verify-reads", help="Check each shard's checksums before it is used."),
    flag("--sync-bn", help="Batch norm over the batch of all GPUs under torchrun, in place of each one's own."),
)
@section(
    "Trackers",
    _options.log_,
    option(
        "--log-every",
        type=int,
        help="Write every n-th step's losses to steps.jsonl, and tell trackers of them, 0 for none.  [default: 0]",
    ),
)
def command(json_: bool = False, **options: Any) -> None:
    """Train a student from a cache, at any temperature, as often as you like."""
    if world() > 1:
        # torch's C++ code says once that looking for unused parameters found none (training.ranks).
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from softcache.stages.train import train
    from softcache.training.scores import TITLES, recorded_numbers, told

    trained = train(**options)
    if rank():
        return  # the first rank says it
    if json_:
        as_json(trained.to_json())
        return
    teacher = f", {trained.teacher_s:.1f} s of them in the teacher" if trained.teacher_s else ""
    reached = told(trained.leading, trained.val)
    if trained.leading != "top1":
        reached = f"{TITLES[trained.leading]} {reached}"
    chosen = [("chosen", f"epoch {trained.best_epoch}, {reached} of the held-out rows")]
    tested = recorded_numbers(trained.test, trained.leading)
    rows(
        [
            ("run", f"{trained.folder} ({trained.seconds:.1f} s{teacher})"),
            *(chosen if trained.best_epoch is not None else []),
            *((f"test {TITLES[name]}", told(name, value)) for name, value in tested.items()),
        ]
    )
