"""``--pixels close``: pixels of another decoder are accepted where they are shown to be close, and nothing else is.

Another libjpeg is stood for by files that were decoded and encoded again at high quality: most bytes are off by a few.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import pytest
from harness_train import command
from PIL import Image, ImageFilter

from softcache.cache.manifest import render
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST, canonical_json
from softcache.stages.verify import verify

PER_CLASS, CLASSES, SIDE = 40, ("cat", "dog", "emu"), 32
ROWS = PER_CLASS * len(CLASSES)
STUDENT = ("--student", "cifar:resnet8", "--epochs", "2", "--workers", "0", "--seed", "3", "--device", "cpu")


def photo(seed: int) -> Image.Image:
    """Smooth, as photographs are, so that encoding it again changes little."""
    noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))


class Photos:
    def __init__(self, root: Path, small_teacher: Callable[..., str]):
        self.root, self.spec = root, f"folder:{root}"
        for split in ("train", "test"):
            for number, name in enumerate(CLASSES):
                (root / split / name).mkdir(parents=True)
                for k in range(PER_CLASS if split == "train" else 2):
                    photo(1000 * number + k + 500 * (split == "test")).save(
                        root / split / name / f"{k:02d}.jpg", quality=95, subsampling=0
                    )
        self.teacher = small_teacher("teacher", dataset=self.spec)

    @property
    def files(self) -> list[Path]:
        return sorted((self.root / "train").rglob("*.jpg"))

    def dump(self, *more: str, out: str = "cache", augment: str = "crop:pad=2+flip") -> int:
        return command(
            "dump", "--teacher", self.teacher, "--dataset", self.spec, "--size", str(SIDE), "--augment", augment,
            "--views", "2", "--device", "cpu", "--workers", "0", "--out", out, *more,
        )  # fmt: skip

    def train(self, *more: str, cache: str = "cache", out: str = "run") -> int:
        return command("train", *STUDENT, "--cache", cache, "--dataset", self.spec, "--out", out, *more)

    def encode_again(self, rows: list[int] | range) -> None:
        for path in (self.files[row] for row in rows):
            size = path.stat().st_size
            Image.open(path).save(path, quality=93, subsampling=0)
            data = path.read_bytes()
            assert len(data) <= size  # the fingerprint of files is over names and sizes
            path.write_bytes(data + bytes(size - len(data)))

    def replace(self, row: int) -> None:
        path = self.files[row]
        size = path.stat().st_size
        photo(99_000 + row).save(path, quality=80, subsampling=0)
        data = path.read_bytes()
        path.write_bytes(data + bytes(size - len(data)))


@pytest.fixture
def photos(here: Path, small_teacher: Callable[..., str], capsys: pytest.CaptureFixture) -> Photos:
    made = Photos(here / "photos", small_teacher)
    assert made.dump() == 0
    capsys.readouterr()
    return made


def kept(cache: str = "cache") -> list[int]:
    return Cache(cache).samples[0].tolist()


def not_kept() -> int:
    return next(row for row in range(ROWS) if row not in kept())


def test_rows_that_are_kept_and_close_are_accepted_and_no_others(photos: Photos, capsys: pytest.CaptureFixture) -> None:
    assert len(kept()) == 64
    photos.encode_again(kept()[:5])
    assert photos.train() == 1
    assert "accept close pixels with --pixels close" in capsys.readouterr().err
    assert photos.train("--pixels", "close") == 0
    assert "5 of 64 kept samples differ by a few grey levels" in capsys.readouterr().err


def test_close_pixels_are_accepted_beside_fresh_views(photos: Photos, capsys: pytest.CaptureFixture) -> None:
    photos.encode_again(kept()[:5])
    assert photos.train("--targets", "both") == 1
    assert "accept close pixels with --pixels close" in capsys.readouterr().err
    assert photos.train("--targets", "both", "--pixels", "close") == 0
    photos.encode_again([not_kept()])
    assert photos.train("--targets", "both", "--pixels", "close", out="other") == 1
    assert "nothing shows that they are close" in capsys.readouterr().err


def test_a_close_row_without_a_kept_sample_stops_the_training(photos: Photos, capsys: pytest.CaptureFixture) -> None:
    photos.encode_again([not_kept()])
    assert photos.train("--pixels", "close") == 1
    said = capsys.readouterr().err
    assert "have other pixels in view 0 than the teacher saw, and nothing shows that they are close" in said
    assert "keeps the pixels of 64 of 120 rows" in said
    assert "--keep-samples all" in said


@pytest.mark.parametrize("samples", ["64", "all"])
def test_another_image_is_never_accepted_as_close(photos: Photos, samples: str, capsys: pytest.CaptureFixture) -> None:
    """In a row without a kept sample it passed, as all digests were left out."""
    row = not_kept()
    assert photos.dump("--keep-samples", samples) == 0
    photos.replace(row)
    capsys.readouterr()
    assert photos.train("--pixels", "close") == 1
    said = capsys.readouterr().err
    assert ("they are not close" if samples == "all" else "nothing shows that they are close") in said
    assert not Path("run/student.safetensors").exists()


def test_with_all_samples_another_decoder_of_all_rows_is_accepted(
    photos: Photos, capsys: pytest.CaptureFixture
) -> None:
    assert photos.dump("--keep-samples", "all", out="all") == 0
    assert kept("all") == list(range(ROWS))
    assert verify("all").ok
    photos.encode_again(range(ROWS))
    capsys.readouterr()
    assert photos.train("--pixels", "close") == 1
    assert "56 of 56 rows that were drawn" in capsys.readouterr().err
    assert photos.train("--pixels", "close", cache="all") == 0
    assert "120 of 120 kept samples differ by a few grey levels" in capsys.readouterr().err
    assert photos.train(cache="all", out="exact") == 1


def test_samples_are_added_to_a_cache_only_with_the_pixels_that_the_teacher_saw(
    photos: Photos, capsys: pytest.CaptureFixture
) -> None:
    shards = {path: path.read_bytes() for path in Path("cache").rglob("view-*/*.h5")}
    assert photos.dump("--keep-samples", "100") == 0
    assert len(kept()) == Cache("cache").manifest.state.samples == 100
    assert verify("cache").ok
    assert photos.dump() == 0  # it asks for no fewer than there are
    assert len(kept()) == 100
    row = not_kept()
    photos.encode_again([row])
    capsys.readouterr()
    assert photos.dump("--keep-samples", "all") == 1
    assert f"row {row} in view 0 has other pixels than the teacher saw" in capsys.readouterr().err
    assert len(kept()) == 100
    assert verify("cache").ok
    assert {path: path.read_bytes() for path in Path("cache").rglob("view-*/*.h5")} == shards


def test_samples_that_repair_took_away_come_again_as_many_as_they_were(photos: Photos) -> None:
    assert photos.dump("--keep-samples", "100") == 0
    before = Path("cache/samples.h5").read_bytes()
    Path("cache/samples.h5").unlink()
    assert photos.dump() == 0
    assert Path("cache/samples.h5").read_bytes() == before


def test_a_kill_while_samples_are_replaced_leaves_them_missing_and_dump_completes_it(photos: Photos) -> None:
    """The manifest asks for more samples already, and the old file is gone."""
    assert photos.dump("--keep-samples", "all", out="all") == 0
    shutil.copy("all/cache.json", "cache/cache.json")
    Path("cache/samples.h5").unlink()
    found = verify("cache")
    assert (found.damaged, found.missing) == ([], ["samples.h5"])
    assert photos.dump() == 0
    assert verify("cache").ok
    assert Path("cache/samples.h5").read_bytes() == Path("all/samples.h5").read_bytes()


def test_a_recipe_that_mixes_rows_is_accepted_in_view_0_alone(photos: Photos, capsys: pytest.CaptureFixture) -> None:
    """The sample of view 0 shows nothing of the partner that another view mixes in."""
    assert photos.dump("--keep-samples", "all", out="mixed", augment="mixup") == 0
    photos.encode_again(range(ROWS))
    capsys.readouterr()
    assert photos.train("--pixels", "close", "--views", "1", cache="mixed", out="one") == 0
    assert photos.train("--pixels", "close", cache="mixed", out="two") == 1
    assert "in view 1 has other pixels" in (said := capsys.readouterr().err)
    assert "can be compared in view 0 alone" in said


def test_a_mismatch_names_the_versions_that_differ(photos: Photos, capsys: pytest.CaptureFixture) -> None:
    path = Path("cache") / MANIFEST
    document = json.loads(path.read_bytes())
    # The cache is a stranger's: what doesn't look like a version is not shown.
    document["state"]["made"] |= {"pillow": "9.5.0", "libjpeg": "\u001b[31mred"}
    document["state_sha256"] = hashlib.sha256(canonical_json(document["state"])).hexdigest()
    path.write_bytes(render(document))
    photos.encode_again(kept())
    assert photos.train() == 1
    said = capsys.readouterr().err
    assert f"(made with pillow 9.5.0, here {PIL.__version__})" in said
    assert "torchvision" not in said
    assert "red" not in said
    assert command("info", "cache") == 0
    shown = capsys.readouterr().out
    assert f"pillow 9.5.0, torchvision {version('torchvision')}, numpy {version('numpy')}\n" in shown
    assert "the pixels of 64 rows" in shown


@pytest.mark.parametrize(
    ("asked", "said"), [("63", "must be all or at least 64"), ("most", "neither all nor a number")]
)
def test_how_many_samples_can_be_kept(photos: Photos, asked: str, said: str, capsys: pytest.CaptureFixture) -> None:
    assert photos.dump("--keep-samples", asked) == 2
    assert said in capsys.readouterr().err
