"""A user's file becomes a module of its own, here and in workers."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from softcache.datasets._open import open_samples
from softcache.errors import UsageError
from softcache.userfile import load_file
from softcache.views._recipe import parse_recipe
from softcache.views._viewed import ViewedDataset

ITEMS = """
import numpy as np
import neighbour_of_this_test

class Items:
    classes = ["a", "b"]
    targets = [0, 1, 1]
    def __len__(self):
        return 3
    def __getitem__(self, row):
        return np.full((32, 32, 3), neighbour_of_this_test.STEP * row, np.uint8), self.targets[row]

def items(split):
    return Items()

def same():
    return lambda image: image
"""


@pytest.fixture(autouse=True)
def path_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def written(path: Path, text: str = ITEMS) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.with_name("neighbour_of_this_test.py").write_text("STEP = 9\n")
    return path


def test_no_other_module_is_replaced(tmp_path: Path) -> None:
    before = json
    file = written(tmp_path / "json.py")
    assert len(open_samples(f"{file}:items", "train")) == 3
    assert parse_recipe(f"{file}:same").first is not None
    assert sys.modules["json"] is before
    written(tmp_path / "colorsys.py", "raise AssertionError")  # of the standard library, and of nobody's imports yet
    sys.modules.pop("colorsys", None)
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_files_of_one_name_are_two(tmp_path: Path) -> None:
    text = "import numpy as np\ndef made(split):\n    return np.zeros(({}, 8, 8), np.uint8), None, None\n"
    files = [written(tmp_path / folder / "mine.py", text.format(rows)) for folder, rows in (("a", 1), ("b", 2))]
    assert [len(open_samples(f"{file}:made", "train")) for file in files] == [1, 2]
    files[0].write_text(text.format(5))
    assert len(open_samples(f"{files[0]}:made", "train")) == 5


def test_a_file_that_fails_fails_again(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.py", "def made(split):\n    return None\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"mine.py can't be imported: ZeroDivisionError"):
            open_samples(f"{file}:made", "train")


def test_a_spawned_worker_finds_the_file(tmp_path: Path) -> None:
    file = written(tmp_path / "select.py")
    viewed = ViewedDataset(open_samples(f"{file}:items", "train"), f"none+{file}:same")
    spawn = multiprocessing.get_context("spawn")
    loader = torch.utils.data.DataLoader(_Rows(viewed), num_workers=1, multiprocessing_context=spawn)
    assert [int(batch[0, 0, 0, 0]) for batch in loader] == [0, 9, 18]


def test_an_edit_within_a_second_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for number in range(5):
        module = load_file(written(tmp_path / "mine.py", f"a = {number}"))
        assert module.a == number


def test_a_worker_takes_no_other_file(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.py", "A = 1")
    name = load_file(file).__name__
    file.write_text("A = 2")
    del sys.modules[name]
    with pytest.raises(ImportError, match=r"mine.py was changed since"):
        __import__(name)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, viewed: ViewedDataset) -> None:
        self.viewed = viewed

    def __len__(self) -> int:
        return len(self.viewed)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.viewed.pixels(row, 0)
