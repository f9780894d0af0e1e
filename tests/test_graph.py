"""Steps that are recorded as a CUDA graph: when, of what, and with which bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_train import FEATURES, HINTS, STUDENT, lines, make_cache, make_teacher, same, weights

from softcache.config.train import TrainConfig
from softcache.errors import UsageError
from softcache.models._open import pure
from softcache.stages._cohort import train_cohort
from softcache.stages.train import Trained, train
from softcache.stream.batches import Batch
from softcache.stream.counts import Counts
from softcache.stream.targets import Targets
from softcache.training import learner
from softcache.training.graph import UNRECORDED, GraphedStep
from softcache.training.optimization import Optimization, restore, set_learning_rate

TIMES = ("epoch_s", "data_s", "eval_s", "teacher_s")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Recorder:
    """Records calls of the step as a GPU records kernels: a replay computes anew from the tensors that were given."""

    def __init__(self, *, fails: bool = False):
        self.graphs: list[Any] = []
        self._fails = fails

    def CUDAGraph(self) -> Any:
        self.graphs.append(self)
        self.replays = 0
        return self

    @contextlib.contextmanager
    def graph(self, graph: Any, **options: Any) -> Iterator[None]:
        yield
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing")

    def replay(self) -> None:
        self.replays += 1


def batch(rows: int, value: float = 1.0) -> Batch:
    ids = torch.arange(rows)
    logits = torch.full((rows, 2), value)
    return Batch(
        ids,
        torch.full((rows, 1), value),
        ids,
        ids,
        None,
        Targets({"logits": [logits]}),
        {},
        Counts([], ids.numpy(), {}, lambda *_: None),
    )


def test_a_step_is_recorded_once_and_then_gets_each_batch() -> None:
    cuda, given = Recorder(), []

    def step(one: Batch) -> torch.Tensor:
        given.append(one)
        return one.inputs.sum()  # type: ignore[union-attr]

    graphed = GraphedStep(step, cuda=cuda)
    for value in range(UNRECORDED + 3):
        graphed(batch(4, value), (1.0,))
    assert len(given) == UNRECORDED + 1  # the last of them is the recording's
    assert cuda.replays == 3
    assert given[-1].inputs.unique().tolist() == [UNRECORDED + 2]  # type: ignore[union-attr]
    assert given[-1].targets.outputs["logits"][0].unique().tolist() == [UNRECORDED + 2]
    graphed(batch(3, 9), (1.0,))  # a smaller last batch
    assert given[-1].rows.tolist() == [0, 1, 2]
    graphed(batch(4, 5), (1.0,))
    assert cuda.replays == 4
    for value in range(UNRECORDED + 1):  # another temperature
        graphed(batch(4, value), (2.0,))
    assert len(cuda.graphs) == 2
    assert cuda.replays == 1


def test_a_step_that_cannot_be_recorded_is_made_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    cuda, given = Recorder(fails=True), []
    graphed = GraphedStep(lambda one: given.append(one) or torch.zeros(()), cuda=cuda)  # type: ignore[func-returns-value]
    for value in range(10):
        graphed(batch(4, value), ())
    assert [float(one.rows.sum()) for one in given] == [6.0] * 11
    assert len(cuda.graphs) == 1
    assert caplog.text.count("can't be recorded as a CUDA graph") == 1


def test_networks_of_code_of_ones_own_are_not_recorded_unless_it_is_asked_for(cache: str, tmp_path: Path) -> None:
    assert pure("cifar:resnet8")
    assert pure("resnet18")
    assert not pure(STUDENT)
    config, cpu, cuda = TrainConfig(), torch.device("cpu"), torch.device("cuda")
    assert [config.records(known, device) for device in (cpu, cuda) for known in (True, False)] == [
        False,
        False,
        True,
        False,
    ]
    assert TrainConfig(cuda_graphs=True).records(False, cuda)
    assert not TrainConfig(cuda_graphs=False).records(True, cuda)
    with pytest.raises(UsageError, match="--cuda-graphs needs a CUDA device"):
        train(STUDENT, cache=(cache,), cuda_graphs=True, device="cpu", out=tmp_path / "run")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_an_optimizer_goes_on_with_or_without_a_recording(name: str, before: bool, after: bool) -> None:
    """The state of one that reads its rate from the device, given to one that doesn't, and the other way round."""

    def optimizers(recorded: bool) -> torch.optim.Optimizer:
        torch.manual_seed(0)
        built = Optimization(name, 0.1, 0.01).build([torch.nn.Linear(3, 2)], torch.device("cpu"))
        for group in built.param_groups if recorded else ():
            group["lr"] = torch.tensor(0.1)
            if "capturable" in group:
                group["capturable"] = True
        return built

    first, second = optimizers(before), optimizers(after)
    restore(second, first.state_dict())
    set_learning_rate(second, 0.25)
    (group,) = second.param_groups
    assert isinstance(group["lr"], torch.Tensor) == after
    assert float(group["lr"]) == 0.25
    assert group.get("capturable", after) == after


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("graph")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS, views=2, augment="crop:pad=1+flip", device="cpu")
    return str(folder / "cache")


