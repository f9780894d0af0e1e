"""A network that can't compute on what the dataset gives ends in a line, before anything is written."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from harness_train import STUDENT, command
from torch import nn

from softcache.errors import ModelError
from softcache.models._open import open_network
from softcache.models._takes import refuse_other_inputs
from softcache.views._open import open_viewed

NETS = """
import torch
from torch import nn


class Reader(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embed, self.fc = nn.Embedding(256, 8), nn.Linear(8, num_classes)

    def forward(self, tokens, tokens_mask=None):
        return self.fc(self.embed(tokens).mean(1))


class Table(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(5, num_classes)

    def forward(self, a, b=None, c=None, d=None, e=None):
        return self.fc(a)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--alpha", "0", "--student"],
        ["teach", "--model"],
        ["teach", "--dataset", "digits", "--model"],
        ["layers", "--teacher"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("name", "takes"), [("Reader", "it takes tokens, tokens_mask,"), ("Table", "it takes a, b, c, d, …,")]
)
def test_what_it_takes_and_what_is_given_are_named(
    arguments: list[str], name: str, takes: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "nets.py").write_text(NETS)
    assert command("-q", *arguments, f"nets.py:{name}") == 1
    out, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert out == ""
    assert f"nets.py:{name} can't compute on digits: {takes} and digits gives pixels " in line
    assert "uint8 (RuntimeError: " in line
    assert ": name the data that it is for with --dataset" in line
    assert [path.name for path in here.iterdir() if path.name != "__pycache__"] == ["nets.py"]


@pytest.mark.parametrize("arguments", [["dump"], ["train", "--student", STUDENT, "--online"]], ids=" ".join)
def test_a_teacher_of_other_inputs_is_not_asked(
    arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "nets.py").write_text(NETS)
    torch.save(
        {"embed.weight": torch.zeros(256, 8), "fc.weight": torch.zeros(10, 8), "fc.bias": torch.zeros(10)}, "w.pt"
    )
    assert command("-q", *arguments, "--teacher", "nets.py:Reader", "--teacher-weights", "w.pt") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "nets.py:Reader can't compute on digits: it takes tokens, tokens_mask, and digits gives pixels" in line
    assert not (here / "caches").exists()
    assert not (here / "runs").exists()


def test_a_network_that_fits_is_as_it_was() -> None:
    """Parameters, statistics of its batch norms, its mode and the random state."""
    viewed = open_viewed("digits", "train")
    network = open_network(STUDENT, classes=10, statistics=viewed.samples.statistics, seed=0)
    network.model.layer1[1].eval()
    modes = [module.training for module in network.modules()]
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    refuse_other_inputs(network, viewed.clean(np.arange(2)), viewed.inputs, "digits", "--dataset")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_softcaches_own_errors_stay_as_they_are() -> None:
    class Said(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ModelError("my own line")

    viewed = open_viewed("digits", "train")
    network = open_network(STUDENT, classes=10, statistics=viewed.samples.statistics, seed=0)
    network.model = Said()
    with pytest.raises(ModelError, match=r"^my own line$"):
        refuse_other_inputs(network, viewed.clean(np.arange(2)), viewed.inputs, "digits", "--dataset")
