"""What ``train`` says and writes about its speed, and that the fast ways reach the same student."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from softcache.device import pick_device
from softcache.errors import UsageError
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.stages.train import train
from softcache.stream.transfer import SideStream
from softcache.training.optimization import Optimization
from softcache.training.profiling import TRACE, WAIT, WARMUP, Profile, bottleneck

SMALL = {"student": "cifar:resnet8", "epochs": 2, "warmup": 0.0}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, small_teacher) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    return dump(small_teacher(folder / "teacher"), size=8, views=2, out=folder / "cache").folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return open_network(str(run), classes=None).state_dict()


def test_workers_blocks_and_memory_give_the_same_student(here: Path, cache: Path) -> None:
    common = {**SMALL, "cache": (str(cache),), "shuffle": "block"}
    first = weights(train(**common, out="a").folder)
    for name, options in (("b", {"resident": "off", "workers": 1}), ("c", {"resident": "host"})):
        other = weights(train(**common, **options, out=name).folder)
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_it_says_which_path_it_took_and_why(here: Path, cache: Path, capsys: pytest.CaptureFixture) -> None:
    device = pick_device("auto").type
    train(**SMALL, cache=(str(cache),), out="a")
    said = capsys.readouterr().err
    assert f"stream resident on {device}" in said
    assert f"targets held on {device}; full shuffle: an epoch reads" in said
    assert "bottleneck: the network (" in said
    train(**SMALL, cache=(str(cache),), out="b", shuffle="block", resident="off", workers=0, views_per_image=2)
    said = capsys.readouterr().err
    assert "stream mapped, 0 workers" in said
    assert "targets read in blocks, ahead; shuffle of blocks of" in said


def test_a_profile_says_where_the_time_went(here: Path, cache: Path, capsys: pytest.CaptureFixture) -> None:
    done = train(**SMALL, cache=(str(cache),), out="a", profile=True)
    said = capsys.readouterr().err
    phases = {line.split()[0]: float(line.split()[-2]) for line in said.splitlines() if line.endswith(" %")}
    assert phases.keys() >= {"data", "forward", "loss", "backward", "optimizer", "other"}
    assert sum(phases[name] for name in ("data", "forward", "loss", "backward", "optimizer", "other")) == pytest.approx(
        100, abs=0.5
    )
    assert phases["forward"] > phases["optimizer"] / 10
    assert "convolution_backward" in said
    assert json.loads((done.folder / TRACE).read_text())["traceEvents"]


def test_a_short_profile_leaves_anothers_trace_alone(here: Path, capsys: pytest.CaptureFixture) -> None:
    (here / TRACE).write_text("another training's")
    profile = Profile(here, torch.device("cpu"))
    profile.step()
    profile.report({"epoch": 1, "epoch_s": 0.1, "data_s": 0.0})
    assert "no trace: the first 3 steps are not traced, and the epoch has 1" in capsys.readouterr().err
    assert (here / TRACE).read_text() == "another training's"


@pytest.mark.parametrize(
    ("data", "teacher", "said"),
    [(0.1, 0.0, "the network"), (3.0, 0.0, "the network"), (6.0, 0.0, "data"), (9.0, 8.5, "the live teacher")],
)
def test_the_bottleneck_is_what_most_time_went_to(data: float, teacher: float, said: str) -> None:
    lines = [{"epoch_s": 99.0, "data_s": 99.0, "teacher_s": 0.0}]  # the first epoch warms up
    lines += [{"epoch_s": 10.0, "data_s": data, "teacher_s": teacher}] * 2
    assert bottleneck(lines).startswith(f"bottleneck: {said} (")


@pytest.mark.parametrize(
    "options",
    [{"views_per_image": 3, "batch_size": 64}, {"views_per_image": 4}, {"shuffle": "some"}, {"start_method": "thread"}],
)
def test_what_cant_be_is_refused_before_a_run_is_begun(here: Path, cache: Path, options: dict) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(options)).replace('_', '-')}"):
        train(**SMALL, cache=(str(cache),), out="a", **options)
    assert not Path("a", "config.json").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimizers_are_fused(optimizer: str) -> None:
    made = Optimization(optimizer, 0.1, 0.0).build([torch.nn.Linear(2, 2)], torch.device("cpu"))
    assert made.defaults["fused"]


LINEAR = """
from torch import nn