ASKED: dict[str, dict[str, Any]] = {
    "clipped": {"loss": ("kl",), "T": 4, "alpha": 0.9, "clip_grad": 1, "optimizer": "sgd", "lr": 0.05},
    "adamw": {"optimizer": "adamw", "lr": 0.003},
    "schedules": {"loss": ("kl",), "T": "8:2:linear", "alpha": "1:0.5:linear", "log_every": 3},
    "hints": {"hint": ("fitnet:teacher=layer2,student=layer1", "crd:teacher=fc:in,student=fc:in,negatives=32")},
    "stages": {"hint": ("fitnet:teacher=layer1,student=layer1",), "hint_epochs": 1, "student": FEATURES},
    "cifar": {"student": "cifar:resnet8", "amp": "bf16", "channels_last": True},
    "dropout": {"student": f"{Path(__file__).parent / 'test_cohort.py'}:dropping", "loss": ("dkd", "mse:weight=2")},
    "mean": {"targets": "mean"},
}


@gpu
@pytest.mark.parametrize("name", ASKED)
def test_recorded_steps_have_the_bits_of_launched_ones(name: str, cache: str, tmp_path: Path, caplog: Any) -> None:
    asked = {"student": STUDENT, "cache": (cache,), "epochs": 3, "batch_size": 64, "device": "cuda", **ASKED[name]}
    runs = [tmp_path / how for how in ("recorded", "launched")]
    with caplog.at_level("WARNING"):
        for run in runs:
            train(**asked, cuda_graphs=run.name == "recorded", out=run)
    assert "can't be recorded" not in caplog.text
    assert same(weights(runs[0]), weights(runs[1]))
    found = [[{k: v for k, v in line.items() if k not in TIMES} for line in lines(run)] for run in runs]
    assert found[0] == found[1]
    if "log_every" in asked:
        assert lines(runs[0], "steps.jsonl") == lines(runs[1], "steps.jsonl")


class Stopped(Exception):
    pass


@gpu
def test_a_recorded_training_that_is_resumed_has_the_same_bits(cache: str, tmp_path: Path, monkeypatch: Any) -> None:
    asked = {"cache": (cache,), "epochs": 3, "batch_size": 64, "device": "cuda", "cuda_graphs": True}
    train(STUDENT, **asked, out=tmp_path / "whole")
    save = learner.save_checkpoint

    def stopping(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(learner, "save_checkpoint", stopping)
        with pytest.raises(Stopped):
            train(STUDENT, **asked, out=tmp_path / "parts")
    train(resume=tmp_path / "parts")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@gpu
def test_recorded_students_of_a_cohort_have_the_bits_of_single_runs(cache: str, tmp_path: Path) -> None:
    names = ["clipped", "adamw", "hints", "dropout", "cifar"]

    def configs(folder: Path) -> list[TrainConfig]:
        common = {"student": STUDENT, "cache": (cache,), "epochs": 2, "batch_size": 64, "device": "cuda"}
        return [
            TrainConfig.of(**{**common, **ASKED[name], "cuda_graphs": True, "out": folder / name}) for name in names
        ]

    done = train_cohort(configs(tmp_path / "together"))
    assert all(isinstance(one, Trained) for one in done)
    for config in configs(tmp_path / "alone"):
        train(config)
    for name in names:
        assert same(weights(tmp_path / "together" / name), weights(tmp_path / "alone" / name)), name
