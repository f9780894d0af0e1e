"""The codec ``basis``: principal directions in few bits, and the leaders themselves."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

from softcache.cache.agreement.tolerance import JOINT
from softcache.codecs._basis_levels import LLOYD_MAX, begins, levels_for, share_bits
from softcache.codecs._open import open_codec, rounds_each
from softcache.errors import UsageError


def correlated(rows: int, numbers: int, seed: int = 0, rank: int = 12) -> torch.Tensor:
    """Rows of numbers that have a few strong directions and many weak ones."""
    generator = torch.Generator().manual_seed(seed)
    mix = (
        torch.randn(rank, numbers, generator=torch.Generator().manual_seed(99)) * torch.linspace(3, 0.3, rank)[:, None]
    )
    factors = torch.randn(rows, rank, generator=generator)
    return factors @ mix + 0.05 * torch.randn(rows, numbers, generator=generator)


def kept(codec: str, fitted_on: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    found = open_codec(codec)
    coder = found.fitted(found.fit(fitted_on))
    return coder.decode(coder.encode(values))


def divergence(values: torch.Tensor, decoded: torch.Tensor, T: float) -> float:
    p, q = (torch.log_softmax(part.double() / T, -1) for part in (values, decoded))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(("numbers", "top", "size"), [(40, 3, 20), (1, 1, 3), (2, 2, 9), (300, 0, 30), (70_000, 2, 10)])
def test_a_key_has_the_bytes_that_were_asked_for(numbers: int, top: int, size: int) -> None:
    values = correlated(20, numbers)
    codec = open_codec(f"basis:bytes={size},top={top}")
    coder = codec.fitted(codec.fit(values))
    shape = codec.arrays((numbers,))["packed"][1]
    assert shape[0] <= size
    assert shape[0] == size or numbers <= 2
    packed = coder.encode(values)["packed"]
    assert packed.dtype == torch.uint8
    assert tuple(packed.shape) == (20, *shape)
    assert tuple(coder.decode({"packed": packed}).shape) == (20, numbers)


def test_the_leaders_are_exact_to_half_precision_whatever_the_rest_is() -> None:
    fitted_on, values = correlated(500, 60), correlated(50, 60, seed=1)
    values[7] *= 300
    values[8] = 0
    decoded = kept("basis:bytes=24,top=4", fitted_on, values)
    top, places = values.topk(4, 1)
    assert torch.equal(decoded.gather(1, places), top.half().float())


def test_bits_go_where_they_take_away_most() -> None:
    """Every other way of sharing them leaves a larger error."""
    variances = torch.tensor([9.0, 4.0, 1.0, 0.2], dtype=torch.float64)
    shared = share_bits(variances, 6)
    assert int(shared.sum()) == 6

    def error(bits: tuple[int, ...]) -> float:
        return sum(float(v) * LLOYD_MAX[b] for v, b in zip(variances, bits, strict=True))

    others = [bits for bits in itertools.product(range(7), repeat=4) if sum(bits) == 6]
    assert error(tuple(shared.tolist())) == pytest.approx(min(map(error, others)))


@pytest.mark.parametrize("width", range(1, 9))
def test_levels_of_gaussian_numbers_are_those_of_lloyd_and_max(width: int) -> None:
    """Max 1960, table 1: the mean squared error for 2, 4, 8, 16 and 32 levels."""
    numbers = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)[:, None]
    levels = levels_for(numbers, torch.tensor([width]))[begins(width) : begins(width + 1)]
    error = (numbers - levels[None].expand(1, -1)).abs().amin(1).square().mean() if width < 6 else None
    if error is not None:
        known = (0.3634, 0.1175, 0.03454, 0.009497, 0.002499)
        assert float(error) == pytest.approx(known[width - 1], rel=0.02)
    assert torch.equal(levels, -levels.flip(0))
    assert bool((levels.diff() > 0).all())


def test_a_fit_gives_the_same_bits_however_many_threads_there_are() -> None:
    values, codec = correlated(300, 40), open_codec("basis:bytes=20,top=2")
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(codec.fit(values))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_directions_are_principal_components() -> None:
    """Against NumPy's singular values of the centred vectors."""
    values = correlated(400, 30)
    constants = open_codec("basis:bytes=90,top=0").fit(values)
    directions = constants["directions"].double().numpy()
    centred = values.double().numpy() - values.double().numpy().mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    lengths = np.linalg.norm(directions, axis=1)
    np.testing.assert_allclose(lengths, singular / np.sqrt(400), rtol=1e-5)
    np.testing.assert_allclose(np.abs((directions / lengths[:, None]) @ axes.T).diagonal(), 1, rtol=1e-4)
    assert bool((directions[np.arange(30), np.abs(directions).argmax(1)] > 0).all())


def test_levels_are_chosen_by_what_they_make_of_the_softmax() -> None:
    """Against each coefficient rounded by itself, in as many bits: the same codec without leaders, with them put in."""
    fitted_on, values = correlated(2000, 100, rank=60), correlated(300, 100, seed=1, rank=60)
    joint = kept("basis:rank=60,bits=2,top=3", fitted_on, values)
    alone = kept("basis:rank=60,bits=2,top=0", fitted_on, values)
    top, places = values.topk(3, 1)
    alone = alone.scatter(1, places, top.half().float())
    for T, share in ((1, 0.7), (2, 0.9), (4, 1.0)):
        assert divergence(values, joint, T) < share * divergence(values, alone, T)


