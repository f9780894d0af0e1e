"""docs/real.md: the tables of what ``benchmarks.cifar100`` has recorded.

python -m benchmarks.cifar100_page
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar100 import FILE, HELD_OUT
from benchmarks.cifar100_figures import Runs, over_seconds, over_views
from benchmarks.cifar100_rows import AUGMENT, PUBLISHED_VIEWS, TABLES, TESTED, VIEWS
from benchmarks.intervals import Pooled, as_good, better, difference, pool
from benchmarks.measure import in_words
from benchmarks.rows import Trial, recorded

PAGE = Path(__file__).resolve().parents[1] / "docs" / "real.md"
README = PAGE.parents[1] / "README.md"
BEGIN, END = "<!-- written by benchmarks.cifar100_page -->", "<!-- to here -->"
WHOLE_ROWS = 50_000
SHOWN = {
    "alone": "on labels alone",
    "dist, mean, 8 views": "from 8 recorded views of each picture",
    "live": "with the teacher in the loop",
}
DEVICES = {"cpu": "one CPU core"}
MARGIN = 0.5  # points within which a student is as good as one with a live teacher


def runs_of(trials: Sequence[Trial], done: Mapping[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Row → its accuracies in %, in the order of the table; rows without a run that came to its end are left out."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        record = done.get(trial.key)
        if record is not None and record.get("top1") is not None:
            found.setdefault(trial.name, []).append(100 * record["top1"])
    return found


def table(runs: Runs, baseline: str = "alone", live: str = "live") -> str:
    """All runs in %, their mean, and the differences from the student alone and from the live teacher, with intervals
    where a row has several runs."""
    if not runs:
        return "Not run yet."
    spread = pooled(runs)
    others = [(other, verdict) for other, verdict in ((baseline, _better), (live, _as_good)) if other in runs]
    heads = ["student", "runs", "mean, %", *(f"against *{other}*" for other, _ in others)]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for name, values in runs.items():
        reached = f"{statistics.mean(values):.2f}"
        if spread is not None:
            reached += f" ± {spread.half_width(len(values)):.2f}"
        cells = [_against(runs, spread, name, other, verdict) for other, verdict in others]
        lines.append(f"| {' | '.join([name, ', '.join(f'{value:.2f}' for value in values), reached, *cells])} |")
    if spread is None:
        note = "Each row is one run, so nothing is known of the spread: differences of a point may be chance."
    else:
        note = f"A single run scatters by {spread.deviation:.2f} points ({spread.freedom} degrees of freedom)."
    return "\n".join([*lines, "", note])


def pooled(runs: Runs) -> Pooled | None:
    """None where every row is one run."""
    try:
        return pool(runs)
    except ValueError:
        return None


def _against(
    runs: Runs, spread: Pooled | None, name: str, other: str, verdict: Callable[[tuple[float, float]], str]
) -> str:
    if name == other:
        return ""
    if spread is None:
        return f"{statistics.mean(runs[name]) - statistics.mean(runs[other]):+.2f}"
    found = difference(runs, name, other)
    return f"{found[0]:+.2f} ± {found[1]:.2f}: {verdict(found)}"


def _better(found: tuple[float, float]) -> str:
    return "better" if better(found) else "worse" if better((-found[0], found[1])) else "not shown"


def _as_good(found: tuple[float, float]) -> str:
    """Where it isn't shown to be as good, whether it is shown to differ at all."""
    return "as good" if as_good(found, MARGIN) else _better(found)


def commands(trials: Sequence[Trial]) -> str:
    """Row → its command, also of those that weren't run yet."""
    shown = {trial.name: trial.command for trial in trials}
    width = max(map(len, shown))
    lines = "\n".join(f"    {name:{width}}  softcache {command}" for name, command in shown.items())
    return f"<details><summary>Commands</summary>\n\n{lines}\n\n</details>"


