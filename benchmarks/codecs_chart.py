"""The chart of docs/codecs.md: bytes a key against what is lost, for each set of logits and at two temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.codecs_schemes import BASIS, BITS, FLAT, FLOATS, OURS, POLYNOMIAL, SAMPLED, TOPK

TEMPERATURES = (1, 4)
# Family → label, colour, marker; softcache's are filled and joined, those of others are hollow.
STYLES = {
    FLOATS: ("fp16, bf16, int8", "#555555", "o"),
    BITS: ("int:bits=8 … 4", "#0b6e99", "o"),
    TOPK: ("topk:k=…", "#4f8a3a", "o"),
    BASIS: ("basis:bytes=…", "#8b3a8f", "o"),
    FLAT: ("top-k, flat tail (TinyViT, FKD)", "#c8641b", "s"),
    POLYNOMIAL: ("polynomial tail (DistillKit)", "#b8860b", "D"),
    SAMPLED: ("sampled targets (RS-KD): infinite", "#b22222", "^"),
}
Record = Mapping[str, Any]


def chart(sets: Sequence[Record], errors: Mapping[str, Sequence[Record]], path: Path) -> None:
    """``sets``: of logits, as recorded; ``errors``: name of a set → what was measured on it. Codecs that lose nothing
    have no place on an axis of logarithms and are left out."""
    size = (11, 5 * len(sets) + 1)
    figure, panels = pyplot.subplots(len(sets), len(TEMPERATURES), figsize=size, dpi=110, squeeze=False)
    for row, some in zip(panels, sets, strict=True):
        for axes, T in zip(row, TEMPERATURES, strict=True):
            _panel(axes, errors[some["name"]], T)
            axes.set_title(f"{some['name']}, {some['numbers']:,} classes, T = {T}", fontsize=11)
        row[0].set_ylabel("mean KL(teacher‖decoded), nats")
    for axes in panels[-1]:
        axes.set_xlabel("bytes a key")
    handles = {label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels())}
    shown = [label for label, _, _ in STYLES.values() if label in handles]
    figure.legend([handles[label] for label in shown], shown, loc="lower center", ncols=4, frameon=False, fontsize=9.5)
    figure.tight_layout(rect=(0, 0.6 / size[1], 1, 1))
    figure.savefig(path, facecolor="white", metadata={"Software": None})
    pyplot.close(figure)


def _panel(axes: Axes, records: Sequence[Record], T: int) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for family, (label, colour, marker) in STYLES.items():
        found = sorted((r for r in records if r["family"] == family), key=lambda record: record["bytes"])
        points = [(r["bytes"], r["error"][f"kl_T{T}"], r["name"]) for r in found if r["error"][f"kl_T{T}"]]
        ours = family in OURS
        if points:
            joined = "-" if ours and family != FLOATS else "none"
            axes.plot(
                [x for x, _, _ in points], [y for _, y, _ in points], marker=marker, linestyle=joined, color=colour,
                label=label, markersize=5.5, markerfacecolor=colour if ours else "white", linewidth=1.2,
            )  # fmt: skip
            for x, y, name in points:
                _note(axes, x, y, name, family, colour)
    infinite = [r["bytes"] for r in records if r["error"][f"kl_T{T}"] is None]
    if infinite:  # on the upper edge, in the units of the axes
        label, colour, marker = STYLES[SAMPLED]
        axes.plot(
            infinite, [0.98] * len(infinite), marker=marker, linestyle="none", color=colour, label=label,
            markerfacecolor="white", transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    axes.grid(alpha=0.25, which="major")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([10, 20, 50, 100, 200, 500, 1000, 2000])
    sizes = [record["bytes"] for record in records if record["error"][f"kl_T{T}"] != 0]
    axes.set_xlim(min(sizes) / 1.35, max(sizes) * 2)
    axes.set_ylim(top=4 * axes.get_ylim()[1])


def _note(axes: Axes, x: float, y: float, name: str, family: str, colour: str) -> None:
    """Which codec a point is: how many bits, classes, or its name. The bytes of ``basis`` are the lower axis."""
    of_fkd = name.endswith("(FKD)")
    top = name.partition(",")[0].removeprefix("top-")
    texts = {
        FLOATS: name,
        BITS: name.partition("=")[2],
        TOPK: name.partition("=")[2],
        FLAT: f"FKD {top}" if top == "5" else "" if of_fkd else top,  # FKD's 10 lie beside TinyViT's 20
    }
    flat = (-6, -3, "right") if of_fkd else (5, 3, "left")
    places = {TOPK: (-3, -11, "center"), BITS: (-6, -7, "right"), FLAT: flat}
    right, up, aligned = places.get(family, (6, 3, "left"))
    if texts.get(family):
        axes.annotate(
            texts[family], (x, y), (right, up), textcoords="offset points", fontsize=8, color=colour, ha=aligned
        )