def test_embeddings_have_the_smallest_squared_error() -> None:
    """Every level of every vector is the nearest one, because directions are orthogonal."""
    fitted_on, values = correlated(500, 16), correlated(40, 16, seed=1)
    codec = open_codec("basis:bytes=5,top=0")
    constants = codec.fit(fitted_on)
    coder = codec.fitted(constants)
    packed = coder.encode(values)["packed"]
    best = (coder.decode({"packed": packed}) - values).square().sum(1)
    for bit in range(40):
        other = packed.clone()
        other[:, bit // 8] ^= 1 << bit % 8
        assert bool(((coder.decode({"packed": other}) - values).square().sum(1) >= best - 1e-4).all())


SHAPES = [(1, 1), (1, 2), (3, 2), (50, 3), (2, 100), (1, 100), (9, 21_841)]


@pytest.mark.parametrize(("keys", "numbers"), SHAPES)
@pytest.mark.parametrize("fill", ["random", "equal", "zero", "huge", "tiny"])
@pytest.mark.parametrize("top", [0, 2])
def test_any_finite_numbers_come_back_finite(keys: int, numbers: int, fill: str, top: int) -> None:
    values = correlated(keys, numbers)
    others = {
        "random": values, "equal": torch.full_like(values, 3.5), "zero": torch.zeros_like(values),
        "huge": values * 1e37, "tiny": values * 1e-41,
    }[fill]  # fmt: skip
    for fitted_on, asked in ((values, others), (others, others), (others, values)):
        codec = open_codec(f"basis:bytes=40,top={top}")
        constants = codec.fit(fitted_on)
        assert all(bool(array.isfinite().all()) for array in constants.values())
        sizes = {name: tuple(size) for name, (_, size) in codec.constants((numbers,)).items()}
        assert {name: tuple(array.shape) for name, array in constants.items()} == sizes
        coder = codec.fitted(constants)
        decoded = coder.decode(coder.encode(asked))
        largest = asked.topk(min(top, numbers), 1)
        if bool((largest.values.abs() < 65_000).all()):
            assert bool(decoded.isfinite().all())
        assert torch.equal(decoded.gather(1, largest.indices), largest.values.half().float())


def test_what_is_not_finite_stays_so_in_a_leader_and_numbers_too_large_for_it_are_infinite() -> None:
    """A dump looks at what the teacher said and at what comes back, and refuses both."""
    values = correlated(20, 30)
    values[3, 5] = 1e6
    decoded = kept("basis:bytes=20,top=2", values[:3], values)
    assert decoded[3, 5] == torch.inf
    assert bool(decoded[:3].isfinite().all())


def test_no_rows_and_positions_before_the_last_axis() -> None:
    codec = open_codec("basis:bytes=12,top=1")
    values = correlated(60, 20).view(10, 6, 20)
    constants = codec.fit(values)
    assert codec.arrays((6, 20)) == {"packed": ("|u1", (6, 12))}
    coder = codec.fitted(constants)
    packed = coder.encode(values)["packed"]
    assert tuple(packed.shape) == (10, 6, 12)
    flat = coder.encode(values.view(60, 20))["packed"]
    assert tuple(coder.decode({"packed": packed}).shape) == (10, 6, 20)
    torch.testing.assert_close(coder.decode({"packed": packed}).view(60, 20), coder.decode({"packed": flat}))
    for empty in (values[:0], values[:, :0]):
        made = coder.encode(empty)["packed"]
        assert tuple(made.shape) == (*empty.shape[:2], 12)
        assert coder.decode({"packed": made}).shape == empty.shape


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("basis:bytes=0", "bytes=0 must be at least 1"),
        ("basis:bits=3", "bits=3 are those of a direction: say rank=… too"),
        ("basis:bytes=9,rank=3,bits=2", "both say the size: leave one out"),
        ("basis:max_kl=0", "max_kl=0.0 must be more than 0"),
        ("basis:top=-1", "top=-1 must be"),
        ("basis:max_error=0", "max_error=0.0 must be more than 0"),
        ("basis:axis=-1", "axis=-1: the axes of a sample are counted from 0 on"),
    ],
)
def test_options_that_can_not_be(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        open_codec(spec)


def test_leaders_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"5 of 1,000 numbers take 17 bytes, more than bytes=10"):
        open_codec("basis:bytes=10,top=5").arrays((1000,))
    with pytest.raises(UsageError, match="single numbers have no directions"):
        open_codec("basis").arrays(())