def unfinished(trials: Sequence[Trial], done: Mapping[str, dict[str, Any]]) -> list[str]:
    """One line for each run that failed, and one for those that are still to be made."""
    failed = [trial for trial in trials if "failed" in done.get(trial.key, {})]
    lines = [f"- Failed: {trial.name}, seed {trial.seed}: {done[trial.key]['failed']}" for trial in failed]
    missing = [trial for trial in trials if trial.key not in done]
    if missing:
        lines.append(f"- Not run yet: {len(missing)} of {len(trials)} runs.")
    return lines


def page(done: Mapping[str, dict[str, Any]]) -> str:
    trials = {name: make() for name, make in TABLES.items()}
    found = {name: runs_of(wanted, done) for name, wanted in trials.items()}
    missing = [f"{name}: {line}" for name, wanted in trials.items() for line in unfinished(wanted, done)]
    targets = found["targets"]
    draw(targets, done)
    return f"""# On a real set: CIFAR-100

Students learn from a teacher that others trained: KAIST's MicroNet with 477,000 parameters, 81.1 % on CIFAR-100's test
split, trained with CutMix and AutoAugment. So its logits are small, with a standard deviation of 1.3 and a maximum of
11.5. Views are of the recipe `{AUGMENT}`. *Alone* is the same student on labels without a teacher, *live* one whose
teacher runs in the training and sees a fresh view of each picture in every epoch. A teacher's seconds are
the samples that it is asked for, at the speed of dumps on one CPU core while the other was busy.

{tests(trials, found)}

## How this was chosen

These tables train on the first {WHOLE_ROWS - HELD_OUT:,} training rows and show the accuracy on the other
{HELD_OUT:,}, a `cifar:resnet8` (78,000 parameters) after 12 epochs. Nothing here looked at the test split.

### Targets and numbers of views

Each with the loss `dist`. *Matched*: recorded views and what the teacher said of each. *Mean*: fresh views in every
epoch, and the mean of what the teacher said of the recorded ones. *Both*: one half of each batch is of either kind.

![accuracy over the number of recorded views](real-views.png)

![accuracy over the teacher's seconds](real-seconds.png)

{table(targets)}

{commands(trials["targets"])}

### Losses, a first look

At half the learning rate, without a bound on the gradient, and on all {max(VIEWS)} recorded views.

{table(found["screen"])}

{commands(trials["screen"])}

How students are optimized was chosen in [defaults.md](defaults.md).

## On a GPU

The pairs, recipe and 240 epochs of the papers, from {PUBLISHED_VIEWS} views. `python -m benchmarks.cifar100 --place DIR
--data cifar100 published` teaches the teachers, asks them, and trains the students, in as many sittings as you like
(`--minutes 10`). {"" if found["published"] else "Nobody has run it yet."}

{table(found["published"]) if found["published"] else ""}

{commands(trials["published"])}

## Runs

Every run is a line of [benchmarks/results/cifar100.jsonl](../benchmarks/results/cifar100.jsonl), failures too.
`python -m benchmarks.cifar100 --place DIR --data cifar100 --teacher … TABLE` makes those of a table that are missing,
and `python -m benchmarks.cifar100_page` writes this page. They were made on these machines:

{machines(done)}

The teacher was asked {dumps(done)}.

{chr(10).join(missing)}
"""


def machines(done: Mapping[str, dict[str, Any]]) -> str:
    """A line for each kind of machine: how many runs it made, and what it was at the newest of them."""
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in (record for record in done.values() if record["table"] != "dump"):
        kinds.setdefault((record["machine"]["cpu"], device_of(record)), []).append(record)
    newest = [max(records, key=lambda record: record["date"]) for records in kinds.values()]
    pairs = zip(kinds.values(), newest, strict=True)
    return "\n".join(f"- {len(records)} runs: {in_words(record)}" for records, record in pairs)


def device_of(record: Mapping[str, Any]) -> str:
    """The name of the GPU that a run was made on, or ``cpu``."""
    return str(record.get("machine", {}).get("device", "cpu"))


