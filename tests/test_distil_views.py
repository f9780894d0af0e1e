"""A student trains on the recorded views of every recipe, by workers too, and each key's pixels are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from harness_train import STUDENT, command, fit, lines, make_cache, make_teacher

from softcache import registry
from softcache.errors import PixelsError
from softcache.stream.batches import Stream
from softcache.views._open import open_viewed

OWN = """
import torch
from torchvision.transforms import v2

def views():
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(20)])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and a set of 96 digits, so that slow recipes take no time."""
    folder = tmp_path_factory.mktemp("views")
    make_teacher(folder / "teacher")
    (folder / "few").mkdir()
    for split, count in (("train", 96), ("test", 32)):
        samples = open_viewed("digits", split).samples
        assert samples.images is not None
        np.save(folder / "few" / f"{split}_images.npy", samples.images[:count])
        np.save(folder / "few" / f"{split}_labels.npy", samples.labels[:count])
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.mark.parametrize("name", registry.names("views"))
def test_every_recipe_trains_from_its_cache(name: str, made: Path, tmp_path: Path) -> None:
    recipe = f"python:{made / 'own.py'}:views" if name == "python" else name
    data = f"arrays:{made / 'few'}"
    make_cache(tmp_path / "cache", made / "teacher", dataset=data, augment=recipe, workers=0)
    quick = ["--epochs", "2", "--batch-size", "32", "--workers", "1" if name == "randaugment" else "0"]
    arguments = ["--quiet", "train", "--student", STUDENT, "--cache", tmp_path / "cache", "--out", tmp_path / "run"]
    assert command(*arguments, *quick, "--dataset", data, "--augment", recipe) == 0
    assert [line["samples"] for line in lines(tmp_path / "run")] == [96, 96]


def test_other_pixels_stop_the_run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = f"arrays:{made / 'few'}"
    make_cache(tmp_path / "cache", made / "teacher", dataset=data, augment="noise:std=0.1", workers=0)
    mixed, changed = Stream._mixed, []

    def disturbed(self: Stream, *arguments: object) -> object:
        changed.append(1)
        return mixed(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Stream, "_mixed", disturbed)
    pixels = type(open_viewed(data, "train")).batch_views

    def other(self: object, rows: np.ndarray, views: tuple[int, ...]) -> object:
        made = pixels(self, rows, views)  # type: ignore[arg-type]
        if len(rows) == 32 and len(changed) == 2:
            made[0][5, 0, 0, 0] ^= 1  # one bit of one key of the third batch
        return made

    monkeypatch.setattr("softcache.views._viewed.ViewedDataset.batch_views", other)
    # A GPU isn't waited for before the end of an epoch.
    compared = "96 keys of this epoch" if torch.cuda.is_available() else "32 keys"
    says = rf"row \d+ in view 0 has other pixels than the teacher saw \(1 of {compared}"
    with pytest.raises(PixelsError, match=says):
        fit(tmp_path / "run", cache=(str(tmp_path / "cache"),), dataset=data, batch_size=32)
