"""``softcache sweep``"""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING, Any

import click

from softcache.cli import _many, _options
from softcache.cli._options import flag, option, section
from softcache.cli._print import as_json, rows
from softcache.cli._print import table as print_table
from softcache.config.several import GRID
from softcache.console import counted, duration
from softcache.errors import SoftcacheError

if TYPE_CHECKING:
    from softcache.stages.sweep import Planned, Swept

HELPS = {
    "loss": "kl, ce, hard, mse, dkd, …, my.py:Loss, with options: kl:weight=0.9,T=2. Repeat it for several values.  "
    "[default: as in train]",
    "val_fraction": "Share of the rows held out, by which the best is chosen.  [default: 0.1]",
    "order_seed": "Seed of the order of rows and of --label-fraction, the same for all students.  [default: 0]",
    "seed": "The first seed.  [default: 0]",
}


@_options.command("sweep", file="--spec")
@_many.of_train(GRID, HELPS)
@section(
    "Sweep",
    option(
        "--seeds",
        type=int,
        help="Students of each combination, from --seed on; with --auto, of each of the best.  "
        "[default: 1, with --auto 3]",
    ),
    flag("--auto", help="Search loss, T, alpha, beta and lr, those that aren't given, within --budget."),
    option("--budget", metavar="TIME", help="Time for --auto, such as 90s, 30m or 1h30m.  [default: 30m]"),
    option(
        "--trials",
        type=int,
        help="Draw so many combinations with Optuna in place of a grid; options may then be ranges, such as "
        "--lr 0.01..0.5.  [default: all of the grid]",
    ),
    option(
        "--prune/--no-prune",
        default=None,
        help="Whether students of --trials and --auto end early that fall behind those before.  [default: prune]",
    ),
    option("--out", type=click.Path(), help="The sweep's folder.  [default: sweeps/STUDENT-<n>]"),
    option(
        "--resume",
        type=click.Path(),
        metavar="SWEEP",
        help="Go on with an interrupted sweep, with its own options; --processes and where it runs may be others.",
    ),
    option("--join", type=click.Path(), metavar="SWEEP", help="Help a sweep that runs, from here or another machine."),
    flag("--dry-run", help="Say how many students, cohorts and steps it would be, and stop."),
    _many.layout,
    _options.json_,
)
def command(dry_run: bool = False, json_: bool = False, **options: Any) -> None:
    """Train a grid of students from one cache, and choose by held-out rows.

    The options of train that are shown with V,V take several values, and --loss is one value each time. All
    combinations are trained, each with --seeds students; those that share an order of keys are trained from one stream.
    Run again with --resume after an interruption: what is finished isn't trained again. The best combination alone sees
    the test split.

    \b
      softcache sweep --student resnet18,mobilenet_v3_small --T 1,2,4,8 --alpha 0.5,0.9 --loss kl --seeds 3
    """
    from softcache.console import live_table
    from softcache.stages.sweep import plan_sweep, sweep

    if dry_run:
        _show_plan(plan_sweep(**options), json_)
        return
    with contextlib.ExitStack() as shown:
        show = shown.enter_context(live_table())
        done = sweep(lambda table: show(*table.lines()), **options)
    if json_:
        as_json(done.to_json())
    else:
        _show(done)
    if done.failed:
        raise SoftcacheError(
            f"{done.failed} of {counted(done.table.size, 'student')} failed, the log says why; "
            f"softcache sweep --resume {shlex.quote(str(done.folder))} tries them again"
        )


def _show(done: Swept) -> None:
    from softcache.sweeping.table import told_mean

    tables = [done.table]
    if done.searched is not None:
        click.echo("settings, each with one student")
        print_table(*done.searched.lines())
        click.echo("\nthe best of them and the defaults, with students of fresh seeds")
        tables.append(done.searched)
    print_table(*done.table.lines())
    click.echo("")
    ended = f"{sum(one.ended for one in tables)} of {counted(sum(one.size for one in tables), 'student')} have ended"
    facts = [("sweep", f"{done.folder} ({ended}, {duration(done.seconds)})")]
    if done.best is not None:
        facts += [
            ("best", done.best.combination.text()),
            ("its test " + done.table.title, told_mean(done.best.tests, done.table.leading)),
            ("again", str(done.command)),
        ]
    rows(facts)
    if len(done.table.rows[0].runs) > 1:
        click.echo("± is the standard deviation of a single student; students of all seeds saw one order of the rows")


def _show_plan(planned: Planned, json_: bool) -> None:
    if json_:
        as_json(planned.__dict__)
        return
    rows(
        [
            ("students", f"{planned.students:,}"),
            ("cohorts", f"{planned.cohorts:,}"),
            ("processes", f"{planned.processes}, each with {counted(planned.threads, 'CPU thread')}"),
            ("steps", f"{planned.steps:,} of all students together"),
            *((f"{name} fails", why) for name, why in planned.errors.items()),
        ]
    )
