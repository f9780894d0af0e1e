"""docs/coming-from.md: the command line takes every command and every row of its tables, those on the digits run, and
what the page says of other programs' losses holds."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from harness_train import command, config

from softcache import functional
from softcache.cli._main import main
from softcache.config.parsed import parse
from softcache.config.train import TrainConfig

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^    softcache (.*)$", PAGE, re.M)]
# What stands behind `softcache train --student cifar:resnet8`: the last column of tables, where it begins with --.
ROWS = [
    row for line in PAGE.splitlines() if line.startswith("| ")
    for row in re.findall(r"`(--(?:alpha|loss) [^`]*)`", line.rsplit(" | ", 1)[1])
]  # fmt: skip
QUICK = ("--epochs", "1", "--size", "8", "--workers", "0")


def test_the_page_has_its_rows() -> None:
    assert [arguments[0] for arguments in COMMANDS] == ["teach", "dump", "train"]
    assert len(ROWS) >= 20


@pytest.mark.parametrize("row", ROWS)
def test_the_command_line_takes_every_row(row: str) -> None:
    arguments = ["--student", "cifar:resnet8", *shlex.split(row.replace(" --alpha`", ""))]
    parent = main.make_context("softcache", ["train"])
    found = main.get_command(parent, "train")
    assert found is not None
    given = found.make_context("train", arguments, parent=parent).params
    options = {
        name: value for name, value in given.items() if value not in (None, ()) and name in TrainConfig().to_json()
    }
    parsed = parse(TrainConfig.of(**options))
    assert parsed.hints or parsed.losses


def test_the_commands_run_as_they_stand(here: Path) -> None:
    """With smaller pictures, and hints that RepDistiller's rows name."""
    for arguments in COMMANDS:
        size = [] if arguments[0] == "train" else ["--size", "8", "--workers", "0"]
        epochs = ["--epochs", "1"] if arguments[0] != "dump" else []
        assert command(*arguments, *size, *epochs) == 0
    rows = [row for row in ROWS if "embedding" not in row]
    for name in ("kl", "fitnet", "at", "crd"):
        row = next(row for row in rows if f" {name}:" in row or row.startswith(f"--loss {name} "))
        out = f"runs/{name}"
        assert command("train", "--student", "cifar:resnet8", *shlex.split(row), *QUICK, "--out", out) == 0
        assert config(Path(out))["result"]["test_top1"] is not None


def test_the_kl_of_all_of_them_is_ours() -> None:
    """RepDistiller: a sum over the batch, over its size; torchdistill beside labels and timm: batchmean."""
    torch.manual_seed(0)
    z_s, z_t, T = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64), 4.0
    log_s, p_t = F.log_softmax(z_s / T, 1), F.softmax(z_t / T, 1)
    ours = functional.kl(z_s, z_t, T=T)
    torch.testing.assert_close(ours, F.kl_div(log_s, p_t, reduction="sum") * T**2 / len(z_s))
    torch.testing.assert_close(ours, F.kl_div(log_s, p_t, reduction="batchmean") * T**2)
    with pytest.warns(UserWarning, match="batchmean"):
        also_over_classes = F.kl_div(log_s, p_t, reduction="mean")
    assert math.isclose(float(also_over_classes * T**2 * 5), float(ours))


def test_alpha_weighs_the_teacher_here_and_beta_the_labels() -> None:
    """torchdistill's KDLoss with alpha 0.1 and beta 0.9 is alpha 0.9 and beta 0.1."""
    parsed = parse(TrainConfig("cifar:resnet8", loss=("kl",), T=4, alpha=0.9, beta=0.1))
    assert parsed.alpha.bounds() == (0.9, 0.9)
    assert parsed.beta is not None
    assert parsed.beta.bounds() == (0.1, 0.1)
