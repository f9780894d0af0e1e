"""Which classes the teacher takes for alike: what its soft targets say beside the right answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.datasets._labels import label_kind
from softcache.errors import SoftcacheError
from softcache.losses._target import at_temperature
from softcache.reporting.elements import counted_table, element, paragraph, plain
from softcache.reporting.figure import INK, MAP, figure
from softcache.reporting.findings import Findings, Left, Section
from softcache.reporting.seriation import neighbourly

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE = 60
TITLE = "What the teacher takes for alike"
MOST = 30  # classes of which a map is drawn
PAIRS, MORE_PAIRS = 8, 24  # that are listed beside a map, and without one
ROWS = 50_000  # of the cache that are read at most, drawn evenly
CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Similarity:
    """``probability``: (C, C) float64, the mean of the teacher's probabilities at T over the ``rows`` of each class
    (first axis), 0 for a class without rows."""

    probability: npt.NDArray[np.float64]
    rows: int


def section(findings: Findings) -> Section:
    cache = findings.cache
    if cache is None:
        return Left(findings.no_cache)
    try:
        refused = _refused(cache)
        found = similarity(cache, findings.temperature) if refused is None else None
    except SoftcacheError as error:
        return Left(f"The cache's targets can't be read: {error}.")
    if found is None:
        return Left(str(refused))
    names = cache.manifest.state.class_names or [str(number) for number in range(len(found.probability))]
    T, classes = f"{findings.temperature:g}", len(found.probability)
    others = found.probability.copy()
    np.fill_diagonal(others, 0.0)
    text = (
        f"The mean of the teacher's probabilities at T = {T} over the samples of each class, of {found.rows:,} targets "
        "that students were trained on. What lies beside the right class is what soft targets say and labels don't."
    )
    pairs = strongest(others, PAIRS if classes <= MOST else MORE_PAIRS)
    listed = counted_table(
        {"samples of": False, "are given as": False, "probability, %": True},
        [(plain(names[a], 40), plain(names[b], 40), f"{100 * others[a, b]:.2f}") for a, b in pairs],
        caption="The largest mean probabilities beside the right class",
    )
    if classes > MOST:
        return element("div", paragraph(text), listed)
    order = neighbourly(others)
    drawn = figure(
        "similarity",
        lambda axes: _paint(axes, others[np.ix_(order, order)], [names[k] for k in order]),
        told="; ".join(f"{names[a]} as {names[b]}: {100 * others[a, b]:.1f} %" for a, b in pairs),
        caption=f"Rows: the right class. Columns: what else the teacher sees. The darker, the likelier, up to "
        f"{100 * others.max():.2g} %; the right class itself is left out. Classes that are alike are neighbours.",
        width=440.0,
        height=430.0,
    )
    return element("div", paragraph(text), element("div", drawn, listed, class_="figures"))


def _refused(cache: Cache) -> str | None:
    record = cache.manifest.state.columns.get(LOGITS)
    if record is None or record.kind != "classes" or len(record.shape) != 1:
        return "The cache has no logits of classes, of which one vector belongs to each sample."
    if label_kind(cache.labels) != "classes" or not (cache.labels >= 0).any():
        return "The cache has no labels of classes, by which its targets could be averaged."
    if not cache.complete_views(LOGITS):
        return "The cache has no complete view of its logits: the same softcache dump again completes it."
    return None


def similarity(cache: Cache, T: float) -> Similarity:
    """Of the labelled rows in the first complete view, of more than ``ROWS`` evenly drawn ones."""
    rows = np.flatnonzero(cache.labels >= 0)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), ROWS)).astype(np.int64)]
    reader, view = cache.column(LOGITS), cache.complete_views(LOGITS)[0]
    classes = reader.layout.width
    sums = torch.zeros(classes, classes, dtype=torch.float64)
    for first in range(0, len(rows), CHUNK):
        some = rows[first : first + CHUNK]
        logits = at_temperature(reader.target(reader.gather(view, some)), T)
        sums.index_add_(0, torch.from_numpy(cache.labels[some].astype(np.int64)), (logits.double() / T).softmax(1))
    counts = np.bincount(cache.labels[rows], minlength=classes)
    return Similarity(sums.numpy() / np.maximum(counts, 1)[:, None], len(rows))


def strongest(others: npt.NDArray[np.float64], most: int) -> list[tuple[int, int]]:
    """Pairs of different classes, the largest first, those of 0 left out."""
    flat = np.argsort(-others, axis=None, kind="stable")[:most]
    found = [divmod(int(place), len(others)) for place in flat]
    return [(a, b) for a, b in found if others[a, b] > 0]


def _paint(axes: Axes, others: npt.NDArray[np.float64], names: list[str]) -> None:
    from matplotlib.patches import Rectangle

    largest = others.max() or 1.0
    for y, row in enumerate(others):
        for x, value in enumerate(row):
            if x != y:
                opacity = round(0.04 + 0.92 * float(value / largest), 3)
                square = Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=MAP, edgecolor="none", alpha=opacity)
                axes.add_patch(square)
    short = [plain(name, most=14) for name in names]
    turned = max(map(len, short)) > 2
    size = 12 if len(names) <= 16 else 9
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(len(names)), short, rotation=90 if turned else 0, fontsize=size)
    axes.set_yticks(range(len(names)), short, fontsize=size)
    axes.tick_params(labelcolor=INK)
    axes.set_aspect("equal")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("right class")
