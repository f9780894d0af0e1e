"""What becomes of image files that are not 8-bit grey or RGB, and of those that would fill the memory."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softcache.cli._main import run
from softcache.datasets._open import open_samples
from softcache.datasets._pixels import as_pixels, read_image
from softcache.errors import DatasetError

EVERY = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def png(path: Path, width: int, height: int, bits: int, colour: int, rows: bytes) -> Path:
    """A PNG file of any bit depth and colour type; ``rows`` are its rows, each after a 0."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def pgm(path: Path) -> Path:
    path.write_bytes(b"P5 256 256 65535\n" + EVERY.astype(">u2").tobytes())
    return path


SIXTEEN: dict[str, Callable[[Path], Path]] = {
    "png": lambda folder: saved(folder / "a.png", Image.fromarray(EVERY)),
    "png of big-endian rows": lambda folder: png(
        folder / "b.png", 256, 256, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in EVERY)
    ),
    "tiff": lambda folder: saved(folder / "a.tif", Image.fromarray(EVERY)),
    "tiff, deflated": lambda folder: saved(folder / "b.tif", Image.fromarray(EVERY), compression="tiff_adobe_deflate"),
    "big-endian tiff": lambda folder: tiff(folder / "c.tif", 16, 1, 1, EVERY.astype(">u2").tobytes()),
    "pgm": lambda folder: pgm(folder / "a.pgm"),
}


def tiff(path: Path, bits: int, photometric: int, kind: int, data: bytes) -> Path:
    """A big-endian TIFF file of 256 × 256 grey values; ``kind``: 1 unsigned, 2 signed, 3 float."""
    tags = [(256, 256), (257, 256), (258, bits), (259, 1), (262, photometric), (277, 1), (278, 256), (339, kind)]
    entries = [struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries += [struct.pack(">HHII", 273, 4, 1, start), struct.pack(">HHII", 279, 4, 1, len(data))]
    directory = struct.pack(">H", len(entries)) + b"".join(sorted(entries)) + b"\0\0\0\0"
    path.write_bytes(b"MM\0*" + struct.pack(">I", 8) + directory + data)
    return path


@pytest.mark.parametrize("name", SIXTEEN)
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_is_rounded_to_8_over_its_whole_range(name: str, channels: int, tmp_path: Path) -> None:
    pixels = read_image(SIXTEEN[name](tmp_path), channels)
    assert pixels.shape == (256, 256, channels)
    expected = np.round(EVERY * (255 / 65535)).astype(np.uint8)
    np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], channels, axis=2))


def test_8_bits_that_were_widened_to_16_come_back(tmp_path: Path) -> None:
    narrow = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wide = saved(tmp_path / "wide.png", Image.fromarray(narrow.astype(np.uint16) * 257))
    np.testing.assert_array_equal(read_image(wide, 1)[..., 0], narrow)
    np.testing.assert_array_equal(as_pixels(Image.fromarray(narrow.astype(np.uint16) * 257), 1, "it")[..., 0], narrow)


def test_16_bit_colour_is_its_upper_8_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    path = png(tmp_path / "rgb.png", 7, 5, 16, 2, b"".join(b"\0" + row.tobytes() for row in values))
    np.testing.assert_array_equal(read_image(path, 3), (values >> 8).astype(np.uint8))


UNKNOWN: dict[str, Callable[[Path], Path]] = {
    "float tiff": lambda folder: saved(
        folder / "a.tif", Image.fromarray(np.linspace(0, 1, 64, dtype="f4").reshape(8, 8))
    ),
    "32-bit tiff": lambda folder: saved(folder / "b.tif", Image.fromarray(np.full((8, 8), 70_000, np.int32))),
    "12-bit tiff": lambda folder: tiff(folder / "c.tif", 12, 1, 1, bytes(256 * 256 * 3 // 2)),
    "signed 16-bit tiff": lambda folder: tiff(folder / "d.tif", 16, 1, 2, EVERY.tobytes()),
    "16-bit tiff with white at 0": lambda folder: tiff(folder / "e.tif", 16, 0, 1, EVERY.tobytes()),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_values_of_an_unknown_range_are_refused(name: str, tmp_path: Path) -> None:
    path = UNKNOWN[name](tmp_path)
    with pytest.raises(DatasetError, match=r"convert it to 8 bits|can't be decoded") as caught:
        read_image(path, 3)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_floats_of_ones_own_dataset_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"row 3 has floating-point numbers of mode F \(no file\)"):
        as_pixels(Image.fromarray(np.zeros((4, 4), np.float32)), 1, "row 3")


RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([RAMP, 255 - RAMP, RAMP.T], axis=2)


def palette(transparency: bytes | int | None) -> Image.Image:
    image = Image.new("P", (8, 8))
    image.putdata(list(range(64)))
    image.putpalette([value for number in range(64) for value in COLOURS.reshape(64, 3)[number].tolist()])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 4))], ids=["opaque", "one colour", "alpha"])
