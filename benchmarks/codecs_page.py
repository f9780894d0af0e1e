"""docs/codecs.md: the tables and the chart of what ``benchmarks.codecs`` has recorded.

python -m benchmarks.codecs_page
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.cifar100 import HELD_OUT
from benchmarks.cifar100_page import WHOLE_ROWS, commands, machines, pooled, runs_of, table, unfinished
from benchmarks.codecs import FILE
from benchmarks.codecs_chart import chart
from benchmarks.codecs_rows import EPOCHS, FLAT_TAIL, FP32, LOSSES, STUDENT, VIEWS, students
from benchmarks.codecs_schemes import OURS, SAMPLED
from benchmarks.codecs_sets import EMBEDDING, LOGITS_SET
from benchmarks.codecs_tables import (
    NOT_RUN,
    Done,
    Record,
    harms,
    line,
    loss_table,
    name_of,
    of_set,
    reverse,
    section,
    size_of,
    small,
    values_section,
)
from benchmarks.intervals import difference
from benchmarks.rows import recorded

PAGE = Path(__file__).resolve().parents[1] / "docs" / "codecs.md"
CHART = "codecs.png"


def page(done: Done) -> str:
    sets = [record for record in done.values() if record["table"] == "sets"]
    errors = {some["name"]: of_set("errors", some["name"], done) for some in sets}
    logits = [some for some in sets if some["kind"] == "classes" and errors[some["name"]]]
    vectors = [some for some in sets if some["kind"] == "values"]
    if logits:
        chart(logits, errors, PAGE.with_name(CHART))
    trials = students()
    runs = runs_of(trials, done)
    return f"""# Codecs: bytes, error, speed, and what students make of them

