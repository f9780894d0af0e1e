"""``softcache plan``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from softcache.cli import _options
from softcache.cli._options import flag, option, rows_or_all, section
from softcache.cli._print import as_json, rows
from softcache.console import counted, decimal_size, duration, of_rows, rate

if TYPE_CHECKING:
    from softcache.stages.plan import Dumping, Paid, Plan, PlannedColumn, Students


@_options.command("plan")
@section(
    "Most used",
    option("--teacher", help="A model, a teacher's or a run's folder.  [default: resnet50; with --rows none]"),
    option("--rows", type=int, metavar="N", help="Plan for so many rows of data that aren't at hand."),
    option("--classes", type=int, metavar="N", help="How many classes those rows have."),
    option("--views", type=int, help="Recorded views of every image.  [default: 4; 1 with --augment none]"),
    option(
        "--output",
        multiple=True,
        metavar="NAME",
        help="What is kept of the teacher's answer, as NAME[:kind=classes|binary|values][:shape=1024x768]"
        "[:codec=CODEC]; repeatable; none for hints alone. A shape spares the teacher.  [default: logits]",
    ),
    option(
        "--hint",
        multiple=True,
        metavar="LAYER",
        help="A layer's activations too, as LAYER[:pool=7][:rows=0.25][:shape=1024x7x7][:codec=CODEC]; repeatable.",
    ),
    _options.json_,
)
@section(
    "Time and cost",
    option("--gpus", type=int, metavar="N", help="GPUs that share the dump.  [default: this machine's device alone]"),
    option("--rate", type=float, help="Inputs a second of the teacher on one GPU."),
    option("--disk-rate", type=float, metavar="MB/S", help="What the disk takes in the long run."),
    option("--readers", type=int, metavar="N", help="Students that train from the cache at the same time."),
    option("--student-rate", type=float, metavar="RATE", help="Samples a second that one student trains on."),
    option("--epochs", type=int, help="Epochs of a student."),
    option("--price", type=float, help="What a GPU costs an hour."),
    flag(
        "--probe", help="Measure here, in seconds, what isn't given: the teacher's, a --student's and the disk's rate."
    ),
    option("--student", help="A student whose rate --probe measures, such as resnet18."),
    option("--probe-gib", type=float, metavar="GIB", help="Most that is written to measure a disk.  [default: 8]"),
)
@section(
    "Data and storage",
    _options.data("the teacher"),
    option("--split", help="train or test.  [default: train]"),
    _options.augment,
    option("--teacher-size", type=int, help="Side of the teacher's input.  [default: the views', or its own]"),
    option("--codec", help="How it is stored where --output and --hint don't say.  [default: fp16]"),
    _options.compress,
    option("--shard-rows", type=int, help="Most rows of a shard, a power of two.  [default: by device and size]"),
    option("--keep-samples", callback=rows_or_all, metavar="N|all", help="Rows whose pixels are kept.  [default: 64]"),
    option(
        "--out",
        type=click.Path(),
        help="Where the cache would lie; --probe measures its disk, if it's a folder.",
    ),
    _options.device,
    option("--batch-size", type=int, metavar="N", help="Rows per forward pass, for --probe.  [default: as dump]"),
)
def command(json_: bool = False, **options: Any) -> None:
    """What a dump would write, take and cost: bytes and files, hours, MB/s, and when it has paid.

    Sizes are those of the files that softcache dump would write, to the byte; of compressed ones they are the most that
    they can be, because that depends on the numbers. docs/scale.md has the formulas. No parameters are downloaded for
    it. `softcache plan --rows 1281167 --classes 1000 --views 90` needs neither data nor a teacher.
    """
    from softcache.stages.plan import plan

    found = plan(**options)
    if json_:
        as_json(found.to_json())
        return
    rows(_lines(found))


def _lines(found: Plan) -> list[tuple[str, str]]:
    files = found.files
    other = ", ".join(f"{name} {decimal_size(count)}" for name, count in files.other.items())
    most = "at most " if any(column.compress for column in found.columns) else ""
    lines = [
        ("data", f"{counted(found.rows, 'row')} × {counted(found.views, 'view')}: {counted(found.keys, 'key')}"),
        *((column.name, _column(column)) for column in found.columns),
        ("a view", f"{most}{decimal_size(files.view_bytes)} in {counted(files.shards // found.views, 'shard')}"),
        ("the cache", f"{most}{decimal_size(files.bytes)} in {counted(files.files, 'file')}: {files.bytes:,} bytes"),
        ("beside shards", f"{other}, and cache.json, which isn't counted"),
    ]
    if found.dumping is not None:
        lines += [("the dump", _dump(found.dumping)), ("it writes", _disk(found, found.dumping))]
        if found.dumping.waiting:
            lines += [("smaller", text) for text in map(_smaller, found.columns) if text]
    elif found.disk_mb_per_s is not None:
        lines.append(("the disk", f"takes {found.disk_mb_per_s:,.1f} MB/s"))
    if found.disk is not None:
        steady = "steady by then" if found.disk.steady else "not steady yet: a larger --probe-gib says more"
        lines.append(
            ("measured", f"the disk at the end of {decimal_size(found.disk.written)} in {found.disk.place}, {steady}")
        )
    if found.students is not None:
        lines.append((counted(found.students.readers, "student"), _students(found.students)))
    if found.paid is not None:
        lines.append(("has paid", _paid(found.paid)))
        if found.paid.dump_cost is not None:
            lines.append(("costs", _cost(found.paid)))
    return lines


def _column(column: PlannedColumn) -> str:
    from softcache.cache.schema import share_of

    share = share_of(column.name)
    sizes = column.shape if share is None else column.shape[1:]
    shape = "×".join("L" if size is None else str(size) for size in sizes) or "1"
    shards = counted(column.shards, "shard")
    each = f" of {column.shard_rows:,} rows" if column.shards > 1 else ""
    size = f"{column.key_bytes:,} bytes a key"
    if column.compress is not None:
        size = f"{size} before {column.compress}"
    kept = "" if share is None else f", of {of_rows(share)}"
    return f"{shape} {column.kind} in {column.codec}{kept}: {size}, {shards} a view{each}"


def _dump(dumping: Dumping) -> str:
    where = counted(dumping.gpus, "GPU") if not dumping.measured_on else f"{dumping.gpus} × {dumping.measured_on}"
    text = f"{duration(dumping.hours * 3600)} on {where}, at {rate(dumping.rate, 'inputs')} each"
    if dumping.inputs_rate is not None:
        text += f"; a process makes {rate(dumping.inputs_rate, 'inputs')}"
    return text


def _disk(found: Plan, dumping: Dumping) -> str:
    text = f"{dumping.written_mb_per_s:,.1f} MB/s"
    if dumping.waiting is None:
        return text
    disk = f"{text}, and the disk takes {found.disk_mb_per_s:,.1f}"
    return f"{disk}: the teacher waits {dumping.waiting:.0%} of the time" if dumping.waiting else disk


def _smaller(column: PlannedColumn) -> str:
    found = ", ".join(f"{choice.codec} {choice.key_bytes:,}" for choice in column.smaller)
    return f"{column.name} would take {found} bytes a key" if found else ""


def _students(students: Students) -> str:
    each = " each" if students.readers > 1 else ""
    text = f"read {students.read_mb_per_s:,.1f} MB/s, at {rate(students.rate, 'samples')}{each}"
    if students.live_factor is None:
        return text
    return f"{text}; with a live teacher a step takes {1 + students.live_factor:.2f} times as long"


def _paid(paid: Paid) -> str:
    text = f"after {paid.epochs:,.0f} epochs of all students together"
    if paid.students is None or paid.student_epochs is None:
        return text
    return f"{text}: with {counted(paid.students, 'student')} of {counted(paid.student_epochs, 'epoch')}"


def _cost(paid: Paid) -> str:
    text = f"{paid.dump_cost:,.2f} for the dump"
    if paid.cost_a_reader is not None:
        text += f", {paid.cost_a_reader:,.2f} for each student"
    return text if paid.live_cost is None else f"{text}; {paid.live_cost:,.2f} for a live teacher of each student"
