"""What figures are drawn from: an order of classes, soft targets by class, gains and divergences."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.special
import torch
from harness_many import small_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from softcache.cache.reader import Cache
from softcache.evaluating.predictions import Predictions
from softcache.reporting.figure import COLOURS, figure
from softcache.reporting.pictures import picture
from softcache.reporting.sections.classes import gains
from softcache.reporting.sections.disagreement import furthest
from softcache.reporting.sections.similarity import similarity, strongest
from softcache.reporting.seriation import neighbourly


@given(st.permutations(range(9)), st.floats(0.3, 3.0))
@settings(deadline=None, max_examples=30)
def test_things_along_a_line_are_put_in_their_order(places: list[int], reach: float) -> None:
    """The theorem: where similarity falls with distance, the order is the line's or its reverse."""
    at = np.array(places, dtype=float)
    like = np.exp(-np.abs(at[:, None] - at[None, :]) / reach)
    np.fill_diagonal(like, 0.0)
    found = at[neighbourly(like)]
    assert list(found) in (sorted(at), sorted(at, reverse=True))


def test_few_things_and_none_alike_stay_as_they_are() -> None:
    assert neighbourly(np.zeros((4, 4))).tolist() == [0, 1, 2, 3]
    assert neighbourly(np.ones((2, 2))).tolist() == [0, 1]


def test_the_teachers_probabilities_are_averaged_by_class(tmp_path: Path) -> None:
    cache = Cache(small_cache(tmp_path))
    found = similarity(cache, 3.0)
    column = cache.column("logits")
    logits = column.decode(column.gather(0, np.arange(cache.rows))).numpy()
    probabilities = scipy.special.softmax(logits.astype(np.float64) / 3.0, axis=1)
    for label in range(10):
        np.testing.assert_allclose(found.probability[label], probabilities[cache.labels == label].mean(0), rtol=1e-6)
    assert found.rows == cache.rows
    np.testing.assert_allclose(found.probability.sum(1), 1.0, rtol=1e-9)


def test_pairs_are_the_largest_first() -> None:
    others = np.array([[0.0, 0.3, 0.1], [0.2, 0.0, 0.0], [0.0, 0.4, 0.0]])
    assert strongest(others, 3) == [(2, 1), (0, 1), (1, 0)]
    assert strongest(others, 9) == [(2, 1), (0, 1), (1, 0), (0, 2)]


def test_a_gain_is_the_difference_of_what_is_recognized() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, -1], dtype=torch.int32)
    student = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 0, 2, 0]), 4).float()
    alone = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 1, 2, 1]), 4).float()
    rows = np.arange(6)
    found = gains(Predictions(student, labels, (), rows), Predictions(alone, labels, (), rows))
    assert [(own.name, own.difference, own.count) for own in found] == [("0", 0.5, 2), ("2", 0.0, 1), ("1", -0.5, 2)]


def test_the_rows_of_the_largest_divergence_come_first() -> None:
    random = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(random.normal(size=(50, 6)).astype(np.float32)) for _ in range(2))
    teacher[7] = student[7]  # they say the same
    labels, rows = torch.zeros(50, dtype=torch.int32), np.arange(50)
    p, q = (scipy.special.softmax(own.numpy().astype(np.float64), axis=1) for own in (teacher, student))
    known = np.argsort(-scipy.special.rel_entr(p, q).sum(1))
    found = furthest(Predictions(student, labels, (), rows), Predictions(teacher, labels, (), rows), 50)
    assert found == [int(place) for place in known if place != 7]


def test_a_figure_has_no_colour_and_no_font_of_its_own() -> None:
    pytest.importorskip("matplotlib")

    def paint(axes):  # type: ignore[no-untyped-def]
        axes.plot([0, 1], [0, 1], color="#010104", label="a & b")
        axes.set_xlabel("<b>")

    made = figure("one", paint, told="a line", caption="A line.")
    text = ElementTree.tostring(made, encoding="unicode", method="html")
    assert "var(--student)" in text
    assert not [colour for colour in COLOURS if colour in text]
    assert "DejaVu" not in text
    assert "&lt;b&gt;" in text
    assert "<style" not in text
    assert text == ElementTree.tostring(
        figure("one", paint, told="a line", caption="A line."), encoding="unicode", method="html"
    )


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8, 1), "uint8"), ((300, 200, 3), "uint8"), ((64, 64, 5), "uint8"), ((9, 9, 1), "uint16")]
)
def test_pictures_of_all_kinds_are_small_and_can_be_read(shape: tuple[int, ...], dtype: str) -> None:
    import base64
    import io

    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, top, shape, dtype=dtype, endpoint=True)
    source = picture(pixels, "one").get("src") or ""
    image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert max(image.size) <= 176
    assert image.mode == ("RGB" if shape[2] == 3 else "L")
    if max(shape) <= 64:  # as they are
        wanted = pixels[:, :, 0] >> 8 if dtype == "uint16" else pixels[:, :, 0]
        np.testing.assert_array_equal(np.asarray(image), wanted)