What a codec keeps and how it is asked for is in [signals.md](signals.md#codecs), its bytes in [format.md](format.md).
This page has what each of them costs, beside the schemes of others, on the same rows of real logits.

## Which codec for which need

{advice(logits, errors)}

## Bytes and error

![mean divergence over bytes a key, of softcache's codecs and those of others](codecs.png)

Softcache's codecs are filled circles. What loses nothing isn't in the chart. Numbers beside points are bits of `int`,
classes of `topk` and of a flat tail.

{chr(10).join(section(some, errors[some["name"]]) for some in logits) or NOT_RUN}

### How the columns are measured

Bytes are those of a key's logits, without the 4 bytes of its digest, and of `basis` and `int8` without what is fitted,
which a cache has once. KL(teacher‖decoded) is in nats, in float64, the mean and behind the stroke the 99th percentile.
*Same largest*: the keys whose most probable class stays the same. Rates are rows in a second of one core, in batches of
128, the median of repetitions with the lowest and the highest; *out* is what a loss at T = 1 is given. What is fitted
is fitted on other rows.

The schemes of others keep probabilities at T = 1. At another T they are what a user can make of them, the power 1/T of
what is kept, scaled to sum 1. Softcache's codecs keep logits, and `topk` the tail's weight at T = 1, 2 and 4.

- **Flat tail.** [TinyViT](https://arxiv.org/abs/2207.10666) keeps the k largest probabilities in half precision with
  16 bits for each class (and 4 bytes a record for its seed, which aren't counted), [FKD](https://arxiv.org/abs/2112.01528)
  both in 32 bits; what is left of 1 is spread evenly over the other classes. Where rounding leaves nothing for them,
  they get 2⁻²⁴ together here, because nothing at all would be infinitely far from the teacher.
- **Polynomial tail.** [DistillKit](https://github.com/arcee-ai/DistillKit)'s distribution quantization, with the two
  settings that its README (commit 43f6e1b) recommends for vocabularies: 128 classes, 16 of them in bfloat16 and the
  others on a polynomial of their place with five powers and a square root; and 50 classes, one of them in bfloat16,
  with a line and a square root. What is left of 1 is spread evenly (its `symmetric_uniform`; with its default, `zero`,
  KL is infinite). The coefficients are found in float64, which is at least as exact as the original.
- **Sampled targets.** [RS-KD](https://arxiv.org/abs/2503.16870) keeps classes that are drawn with the teacher's
  probabilities, and how often. Their mean over many draws is the teacher's answer, and one draw gives most classes a
  probability of 0, so that KL(teacher‖decoded) is infinite. The other direction, which a student's loss has, is
  finite:

{reverse(logits, errors)}

{chr(10).join(values_section(some, errors[some["name"]]) for some in vectors)}

## Which losses a codec harms

The gradient of each loss for the outputs of one student (a `{STUDENT}` after an epoch on labels), with the teacher as
it comes back from the codec, against the gradient with the teacher's own numbers: by how much of its length it is off,
and its cosine. Means of batches of 128 keys that nothing was fitted on, losses by their defaults. Below 0.1 % there is
no cosine.

{loss_table(LOGITS_SET, done)}

{harms(LOGITS_SET, done)}

A flat tail, that of `topk` as those of others, leaves nothing of the order of the unlikely classes. A loss at T = 1
sees next to nothing of these. At T = 4, the default of `kl`, `ce`, `dkd`, `dist` and `rld`, and at the higher one that
`ctkd` begins with, they have a large part of the probability, and `mse` and standardized logits see all classes alike.
`mse` of the schemes of others is besides off by what probabilities don't say: where the logits' zero was.

### Losses on embeddings

Of the vector that the teacher's classifier is given. `rkd`, `sp`, `pkt` and `cc` compare it with the student's own
vector, the others with the best linear map of that.

{loss_table(EMBEDDING, done)}

{harms(EMBEDDING, done)}

## What students make of it

A `{STUDENT}` on {WHOLE_ROWS - HELD_OUT:,} training rows of CIFAR-100 after {EPOCHS} epochs of {VIEWS} recorded views,
judged on the other {HELD_OUT:,}. All caches come from one in float32, so that they differ in what is kept and in
nothing else. With `kl` at T = 1, which a flat tail is made for, and with `dist` at T = 4, the default. *As good*: the
95 % interval of the difference lies within half a point; *not shown*: the interval has 0 in it and is wider than that.

{student_tables(runs)}

{commands(trials)}

{chr(10).join(unfinished(trials, done))}

## Runs

Every figure is a line of [benchmarks/results/codecs.jsonl](../benchmarks/results/codecs.jsonl). `python -m
benchmarks.codecs --place DIR --data … --teacher … --teacher-weights … --logits NAME=FILE` measures errors and rates,
with `losses` and `students` behind its name the other tables, and `python -m benchmarks.codecs_page` writes this page.
They were made on these machines:

{machines(done)}
"""


def student_tables(runs: Mapping[str, Sequence[float]]) -> str:
    """A table for each loss, of the codecs' names, against fp32 and against the flat tail."""
    found = []
    for loss in LOSSES:
        own = {name.partition(", ")[2]: values for name, values in runs.items() if name.startswith(f"{loss}, ")}
        if "alone" in runs and own:
            own = {"alone": runs["alone"], **own}
        found.append(f"### `{loss}`\n\n{table(own, baseline=FLAT_TAIL, live=FP32)}")
        if FP32 in own and pooled(own) is not None:
            found.append(noise(own))
    return "\n\n".join(found)


def noise(runs: Mapping[str, Sequence[float]]) -> str:
    """Which codecs are shown to differ from fp32, and that all other differences may be chance."""
    apart = {name: difference(runs, name, FP32) for name in runs if name not in (FP32, "alone")}
    differ = [f"{name} by {mean:+.2f}" for name, (mean, half) in apart.items() if abs(mean) > half]
    widest = max((half for _, half in apart.values()), default=0.0)
    if not differ:
        return f"No codec is shown to differ from `fp32`: all differences are within ± {widest:.2f} points, and noise."
    return (
        f"Shown to differ from `fp32`: {', '.join(differ)} points. Of the others nothing is shown: what they differ by "
        f"is within ± {widest:.2f} points, and may be noise."
    )


def advice(sets: Sequence[Record], errors: Mapping[str, Sequence[Record]]) -> str:
    """Which codec for which need, with what was measured of it in brackets."""
    if not sets:
        return NOT_RUN

    def says(few: str, many: str = "") -> str:
        """What a codec has, and where classes are many another one."""
        names = {some["name"]: few if some["numbers"] <= 100 else many or few for some in sets}
        found = {name: _named(codec, errors[name]) for name, codec in names.items()}
        parts = [
            f"{size_of(record)} B for {some['numbers']:,} classes: "
            f"{small(record['error']['kl_T1'])} / {small(record['error']['kl_T4'])}"
            for some in sets
            if (record := found[some["name"]]) is not None
        ]
        return "; ".join(parts) or "not measured yet"

    return f"""In brackets: bytes of a key, and the mean divergence in nats at T = 1 / T = 4 on the sets below.

- **Size doesn't matter:** `fp16`, the default ({says("fp16")}).
- **Smaller, whatever teacher, data and loss:** `int:bits=8` ({says("int:bits=8")}) or `int:bits=5`
  ({says("int:bits=5")}). Nothing is fitted, so that no row can be unlike those that were drawn, and both ways are fast.
- **As small as can be:** `basis` ({says("basis:bytes=45", "basis:bytes=225")}). It is fitted on 4,096 keys, so that it
  needs rows that are like each other, and it is by far the slowest to encode, which is done once for each key: compare
  its rate below with the teacher's.
- **Very many classes, as in vocabularies:** `topk` ({says("topk:k=20")}), with a loss that sees the teacher through its
  softmax at a low T. The order of the tail is lost at every T.
- **Embeddings and activations:** `int:bits=8` or `int8`; `basis` where a relative error of some per cent is enough.

{against_flat(sets, errors)}"""


def against_flat(sets: Sequence[Record], errors: Mapping[str, Sequence[Record]]) -> str:
    """How many bytes a flat tail takes, and the smallest codec that has no more error at any of the temperatures."""
    lines = [
        line(
            [
                "set",
                "scheme of others",
                "bytes",
                "the smallest codec of those below that loses no more at any T",
                "bytes",
            ]
        )
    ]
    lines.append(line(["---", "---", "---:", "---", "---:"]))
    for some in sets:
        records = errors[some["name"]]
        ours = sorted((record for record in records if record["family"] in OURS), key=lambda record: record["bytes"])
        for record in records:
            if record["family"] in OURS or record["family"] == SAMPLED:
                continue
            better = next((other for other in ours if _no_worse(other["error"], record["error"])), None)
            found = ["none", ""] if better is None else [name_of(better), size_of(better)]
            lines.append(line([some["name"], record["name"], size_of(record), *found]))
    return "\n".join(lines)


def _no_worse(ours: Record, theirs: Record) -> bool:
    """Of the mean at each temperature; None is infinite."""
    found = [(ours[f"kl_T{T}"], theirs[f"kl_T{T}"]) for T in (1, 2, 4, 8)]
    return all(b is None or (a is not None and a <= b) for a, b in found)


def _named(codec: str, records: Sequence[Record]) -> Record | None:
    return next((record for record in records if record["name"] == codec), None)


if __name__ == "__main__":
    PAGE.write_text(page(recorded(FILE)), encoding="utf-8")
