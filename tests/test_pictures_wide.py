"""Pictures of 16 bits, and of any number of channels, from files and arrays to a student."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from softcache.cache.agreement.decoders import close_samples
from softcache.cache.reader import Cache
from softcache.cli._main import run
from softcache.datasets._open import open_samples
from softcache.datasets._pixels import measure
from softcache.errors import DatasetError, ModelError, UsageError
from softcache.functional import to_input
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.models._preprocess import Preprocess
from softcache.stream.inputs import ResidentInputs, WorkerInputs
from softcache.stream.parts import Part
from softcache.views._image import resize_and_crop, resize_box
from softcache.views._move import Motion, move, move_array
from softcache.views._open import open_viewed

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
RNG = np.random.default_rng(3)


def arrays(folder: Path, images: np.ndarray, *, test: int = 20) -> str:
    """An ``arrays:`` dataset of three classes."""
    folder.mkdir()
    labels = np.arange(len(images)) % 3
    for split, part in (("train", slice(test, None)), ("test", slice(test))):
        np.save(folder / f"{split}_images.npy", images[part])
        np.save(folder / f"{split}_labels.npy", labels[part])
    return f"arrays:{folder}"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """The same pictures of 8 bits and widened to 16, with three channels."""
    images = RNG.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    images[0, 0, 0] = 255
    return arrays(tmp_path / "narrow", images), arrays(tmp_path / "wide", images.astype(np.uint16) * np.uint16(257))


@pytest.fixture
def five(tmp_path: Path) -> str:
    """Pictures of 16 bits with five channels, whose classes differ in brightness."""
    images = RNG.integers(0, 20000, (92, 32, 32, 5), dtype=np.uint16)
    images += (np.arange(92) % 3 * 20000).astype(np.uint16)[:, None, None, None]
    return arrays(tmp_path / "five", images)


@pytest.mark.parametrize("recipe", ["none", "crop:pad=3+flip", "cutmix", "flip+cutmix"])
def test_what_only_moves_pixels_moves_them_all_alike(pair: tuple[str, str], recipe: str) -> None:
    narrow, wide = (open_viewed(spec, "train", augment=recipe).batch(np.arange(40), 1) for spec in pair)
    assert wide.dtype == torch.uint16
    np.testing.assert_array_equal(narrow.numpy().astype(int) * 257, wide.numpy())


@pytest.mark.parametrize("recipe", ["mixup:alpha=1", "rrc", "noise:std=0.1", "rrc+flip+noise+mixup"])
def test_what_changes_values_is_only_rounded_more_finely(pair: tuple[str, str], recipe: str) -> None:
    narrow, wide = (open_viewed(spec, "train", augment=recipe).batch(np.arange(40), 1) for spec in pair)
    steps = recipe.count("+") + 1 + ("rrc" in recipe)  # a resize rounds twice, along rows and along columns
    assert np.abs(narrow.numpy() - wide.numpy() / 257).max() <= 0.5 * steps + 0.01
    assert len(np.unique(wide.numpy())) > 256


def test_the_pixels_around_a_picture_have_the_value_that_is_asked_for(five: str) -> None:
    viewed = open_viewed(five, "train", augment="crop:pad=8,fill=65001")
    pixels = viewed.batch(np.arange(72), 1).numpy()
    own = viewed.clean(np.arange(72)).numpy()
    filled = pixels[~np.isin(pixels, own)]
    assert len(filled) > 1000
    assert set(filled.tolist()) == {65001}
    with pytest.raises(UsageError, match=r"fill=50000 is not a pixel value: give one in 0\.\.255"):
        open_viewed("digits", "train", augment="crop:fill=50000")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pad", [0, 3])
def test_moving_on_a_device(device: str, pad: int) -> None:
    images = RNG.integers(0, 65536, (9, 8, 8, 2), dtype=np.uint16)
    top, left = RNG.integers(-pad, pad + 1, (2, 9))
    motion = Motion(top, left, np.arange(9) % 2 == 0, pad, 65535)
    moved = move_array(images, motion)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=65535)
    for n in range(9):
        cut = padded[n, pad + top[n] : pad + top[n] + 8, pad + left[n] : pad + left[n] + 8]
        np.testing.assert_array_equal(moved[n], cut[:, ::-1] if n % 2 == 0 else cut)
    parts = [torch.from_numpy(part).to(device) for part in (images, top, left, motion.mirror)]
    np.testing.assert_array_equal(move(*parts, pad, 65535).cpu().numpy(), moved)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resizing_is_that_of_each_channel(channels: int, dtype: type) -> None:
    """Against torch's, in float64."""
    white = np.iinfo(dtype).max
    image = RNG.integers(0, white, (50, 41, channels), dtype=dtype, endpoint=True)
    resized = resize_box(image, (3, 2, 40, 36), 17)
    assert resized.dtype == dtype
    assert resized.shape == (17, 17, channels)
    cut = torch.from_numpy(image[3:43, 2:38].astype(float)).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(cut, size=(17, 17), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    assert np.abs(resized - wanted.numpy()).max() <= 1  # rounded along rows and along columns
    for n in range(channels):
        np.testing.assert_array_equal(resize_box(image[:, :, n : n + 1], (3, 2, 40, 36), 17)[:, :, 0], resized[:, :, n])
    assert resize_and_crop(image, 24, 20).shape == (20, 20, channels)


def test_statistics_are_of_white(five: str) -> None:
    samples = open_samples(five, "train")
    assert (samples.channels, samples.dtype) == (5, "uint16")
    assert samples.images is not None
    flat = samples.images.reshape(-1, 5) / 65535
    np.testing.assert_allclose(samples.statistics, [flat.mean(0), flat.std(0)], rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_statistics_of_hundreds_of_channels(dtype: type) -> None:
    """They are counted some channels at a time."""
    images = RNG.integers(0, np.iinfo(dtype).max, (4, 6, 7, 150), dtype=dtype, endpoint=True)
    images[..., 70] = 5
    flat = images.reshape(-1, 150) / np.iinfo(dtype).max
    deviation = np.where(flat.std(0) == 0, 1, flat.std(0))
    deviation[70] = 1  # of a channel that is constant
    np.testing.assert_allclose(measure(images), [flat.mean(0), deviation], rtol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_sees_the_same_in_8_and_in_16_bits(device: str) -> None:
    """257 v / 65535 is v / 255, and division is rounded correctly, so that not even a last bit differs."""
    narrow = torch.arange(256, dtype=torch.uint8).reshape(2, 8, 16, 1).expand(-1, -1, -1, 3).to(device)
    wide = torch.from_numpy(narrow.cpu().numpy().astype(np.uint16) * np.uint16(257)).to(device)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).to(device)
    preprocess = Preprocess((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    network = Network(model, spec="x", classes=4, channels=3, preprocess=preprocess).to(device)
    assert torch.equal(network.prepare(narrow), network.prepare(wide))
    assert torch.equal(to_input(narrow, [0.5], [0.2]), to_input(wide, [0.5], [0.2]))
    assert torch.equal(to_input(narrow, [0.5], [0.2]), to_input(narrow.float(), [0.5], [0.2]))


@pytest.mark.parametrize("device", DEVICES)
def test_held_in_memory_or_made_by_workers(five: str, device: str) -> None:
    viewed = open_viewed(five, "train", augment="crop:pad=4,fill=60000+flip")
    batches = [(Part(np.array([5, 1, 9]), (0, 1)),), (Part(np.array([70, 0]), (1,)),)]
    where = torch.device(device)
    sources = [ResidentInputs(viewed, where), ResidentInputs(viewed, where, host=True), WorkerInputs(viewed, where, 0)]
    epochs = [[inputs for *_, inputs in source.epoch(batches)] for source in sources]
    for parts, *made in zip(batches, *epochs, strict=True):
        wanted = torch.cat([viewed.batch(part.rows, view) for part in parts for view in part.views])
        for inputs in made:
            assert inputs.dtype == torch.uint16
            assert inputs.device.type == device
            np.testing.assert_array_equal(inputs.cpu().numpy(), wanted.numpy())


def test_from_five_channels_of_16_bits_to_a_student(
    five: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--epochs", "2"]
    assert run(["teach", "--dataset", five, "--model", "cifar:resnet8", "--out", "teacher", *small]) == 0
    recipe = ["--augment", "crop:pad=4,fill=60000+flip", "--views", "2", "--output", "logits:codec=fp32"]
    assert run(["dump", "--dataset", five, "--teacher", "teacher", "--out", "cache", "--amp", "off", *recipe]) == 0
    network = open_network("teacher", classes=None).eval()
    assert network.channels == 5
    assert network.model.conv1.in_channels == 5
    viewed = open_viewed(five, "train", augment="crop:pad=4,fill=60000+flip")
    rows = np.arange(72)
    cache = Cache(tmp_path / "cache")
    assert cache.manifest.identity.dataset.inputs["pixels"].dtype == "uint16"
    for view in (0, 1):
        with torch.inference_mode():
            online = network(viewed.batch(rows, view))
        kept = cache.column("logits").gather(view, rows)["values"]
        np.testing.assert_allclose(kept, online, atol=1e-5, rtol=1e-5)
    with h5py.File(tmp_path / "cache/samples.h5") as file:
        assert file["pixels"].dtype == np.dtype("<u2")
        np.testing.assert_array_equal(file["pixels"][:], viewed.batch(file["index"][:], 0).numpy())
    results = []
    for number, resident in enumerate(("auto", "off")):
        student = ["train", "--cache", "cache", "--student", "cifar:resnet8", "--resident", resident]
        assert run([*student, "--out", f"run{number}", *small]) == 0
        lines = (tmp_path / f"run{number}/metrics.jsonl").read_text().splitlines()
        results.append([json.loads(line)["loss"] for line in lines])
    assert results[0] == results[1]
    capfd.readouterr()
    assert run(["verify", "cache", "--teacher", "teacher"]) == 0
    assert run(["eval", "run0"]) == 0
    assert "top-1" in capfd.readouterr().out


@pytest.mark.parametrize("recipe", ["randaugment", "crop+trivialaugment"])
@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 4), ("uint16", 1)])
def test_operations_that_pillow_lacks_are_refused(tmp_path: Path, recipe: str, dtype: str, channels: int) -> None:
    spec = arrays(tmp_path / "data", np.zeros((40, 32, 32, channels), dtype))
    wanted = rf"is for pictures of 8 bits with 1 or 3 channels, these are {dtype} with {channels} channel"
    with pytest.raises(UsageError, match=wanted):
        open_viewed(spec, "train", augment=recipe)


def test_a_transform_of_ones_own_gets_the_array_where_pillow_has_no_image(five: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\ndef upside_down():\n    return lambda pixels: np.flip(pixels, 0)\n\n\n"
        "def narrow():\n    return lambda pixels: (pixels >> 8).astype(np.uint8)\n"
    )
    viewed = open_viewed(five, "train", augment=f"{tmp_path}/mine.py:upside_down")
    np.testing.assert_array_equal(viewed.batch([4], 1).numpy(), viewed.clean([4]).numpy()[:, ::-1])
    wanted = r"of uint8 \(32, 32, 5\): a view is uint16 with 5 channels"
    with pytest.raises(DatasetError, match=wanted):
        open_viewed(five, "train", augment=f"{tmp_path}/mine.py:narrow").batch([4], 1)


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        (np.zeros((40, 3, 32, 32), np.uint8), r"\(20, 3, 32, 32\): the channels come last"),
        (np.zeros((40, 4, 32, 32), np.uint8), r"\(20, 4, 32, 32\): the channels come last"),
        (np.zeros((40, 32, 32, 3), ">u2"), "is >u2, the bytes in another order: save it as uint16"),
        (np.zeros((40, 32, 32, 1025), np.uint8), "up to 1024 channels"),
        (np.zeros((40, 32, 32, 3), np.int16), "must be uint8 or uint16"),
        (np.zeros((40, 32, 32, 3), np.float32), "as an input of another name"),
        (np.zeros((40, 32, 32, 0), np.uint16), "has images without pixels"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, images: np.ndarray, wanted: str) -> None:
    with pytest.raises(DatasetError, match=wanted):
        open_samples(arrays(tmp_path / "data", images), "train")


def test_functions_may_give_bytes_in_another_order(tmp_path: Path) -> None:
    images = RNG.integers(0, 65536, (12, 32, 32, 2), dtype=np.uint16)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "mine.py").write_text(
        f"import numpy as np\n\nIMAGES = np.load({str(tmp_path / 'images.npy')!r}).astype('>u2')\n\n\n"
        "def together(split):\n    return IMAGES, None, None\n\n\n"
        "def each(split):\n    return [(image, None) for image in IMAGES]\n"
    )
    for name in ("together", "each"):
        samples = open_samples(f"python:{tmp_path}/mine.py:{name}", "train")
        np.testing.assert_array_equal(samples.image(3), images[3])
        assert samples.image(3).dtype.isnative


def test_splits_of_other_pixels(tmp_path: Path) -> None:
    spec = arrays(tmp_path / "data", np.zeros((40, 32, 32, 4), np.uint16))
    np.save(tmp_path / "data/test_images.npy", np.zeros((20, 32, 32, 4), np.uint8))
    with pytest.raises(DatasetError, match="train has uint16 and 4 channels, test has uint8 and 4 channels"):
        open_samples(spec, "test")


def test_networks_for_other_channels_are_refused(five: str, tmp_path: Path) -> None:
    statistics = open_samples(five, "train").statistics
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef make(num_classes=3):\n"
        "    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    with pytest.raises(ModelError, match="takes 3 channels, and the data has 5"):
        open_network(f"{tmp_path}/mine.py:make", classes=3, statistics=statistics)
    with pytest.raises(ModelError, match="takes 3 channels, but the normalization is for 2"):
        open_network("cifar:resnet8", classes=3, statistics=((0.5,) * 3, (0.5,) * 3), normalize="0.5,0.5/1,1")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef make(num_classes=3):\n"
        "    return nn.ModuleDict({'unused': nn.Conv2d(1, 1, 1), 'first': nn.Conv2d(5, 4, 3)})\n"
    )
    assert open_network(f"{tmp_path}/mine.py:make", classes=3, statistics=statistics).channels == 5
    network = open_network("cifar:resnet8", classes=3, statistics=statistics)
    with pytest.raises(ModelError, match="takes images of 5 channels, but the data has 3"):
        network(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(ModelError, match="is for 3 channels, and the data has 5: begin without weights"):
        open_network("resnet18", classes=3, statistics=statistics, weights="DEFAULT", new_classifier=True)


def test_the_first_layer_alone_is_another(five: str) -> None:
    """As for three channels, but for its shape; and parameters of the rest are drawn from the same distribution."""
    statistics = open_samples(five, "train").statistics
    for spec in ("resnet18", "vit_b_16", "cifar:wrn_16_1"):
        network = open_network(spec, classes=3, statistics=statistics, size=32, seed=0, skeleton=True)
        plain = open_network(spec, classes=3, statistics=((0.5,) * 3, (0.5,) * 3), size=32, seed=0, skeleton=True)
        ours, theirs = (
            {name: tuple(part.shape) for name, part in net.model.named_parameters()} for net in (network, plain)
        )
        assert list(ours) == list(theirs)
        assert [ours[name][1:2] for name in ours if ours[name] != theirs[name]] == [(5,)]


def sixteen(folder: Path) -> np.ndarray:
    """Grey files of 16 bits; the values of the first."""
    images = RNG.integers(0, 65536, (24, 256, 300), dtype=np.uint16)
    for row, image in enumerate(images):
        place = folder / ("test" if row < 8 else "train") / "ab"[row % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:02}.png")
    return images[8]


def test_grey_files_of_16_bits_keep_them_where_that_is_asked(tmp_path: Path) -> None:
    first = sixteen(tmp_path / "scans")
    samples = open_samples(f"folder:{tmp_path}/scans,bits=16", "train")
    assert (samples.channels, samples.dtype, len(samples)) == (1, "uint16", 16)
    assert samples.spec == f"folder:{tmp_path}/scans,bits=16"
    np.testing.assert_array_equal(samples.image(0)[:, :, 0], first)
    viewed = open_viewed(samples.spec, "train", augment="none")
    np.testing.assert_array_equal(viewed.batch([0], 0)[0, :, :, 0].numpy(), first[16:240, 38:262])
    Image.fromarray((first >> 8).astype(np.uint8)).save(tmp_path / "scans/train/a/08.png")
    np.testing.assert_array_equal(samples.image(0)[:, :, 0], (first >> 8) * 257)
    Image.new("RGB", (300, 256)).save(tmp_path / "scans/train/a/08.png")
    with pytest.raises(
        DatasetError, match=r"08\.png is in colour \(RGB\), of which 8 bits are read: leave out bits=16"
    ):
        samples.image(0)
    with pytest.raises(UsageError, match="bits=12 of a grey value must be 8 or 16"):
        open_samples(f"folder:{tmp_path}/scans,bits=12", "train")


@pytest.mark.parametrize("options", ["bits=16,test_fraction=0.3", "test_fraction=0.3,bits=16"])
def test_bits_beside_a_test_fraction(tmp_path: Path, options: str) -> None:
    sixteen(tmp_path / "scans")
    opened = [open_samples(f"folder:{tmp_path}/scans/train,{options}", split) for split in ("train", "test")]
    assert [samples.dtype for samples in opened] == ["uint16"] * 2
    assert {samples.spec for samples in opened} == {f"folder:{tmp_path}/scans/train,bits=16,test_fraction=0.3"}
    assert sum(map(len, opened)) == 16
    assert all(map(len, opened))


def test_close_pixels_of_16_bits() -> None:
    theirs = RNG.integers(1000, 60000, (3, 8, 8, 2), dtype=np.uint16)
    ours = theirs.copy()
    ours[1] += 3 * 257
    ours[2] += 3 * 257 + 1
    assert close_samples(ours, theirs).tolist() == [True, True, False]
