"""The command of each loss: it has the weights of the paper, it is documented, and it runs."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
from harness_train import (
    FEATURES,
    HINTS,
    STUDENT,
    TEACHER,
    binary_digits,
    command,
    config,
    lines,
    make_cache,
    make_teacher,
)

from softcache.config.parsed import parse
from softcache.config.train import TrainConfig
from softcache.losses._describe import LossRow, describe_losses

# (alpha, beta, weight after its warm-up), as the papers and their code have them.
PAPERS = {
    "kl": (0.9, 0.1, 1),  # the CIFAR-100 recipe of arXiv 1910.10699: cross-entropy 0.1, kl 0.9
    "ce": (0.9, 0.1, 1),
    "hard": (0.5, 0.5, 1),  # arXiv 2012.12877, equation 3: halves
    "binary_kl": (1, 1, 1),
    "cosine": (1, 0, 1),
    "smooth_l1": (1, 0, 1),
    "mse": (1, 0, 1),  # arXiv 1312.6184 regresses logits alone
    "dkd": (1, 1, 1),
    "dist": (1, 1, 2),
    "nkd": (1, 1, 1),
    "wsld": (1, 1, 2.5),
    "ttm": (1, 1, 45),  # the released code's example
    "wttm": (1, 1, 4),
    "rld": (1, 1, 1),
    "ctkd": (0.9, 0.1, 1),
    "mlkd": (0.9, 0.1, 5),  # the sum over five temperatures of which the loss is the mean
    "fitnet": (0, 1, 100),
    "at": (0, 1, 1000),
    "sp": (0, 1, 3000),
    "cc": (0, 1, 0.003),
    "rkd": (0, 1, 1),
    "pkt": (0, 1, 30000),
    "vid": (0, 1, 1),
    "nst": (0, 1, 50),
    "crd": (0, 1, 0.8),
    "reviewkd": (0, 1, 5),
    "simkd": (0, 0, 1),
}
# The relational losses of an output, which is all that is learnt then, have the weights that they have of activations.
OF_OUTPUTS = {"sp": (1, 0, 3000), "cc": (1, 0, 0.003), "rkd": (1, 0, 1), "pkt": (1, 0, 30000)}
ROWS = describe_losses()


def paper(row: LossRow) -> tuple[float, float, float]:
    return OF_OUTPUTS[row.name] if row.kind == "loss" and row.name in OF_OUTPUTS else PAPERS[row.name]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS)
    make_teacher(folder / "embedder", spec=FEATURES)
    make_cache(folder / "features", folder / "embedder", output=("embedding",))
    weights = str(folder / "teacher" / "teacher.safetensors")
    make_cache(folder / "binary", Path(TEACHER), dataset=binary_digits(folder / "data"), teacher_weights=weights)
    return folder


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}-{row.name}")
def test_the_command_of_a_loss_runs_with_the_weights_of_the_paper(row: LossRow, made: Path, tmp_path: Path) -> None:
    name = row.name
    _, _, *options = shlex.split(row.command)
    # The small networks have two layers, not three.
    options = [o.replace("layer1/layer2/layer3/", "layer1/layer2/").replace("layer3", "layer2") for o in options]
    quick = ["--epochs", "1", "--batch-size", "128", "--workers", "0", "--out", tmp_path / "run"]
    teacher = ["--teacher", made / "teacher"] if name == "simkd" else []
    data = ["--student", STUDENT, "--cache", made / "cache"]
    if name == "binary_kl":
        data = ["--student", STUDENT, "--cache", made / "binary"]
    elif "of=embedding" in row.command:
        data = ["--student", FEATURES, "--cache", made / "features"]
    assert command("--quiet", "train", *data, *quick, *teacher, *options) == 0
    (line,) = lines(tmp_path / "run")
    assert (line["hard_loss"] is None) is ("of=embedding" in row.command)
    alpha, beta, weight = paper(row)
    used = config(tmp_path / "run")
    (text,) = [entry["weight"] for entry in [*used["losses"], *used["hints"]]]
    end = float(text.split(":")[1] if ":" in text else text)
    assert end == weight
    # soft_loss is weighted already, but not by alpha; a warm-up of a share of the epochs is over after the only one
    assert line["loss"] == pytest.approx(
        alpha * (line["soft_loss"] or 0) + beta * (line["hard_loss"] or 0) + line["hint_loss"], rel=1e-4, abs=1e-6
    )
    if line.get("hint_losses"):
        (value,) = line["hint_losses"].values()
        assert line["hint_loss"] == pytest.approx(weight * value, rel=1e-4)
    assert math.isfinite(line["loss"])


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind == "loss"], ids=lambda row: row.name)
def test_a_loss_alone_has_the_weights_of_the_paper(row: LossRow) -> None:
    name = row.name
    parsed = parse(TrainConfig(loss=(name,)))
    alpha, beta, weight = paper(row)
    assert parsed.beta is not None
    assert (parsed.alpha.end, parsed.beta.end, parsed.losses[0].weight_schedule().end) == (alpha, beta, weight)
    assert row.beside == f"{alpha:g}, {beta:g}"
    # What is given is what is taken: half and half.
    given = parse(TrainConfig(loss=(name,), alpha=0.5)).objective(1, hints=False, label_smoothing=0.0)
    assert given.weights(0) == (0.5, 0.5)


def test_standardized_and_several_losses_have_weights_too() -> None:
    """The paper on standardized logits, arXiv 2403.01427, has 9 and 0.1; of several losses the largest hold."""
    for loss, wanted in (
        (("kl:standardize=true",), (1, 0.1)),
        (("dkd:standardize=true",), (1, 1)),
        (("kl", "dist"), (1, 1)),
        (("hard", "mse"), (1, 0.5)),
    ):
        parsed = parse(TrainConfig(loss=loss))
        assert parsed.beta is not None
        assert (parsed.alpha.end, parsed.beta.end) == wanted


def test_two_classes_get_plain_kl_where_nothing_is_asked_for() -> None:
    assert [term.name for term in parse(TrainConfig()).for_data("classes", 10).losses] == ["dist"]
    two = parse(TrainConfig()).for_data("classes", 2)
    assert [str(term) for term in two.losses] == ["kl"]
    assert two.options.loss == ("kl",)
    assert (two.options.alpha, two.options.beta) == ("0.9", "0.1")
    asked = parse(TrainConfig(loss=("dist",))).for_data("classes", 2)
    assert [term.name for term in asked.losses] == ["dist"], "what is given is never replaced"


def test_every_command_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
    for row in describe_losses():
        assert f"| `{row.name}` | `{row.command}` |" in text


def test_the_page_of_a_loss(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("losses", "crd") == 0
    page = capsys.readouterr().out
    assert "softcache train --hint crd:teacher=fc:in,student=fc:in --alpha 0 --beta 1" in page
    assert "vectors, positions, row labels" in page
    assert "The banks m_s and m_t" in page
    assert ">>>" not in page
    assert command("losses", "dkd", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["needs"] == "classes, labels"
    assert command("losses", "dkkd") == 2
    assert "no loss or hint loss is called 'dkkd': did you mean dkd" in capsys.readouterr().err