def dumps(done: Mapping[str, dict[str, Any]]) -> str:
    """What each dump took."""
    found = [
        f"{record['keys']:,} times in {record['seconds']:,.0f} s ({DEVICES.get(device_of(record), device_of(record))})"
        for record in done.values()
        if record["table"] == "dump"
    ]
    return " and ".join(found) or "in no dump that was timed"


def tests(trials: Mapping[str, Sequence[Trial]], found: Mapping[str, Runs]) -> str:
    """A section for each student that was judged on the test split."""
    sections = []
    for name, (epochs, _) in TESTED.items():
        if found[name]:
            head = f"## `cifar:{name}`, {epochs} epochs: the test split"
            sections += [head, table(found[name]), commands(trials[name])]
    return "\n\n".join(sections or ["The test split hasn't been looked at yet."])


def draw(runs: Runs, done: Mapping[str, dict[str, Any]]) -> None:
    """Both figures, of the table of targets."""
    spread = pooled(runs)
    what = "top-1 on held-out rows (%)"
    over_views(runs, spread, PAGE.with_name("real-views.png"), what)
    seconds = teacher_seconds(TABLES["targets"](), done, WHOLE_ROWS - HELD_OUT)
    if seconds:
        over_seconds(runs, seconds, spread, PAGE.with_name("real-seconds.png"), what)


def teacher_seconds(trials: Sequence[Trial], done: Mapping[str, dict[str, Any]], rows: int) -> dict[str, float]:
    """Row → seconds of the teacher for one student on a set of so many ``rows``, at the speed at which dumps were
    timed on CPUs: one pass for each recorded view, or with a live teacher for each epoch. Empty where none was."""
    timed = [record for record in done.values() if record["table"] == "dump" and device_of(record) == "cpu"]
    if not timed:
        return {}
    a_pass = rows * sum(dump["seconds"] for dump in timed) / sum(dump["keys"] for dump in timed)
    found = {}
    for trial in trials:
        said = dict(re.findall(r"--(views|epochs) (\d+)", trial.command))
        if "--online" in trial.command:
            found[trial.name] = int(said["epochs"]) * a_pass
        elif "--cache" in trial.command:
            found[trial.name] = int(said.get("views", max(VIEWS))) * a_pass
    return found


def summary(done: Mapping[str, dict[str, Any]]) -> str:
    """README's table: students of CIFAR-100, on the test split, and what their teacher cost."""
    lines = ["| student | | top-1, % | the teacher runs for |", "| --- | --- | --- | --- |"]
    for name, (epochs, _) in TESTED.items():
        trials = TABLES[name]()
        runs, seconds = runs_of(trials, done), teacher_seconds(trials, done, WHOLE_ROWS)
        spread = pooled(runs)
        if spread is None:
            continue
        for row_name, words in SHOWN.items():
            if row_name in runs:
                reached = f"{statistics.mean(runs[row_name]):.1f} ± {spread.half_width(len(runs[row_name])):.1f}"
                first = f"`cifar:{name}`, {epochs} epochs" if row_name == "alone" else ""
                each = {"alone": "", "live": ", for each student"}.get(row_name, ", once for all students")
                took = "nothing" if row_name == "alone" else f"{seconds[row_name]:,.0f} s{each}"
                lines.append(f"| {first} | {words} | {reached} | {took} |")
    return "\n".join(lines)


def in_readme(text: str, done: Mapping[str, dict[str, Any]]) -> str:
    """The README with this table in its place."""
    before, rest = text.split(BEGIN)
    asked = f"For these dumps the teacher was asked {dumps(done)}."
    return f"{before}{BEGIN}\n{summary(done)}\n\n{asked}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    runs_made = recorded(FILE)
    PAGE.write_text(page(runs_made), encoding="utf-8")
    README.write_text(in_readme(README.read_text(encoding="utf-8"), runs_made), encoding="utf-8")
