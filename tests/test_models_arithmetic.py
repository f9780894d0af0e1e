"""Precision and memory format that are chosen by themselves: when, and that a folder keeps what it began with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from harness_train import command
from torch import nn

from softcache.cache.reader import Cache
from softcache.config.record import read_record
from softcache.models import _arithmetic
from softcache.models._arithmetic import WORTHWHILE, Arithmetic, inputs_a_weight, pick_arithmetic
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.models._preprocess import Preprocess
from softcache.stages.dump import dump
from softcache.stages.train import train
from softcache.views._open import open_viewed

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["native bf16", "no bf16"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A machine that has bfloat16 multiplication, and one that hasn't."""
    monkeypatch.setattr(_arithmetic, "native_bf16", lambda device: request.param)
    return bool(request.param)


def of(model: nn.Module) -> Network:
    return Network(model, spec="mine", classes=3, channels=1, preprocess=Preprocess((0.3,), (0.2,)))


PIXELS = torch.zeros(2, 16, 16, 1, dtype=torch.uint8)


class Reshaping(nn.Module):
    """Flattens by ``view``, which only one memory format allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 16 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).view(len(x), -1))


class Strict(nn.Module):
    """Only takes float32 within."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if y.dtype != torch.float32:
            raise RuntimeError("expected Float")
        return self.fc(y.mean((2, 3)))


def test_inputs_a_weight_is_the_positions_of_convolutions_and_1_of_linear_layers() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    conv.append(nn.Linear(4, 3, bias=False))
    # 36 weights at 256 positions, 12 at one
    assert inputs_a_weight(of(conv), PIXELS) == pytest.approx((36 * 256 + 12) / 48)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(256, 3, bias=False))
    assert inputs_a_weight(of(linear), PIXELS) == 1


def test_convolutions_are_fast_and_large_layers_with_few_inputs_stay(native: bool) -> None:
    resnet = open_network("cifar:resnet8", classes=3, statistics=((0.3,), (0.2,)), seed=0)
    assert pick_arithmetic(resnet, PIXELS, 64, CPU) == Arithmetic("bf16" if native else "off", True)
    linear = of(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)))
    assert pick_arithmetic(linear, PIXELS, WORTHWHILE - 1, CPU) == Arithmetic("off", False)
    assert pick_arithmetic(linear, PIXELS, 2 * WORTHWHILE, CPU).amp == ("bf16" if native else "off")


def test_what_is_given_stays(native: bool) -> None:
    resnet = open_network("cifar:resnet8", classes=3, statistics=((0.3,), (0.2,)), seed=0)
    assert pick_arithmetic(resnet, PIXELS, 64, CPU, amp="off", channels_last=False) == Arithmetic("off", False)
    assert pick_arithmetic(resnet, PIXELS, 64, CPU, amp="off") == Arithmetic("off", True)
    assert pick_arithmetic(resnet, PIXELS, 64, CPU, channels_last=False).channels_last is False
    assert pick_arithmetic(resnet.to(torch.float64), PIXELS, 64, CPU, dtype="float64") == Arithmetic("off", False)


def test_a_network_that_can_t_be_run_so_is_run_as_it_can(native: bool) -> None:
    assert pick_arithmetic(of(Reshaping()), PIXELS, 1024, CPU) == Arithmetic("bf16" if native else "off", False)
    assert pick_arithmetic(of(Strict()), PIXELS, 1024, CPU) == Arithmetic("off", True)


def test_choosing_changes_nothing_in_the_network(native: bool) -> None:
    network = open_network("cifar:resnet8", classes=3, statistics=((0.3,), (0.2,)), seed=0).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    strides = [parameter.stride() for parameter in network.parameters()]
    pick_arithmetic(network, PIXELS, 64, CPU)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [parameter.stride() for parameter in network.parameters()] == strides


@pytest.fixture
def few_digits(tmp_path: Path) -> str:
    """As bfloat16 takes some hundred times as long where it isn't native."""
    folder = tmp_path / "few"
    folder.mkdir()
    for split, rows in (("train", 32), ("test", 16)):
        samples = open_viewed("digits", split).samples
        np.save(folder / f"{split}_images.npy", samples.images[:rows])
        np.save(folder / f"{split}_labels.npy", samples.labels[:rows])
    return f"arrays:{folder}"


def test_it_is_recorded_and_stays_on_other_machines(
    here: Path, small_teacher, few_digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, and a cache, that were begun with bfloat16 go on with it where it isn't native."""
    monkeypatch.setattr(_arithmetic, "native_bf16", lambda device: True)
    teacher = small_teacher("teacher", dataset=few_digits)
    dump(teacher, dataset=few_digits, views=1, out="cache")
    assert Cache("cache").manifest.identity.teacher.numerics.amp == "bf16"
    assert Cache("cache").manifest.identity.teacher.numerics.memory_format == "channels_last"
    run = train("cifar:resnet8", cache="cache", epochs=1, out="run")
    options = read_record(run.folder).options
    assert (options.amp, options.channels_last) == ("bf16", True)
    how = {"dataset": few_digits, "epochs": 1, "views": 1}
    live = train("cifar:resnet8", online=True, teacher=teacher, out="live", **how)
    assert read_record(live.folder).live == {"amp": "bf16", "channels_last": True}
    monkeypatch.setattr(_arithmetic, "native_bf16", lambda device: False)
    assert dump(teacher, dataset=few_digits, views=2, out="cache").keys == 32
    assert Cache("cache").manifest.identity.teacher.numerics.amp == "bf16"


def test_a_run_is_evaluated_as_it_was_trained(here: Path, few_digits: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The figure of its own folder comes out again."""
    how = {"dataset": few_digits, "epochs": 1, "amp": "bf16", "channels_last": True}
    run = train("cifar:resnet8", alpha=0, out="run", **how)
    assert run.test is not None
    assert command("eval", "run", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["top1"], found["loss"]) == (run.test.top1, run.test.loss)
