"""How benchmarks count: pairs, targets, tables; and that the one of ImageNet, which nobody runs here, runs to its end.
The figures themselves are no test's business."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure", ROOT / "benchmarks" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["measure"]


def test_all_sides_take_turns_and_the_first_round_is_thrown_away(measure) -> None:
    order: list[str] = []

    def side(name: str, seconds: float):
        def run() -> float:
            order.append(name)
            return seconds if len(order) > 3 else 1000.0

        return run

    taken = measure.paired({"a": side("a", 1.0), "b": side("b", 2.0), "c": side("c", 3.0)}, 3)
    assert taken == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}
    rounds = ["".join(order[k : k + 3]) for k in range(0, 12, 3)]
    assert rounds == ["abc", "bca", "cab", "abc"]


def test_ratios_are_taken_within_a_repetition(measure) -> None:
    # the machine gets twice as slow after the first repetition: each pair sees the same machine
    line = measure.ratio("x", [1.0, 2.2, 2.0], [1.0, 2.0, 2.0], "≤ 1.05")
    assert (line.median, line.low, line.high) == (1.0, 1.0, 1.1)
    assert line.met == "yes"


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [(1.03, "≤ 1.03", "yes"), (1.04, "≤ 1.03", "no"), (0.9, "≥ 0.9", "yes"), (0.89, "≥ 0.9", "no"), (5.0, "", "")],
)
def test_a_missed_target_is_shown_as_missed(measure, value: float, target: str, met: str) -> None:
    assert measure.row("x", [value], target).met == met


def test_a_result_is_a_table_and_a_line_of_json(measure, capsys: pytest.CaptureFixture) -> None:
    measure.Result("some", "Title", [measure.row("x", [1.0, 2.0, 4.0], "≤ 1", "a note")]).show()
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[0] == "Title"
    assert printed[3].startswith("| x | 2.000 | 1.000 – 4.000 | ≤ 1 | no |")
    record = json.loads(printed[-1])
    assert record["rows"][0]["median"] == 2.0
    assert record["rows"][0]["met"] == "no"
    assert {"machine", "versions", "date"} <= record.keys()


# -- ImageNet


@pytest.fixture
def imagenet(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    before = set(sys.modules), signal.getsignal(signal.SIGTERM)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes that it starts
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield importlib.import_module("benchmarks.imagenet")
    signal.signal(signal.SIGTERM, before[1])
    for name in {name for name in sys.modules if name.startswith("benchmarks")} - before[0]:
        del sys.modules[name]


@pytest.mark.torture
def test_imagenet_skips_what_is_done_and_resumes_what_is_not(
    imagenet: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """First a student fails, which leaves the others alone; then that one runs, and one that looks interrupted."""
    pair, place = "resnet34-resnet18", tmp_path / "place"
    arguments = ["--tiny", "--rows", "64", "--workers", "0", "--pairs", pair, "--place", str(place)]
    before = imagenet.PAGE.read_bytes() if imagenet.PAGE.exists() else None
    monkeypatch.delitem(imagenet.LOSSES, "kl")  # two students are enough to see it
    with monkeypatch.context() as broken:
        broken.setitem(imagenet.LOSSES, "dist", ["--loss", "dits"])
        assert imagenet.main(arguments) == 1
    printed = capfd.readouterr()
    assert begun(printed.out) == [f"{pair}-{name}" for name in ("teach", "eval", "dump", "alone", "dist")]
    assert re.search(rf"^error: {pair}-dist ended with status 2: .*'dits'.*dist", printed.err, re.M)
    first = top1(printed.out)
    assert first.keys() == {"teacher", "alone"}
    assert not (place / "imagenet.md").exists()

    config = place / "runs" / f"{pair}-alone" / "config.json"
    interrupted = {**json.loads(config.read_text()), "result": None}
    assert interrupted["options"]["epochs"] == 2
    config.write_text(json.dumps(interrupted))
    assert imagenet.main(arguments) == 0
    printed = capfd.readouterr()
    assert set(begun(printed.out)) == {f"{pair}-{name}" for name in ("dump", "alone", "dist")}
    assert "all 2 epochs are done already" in (place / "logs" / f"{pair}-alone.log").read_text()
    second = top1(printed.out)
    assert second.keys() == {"teacher", "alone", "dist"}
    assert first.items() <= second.items()
    assert top1((place / "imagenet.md").read_text()) == second
    assert (imagenet.PAGE.read_bytes() if imagenet.PAGE.exists() else None) == before

    assert imagenet.main(arguments) == 0
    printed = capfd.readouterr()
    assert begun(printed.out) == []
    assert top1(printed.out) == second

    assert imagenet.main([*arguments, "--epochs", "3"]) == 1
    assert "was begun with epochs 2: give the same, or another --place" in capfd.readouterr().err


def begun(printed: str) -> list[str]:
    return re.findall(r"^(\S+): began", printed, re.M)


def top1(printed: str) -> dict[str, str]:
    """Of the one pair: row → figure, without the rows that have none."""
    return dict(re.findall(r"^\| (teacher|alone|kl|dist) \| (\d+\.\d\d) \|", printed, re.M))


def test_imagenet_has_the_recipe_of_the_published_figures(imagenet: ModuleType, tmp_path: Path) -> None:
    """The commands are understood by softcache, as what they say."""
    from softcache.cli.train import command

    options = imagenet._options(["--data-dir", "/data/imagenet", "--workers", "4"])
    data = ["--dataset", "imagenet", "--data-dir", "/data/imagenet"]
    for pair, model in (("resnet34-resnet18", "resnet18"), ("resnet50-mobilenetv1", "timm:mobilenetv1_100")):
        for name, weights in (("alone", (0, None)), ("kl", (0.5, 0.5)), ("dist", (1, 1))):
            given = imagenet.student(tmp_path, pair, name, data, options)
            found = command.make_context("train", given[1:]).params
            assert (found["student"], found["epochs"], found["batch_size"]) == (model, 100, 256)
            assert (found["optimizer"], found["lr"], found["weight_decay"], found["warmup"]) == ("sgd", 0.1, 1e-4, 0)
            assert (found["schedule"], found["milestones"], found["gamma"]) == ("step", (30, 60, 90), 0.1)
            assert (found["momentum"], found["nesterov"], found["clip_grad"]) == (0.9, False, 0)
            assert (float(found["alpha"]), found["beta"] and float(found["beta"])) == weights
            assert found["cache"] == (() if name == "alone" else (f"caches/{pair}",))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--data-dir is missing: the folder that has ImageNet's train/ and val/"),
        (["--dataset", "folder:x"], "torchvision's weights are for imagenet: --teacher-epochs N"),
    ],
)
def test_imagenet_says_what_is_missing(
    imagenet: ModuleType, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        imagenet.main(arguments)
    assert said in capsys.readouterr().err


def test_imagenet_compares_with_the_weights_that_it_takes(imagenet: ModuleType) -> None:
    from torchvision.models import get_model_weights

    def published(model: str) -> float:
        return get_model_weights(model)["IMAGENET1K_V1"].meta["_metrics"]["ImageNet-1K"]["acc@1"]

    for pair in imagenet.PAIRS.values():
        assert float(pair.published["teacher"]) == pytest.approx(published(pair.teacher), abs=0.005)
    alone = imagenet.PAIRS["resnet34-resnet18"].published["alone"]
    assert float(alone) == pytest.approx(published("resnet18"), abs=0.005)
