"""The codec ``factored``: logits that a linear layer makes of a shorter vector, by the directions in which they lie."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from harness_train import command
from torch import nn

from softcache.cache.column import Column
from softcache.cache.reader import Cache
from softcache.codecs._open import open_codec
from softcache.codecs.factored import Factored
from softcache.dumping.smaller import smaller_codecs
from softcache.errors import UsageError
from softcache.stages.verify import verify


def made(rows: int, width: int, classes: int, seed: int = 0) -> torch.Tensor:
    """Logits (rows, classes) in float64 of vectors after a ReLU, as a network's last layer makes them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    vectors = torch.randn(rows, width, generator=generator, dtype=torch.float64).relu()
    return vectors @ weight.T + torch.linspace(-3, 3, classes, dtype=torch.float64)


def kept(codec: str, fitted_on: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, Factored]:
    sized = open_codec(codec).sized(fitted_on)
    coder = sized.fitted(sized.fit(fitted_on))
    return coder.decode(coder.encode(values)), sized


@pytest.mark.parametrize(("bits", "unit"), [(16, 2.0**-11), (32, 2.0**-20)])
@pytest.mark.parametrize(("width", "classes"), [(20, 100), (3, 7), (64, 300)])
def test_logits_of_a_shorter_vector_come_back_within_the_stated_bound(
    bits: int, unit: float, width: int, classes: int
) -> None:
    """Of rows that were not fitted on: the rounding of each coefficient along its direction, found in float64."""
    fitted_on, values = made(1000, width, classes).float(), made(300, width, classes, seed=1)
    decoded, codec = kept(f"factored:bits={bits}", fitted_on, values.float())
    assert codec.rank == width
    constants = codec.fit(fitted_on)
    mean, directions = constants["mean"].double(), constants["directions"].double()
    coefficients = torch.linalg.lstsq(directions.T, (values - mean).T).solution.T
    assert float((coefficients @ directions + mean - values).norm() / values.norm()) < 2.0**-20  # nothing else is there
    bound = unit * coefficients.abs() @ directions.abs() + 2.0**-18 * values.abs().amax(1, keepdim=True)
    assert bool(((decoded.double() - values).abs() <= bound).all())


def test_a_network_s_own_weights_span_the_same_directions() -> None:
    torch.manual_seed(3)
    head, vectors = nn.Linear(12, 50), torch.randn(500, 12)
    with torch.no_grad():
        logits = head(vectors)
    codec = Factored().sized(logits)
    directions = codec.fit(logits)["directions"].double()
    weight = head.weight.detach().double().T  # (12, 50)
    along = torch.linalg.lstsq(directions.T, weight.T).solution
    assert codec.rank == 12
    torch.testing.assert_close(directions.T @ along, weight.T, rtol=0, atol=1e-5)


def test_what_has_no_fewer_directions_is_refused() -> None:
    full = torch.randn(1000, 40, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UsageError, match="vectors of 40 numbers have no fewer directions"):
        open_codec("factored").sized(full)
    # 30 keys don't tell of more directions than there are of them
    with pytest.raises(UsageError, match="or fewer keys than those are known"):
        open_codec("factored").sized(made(30, 40, 100).float())
    with pytest.raises(UsageError, match="single numbers have no directions"):
        open_codec("factored").arrays(())


def test_it_is_proposed_to_nobody_before_its_rank_is_known() -> None:
    column = Column("logits", "classes", (100,), open_codec("fp32"), 64)
    assert "factored" not in [choice.codec for choice in smaller_codecs(column, 64)]
    assert "int8" in [choice.codec for choice in smaller_codecs(column, 64)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [("factored:bits=8", "bits=8: coefficients have 16 or 32"), ("factored:rank=0", "rank=0 must be")],
)
def test_options_that_can_not_be(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        open_codec(spec)


@pytest.mark.parametrize("shape", [(9, 21_841), (1, 5), (4, 3, 30), (0, 30)])
@pytest.mark.parametrize("scale", [1.0, 0.0, 1e30, 1e-41])
def test_any_finite_numbers_come_back_finite(shape: tuple[int, ...], scale: float) -> None:
    fitted_on = torch.randn(max(1, shape[0]), *shape[1:], generator=torch.Generator().manual_seed(0)) * scale
    codec = open_codec("factored:rank=7")
    constants = codec.fit(fitted_on)
    assert {name: tuple(array.shape) for name, array in constants.items()} == {
        name: size for name, (_, size) in codec.constants(shape[1:]).items()
    }
    coder = codec.fitted(constants)
    coded = coder.encode(fitted_on[: shape[0]])
    assert tuple(coded["coefficients"].shape) == (shape[0], *codec.arrays(shape[1:])["coefficients"][1])
    decoded = coder.decode(coded)
    assert tuple(decoded.shape) == shape
    assert bool(decoded.isfinite().all())


def test_what_is_not_finite_stays_so() -> None:
    values = made(50, 4, 9).float()
    values[3, 2], values[5, 1] = torch.inf, torch.nan
    codec = open_codec("factored:rank=4")
    coder = codec.fitted(codec.fit(made(50, 4, 9).float()))
    finite = coder.encode(values)["coefficients"].isfinite().all(1)
    assert (~finite).nonzero().flatten().tolist() == [3, 5]


TEACHER = """
import numpy as np

rng = np.random.default_rng(0)
first, second = rng.standard_normal((6, 8)), rng.standard_normal((8, 40))


def make(num_classes=40):
    def answer(features):
        return (np.maximum(features @ first, 0) @ second + 1).astype(np.float32)

    return answer
"""


@pytest.fixture
def dumping(here: Path) -> list[str]:
    """Of logits that eight numbers make."""
    (here / "mixed.py").write_text(TEACHER)
    features = np.random.default_rng(1).standard_normal((1000, 6)).astype(np.float32)
    np.savez(here / "data.npz", train_features=features, train_labels=np.arange(1000) % 40)
    return ["-q", "dump", "--teacher", "mixed.py:make", "--dataset", f"arrays:{here}/data.npz", "--device", "cpu"]


def test_a_dump_finds_the_rank_and_keeps_logits_as_fp16_does(dumping: list[str]) -> None:
    said = {}
    for name in ("factored", "factored:bits=32", "fp32"):
        folder = name.replace(":", "-")
        assert command(*dumping, "--out", folder, "--codec", name) == 0
        reader = Cache(Path(folder)).column("logits")
        said[name] = reader.decode(reader.gather(0, np.arange(1000)))
    for name, bits, unit in (("factored", 16, 2.0**-11), ("factored:bits=32", 32, 2.0**-20)):
        folder = Path(name.replace(":", "-"))
        assert Cache(folder).manifest.state.columns["logits"].codec == f"factored:rank=8,bits={bits}"
        assert float((said[name] - said["fp32"]).norm() / said["fp32"].norm()) <= unit
        assert verify(folder).ok
        assert command("-q", "verify", folder, "--teacher", "mixed.py:make") == 0
    before = (Path("factored") / "column-logits.h5").read_bytes()
    (Path("factored") / "column-logits.h5").unlink()
    assert command(*dumping, "--out", "factored", "--codec", "factored") == 0  # it is asked for again, and made again
    assert (Path("factored") / "column-logits.h5").read_bytes() == before


def test_it_is_chosen_where_nothing_smaller_is_as_good(dumping: list[str]) -> None:
    assert command(*dumping, "--out", "cache", "--codec", "auto:max_kl=1e-5") == 0
    assert Cache(Path("cache")).manifest.state.columns["logits"].codec == "factored:rank=8,bits=16"