def make(num_classes=10):
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3 * 16, num_classes))
"""


def test_two_accumulated_batches_are_one_of_twice_the_size(here: Path, cache: Path) -> None:
    """Without batch normalization, and with a loss that doesn't compare rows: the mean over 1,438 rows is that of the
    means over 719 and 719."""
    Path("linear.py").write_text(LINEAR)
    common = {"student": "linear.py:make", "epochs": 1, "cache": (str(cache),), "optimizer": "sgd", "lr": 0.1}
    common |= {"loss": "kl", "warmup": 0.0, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "amp": "off"}
    whole = weights(train(**common, batch_size=1438, out="whole").folder)
    halves = weights(train(**common, batch_size=719, accumulate=2, out="halves").folder)
    start = weights(train(**{**common, "lr": 1e-12}, batch_size=1438, out="start").folder)
    for key in whole:
        moved = (whole[key] - start[key]).abs().max()
        assert moved > 1e-4
        assert (whole[key] - halves[key]).abs().max() < 1e-4 * moved


@pytest.mark.parametrize("options", [pytest.param({"amp": "bf16"}, marks=pytest.mark.torture), {"channels_last": True}])
def test_amp_and_channels_last_learn_as_well(here: Path, cache: Path, options: dict) -> None:
    common = {**SMALL, "cache": (str(cache),), "optimizer": "adamw", "lr": 2e-3}
    plain = train(**common, amp="off", channels_last=False, out="plain").lines
    other = train(**common, **{"amp": "off", "channels_last": False, **options}, out="other").lines
    assert other[-1]["loss"] < 0.9 * other[0]["loss"]
    assert other[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=0.1)
    assert [line["loss"] for line in other] != [line["loss"] for line in plain]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_side_stream_gives_the_same_student_on_a_gpu(here: Path, cache: Path) -> None:
    common = {**SMALL, "cache": (str(cache),), "device": "cuda"}
    first = weights(train(**common, out="a").folder)
    other = weights(train(**common, resident="off", workers=2, out="b").folder)
    assert all(torch.allclose(first[key], other[key], rtol=1e-3, atol=1e-4) for key in first)


def test_a_trace_has_the_steps_after_those_that_warm_up(here: Path, capsys: pytest.CaptureFixture) -> None:
    profile = Profile(here, torch.device("cpu"))
    for _ in range(WAIT + WARMUP + 2):
        with profile.phase("forward"):
            torch.ones(3).cumsum(0)
        profile.step()
    profile.report({"epoch": 1, "epoch_s": 1.0, "data_s": 0.0})
    events = json.loads((here / TRACE).read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::cumsum" for event in events) == 2
    said = capsys.readouterr().err
    assert "operations of 2 steps" in said
    assert "ProfilerStep" not in said
    assert profile.overhead > 0


class FakeCuda:
    """Stands for ``torch.cuda`` on a machine without a GPU: streams that write down who waits for whom."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.streams: list[str] = []
        self.current = self.Stream("main")

    def Stream(self, device: object) -> SimpleNamespace:
        name = f"stream {len(self.streams)}"
        self.streams.append(name)
        return SimpleNamespace(name=name, wait_stream=lambda other: self.log.append((name, "waits for", other.name)))

    def current_stream(self, device: object) -> SimpleNamespace:
        return self.current

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


def test_a_training_has_one_side_stream_and_each_stream_waits_for_the_other() -> None:
    cuda = FakeCuda()
    side = SideStream(torch.device("cuda"), cuda=cuda)

    def epoch() -> Iterator[SimpleNamespace]:
        for number in range(2):
            cuda.log.append((cuda.current.name, "makes", str(number)))
            yield SimpleNamespace(number=number)

    for _ in range(2):
        for batch in side.batches(epoch()):
            cuda.log.append((cuda.current.name, "uses", str(batch.number)))
    main, own = cuda.streams
    once = [
        (own, "waits for", main),
        (own, "makes", "0"),
        (main, "waits for", own),
        (main, "uses", "0"),
        (own, "makes", "1"),
        (main, "waits for", own),
        (main, "uses", "1"),
    ]
    assert cuda.log == once + once


def test_on_a_cpu_batches_are_passed_on_as_they_come() -> None:
    batches = [object(), object()]
    assert list(SideStream(torch.device("cpu")).batches(iter(batches))) == batches
