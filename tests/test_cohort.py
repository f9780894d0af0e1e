"""Students that share a stream have the bits that they have alone."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_train import FEATURES, HINTS, STUDENT, lines, make_cache, make_teacher, same, weights
from torch import nn

from softcache.config.train import TrainConfig
from softcache.errors import SoftcacheError, UsageError
from softcache.models._network import Network
from softcache.stages._cohort import train_cohort
from softcache.stages.train import Trained, train
from softcache.stream.batches import Stream
from softcache.training import learner

TIMES = ("epoch_s", "data_s", "eval_s", "teacher_s")
DROPPING = f"{Path(__file__)}:dropping"
FAILING = f"{Path(__file__)}:failing"
# Students that differ in all that they may: network, loss, T, alpha, rate, seed, hints, stages, epochs.
UNLIKE: dict[str, dict[str, Any]] = {
    "plain": {"student": STUDENT, "loss": ("kl",), "T": "8:2:linear", "alpha": 0.9},
    "dropout": {"student": DROPPING, "seed": 7, "loss": ("dkd",), "optimizer": "sgd", "lr": 0.05, "epochs": 3},
    "hints": {
        "student": STUDENT,
        "seed": 3,
        "hint": ("fitnet:teacher=layer2,student=layer1", "crd:teacher=fc:in,student=fc:in,negatives=32"),
        "accumulate": 2,
        "log_every": 5,
    },
    "stages": {"student": FEATURES, "hint": ("fitnet:teacher=layer1,student=layer1",), "hint_epochs": 1, "lr": 0.01},
}
COMMON: dict[str, Any] = {"epochs": 2, "batch_size": 64, "order_seed": 5, "device": "cpu"}


class Dropping(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.mean(1))


class Failing(Dropping):
    """Fails in its 30th forward pass in training, which is in the second epoch."""

    def __init__(self, classes: int):
        super().__init__(classes)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        if self.passes == 30:
            raise RuntimeError("no more")
        return super().forward(x)


def dropping(num_classes: int) -> nn.Module:
    return Dropping(num_classes)


def failing(num_classes: int) -> nn.Module:
    return Failing(num_classes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cohort")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS, views=3, augment="crop:pad=1")
    return str(folder / "cache")


def configs(cache: str, folder: Path, names: Any = UNLIKE, **more: Any) -> list[TrainConfig]:
    return [
        TrainConfig.of(**{**COMMON, **UNLIKE[name], **more, "cache": (cache,), "out": str(folder / name)})
        for name in names
    ]


def alone(cache: str, folder: Path, **more: Any) -> None:
    for config in configs(cache, folder, **more):
        train(config)


def assert_same_runs(one: Path, other: Path, names: Any = UNLIKE) -> None:
    for name in names:
        assert same(weights(one / name), weights(other / name)), name
        timeless = [
            [{key: value for key, value in line.items() if key not in TIMES} for line in lines(folder / name)]
            for folder in (one, other)
        ]
        assert timeless[0] == timeless[1], name
        records = [(folder / name / "config.json").read_text().splitlines() for folder in (one, other)]
        assert [a for a in records[0] if "seconds" not in a] == [b for b in records[1] if "seconds" not in b]
    steps = [(folder / "hints" / "steps.jsonl").read_text() for folder in (one, other)]
    assert steps[0] == steps[1]
    assert same(weights(one / "hints", "regressors.safetensors"), weights(other / "hints", "regressors.safetensors"))


@pytest.mark.parametrize("more", [{}, {"targets": "mean"}, {"val_fraction": 0.2, "workers": 1, "resident": "off"}])
def test_four_unlike_students_of_a_cohort_have_the_bits_of_single_runs(
    cache: str, tmp_path: Path, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in UNLIKE if "hint" not in UNLIKE[name]] if more.get("targets") == "mean" else list(UNLIKE)
    epochs, epoch_of = [], Stream.epoch
    with monkeypatch.context() as counting:
        counting.setattr(Stream, "epoch", lambda self, epoch: (epochs.append(epoch), epoch_of(self, epoch))[1])
        done = train_cohort(configs(cache, tmp_path / "together", names, **more))
    assert all(isinstance(one, Trained) for one in done)
    assert epochs == [0, 1, 2]  # one stream for all of them
    for config in configs(cache, tmp_path / "alone", names, **more):
        train(config)
    if names == list(UNLIKE):
        assert_same_runs(tmp_path / "alone", tmp_path / "together")
    else:
        for name in names:
            assert same(weights(tmp_path / "alone" / name), weights(tmp_path / "together" / name))


def test_students_of_several_seeds_share_an_order_only_where_it_is_given(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[int] = []
    epoch_of = Stream.epoch
    monkeypatch.setattr(Stream, "epoch", lambda self, e: (orders.append(self.plan.seed), epoch_of(self, e))[1])
    common = {"cache": (cache,), "epochs": 1, "device": "cpu"}
    for order_seed in (None, 4):
        train_cohort(
            [
                TrainConfig.of(
                    STUDENT, seed=seed, order_seed=order_seed, out=str(tmp_path / f"{order_seed}-{seed}"), **common
                )
                for seed in (0, 1)
            ]
        )
    assert orders == [0, 1, 4]


def test_students_that_want_other_keys_are_trained_apart(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    epoch_of = Stream.epoch
    monkeypatch.setattr(Stream, "epoch", lambda self, e: (sizes.append(self.plan.batch_size), epoch_of(self, e))[1])
    asked: list[dict[str, Any]] = [
        {"batch_size": 64},
        {"batch_size": 32},
        {"batch_size": 64, "T": 2, "loss": "kl"},
        {"batch_size": 64, "views": 1},
    ]
    done = train_cohort(
        [
            TrainConfig.of(STUDENT, cache=(cache,), epochs=1, device="cpu", out=str(tmp_path / str(number)), **more)
            for number, more in enumerate(asked)
        ]
    )
    assert sizes == [64, 32, 64]
    assert [one.folder.name for one in done if isinstance(one, Trained)] == ["0", "1", "2", "3"]


def test_a_learner_that_fails_leaves_and_the_others_keep_their_bits(cache: str, tmp_path: Path) -> None:
    together = configs(cache, tmp_path / "together", ["plain", "dropout"])
    together.insert(
        1, TrainConfig.of(**{**COMMON, "student": FAILING, "cache": (cache,), "out": str(tmp_path / "failing")})
    )
    together.append(
        TrainConfig.of(**{**COMMON, "student": "cifar:resnet9", "cache": (cache,), "out": str(tmp_path / "no")})
    )
    done = train_cohort(together)
    assert isinstance(done[1], SoftcacheError)
    assert "no more" in str(done[1])
    assert len(lines(tmp_path / "failing")) == 1  # the epoch before stands
    assert isinstance(done[3], SoftcacheError)
    for config in configs(cache, tmp_path / "alone", ["plain", "dropout"]):
        train(config)
    for name in ("plain", "dropout"):
        assert same(weights(tmp_path / "alone" / name), weights(tmp_path / "together" / name))


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def whole(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a cohort that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train_cohort(configs(cache, folder))
    return folder


@pytest.mark.parametrize("saves", [1, 2, 3, 5, 9])
def test_a_cohort_that_is_interrupted_goes_on_to_the_same_bits(
    cache: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """Between the checkpoints of its students too, where some are an epoch ahead of others."""
    count, save = [0], learner.save_checkpoint

    def stopping(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        count[0] += 1
        if count[0] == saves:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(learner, "save_checkpoint", stopping)
        with pytest.raises(Stopped):
            train_cohort(configs(cache, tmp_path / "parts"))
    done = train_cohort(configs(cache, tmp_path / "parts"))
    assert all(isinstance(one, Trained) for one in done)
    assert_same_runs(whole, tmp_path / "parts")


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_cohort import configs
from softcache.stages._cohort import train_cohort
from softcache.stages._running import Trained
print("begun", flush=True)
done = train_cohort(configs(sys.argv[2], Path(sys.argv[3])))
assert all(isinstance(one, Trained) for one in done), done
"""


