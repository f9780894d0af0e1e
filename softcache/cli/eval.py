"""``softcache eval``"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softcache.addresses import visible
from softcache.atomic import check_in_place, replace_file
from softcache.cli import _options
from softcache.cli._options import flag, option, section
from softcache.cli._print import as_json, fitted, rows, table
from softcache.errors import SoftcacheError, UsageError
from softcache.localfiles import local_path

if TYPE_CHECKING:
    from softcache.sweeping.evaluation import Evaluation


@_options.command("eval")
@click.argument("models", metavar="RUN...", nargs=-1)
@section(
    "Most used",
    option("--weights", help="Parameters for a model by name: DEFAULT (torchvision's), or a file."),
    _options.data("the model"),
    option("--split", help="train or test.  [default: test]"),
    _options.normalize,
    flag("--per-class", help="Show each class: its rows, accuracy of student and teacher, and the difference."),
    flag("--latency", help="Time a forward pass of 1 and of 32 samples."),
    _options.json_,
    option("--csv", "csv_", metavar="FILE", help="Write the numbers of each model to a CSV file; - prints them."),
)
@section(
    "Comparison with the teacher",
    option(
        "--cache",
        help="A cache of the teacher's outputs for the clean inputs of the split.  [default: one beside the run's own]",
    ),
    option("--teacher", help="A teacher that is run now.  [default: the run's own]"),
    option("--teacher-weights", help="Parameters of --teacher: DEFAULT, or a file."),
    option("--T", "T", type=float, help="Temperature of the second divergence.  [default: that of the training]"),
    option("--compare/--no-compare", help="Compare runs with their teacher.  [default: compare]", default=None),
)
@_options.stores
@section(
    "Device and speed",
    _options.device,
    option("--amp", help="Autocast: off, bf16, fp16; auto: as the model was trained.  [default: auto]"),
    _options.tf32,
    _options.workers,
)
def command(models: tuple[str, ...] = (), json_: bool = False, csv_: str | None = None, **options: Any) -> None:
    """How good runs, teachers, or a model with --weights are on clean inputs, and how near to their teacher.

    RUN is the folder of a run or a teacher, or of a sweep or a comparison for all of its runs. Runs that differ in the
    seed alone are one row: mean and standard deviation of a single run. The teacher's outputs come from a cache of the
    split beside the one that the run was trained from, or the teacher is run where its parameters are at hand.
    """
    from softcache.stages.eval import evaluate_all

    if json_ and csv_ == "-":
        raise UsageError("--json and --csv - would both print: give --csv a file, or leave one out")
    path = None if csv_ in (None, "-") else _target(csv_)
    found = evaluate_all(models=models, **options)
    if json_:
        alone = len(models) == 1 and found.models[0].model == models[0]
        as_json(found.models[0].to_json() if alone else found.to_json())
    elif csv_ == "-":
        click.echo(found.csv(), nl=False)
    else:
        _print(found, per_class=bool(options.get("per_class")))
    if path is not None:  # at last: what was found is on the screen, whatever becomes of the file
        _write(path, found.csv())


def _print(found: Evaluation, *, per_class: bool) -> None:
    from softcache.sweeping.evaluation_lines import at_length, heading, legend, of_classes, tables, told_setting

    rows(heading(found))
    listed = legend(found) if len(found.rows) > 1 else None
    if listed is not None:
        click.echo("")
        fitted(*listed)
    for each in [at_length(found)] if len(found.rows) == 1 else tables(found):
        click.echo("")
        table(*each)
    for row in found.rows if per_class else []:
        click.echo(f"\n{visible(told_setting(row))}" if len(found.rows) > 1 else "")
        table(*of_classes(row, found))
    if any(len(row.models) > 1 for row in found.rows):
        click.echo("\n± is the standard deviation of a single run over seeds")


def _target(named: str) -> Path:
    """Where ``--csv`` writes. Errors: ``UsageError`` for a folder, and where there is no folder for the file or nothing
    can be written into it; ``SoftcacheError`` for a link and for what is no file."""
    path = local_path(named, "--csv")
    if path.is_dir():
        raise UsageError(f"--csv {named} is a folder: name a file, such as {path / 'evaluation.csv'}")
    if not path.parent.is_dir():
        raise UsageError(f"--csv {named}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--csv {named}: nothing can be written into {path.parent}")
    check_in_place(path)
    return path


def _write(path: Path, text: str) -> None:
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise SoftcacheError(f"can't write --csv {path}: {error.strerror or error}") from None