def test_a_palette_is_looked_up(transparency: bytes | int | None, tmp_path: Path) -> None:
    path = saved(tmp_path / "palette.png", palette(transparency))
    np.testing.assert_array_equal(read_image(path, 3), COLOURS)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (9, 11)).astype(bool)
    for name in ("bits.png", "bits.tif", "bits.bmp"):
        pixels = read_image(saved(tmp_path / name, Image.fromarray(bits)), 3)
        np.testing.assert_array_equal(pixels, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_covers_the_whole_range(bits: int, tmp_path: Path) -> None:
    levels = np.arange(2**bits)
    row = np.packbits((levels[:, None] >> np.arange(bits)[::-1]) & 1).tobytes()
    pixels = read_image(png(tmp_path / "few.png", 2**bits, 1, bits, 0, b"\0" + row), 1)
    np.testing.assert_array_equal(pixels[0, :, 0], levels * 255 // (2**bits - 1))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    """The colours beneath, as torchvision's loader gives them; not blended with a background that nobody chose."""
    alpha = RAMP.T[..., None]
    rgba = saved(tmp_path / "rgba.png", Image.fromarray(np.concatenate([COLOURS, alpha], axis=2)))
    np.testing.assert_array_equal(read_image(rgba, 3), COLOURS)
    grey = saved(tmp_path / "la.png", Image.merge("LA", (Image.fromarray(RAMP), Image.fromarray(RAMP.T.copy()))))
    np.testing.assert_array_equal(read_image(grey, 3), np.repeat(RAMP[..., None], 3, axis=2))


def test_cmyk_is_made_rgb(tmp_path: Path) -> None:
    inks = np.zeros((8, 24, 4), np.uint8)
    inks[:, :8, 0], inks[:, 8:16, 3] = 255, 255  # cyan, black, and paper
    pixels = read_image(saved(tmp_path / "inks.tif", Image.frombytes("CMYK", (24, 8), inks.tobytes())), 3)
    np.testing.assert_array_equal(pixels[4, [4, 12, 20]], [[0, 255, 255], [0, 0, 0], [255, 255, 255]])


@pytest.mark.parametrize("name", ["frames.png", "frames.webp", "frames.tif"])
def test_an_animation_is_its_first_frame(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(read_image(path, 3), np.broadcast_to(np.uint8([255, 0, 0]), (8, 8, 3)))


def test_lab_is_made_rgb(tmp_path: Path) -> None:
    white = Image.merge("LAB", [Image.new("L", (8, 8), value) for value in (255, 128, 128)])
    pixels = read_image(saved(tmp_path / "lab.tif", white), 3)
    assert np.abs(pixels.astype(int) - 255).max() <= 1


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DatasetError, match=r"x\.png can.t be decoded: it is not a regular file"):
        read_image(tmp_path / "x.png", 3)


def bomb(path: Path, side: int) -> Path:
    """A small file of side × side black pixels."""
    row = bytes(1 + (side + 7) // 8)
    return png(path, side, side, 1, 0, row * side)


def bombs(folder: Path, side: int) -> str:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), "#ff0000" if name == "a" else "#00ff00").save(folder / split / name / "0.png")
    bomb(folder / "train" / "b" / "1.png", side)
    return f"folder:{folder}"


@pytest.mark.parametrize("side", [12_000, 30_000], ids=["that Pillow warns of", "that Pillow refuses"])
def test_an_image_of_too_many_pixels_is_refused_in_one_line(
    side: int, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """12,000² pixels are 18 kB in a file and 430 MB in memory."""
    dataset = bombs(here / "photos", side)
    assert (here / "photos/train/b/1.png").stat().st_size < 2**20
    arguments = ["-q", "teach", "--model", "cifar:resnet8", "--dataset", dataset, "--size", "8", "--epochs", "1"]
    assert run([*arguments, "--workers", "0"]) == 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"photos/train/b/1.png has {side * side:,} pixels" in said[0]
    assert f"--max-image-pixels {side * side}" in said[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_bound_goes_along_to_workers(method: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = Image.MAX_IMAGE_PIXELS
    dataset = bombs(here / "photos", 100)
    arguments = ["-q", "teach", "--model", "cifar:resnet8", "--dataset", dataset, "--size", "8", "--epochs", "1"]
    arguments += ["--workers", "1", "--start-method", method]
    assert run([*arguments, "--max-image-pixels", "9999"]) == 1
    assert "1.png has 10,000 pixels, more than the 9,999" in capfd.readouterr().err
    assert run([*arguments, "--max-image-pixels", "10000"]) == 0
    assert before == Image.MAX_IMAGE_PIXELS, "the next command has its own"


def test_a_raised_bound_lets_a_large_image_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "large.png", 400)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70_000)  # less than half of 160,000
    with pytest.raises(DatasetError, match="160,000 pixels, more than the 70,000"):
        read_image(path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 160_000)
    assert read_image(path, 1).shape == (400, 400, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path, 1).shape == (400, 400, 1)


def test_samples_take_the_bound_along_when_they_are_pickled(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = bombs(here / "photos", 100)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
        pickled = pickle.dumps(open_samples(dataset, "train"))
    (here / "pickled").write_bytes(pickled)
    code = (
        "import pickle\nfrom softcache.errors import DatasetError\n"
        "samples = pickle.load(open('pickled', 'rb'))\n"
        "try:\n    samples.image(2)\nexcept DatasetError as error:\n    print(error)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "10,000 pixels, more than the 9,999" in said