@pytest.mark.timeout(900)
@pytest.mark.torture
@pytest.mark.parametrize("kills", [20])
def test_a_cohort_that_is_killed_goes_on_to_the_same_bits(cache: str, tmp_path: Path, kills: int) -> None:
    command, said = [sys.executable, "-c", CHILD, str(Path(__file__).parent), cache], tmp_path / "said"

    def start(folder: str) -> subprocess.Popen[str]:
        with open(said, "w") as errors:
            process = subprocess.Popen(
                [*command, str(tmp_path / folder)], stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert process.stdout is not None
        with process.stdout as lines_of_it:
            assert lines_of_it.readline() == "begun\n"
        return process

    began = time.perf_counter()
    process = start("whole")
    since = time.perf_counter()
    assert process.wait() == 0, said.read_text()
    seconds = time.perf_counter() - since
    rng, killed, begins = random.Random(kills), 0, 0
    while killed < kills:
        process = start(f"parts-{begins}")
        try:
            process.wait(rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        assert process.wait() in (0, -9), said.read_text()
        if process.returncode == 0:  # a training that has ended can't be killed any more: another one is begun
            assert_same_runs(tmp_path / "whole", tmp_path / f"parts-{begins}")
            begins += 1
        assert time.perf_counter() - began < 850
    process = start(f"parts-{begins}")
    assert process.wait() == 0, said.read_text()
    assert_same_runs(tmp_path / "whole", tmp_path / f"parts-{begins}")


def test_what_a_cohort_refuses(cache: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    with pytest.raises(UsageError, match="needs out"):
        train_cohort([TrainConfig.of(STUDENT, cache=(cache,))])
    with pytest.raises(UsageError, match="have the folder"):
        train_cohort([TrainConfig.of(STUDENT, cache=(cache,), out=out)] * 2)
    with pytest.raises(UsageError, match="--profile"):
        train_cohort([TrainConfig.of(STUDENT, cache=(cache,), out=out + n, profile=True) for n in "ab"])
    first = TrainConfig.of(STUDENT, cache=(cache,), out=out, epochs=1, lr=0.01, device="cpu")
    assert isinstance(train_cohort([first])[0], Trained)
    (refused,) = train_cohort([TrainConfig.of(STUDENT, cache=(cache,), out=out, epochs=1, lr=0.02, device="cpu")])
    assert isinstance(refused, UsageError)
    assert "--lr 0.01, not 0.02" in str(refused)
    other = TrainConfig.of(DROPPING, cache=(cache,), out=out, epochs=1, lr=0.01, device="cpu")
    (refused,) = train_cohort([other])
    assert isinstance(refused, UsageError)
    assert "holds a run with --student" in str(refused)


class Overwriting(nn.Module):
    """Writes into its input, as code with ``inplace=True`` does."""

    def __init__(self, classes: int):
        super().__init__()
        self.fc = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.relu_().mean(1).flatten(1))


def overwriting(num_classes: int) -> nn.Module:
    return Overwriting(num_classes)


def test_what_is_made_of_pixels_is_made_once_and_is_nobody_s_to_change(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two students that want their input alike, one that writes into it, and one that wants another size."""
    own = {"student": STUDENT, "epochs": 2, "batch_size": 128, "lr": 0.01, "device": "cpu", "order_seed": 0}
    wanted = [{"seed": 0}, {"student": f"{__file__}:overwriting"}, {"seed": 1}, {"student_size": 16}]
    made: list[tuple[int, ...]] = []
    prepare = Network._prepare

    def counted(self: Network, pixels: torch.Tensor) -> torch.Tensor:
        result = prepare(self, pixels)
        if self.training:
            made.append(tuple(result.shape[2:]))
        return result

    def runs(place: str) -> list[TrainConfig]:
        every = [
            {**own, **more, "cache": (cache,), "out": str(tmp_path / place / f"{n}")} for n, more in enumerate(wanted)
        ]
        return [TrainConfig.of(**one) for one in every]

    monkeypatch.setattr(Network, "_prepare", counted)
    assert all(isinstance(one, Trained) for one in train_cohort(runs("together")))
    together, made[:] = Counter(made), []
    for config in runs("alone"):
        assert isinstance(train_cohort([config])[0], Trained)
    alone = Counter(made)
    assert together[16, 16] == alone[16, 16]
    (side,) = {size for size in alone if size != (16, 16)}
    assert together[side] == alone[side] / 3 * 2  # again after the one that writes into it
    for number in range(len(wanted)):
        assert same(weights(tmp_path / "together" / f"{number}"), weights(tmp_path / "alone" / f"{number}"))


def test_a_run_that_goes_on_in_a_cohort_may_be_told_anew_where_it_runs(cache: str, tmp_path: Path) -> None:
    """And nothing else: the device of the command counts, and not the one that is written down."""
    begun = {"cache": (cache,), "out": str(tmp_path / "run"), "epochs": 1, "lr": 0.01}
    (done,) = train_cohort([TrainConfig.of(STUDENT, device="cpu", **begun)])
    assert isinstance(done, Trained)
    (elsewhere,) = train_cohort([TrainConfig.of(STUDENT, device="cuda:99", **begun)])
    assert isinstance(elsewhere, SoftcacheError)
    assert "cuda:99" in str(elsewhere)
    (again,) = train_cohort([TrainConfig.of(STUDENT, device="cpu", workers=0, **begun)])
    assert isinstance(again, Trained)
