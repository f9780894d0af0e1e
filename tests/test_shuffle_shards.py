"""--shuffle shards:N: every row once, N whole shards at a time, and each shard in one stretch of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softcache.cache.blocks import _visits
from softcache.cache.groups import grouped
from softcache.errors import UsageError
from softcache.stream.windows import Windows, parse_shuffle


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 700),
    kept=st.integers(1, 700),
    block=st.sampled_from([1, 4, 16]),
    window=st.integers(1, 9),
    shards=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_shards_come_in_groups(rows: int, kept: int, block: int, window: int, shards: int, seed: int) -> None:
    shard_rows, rng = 64, np.random.default_rng(seed)
    drawn = rng.choice(rows, min(kept, rows), replace=False)
    order = Windows(block, window, shard_rows, shards).permutation(np.random.default_rng(seed), drawn)
    assert sorted(order) == sorted(drawn)
    there = len(set(drawn // shard_rows))
    _, first = np.unique(order // shard_rows, return_index=True)
    sequence = (order // shard_rows)[np.sort(first)]  # shards by their first rows
    group = {int(shard): k // shards for k, shard in enumerate(sequence)}
    # no row of a group comes before all rows of the group before it have
    assert (np.diff([group[int(row // shard_rows)] for row in order]) >= 0).all()
    assert max(group.values()) == -(-there // shards) - 1
    # what is read block by block needs a group of shards at a time, each once
    _, blocks, _, _ = _visits(order // block, window * block)
    found = grouped(blocks * block // shard_rows)
    assert sorted(shard for _, part in found for shard in part) == sorted(group)
    assert all(len({group[shard] for shard in part}) == 1 for _, part in found)
    assert [visit for visit, _ in found] == sorted(visit for visit, _ in found)


@pytest.mark.parametrize(
    ("visits", "expected"),
    [
        ([], []),
        ([3, 3, 3], [(0, [3])]),
        ([1, 2, 3], [(0, [1]), (1, [2]), (2, [3])]),
        ([1, 2, 1, 3], [(0, [1, 2]), (3, [3])]),
        ([5, 1, 5, 2, 1, 7, 8, 7], [(0, [5, 1, 2]), (5, [7, 8])]),
    ],
)
def test_groups_are_stretches_that_overlap(visits: list[int], expected: list[tuple[int, list[int]]]) -> None:
    assert grouped(np.array(visits, np.int64)) == expected


def test_orders_differ_from_epoch_to_epoch() -> None:
    windows, rows = Windows(16, 4, 64, 2), np.arange(640)
    one, other = (windows.permutation(np.random.default_rng(seed), rows) for seed in (0, 1))
    assert (one != other).any()
    assert list(dict.fromkeys(one // 64)) != list(dict.fromkeys(other // 64))


@pytest.mark.parametrize("text", ["shards:0", "shards:", "shards:x", "shards:-1", "block:3", "blok", ""])
def test_what_is_no_shuffle_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is unknown"):
        parse_shuffle(text)
