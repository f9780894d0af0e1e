"""``--tf32`` holds while a network runs, is off by default, and is recorded with what it made; convolutions are such
that a GPU gives the same bits each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from harness_train import command

from softcache.errors import SoftcacheError
from softcache.stages.teach import teach

NETWORK = """
import torch
from torch import nn

class Asking(nn.Sequential):
    def forward(self, x):
        with open("seen.txt", "a") as file:
            convolutions = torch.backends.cudnn
            print(torch.backends.cuda.matmul.allow_tf32, convolutions.allow_tf32, convolutions.deterministic, file=file)
        return super().forward(x)

def make(num_classes=10):
    return Asking(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, num_classes))
"""


def seen() -> set[str]:
    """What the network saw since this was last asked."""
    path = Path("seen.txt")
    lines = set(path.read_text().splitlines())
    path.unlink()
    return lines


@pytest.mark.parametrize("given", [(), ("--tf32",)])
def test_tf32_holds_in_teach_train_and_eval_and_is_recorded(here: Path, given: tuple[str, ...]) -> None:
    before = torch.backends.cudnn.deterministic
    Path("net.py").write_text(NETWORK)
    wanted = {f"{bool(given)} {bool(given)} True"}
    small = ("--size", 8, "--epochs", 1, "--dataset", "digits", *given)
    assert command("teach", "--model", "net.py:make", "--out", "teacher", *small) == 0
    assert seen() == wanted
    assert json.loads(Path("teacher/config.json").read_text())["options"]["tf32"] is bool(given)
    assert command("train", "--student", "net.py:make", "--alpha", 0, "--out", "run", *small) == 0
    assert seen() == wanted
    assert json.loads(Path("run/config.json").read_text())["options"]["tf32"] is bool(given)
    assert command("eval", "run", *given) == 0
    assert seen() == wanted
    assert torch.backends.cudnn.deterministic == before


def test_a_teacher_of_other_numerics_is_another(here: Path, small_teacher) -> None:
    options = {"dataset": "digits", "size": 8, "epochs": 1, "out": "teacher"}
    teach("cifar:resnet8", **options)
    with pytest.raises(SoftcacheError, match="tf32"):
        teach("cifar:resnet8", **options, tf32=True)
