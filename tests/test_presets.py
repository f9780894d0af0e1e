"""Presets: which one a network gets, what the files say, and that given options come first."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from harness_train import command
from torch import nn

from softcache.cli._main import main
from softcache.config.presets import UNSAID, fitting_preset, is_small, names, open_preset
from softcache.config.record import read_record
from softcache.config.train import TrainConfig
from softcache.errors import SoftcacheError, UsageError
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.stages.teach import teach
from softcache.stages.train import train

SMALL: dict[str, Any] = {"student": "cifar:resnet8", "alpha": 0, "dataset": "digits", "size": 8, "augment": "none"}


def network(spec: str) -> Any:
    return open_network(spec, classes=10, statistics=((0.3,), (0.2,)), seed=0)


@pytest.mark.parametrize("name", names())
def test_each_file_is_a_preset_that_leaves_nothing_open(name: str) -> None:
    preset = open_preset(name)
    assert preset.about
    assert preset.source
    for rows in (1, 1438, 3000, 3001, 60_000, 1_281_167):
        for distilled, small in itertools.product((False, True), repeat=2):
            said = preset.at(rows, distilled=distilled, small=small)
            assert set(said) == set(UNSAID)
            assert None not in said.values()
            legal = {key: tuple(v) if isinstance(v, list) else v for key, v in said.items()}
            TrainConfig(**legal)


def test_the_papers_recipe_for_cifar() -> None:
    """As the tables of CRD, arXiv 1910.10699, were made."""
    said = open_preset("crd-cifar").at(50_000)
    assert said["epochs"] == 240
    assert said["batch_size"] == 64
    assert (said["optimizer"], said["lr"], said["momentum"], said["weight_decay"]) == ("sgd", 0.05, 0.9, 5e-4)
    assert said["nesterov"] is False
    assert (said["schedule"], said["milestones"], said["gamma"], said["warmup"]) == ("step", [150, 180, 210], 0.1, 0)
    assert open_preset("crd-cifar-mobile").at(50_000) == {**said, "lr": 0.01}


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.mix = nn.MultiheadAttention(8, 2)


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)), "convnet"),
        (nn.Sequential(nn.Conv1d(1, 2, 3)), "convnet"),
        (Attending(), "transformer"),
        (nn.TransformerEncoderLayer(8, 2), "transformer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "perceptron"),
    ],
)
def test_the_kind_of_network_decides(model: nn.Module, preset: str) -> None:
    assert fitting_preset(model, pretrained=False) == preset
    assert fitting_preset(model, pretrained=True) == "fine-tuning"


def test_auto_is_said_recorded_and_replaced_by_what_is_given(here: Path, capsys: pytest.CaptureFixture) -> None:
    train(**SMALL, epochs=1, out="run")
    said = capsys.readouterr().err
    assert "preset convnet: --epochs 1 --batch-size" in said
    options = read_record(Path("run")).options
    wanted = {**open_preset("convnet").at(1438, small=True), "epochs": 1, "milestones": ()}
    assert {name: getattr(options, name) for name in UNSAID} == wanted


def test_what_a_preset_says_is_what_is_trained(here: Path) -> None:
    """The same as with every option given, to the bit; by name, by file, and one option given beside it."""
    mine = {"epochs": 1, "batch_size": 128, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-2, "warmup": 0.5}
    Path("mine.json").write_text(json.dumps({"about": "", "source": "", "options": mine}))
    given = train(**SMALL, **mine, out="given").lines
    preset = train(**SMALL, preset="mine.json", out="preset").lines
    other = train(**SMALL, preset="mine.json", lr=2e-3, out="other").lines
    assert given[0]["loss"] == preset[0]["loss"] != other[0]["loss"]
    assert read_record(Path("other")).options.lr == 2e-3


def test_sizes_of_the_set_have_options_of_their_own(here: Path) -> None:
    sizes = [{"up_to": 100, "epochs": 3}, {"up_to": 1438, "epochs": 2}, {"epochs": 1}]
    document = {"options": {"batch_size": 256, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}, "by_rows": sizes}
    Path("mine.json").write_text(json.dumps(document))
    assert [open_preset("mine.json").at(rows)["epochs"] for rows in (1, 100, 101, 1438, 1439)] == [3, 3, 2, 2, 1]
    assert len(train(**SMALL, preset="mine.json", out="run").lines) == 2


def test_a_distilled_student_may_have_other_options(here: Path, small_teacher: Any) -> None:
    options = {"epochs": 1, "batch_size": 256, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
    sizes = [{"up_to": 100, "distilled": {"lr": 0.07}}, {"distilled": {"lr": 0.03, "momentum": 0.5}}]
    Path("mine.json").write_text(json.dumps({"options": {**options, "distilled": {"warmup": 0.5}}, "by_rows": sizes}))
    preset = open_preset("mine.json")
    assert preset.at(1438) == {**UNSAID, **options}
    assert preset.at(1438, distilled=True) == {**UNSAID, **options, "warmup": 0.5, "lr": 0.03, "momentum": 0.5}
    assert preset.at(100, distilled=True) == {**UNSAID, **options, "warmup": 0.5, "lr": 0.07}
    dump(small_teacher("teacher"), dataset="digits", size=8, views=1, out="cache")
    student = {"student": "cifar:resnet8", "dataset": "digits", "preset": "mine.json"}
    ways: list[tuple[dict[str, Any], float]] = [
        ({"cache": "cache"}, 0.03),
        ({"cache": "cache", "alpha": "0"}, 0.1),  # labels alone, beside a cache and without one
        ({"size": 8, "alpha": "0"}, 0.1),
    ]
    for number, (more, lr) in enumerate(ways):
        train(**student, **more, out=f"run-{number}")
        assert read_record(Path(f"run-{number}")).options.lr == lr


@pytest.mark.parametrize(
    ("model", "small"),
    [
        ("cifar:resnet20", True),
        ("cifar:resnet8x4", True),
        ("resnet18", False),
        ("mobilenet_v3_small", False),  # 1.5 million parameters, and grouped convolutions
    ],
)
def test_small_networks_have_few_parameters_and_no_groups(model: str, small: bool) -> None:
    assert is_small(network(model)) is small


def test_the_border_of_small_networks_is_at_two_million_parameters() -> None:
    assert is_small(nn.Linear(1_999, 1_000, bias=False))
    assert not is_small(nn.Linear(2_000, 1_000, bias=False))


def test_a_small_network_may_have_other_options(here: Path, small_teacher: Any) -> None:
    options = {"epochs": 1, "batch_size": 256, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
    more = {"distilled": {"lr": 0.02, "warmup": 0.5}, "small": {"lr": 0.3, "distilled": {"lr": 0.2}}}
    document = {"options": {**options, "small": {"momentum": 0.5}}, "by_rows": [{"up_to": 100}, more]}
    Path("mine.json").write_text(json.dumps(document))
    preset = open_preset("mine.json")
    common = {**UNSAID, **options}
    assert preset.at(1438) == common
    assert preset.at(1438, distilled=True) == {**common, "lr": 0.02, "warmup": 0.5}
    assert preset.at(1438, small=True) == {**common, "lr": 0.3, "momentum": 0.5}
    assert preset.at(1438, small=True, distilled=True) == {**common, "lr": 0.2, "momentum": 0.5, "warmup": 0.5}
    assert preset.at(100, small=True, distilled=True) == {**common, "momentum": 0.5}
    lines = list(preset.describe()["options"])
    larger = "all larger sets"
    assert lines == [
        "up to 100 rows", "up to 100 rows, small network",
        larger, f"{larger}, distilled", f"{larger}, small network", f"{larger}, small network, distilled",
    ]  # fmt: skip
    Path("wide.py").write_text(
        "from torch import nn\n\ndef net(num_classes=10):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10_000), nn.Linear(10_000, num_classes))\n"
    )
    for number, (student, lr) in enumerate((("cifar:resnet8", 0.3), ("wide.py:net", 0.1))):
        train(**{**SMALL, "student": student}, preset="mine.json", out=f"run-{number}")
        assert read_record(Path(f"run-{number}")).options.lr == lr
    dump(small_teacher("teacher"), dataset="digits", size=8, views=1, out="cache")
    train("cifar:resnet8", cache="cache", preset="mine.json", out="distilled")
    assert read_record(Path("distilled")).options.lr == 0.2


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "can't be read"),
        ("[]", "no JSON object"),
        ('{"option": {}}', "'option'"),
        ('{"options": {"epoch": 3}}', "'epoch': did you mean epochs"),
        ('{"options": []}', "options must be an object"),
        ('{"options": {"distilled": 0.1}}', "distilled must be an object"),
        ('{"options": {"distilled": {"rate": 1}}}', "has option 'rate'"),
        ('{"by_rows": [{"distilled": {"distilled": {}}}]}', "has option 'distilled'"),
        ('{"by_rows": [{"small": {"small": {}}}]}', "has option 'small'"),
        ('{"by_rows": [{"distilled": {"small": {}}}]}', "has option 'small'"),
        ('{"options": {"small": 0.1}}', "small must be an object"),
        ('{"options": {"small": {"distilled": {"rate": 1}}}}', "has option 'rate'"),
        ('{"by_rows": [{"epochs": 1, "up_to": 5}]}', "its last entry have none"),
        ('{"by_rows": [{"up_to": 9}, {"up_to": 5}, {}]}', "must rise"),
        ('{"options": {"epochs": 3}}', "doesn't say --batch-size"),
        ('{"options": {"epochs": -1, "batch_size": 8, "optimizer": "sgd", "lr": 1, "weight_decay": 0}}', "above 0"),
        ('{"options": {"epochs": 1, "batch_size": 8, "optimizer": "sgd", "lr": "a", "weight_decay": 0}}', "a number"),
    ],
)
def test_a_bad_file_is_one_line(here: Path, document: str, message: str) -> None:
    Path("bad.json").write_text(document)
    with pytest.raises(SoftcacheError) as caught:
        train(**SMALL, preset="bad.json", out="run")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("name", names())
def test_what_is_shown_can_be_given(name: str) -> None:
    """Each line of ``softcache presets NAME`` is options of the command line, with the values of the file."""
    train_command = main.get_command(click.Context(main), "train")
    assert train_command is not None
    preset = open_preset(name)
    ends = [limit or 10**9 for limit, _ in preset.by_rows] or [1]
    lines = preset.describe()["options"]
    of_all = [line for line in lines if "," not in line.replace(",000", "")]
    size_of = dict(zip(of_all, ends, strict=True))
    for line, shown in lines.items():
        rest, distilled = line.removesuffix(", distilled"), line.endswith(", distilled")
        size, small = size_of[rest.removesuffix(", small network")], rest.endswith(", small network")
        parsed = train_command.make_context("train", shlex.split(shown)).params
        given = {key: list(v) if isinstance(v, tuple) else v for key, v in parsed.items() if v not in (None, (), False)}
        said = preset.at(size, distilled=distilled, small=small)
        assert {"epochs", "batch_size", "optimizer", "lr", "weight_decay"} <= set(given)
        assert given == {key: said[key] for key in given}
        assert parsed["nesterov"] in (None, said["nesterov"])


def test_another_optimizer_wants_a_rate_of_its_own(here: Path) -> None:
    """0.2 would end AdamW at once, and 0.002 leave SGD where it began."""
    with pytest.raises(UsageError, match=r"--optimizer adamw: the learning rate of preset convnet, 0\.1, is for sgd"):
        train(**SMALL, optimizer="adamw")
    assert not Path("runs").exists()
    assert train(**SMALL, optimizer="sgd", epochs=1, out="near").lines
    assert train(**SMALL, optimizer="adamw", lr=0.002, epochs=1, out="given").lines


def test_an_unknown_name_is_refused_with_the_nearest(here: Path) -> None:
    with pytest.raises(UsageError, match="did you mean crd-cifar"):
        train(**SMALL, preset="crd-cifr")


def test_a_teacher_is_kept_with_the_options_that_it_was_taught_with(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a version of softcache whose presets say something else."""
    options = {"dataset": "digits", "size": 8, "epochs": 1, "out": "teacher"}
    teach("cifar:resnet8", **options)
    real = open_preset("convnet")
    monkeypatch.setitem(real.by_rows[1][1]["small"], "lr", 0.7)
    monkeypatch.setattr("softcache.config.fit.open_preset", lambda name: real)
    assert teach("cifar:resnet8", **options).kept
    with pytest.raises(SoftcacheError, match=r"lr: 0\.1 there, 0\.2 now"):
        teach("cifar:resnet8", **options, lr=0.2)


def test_the_command_lists_and_shows_them(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("presets") == 0
    listed = capfd.readouterr().out
    assert all(name in listed for name in names())
    assert command("presets", "crd-cifar", "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["options"]["all sets"].startswith("--epochs 240 --batch-size 64 --optimizer sgd --lr 0.05")
    assert command("presets", "convnet") == 0
    assert "up to 3,000 rows" in capfd.readouterr().out
