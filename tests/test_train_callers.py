"""What a training must not do to its caller, to a run that is resumed, and to rows that come twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harness_train import command

from softcache.datasets._open import open_samples
from softcache.losses.hints._spec import parse_hint
from softcache.models._cifar_resnet import CifarResNet
from softcache.models._hooks import Taps
from softcache.models._open import open_network
from softcache.models._through import Through, build_through
from softcache.stages.dump import dump
from softcache.stages.teach import teach
from softcache.stages.train import train

STUDENT = "cifar:resnet8"


@pytest.fixture
def cache(here: Path, small_teacher: Callable[..., str]) -> str:
    dump(small_teacher(here / "teacher"), views=1, size=8, out="cache")
    return "cache"


def test_the_callers_random_numbers_and_flags_go_on(cache: str) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    wanted = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    convolutions.allow_tf32 = True
    try:
        train(STUDENT, cache=(cache,), epochs=1, out="run")
        assert convolutions.allow_tf32 is True
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
    assert torch.equal(torch.rand(3), wanted[0])
    assert np.array_equal(np.random.rand(3), wanted[1])


def test_the_same_arithmetic_trains_and_evaluates(
    here: Path, small_teacher: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `eval` of a run on a GPU differs from what the run itself said. The test split is fetched as the train
    split was: of some sets they are files of their own."""
    import softcache.evaluating.predictions as predictions
    import softcache.stages._subject as subject
    import softcache.stages.eval as stage
    import softcache.training.evaluation as evaluation

    allowed, asked, open_viewed, predict = [], [], evaluation.open_viewed, predictions.predict

    def opening(*arguments: object, **options: object) -> object:
        asked.append((options["data_dir"], options["download"]))
        return open_viewed(*arguments, **options)  # type: ignore[arg-type]

    def predicting(*arguments: object, **options: object) -> object:
        allowed.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return predict(*arguments, **options)  # type: ignore[arg-type]

    for module in (subject, evaluation):
        monkeypatch.setattr(module, "open_viewed", opening)
    for module in (predictions, evaluation):
        monkeypatch.setattr(module, "predict", predicting)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    there = {"size": 8, "data_dir": "elsewhere", "download": True}
    teach(STUDENT, epochs=1, out="teacher", **there)
    train(STUDENT, alpha="0", epochs=1, out="run", **there)
    stage.evaluate("run", download=True)
    whole = str(Path("elsewhere").absolute())  # a record's paths are
    assert asked == [(whole, True), ("elsewhere", True), (whole, True)]
    assert len(allowed) >= 3
    assert set(allowed) == {(False, False)}


@pytest.mark.parametrize("targets", ["mean", "both"])
def test_means_of_a_resumed_run_are_over_the_views_that_it_began_with(
    targets: str, cache: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that has grown in between doesn't change what a run learns."""
    train(STUDENT, cache=(cache,), epochs=2, targets=targets, out="whole")
    import softcache.training.learner as learner

    save, calls = learner.save_checkpoint, []

    def once(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(learner, "save_checkpoint", once)
    with pytest.raises(KeyboardInterrupt):
        train(STUDENT, cache=(cache,), epochs=2, targets=targets, out="stopped")
    monkeypatch.setattr(learner, "save_checkpoint", save)
    dump("teacher", views=2, size=8, out=cache)
    train(resume="stopped")
    assert calls == [1]
    weights = [(here / run / "student.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert weights[0] == weights[1]
    assert json.loads((here / "stopped" / "config.json").read_text())["view_numbers"] == [0]


def test_rows_that_come_twice_are_remembered_once() -> None:
    """Several views of a row in one batch: the order in which they are written must not matter."""
    term = parse_hint("crd:teacher=a,student=a,negatives=4")
    labels = torch.arange(12) % 3
    rows = torch.tensor([3, 7, 3, 1])
    shuffled = torch.tensor([0, 3, 1, 2])  # the first of row 3 still comes before its second
    banks = []
    for order in (torch.arange(4), shuffled):
        module = term.build([(5,)], [(6,)], row_count=12, classes=3, seed=0, row_labels=labels).eval()
        generator = torch.Generator().manual_seed(1)
        s, t = (torch.randn(4, width, generator=generator)[order] for width in (5, 6))
        module.train()
        module([s], [t], positions=rows[order], labels=labels[rows[order]])
        banks.append(module.by_layer[0].bank_s.clone())
    torch.testing.assert_close(banks[0], banks[1])


def test_a_student_through_its_teachers_classifier_answers_as_it_learned(here: Path) -> None:
    """8×8 maps learned at the hint's 4×4: the saved student pools them, too."""
    network = open_network(STUDENT, classes=4, statistics=((0.5,), (0.5,)), seed=0)
    assert isinstance(network.model, CifarResNet)
    classifier = torch.nn.Linear(6, 4)
    term = parse_hint("simkd:teacher=x,student=layer3")
    module = term.build([(64, 8, 8)], [(6, 4, 4)], row_count=9, classes=4, seed=0, teacher_classifier=classifier).eval()
    part = module.by_layer[0]
    through = Through(network.model, "layer3", part.projector, classifier, size=part.size).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad(), Taps(network.model, ["layer3"]) as taps:
        network.model.eval()(x)
        pooled = torch.nn.functional.avg_pool2d(taps["layer3"], 2)
        wanted = classifier(part.projector(pooled).mean((2, 3)))
        torch.testing.assert_close(through(x), wanted)
        again = build_through(network.model, through.describe(), 4).eval()
        again.load_state_dict(through.state_dict())
        torch.testing.assert_close(again(x), wanted)


def test_eval_normalizes_with_what_it_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network whose logits are the mean pixel tells which normalization it was given."""
    (here / "mean.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Mean(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.fc = nn.Conv2d(1, 1, 1), nn.Linear(1, 10)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.conv(x).mean((2, 3)))\n"
        "def make():\n    return Mean()\n"
    )
    state = {
        "conv.weight": torch.ones(1, 1, 1, 1),
        "conv.bias": torch.zeros(1),
        "fc.weight": torch.arange(10.0)[:, None],
        "fc.bias": torch.zeros(10),
    }
    torch.save(state, here / "mean.pt")
    samples = open_samples("digits", "test", size=8)
    means = torch.from_numpy(samples.images.astype(np.float64)).mean((1, 2, 3)) / 255
    labels = torch.from_numpy(samples.labels.astype(np.int64))
    arguments = ("eval", "mean.py:make", "--weights", "mean.pt", "--size", "8", "--workers", "0", "--json")
    for normalize, mean, std in (("none", 0.0, 1.0), ("0.25/0.5", 0.25, 0.5)):
        assert command(*arguments, "--normalize", normalize) == 0
        found = json.loads(capsys.readouterr().out)
        logits = ((means - mean) / std)[:, None] * torch.arange(10)
        assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
