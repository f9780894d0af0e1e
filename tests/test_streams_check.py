"""The check of pixels, at once and put off to the end of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import softcache.cache.agreement.digests as check_module
from softcache.cache.agreement.digests import CloseRows, PixelCheck
from softcache.errors import PixelsError
from softcache.views._digest import PixelsDigest, digest

PIXELS = PixelsDigest()


@pytest.fixture
def batches() -> list[tuple[np.ndarray, torch.Tensor]]:
    rng = np.random.default_rng(0)
    made = []
    for count in (8, 8, 4):
        made.append((rng.integers(0, 100, count), torch.from_numpy(rng.integers(0, 256, (count, 5, 5, 3), np.uint8))))
    return made


def test_a_digest_in_two_steps_is_the_digest(batches: list) -> None:
    for _, pixels in batches:
        assert torch.equal(PIXELS.of_sums(PIXELS.sums(pixels)), digest(pixels))


@pytest.mark.parametrize("at_once", [True, False])
def test_equal_pixels_pass(batches: list, at_once: bool) -> None:
    check = PixelCheck(PIXELS, at_once=at_once)
    for _ in range(2):
        for rows, pixels in batches:
            check.add(rows, (3, 5), pixels, [digest(pixels), digest(pixels)])
        check.finish()


def all_of(check: PixelCheck, batches: list, expected: list) -> None:
    for (rows, pixels), digests in zip(batches, expected, strict=True):
        check.add(rows, (3, 5), pixels, digests)
    check.finish()


@pytest.mark.parametrize("at_once", [True, False])
def test_batches_may_be_of_other_views(batches: list, at_once: bool) -> None:
    (rows, pixels), (later, others) = batches[:2]
    wrong = digest(others)
    wrong[7] ^= 1

    def check() -> None:
        made = PixelCheck(PIXELS, at_once=at_once)
        made.add(rows, (0,), pixels, [digest(pixels)])
        made.add(later, (4, 9), others, [wrong])
        made.finish()

    with pytest.raises(PixelsError, match=rf"row {later[7]} in view 9 has"):
        check()


@pytest.mark.parametrize("cache", [0, 1])
@pytest.mark.parametrize(("batch", "place", "view"), [(0, 0, 3), (1, 6, 5), (2, 1, 3), (2, 3, 5)])
def test_one_changed_bit_is_named_by_row_and_view(batches: list, batch: int, place: int, view: int, cache: int) -> None:
    expected = [[digest(pixels), digest(pixels)] for _, pixels in batches]
    expected[batch][cache] = expected[batch][cache].clone()
    expected[batch][cache][place] ^= 1
    row = batches[batch][0][place]
    for at_once, count in ((True, len(batches[batch][0])), (False, 20)):
        check = PixelCheck(PIXELS, at_once=at_once)
        with pytest.raises(PixelsError, match=rf"row {row} in view {view} has .* \(1 of {count} keys of this"):
            all_of(check, batches, expected)
        check.finish()  # a failure leaves nothing behind


@pytest.mark.parametrize("at_once", [True, False])
def test_a_key_of_a_close_row_may_differ_in_the_cache_that_keeps_it_and_no_other_key(
    batches: list, at_once: bool
) -> None:
    rows, pixels = batches[0]
    rows = np.arange(len(rows))
    wrong = digest(pixels).clone()
    wrong[[1, 6]] ^= 1  # row 1 in view 3, row 6 in view 5

    def check(close: list[int], *, cache: int = 0, every_view: bool = True, views: tuple[int, int] = (3, 5)) -> None:
        none, some = (CloseRows(np.isin(rows, which), every_view) for which in ([], close))
        expected = [digest(pixels), digest(pixels)]
        expected[cache] = wrong
        made = PixelCheck(PIXELS, at_once=at_once, accepted=[some, none])
        made.add(rows, views, pixels, expected)
        made.finish()

    check([1, 6])
    with pytest.raises(PixelsError, match=r"row 6 in view 5 .*\(1 of 8 keys of this \w+ differ, 1 more are close"):
        check([1, 2])
    with pytest.raises(PixelsError, match=r"row 1 in view 3 .*\(2 of 8 keys of this \w+ differ, 0 more are close"):
        check([1, 6], cache=1)
    with pytest.raises(PixelsError, match=r"row 6 in view 5 .*\(1 of 8"):
        check([1, 6], every_view=False, views=(0, 5))


def test_what_is_put_off_does_not_grow_without_bound(batches: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "HELD_BATCHES", 3)
    check, (rows, pixels) = PixelCheck(PIXELS, at_once=False), batches[0]
    wrong = [digest(pixels) + 1]
    check.add(rows, (0,), pixels, wrong)
    check.add(rows, (0,), pixels, wrong)
    with pytest.raises(PixelsError, match="24 of 24"):
        check.add(rows, (0,), pixels, wrong)
