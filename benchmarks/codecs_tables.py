"""The tables of docs/codecs.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.codecs_losses import harmed
from benchmarks.codecs_rows import FLAT_TAIL, FP32
from benchmarks.codecs_schemes import OURS, SAMPLED
from benchmarks.codecs_sets import EMBEDDING, LOGITS_SET

NOT_RUN = "Not measured yet."
LIMIT = 0.1  # of a gradient's length, by which a loss that a codec harms is off
# Of the losses' tables: enough to see every family.
SHOWN = {
    LOGITS_SET: (
        "fp16", "int:bits=8", "int:bits=5", "int:bits=4", "basis:bytes=45", "basis:bytes=22", "topk:k=20", "topk:k=10",
        FLAT_TAIL, "polynomial, budget (DistillKit)",
    ),
    EMBEDDING: (),
}  # fmt: skip
# What sets are, where their names don't say it.
ABOUT = {
    LOGITS_SET: (
        "What KAIST's MicroNet of 477,000 parameters says of training pictures, cropped and flipped as in a training. "
        "Its classifier is given 114 numbers, so that the logits have all directions that 100 classes can have."
    ),
    "ImageNet": (
        "A MobileNetV1 0.25 on natural pictures that were enlarged from 64 pixels, of which it is unsure; in half "
        "precision, so that `fp16` loses nothing. Its classifier is given 256 numbers, and the logits have 256 "
        "directions and no more: `basis` has an easy task from the size on that has bits for all of them. A network "
        "whose classifier is given more numbers than there are classes is harder, and one is in "
        "[signals.md](signals.md#codecs)."
    ),
}
Record = Mapping[str, Any]
Done = Mapping[str, dict[str, Any]]


def of_set(what: str, name: str, done: Done) -> list[dict[str, Any]]:
    """What was measured on a set."""
    return [record for record in done.values() if record["table"] == what and record["set"] == name]


def section(some: Record, records: Sequence[Record]) -> str:
    """The table of a set of logits."""
    heads = ["codec", "bytes", *(f"KL, T = {T}" for T in (1, 2, 4, 8)), "same largest", "rows/s in", "rows/s out"]
    lines = [line(heads), line(["---", "---:", *["---:"] * 7])]
    for record in records:
        error = record["error"]
        kl = [f"{small(error[f'kl_T{T}'])} / {small(error[f'kl_T{T}_p99'])}" for T in (1, 2, 4, 8)]
        rates = [rate(record[way]) for way in ("encode", "decode")]
        lines.append(line([name_of(record), bytes_of(record), *kl, f"{100 * error['agreement']:.2f} %", *rates]))
    about = (
        f"{ABOUT.get(some['name'], '')} {some['rows']:,} rows, {some['fitted']:,} others to fit on. Mean entropy "
        f"{some['entropy']:.2f} nats; {some['directions']:,} principal directions have all but a millionth of the "
        "variance."
    ).strip()
    return "\n".join([f"### {some['name']}, {some['numbers']:,} classes", "", about, "", *lines, ""])


def values_section(some: Record, records: Sequence[Record]) -> str:
    """The table of a set of embeddings."""
    heads = ["codec", "bytes", "mean cosine", "relative error", "its 99th percentile", "rows/s in", "rows/s out"]
    lines = [line(heads), line(["---", *["---:"] * 6])]
    for record in records:
        error = record["error"]
        off = [f"{100 * error[name]:.3g} %" for name in ("relative", "relative_p99")]
        rates = [rate(record[way]) for way in ("encode", "decode")]
        lines.append(line([name_of(record), bytes_of(record), f"{error['cosine']:.6f}", *off, *rates]))
    about = (
        f"The vector of {some['numbers']:,} numbers that the teacher's classifier is given, of the same rows; "
        f"{some['fitted']:,} others to fit on."
    )
    return "\n".join([f"## {some['name']}", "", about, "", *lines])


def reverse(sets: Iterable[Record], errors: Mapping[str, Sequence[Record]]) -> str:
    """KL(decoded‖teacher) of sampled targets, beside schemes of about as many bytes."""
    lines = [
        line(["set", "codec", "bytes", "KL(decoded‖teacher), T = 1", "T = 4"]),
        line(["---", "---", *["---:"] * 3]),
    ]
    for some in sets:
        records = errors[some["name"]]
        sampled = [record for record in records if record["family"] == SAMPLED]
        beside = {_nearest(record["bytes"], records, ours)["name"] for record in sampled for ours in (True, False)}
        for record in records:
            if record["family"] == SAMPLED or record["name"] in beside:
                off = [small(record["error"][f"reverse_T{T}"]) for T in (1, 4)]
                lines.append(line([some["name"], name_of(record), bytes_of(record), *off]))
    return "\n".join(lines) if len(lines) > 2 else NOT_RUN


def _nearest(size: float, records: Sequence[Record], ours: bool) -> Record:
    """Of softcache's or others' records the one of the most similar size."""
    found = [r for r in records if (r["family"] in OURS) == ours and r["family"] != SAMPLED]
    return min(found, key=lambda record: abs(record["bytes"] - size))


def loss_table(name: str, done: Done) -> str:
    """Losses by rows, codecs by columns."""
    records = {record["name"]: record for record in of_set("losses", name, done)}
    shown = [codec for codec in SHOWN[name] or [codec for codec in records if codec != FP32] if codec in records]
    if not shown:
        return NOT_RUN
    heads = [name_of(records[codec]) for codec in shown]
    lines = [line(["loss", *heads]), line(["---", *["---:"] * len(shown)])]
    for spec in records[shown[0]]["losses"]:
        lines.append(line([f"`{spec}`", *(off(records[codec]["losses"][spec]) for codec in shown)]))
    return "\n".join(lines)


def harms(name: str, done: Done) -> str:
    """A line for each codec that harms a loss, of all that were measured."""
    records = of_set("losses", name, done)
    if not records:
        return ""
    lines = [f"Losses whose gradient is off by more than {100 * LIMIT:.0f} %:", ""]
    for record in records:
        found = harmed(record["losses"], LIMIT)
        if found:
            all_of_them = len(found) == len(record["losses"])
            lines.append(f"- {name_of(record)}: {'all' if all_of_them else ', '.join(f'`{spec}`' for spec in found)}")
    free = [name_of(record) for record in records if not harmed(record["losses"], LIMIT)]
    return "\n".join([*lines, f"- none: {', '.join(free)}"])


def small(value: float | None) -> str:
    """A divergence."""
    if value is None:
        return "∞"
    return "0" if value == 0 else f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def rate(found: Sequence[float]) -> str:
    """Rows a second: median, lowest and highest."""
    median, low, high = (thousands(value) for value in found)
    return f"{median} ({low} – {high})"


def thousands(value: float) -> str:
    return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value / 1e3:.3g}k" if value >= 1e3 else f"{value:.0f}"


def off(found: Record) -> str:
    """The gradient's relative error and cosine."""
    if found["gradient"] < 1e-3:
        return "< 0.1 %"
    percent = 100 * found["gradient"]
    return f"{percent:.0f} %, {found['cosine']:.3f}" if percent >= 10 else f"{percent:.2g} %, {found['cosine']:.3f}"


def name_of(record: Record) -> str:
    return f"`{record['name']}`" if record["family"] in OURS else str(record["name"])


def bytes_of(record: Record) -> str:
    fitted = record["constant_bytes"]
    return f"{size_of(record)}, once {thousands(fitted)}" if fitted else size_of(record)


def size_of(record: Record) -> str:
    """Bytes of a key."""
    return f"{record['bytes']:,.1f}" if record["bytes"] % 1 else f"{record['bytes']:,.0f}"


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
