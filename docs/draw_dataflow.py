"""Draws docs/dataflow.svg: `python docs/draw_dataflow.py` (needs matplotlib, in the extra softcache[bench])."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

SHARED, TEACHER, STUDENT = "#dbe7f5", "#fbe6cf", "#dcefdc"


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 1.75) -> None:
    shape = FancyBboxPatch((x - width / 2, y - 0.34), width, 0.68, boxstyle="round,pad=0.06", fc=colour, ec="#444444")
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=10.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    style = {"arrowstyle": "-|>", "color": "#444444", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.13, text, ha="center", fontsize=9)


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "softcache"
    figure, axes = plt.subplots(figsize=(11.2, 4.1))
    axes.set_xlim(-0.2, 13.2)
    axes.set_ylim(0.1, 4.9)
    axes.axis("off")
    box(axes, 0.9, 2.5, "dataset\nrow i", SHARED)
    box(axes, 3.3, 2.5, "view recipe\nview v, seed", SHARED)
    box(axes, 5.7, 2.5, "uint8 pixels\n+ digest", SHARED)
    arrow(axes, (1.85, 2.5), (2.35, 2.5))
    arrow(axes, (4.25, 2.5), (4.75, 2.5))
    box(axes, 7.9, 3.9, "teacher\n(once per key)", TEACHER)
    box(axes, 10.05, 3.9, "codec", TEACHER, 1.2)
    box(axes, 12.1, 3.9, "shards\nlogits, hints", TEACHER)
    arrow(axes, (6.65, 2.75), (7.2, 3.5))
    arrow(axes, (8.85, 3.9), (9.37, 3.9))
    arrow(axes, (10.73, 3.9), (11.15, 3.9))
    box(axes, 7.9, 1.1, "student", STUDENT)
    box(axes, 10.05, 1.1, "loss", STUDENT, 1.2)
    box(axes, 12.1, 1.1, "soft targets\nsoftmax(z / T)", STUDENT)
    arrow(axes, (6.65, 2.25), (7.2, 1.5))
    arrow(axes, (8.85, 1.1), (9.37, 1.1))
    arrow(axes, (11.15, 1.1), (10.73, 1.1))
    arrow(axes, (12.1, 3.5), (12.1, 1.5))
    axes.text(11.95, 2.62, "memory map,\ndecode", ha="right", va="center", fontsize=9)
    axes.text(12.25, 2.62, "digest\nchecked", ha="left", va="center", fontsize=9)
    axes.text(10.05, 4.62, "softcache dump", ha="center", fontsize=12, family="monospace")
    axes.text(10.05, 0.25, "softcache train   (many times, any T)", ha="center", fontsize=12, family="monospace")
    axes.text(3.3, 3.35, "the same for both: key (i, v) → the same pixels", ha="center", fontsize=10)
    figure.savefig(Path(__file__).with_name("dataflow.svg"), bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
