"""``ctkd``, and losses with parameters in general: what learns the temperature, in training, resumed, in a cohort."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_train import HINTS, STUDENT, command, fit, lines, make_cache, make_teacher, same, weights

from softcache.config.train import TrainConfig
from softcache.errors import UsageError
from softcache.losses._terms import parse_term
from softcache.losses.ctkd import CTKD
from softcache.stages._cohort import train_cohort
from softcache.stages.train import train
from softcache.training import learner

torch.set_num_threads(1)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def logits(batch: int = 6, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    s, t = (torch.from_numpy(3 * rng.normal(size=(batch, classes))) for _ in range(2))
    return s.requires_grad_(), t


def by_temperature(s: np.ndarray, t: np.ndarray, T: float) -> float:
    """The derivative of ``T² KL`` by T: ``d log softmax(z/T) / dT`` is ``-(z - E z) / T²``, E under the softmax."""
    p_s, p_t = softmax(s / T), softmax(t / T)
    log_s, log_t = np.log(p_s), np.log(p_t)
    d_s = -(s - (p_s * s).sum(1, keepdims=True)) / T**2
    d_t = -(t - (p_t * t).sum(1, keepdims=True)) / T**2
    kl = (p_t * (log_t - log_s)).sum(1)
    d_kl = (p_t * d_t * (log_t - log_s) + p_t * (d_t - d_s)).sum(1)
    return float((2 * T * kl + T**2 * d_kl).mean())


@pytest.mark.parametrize(
    ("epoch", "strength"), [(0, (1 - math.cos(math.pi / 10)) / 2), (4, 0.5), (9, 1.0), (10, 1.0), (200, 1.0)]
)
def test_theta_climbs_and_the_student_descends(epoch: int, strength: float) -> None:
    """By hand: T = 1 + 20 sigmoid(theta), theta's gradient times -lambda, the student's as it is."""
    s, t = logits()
    module = CTKD().build(classes=5, seed=0).double()
    module.begin_epoch(epoch, 240)
    value = module(s, t, 1.0)
    value.backward()
    share = 1 / (1 + math.exp(-1.0))
    T, a, b = 1 + 20 * share, s.detach().numpy(), t.numpy()
    assert module.shown["T"].item() == pytest.approx(T, rel=1e-12)
    p_s, p_t = softmax(a / T), softmax(b / T)
    assert value.item() == pytest.approx(T**2 * (p_t * np.log(p_t / p_s)).sum(1).mean(), rel=1e-9)
    np.testing.assert_allclose(s.grad, T * (p_s - p_t) / len(a), rtol=1e-9)
    plain = by_temperature(a, b, T) * 20 * share * (1 - share)
    (theta,) = module.parameters()
    assert theta.grad.item() == pytest.approx(-strength * plain, rel=1e-6)  # lambda is a float32
    assert abs(plain) > 1e-3


def test_each_sample_s_temperature_is_learnt_likewise() -> None:
    """The gradients of the layers are those of the plain loss times -lambda; the student's is that of kl at given T."""
    s, t = logits()
    module = CTKD(instance=True, T_min=0.5, T_range=8.0, loops=4).build(classes=5, seed=3).double()
    with torch.no_grad():
        for parameter in module.parameters():  # so that T differs from sample to sample
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    module.begin_epoch(1, 10)
    value = module(s, t, 1.0)
    value.backward()
    first, last = (layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    layers = [
        parameter.detach().clone().requires_grad_() for layer in (first, last) for parameter in layer.parameters()
    ]
    w1, b1, w2, b2 = layers
    theta = torch.relu(torch.cat([s.detach(), t], 1) @ w1.T + b1) @ w2.T + b2
    T = 0.5 + 8 * torch.sigmoid(theta)
    assert T.std() > 0.05
    log_s, log_t = torch.log_softmax(s.detach() / T, 1), torch.log_softmax(t / T, 1)
    plain = (T.squeeze(1) ** 2 * (log_t.exp() * (log_t - log_s)).sum(1)).mean()
    plain.backward()
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(module.shown["T"], T.mean().detach())
    for parameter, alone in zip(module.parameters(), layers, strict=True):
        torch.testing.assert_close(parameter.grad, -0.5 * alone.grad)
    torch.testing.assert_close(s.grad, (T * (log_s.exp() - log_t.exp()) / len(s)).detach())


def test_an_instance_s_temperature_starts_where_the_single_one_does() -> None:
    s, t = (z.detach().float() for z in logits())
    single, each = (CTKD(instance=instance).build(classes=5, seed=0) for instance in (False, True))
    torch.testing.assert_close(each(s, t, 1.0), single(s, t, 1.0))


def test_a_temperature_that_climbs_makes_the_loss_larger_and_stays_within_its_bounds() -> None:
    s, t = (z.detach() for z in logits())
    module = CTKD(T_min=2.0, T_range=6.0, loops=1).build(classes=5, seed=0).double()
    module.begin_epoch(0, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    values = []
    for _ in range(50):
        optimizer.zero_grad()
        value = module(s, t, 1.0)
        value.backward()
        optimizer.step()
        values.append(value.item())
        assert 2 < module.shown["T"].item() < 8
    assert values == sorted(values)
    assert values[-1] > 1.01 * values[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    s, t = (z.detach().to(dtype) for z in logits())
    for loss in (CTKD(), CTKD(instance=True)):
        module = loss.build(classes=5, seed=0)
        module.begin_epoch(9, 10)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = module(s, t, 1.0)
        assert half.dtype == torch.float32
        assert torch.equal(half, module(s.float(), t.float(), 1.0))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ctkd:T=4", "loss 'ctkd' has no temperature: leave out T"),
        ("ctkd:T_min=0", "T_min=0 is part of a temperature and must be above 0"),
        ("ctkd:T_range=inf", "T_range=inf is part of a temperature"),
        ("ctkd:loops=0", "loops=0 is a number of epochs and must be at least 1"),
    ],
)
def test_bad_options(spec: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_term(spec)


# In training.


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ctkd")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS)
    return str(folder / "cache")


# A single temperature beside another loss, and one for each sample after a stage on hints; lambda is 1 from the second
# epoch on.
LEARNING: dict[str, dict[str, Any]] = {
    "single": {"loss": ("ctkd:loops=2", "kl:weight=0.5"), "optimizer": "sgd", "lr": 0.05, "clip_grad": 1.0},
    "instance": {
        "loss": ("dkd", "ctkd:instance=true,loops=2"),
        "hint": ("fitnet:teacher=layer1,student=layer1",),
        "hint_epochs": 1,
        "optimizer": "adamw",
        "lr": 0.01,
        "seed": 7,
    },
}
TIMES = ("epoch_s", "data_s", "eval_s", "teacher_s")


def config(cache: str, out: Path, name: str) -> TrainConfig:
    common: dict[str, Any] = {"epochs": 3, "batch_size": 128, "order_seed": 1, "device": "cpu", "workers": 0}
    return TrainConfig.of(STUDENT, cache=(cache,), out=str(out), **common, **LEARNING[name])


def learnt(line: dict[str, Any]) -> dict[str, float]:
    ((spec, numbers),) = line["learnt"].items()
    assert spec.startswith("ctkd:") or spec.endswith("own.py:Scaled")
    return numbers


def assert_same_runs(one: Path, other: Path) -> None:
    assert same(weights(one), weights(other))
    runs = [[{k: v for k, v in line.items() if k not in TIMES} for line in lines(run)] for run in (one, other)]
    assert runs[0] == runs[1]
    states = [torch.load(run / "checkpoint.pt", weights_only=True)["loss_modules"] for run in (one, other)]
    assert same(states[0][0], states[1][0])


def test_the_temperature_is_in_the_metrics_and_moves(cache: str, tmp_path: Path) -> None:
    train(config(cache, tmp_path / "run", "single"))
    found = [learnt(line)["T"] for line in lines(tmp_path / "run")]
    start = 1 + 20 / (1 + math.exp(-1))
    assert found[0] == pytest.approx(start, rel=0.05)
    assert len(set(found)) == 3
    assert all(1 < T < 21 for T in found)
    ((key, theta),) = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["loss_modules"][0].items()
    assert key == "by_term.0.theta"
    assert theta != 1
    assert command("train", "--resume", tmp_path / "run") == 0  # nothing is left to do


def test_losses_without_parameters_show_nothing(cache: str, tmp_path: Path) -> None:
    fit(tmp_path / "run", cache=(cache,), loss=("kl",), epochs=1)
    assert "learnt" not in lines(tmp_path / "run")[0]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("saves", [1, 2, 3])
@pytest.mark.parametrize("name", LEARNING)
def test_a_run_that_is_resumed_ends_with_the_same_bits(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, saves: int
) -> None:
    train(config(cache, tmp_path / "whole", name))
    count, save = [0], learner.save_checkpoint

    def stopping(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        count[0] += 1
        if count[0] == saves:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(learner, "save_checkpoint", stopping)
        with pytest.raises(Stopped):
            train(config(cache, tmp_path / "parts", name))
    train(TrainConfig(resume=str(tmp_path / "parts")))
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_students_of_a_cohort_each_learn_a_temperature_of_their_own(cache: str, tmp_path: Path) -> None:
    names = [*LEARNING, "single"]
    folders = [tmp_path / "together" / str(number) for number in range(len(names))]
    train_cohort([config(cache, folder, name) for folder, name in zip(folders, names, strict=True)])
    for name in LEARNING:
        train(config(cache, tmp_path / name, name))
    for folder, name in zip(folders, names, strict=True):
        assert_same_runs(folder, tmp_path / name)
    assert lines(folders[0])[-1]["learnt"] != lines(folders[1])[-1]["learnt"]


# A loss of one's own.

OWN = """
from dataclasses import dataclass

import torch

from softcache.losses import Loss, LossModule


class Scale(LossModule):
    def __init__(self, classes):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(classes))

    def forward(self, student, teacher, T, labels=None):
        self.shown = {"scale": self.scale.detach().mean()}
        return (self.scale * student - teacher).square().mean()


@dataclass(frozen=True)
class Scaled(Loss):
    \"\"\"Squared differences after a learnt scale.\"\"\"

    def build(self, *, classes, seed):
        return Scale(classes)

    def __call__(self, student, teacher, T, labels=None):
        return (student - teacher).square().mean()


@dataclass(frozen=True)
class Wrong(Scaled):
    def build(self, *, classes, seed):
        return torch.nn.Linear(classes, 1)
"""


def test_a_loss_of_one_s_own_may_have_parameters(cache: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text(OWN)
    fit(here / "run", cache=(cache,), loss=("own.py:Scaled",), epochs=2)
    first, second = (learnt(line)["scale"] for line in lines(here / "run"))
    assert 1 != first != second
    with pytest.raises(UsageError, match=r"own\.py:Wrong': build must return a softcache\.losses\.LossModule or None"):
        fit(here / "wrong", cache=(cache,), loss=("own.py:Wrong",))
    assert not (here / "wrong").exists()
    assert command("losses", "own.py:Scaled", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["kind"] == "loss"
