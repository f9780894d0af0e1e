"""Parameters, operations and times of networks whose numbers are known by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from softcache.evaluating.cost import flops, latency, parameters
from softcache.fields import Fields
from softcache.models._array_model import ArrayModel
from softcache.models._network import Network
from softcache.models._preprocess import Preprocess

CPU = torch.device("cpu")


def network(model: nn.Module, channels: int) -> Network:
    size = max(channels, 1)
    return Network(
        model, spec="hand", classes=0, channels=channels, preprocess=Preprocess((0.0,) * size, (1.0,) * size)
    )


def pictures(batch: int) -> torch.Tensor:
    return torch.zeros(batch, 8, 8, 3, dtype=torch.uint8)


def test_a_convolution_and_a_linear_layer_count_their_products() -> None:
    """A convolution of 5 kernels of 3×3×3 at 6×6 places, then a layer from 180 numbers to 10."""
    found = network(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 10)), 3)
    assert parameters(found) == 5 * 27 + 5 + 180 * 10 + 10
    assert flops(found, pictures(1)) == 2 * (5 * 27 * 36) + 2 * (180 * 10)
    assert flops(found, pictures(4)) == 4 * flops(found, pictures(1))


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers_count_as_the_products_that_they_are(kind: type, gates: int) -> None:
    """Each step multiplies the input and the state with a matrix for each gate."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = kind(6, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.rnn(x)[0][:, -1])

    found = network(Recurrent(), 0)
    products = 7 * gates * (6 * 5 + 5 * 5) + 5 * 2
    assert flops(found, Fields({"x": torch.randn(1, 7, 6)})) == 2 * products


def test_a_shared_parameter_counts_once_and_a_mode_stays() -> None:
    layer = nn.Linear(4, 4, bias=False)
    found = network(nn.Sequential(layer, nn.Dropout(), layer), 0).train()
    assert parameters(found) == 16
    assert flops(found, Fields({"x": torch.zeros(1, 4)})) == 2 * 2 * 16
    latency(found, Fields({"x": torch.zeros(1, 4)}), CPU)
    assert found.training


def test_a_function_has_no_parameters_to_count() -> None:
    def function(x: np.ndarray) -> np.ndarray:
        return x

    function.fingerprint = "as it is"  # type: ignore[attr-defined]
    found = network(ArrayModel(function, "hand"), 0)
    given = Fields({"x": torch.zeros(2, 4)})
    assert (parameters(found), flops(found, given)) == (None, None)
    assert latency(found, given, CPU).median > 0


def test_a_latency_is_that_of_what_takes_long() -> None:
    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return x

    found = latency(network(Slow(), 0), Fields({"x": torch.zeros(3, 2)}), CPU)
    assert found.batch == 3
    assert found.repetitions >= 10
    assert 0.02 <= found.low <= found.median <= found.high < 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_finished_before_a_time_is_taken() -> None:
    """A long product, far above what launching it takes."""

    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(10):
                x = x @ x
            return x

    device = torch.device("cuda")
    given = Fields({"x": torch.zeros(4096, 4096, device=device)})
    model = network(Product(), 0).to(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    found = latency(model, given, device)
    events[0].record()
    with torch.inference_mode():
        model.outputs(given, ["logits"])
    events[1].record()
    torch.cuda.synchronize()
    assert found.median > 0.5 * events[0].elapsed_time(events[1]) / 1000