def test_the_size_is_the_smallest_that_holds_the_divergence() -> None:
    values, others = correlated(2000, 50, rank=30), correlated(1000, 50, seed=1, rank=30)
    sizes = []
    for wanted in (0.1, 0.01, 0.001):
        codec = open_codec(f"basis:max_kl={wanted}").settled("classes", (50,)).sized(values)
        assert codec.max_kl == wanted
        sizes.append(codec.bytes)
        found = divergence(others, kept(f"basis:bytes={codec.bytes},top={codec.top}", values, others), 1)
        assert found < wanted * 1.1
        assert found > wanted * 0.3
    assert sizes == sorted(set(sizes))
    with pytest.raises(UsageError, match="not even"):
        open_codec("basis:max_kl=1e-12,top=0").sized(values)


def relative_error(values: torch.Tensor, decoded: torch.Tensor) -> float:
    values, decoded = values.double().flatten(1), decoded.double().flatten(1)
    return float(((values - decoded).norm(dim=1) / values.norm(dim=1)).mean())


def test_the_size_is_the_smallest_that_holds_the_relative_error() -> None:
    values, others = correlated(2000, 50, rank=30), correlated(1000, 50, seed=1, rank=30)
    sizes = []
    for wanted in (0.5, 0.2, 0.05):
        codec = open_codec(f"basis:max_error={wanted}").settled("values", (50,)).sized(values)
        assert (codec.max_error, codec.top) == (wanted, 0)
        sizes.append(codec.bytes)
        found = relative_error(others, kept(f"basis:bytes={codec.bytes},top=0", values, others))
        assert wanted * 0.8 < found < wanted * 1.05
    assert sizes == sorted(set(sizes))
    with pytest.raises(UsageError, match=r"not even \d+ bytes lose at most max_error=1e-12: use fp16"):
        open_codec("basis:max_error=1e-12").settled("values", (50,)).sized(values)


def test_vectors_of_maps_are_the_channels_of_each_position() -> None:
    """The same as with the channels last, and better than along a row of positions in as many bytes."""
    maps = correlated(60 * 20, 24).view(60, 4, 5, 24).permute(0, 3, 1, 2)  # 24 channels of 4 × 5 positions
    codec = open_codec("basis:bytes=6").settled("values", (24, 4, 5))
    assert (codec.axis, codec.top) == (0, 0)
    assert codec.arrays((24, 4, 5)) == {"packed": ("|u1", (4, 5, 6))}
    coder = codec.fitted(codec.fit(maps))
    packed = coder.encode(maps)["packed"]
    assert tuple(packed.shape) == (60, 4, 5, 6)
    decoded = coder.decode({"packed": packed})
    last = kept("basis:bytes=6,top=0", maps.permute(0, 2, 3, 1), maps.permute(0, 2, 3, 1))
    torch.testing.assert_close(decoded, last.permute(0, 3, 1, 2))
    along = kept("basis:bytes=1,top=0", maps, maps)  # 96 vectors of 5 numbers in place of 20 of 24
    assert relative_error(maps, decoded) < relative_error(maps, along)
    empty = coder.encode(maps[:0])
    assert coder.decode(empty).shape == (0, 24, 4, 5)


def test_the_relative_error_of_maps_is_that_of_each_sample() -> None:
    maps = correlated(200 * 12, 16).view(200, 3, 4, 16).permute(0, 3, 1, 2)
    codec = open_codec("basis:max_error=0.1").settled("values", (16, 3, 4)).sized(maps)
    coder = codec.fitted(codec.fit(maps))
    found = relative_error(maps, coder.decode(coder.encode(maps)))
    assert 0.05 < found < 0.105
    named = open_codec("basis:bytes=9,axis=1,top=0")
    assert named.arrays((16, 30, 4)) == {"packed": ("|u1", (16, 4, 9))}
    with pytest.raises(UsageError, match="axis=3: a sample has 3, counted from 0 on"):
        open_codec("basis:axis=3").arrays((16, 3, 4))


@pytest.mark.parametrize(
    ("spec", "kind"), [("max_error=0.1", "classes"), ("max_kl=0.1", "values"), ("top=2", "binary")]
)
def test_options_of_another_kind_are_refused(spec: str, kind: str) -> None:
    with pytest.raises(UsageError, match=f"this one is of {kind}: leave it out"):
        open_codec(f"basis:{spec}").settled(kind, (50,))


def test_other_last_bits_of_a_teacher_stay_within_the_allowance_of_joint_codecs() -> None:
    """``cache.agreement.tolerance`` says ``max |Q(x) - y| <= JOINT max |Q(y) - y| + 4 t max |y|``; without ``JOINT`` it
    would be wrong of many rows."""
    fitted_on, values = correlated(2000, 100, rank=60), correlated(500, 100, seed=1, rank=60)
    largest, generator = values.abs().amax(1, keepdim=True), torch.Generator().manual_seed(2)
    again = values + (torch.rand(values.shape, generator=generator) * 2 - 1) * 1e-4 * largest
    codec = "basis:bytes=30"
    lost = (kept(codec, fitted_on, values) - values).abs().amax(1)
    differs = (kept(codec, fitted_on, again) - values).abs().amax(1) - 4e-4 * largest[:, 0]
    assert not rounds_each(open_codec(codec))
    assert rounds_each(open_codec("int8"))
    assert bool((differs > lost).any())
    assert bool((differs <= JOINT * lost).all())
