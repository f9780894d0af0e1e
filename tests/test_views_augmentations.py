"""Each augmentation against torchvision's or Pillow's own operation with the same numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional, v2

from softcache import registry
from softcache.errors import UsageError
from softcache.views._image import resize_and_crop, resize_box, to_pil
from softcache.views._keys import Keys
from softcache.views._tables import normal_steps
from softcache.views._wrapped import WORDS
from softcache.views.crop import Crop
from softcache.views.cutmix import Cutmix
from softcache.views.flip import Flip
from softcache.views.mixup import Mixup
from softcache.views.noise import Noise
from softcache.views.randaugment import Randaugment
from softcache.views.rrc import Rrc
from softcache.views.trivialaugment import Trivialaugment


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random, but smooth enough to be resized with sense."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(large[:, :, :channels])


def keys(count: int, view: int = 1, position: int = 0) -> Keys:
    return Keys(11, np.arange(count), view, position)


@pytest.mark.parametrize("make", [transforms, v2], ids=["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (300, 211), (97, 256), (256, 257), (223, 448), (33, 34)])
@pytest.mark.parametrize(("resize", "size"), [(256, 224), (64, 64), (73, 64)])
def test_evaluation_geometry_is_torchvisions(make, channels, height, width, resize, size) -> None:
    pixels = picture(height, width, channels)
    reference = make.Compose([make.Resize(resize), make.CenterCrop(size)])(to_pil(pixels))
    ours = resize_and_crop(pixels, resize, size)
    assert ours.shape == (size, size, channels)
    np.testing.assert_array_equal(ours.squeeze(), np.asarray(reference))


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    pixels = picture(32, 32)
    assert np.shares_memory(resize_and_crop(pixels, 32, 32), pixels)
    np.testing.assert_array_equal(resize_and_crop(pixels, 32, 32), pixels)


def test_crop_offsets_are_uniform_over_all_positions() -> None:
    motion = Crop(pad=2).motion(keys(20000), 16)
    assert not motion.mirror.any()
    counts = np.bincount((motion.top + 2) * 5 + motion.left + 2, minlength=25)
    assert counts.size == 25
    assert ((counts - 800) ** 2).sum() / 800 < 24 + 5 * 48**0.5


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_flip_has_its_probability(p: float) -> None:
    share = Flip(p=p).motion(keys(20000), 16).mirror.mean()
    assert abs(share - p) <= 5 * (p * (1 - p) / 20000) ** 0.5


def test_rrc_box_is_resized_as_torchvision_does() -> None:
    pixels = picture(120, 90)
    for box in [(0, 0, 120, 90), (3, 7, 50, 41), (100, 60, 20, 30), (5, 5, 1, 1), (10, 20, 32, 32)]:
        reference = functional.resized_crop(to_pil(pixels), *box, [32, 32])
        np.testing.assert_array_equal(resize_box(pixels, box, 32), np.asarray(reference))


@pytest.mark.parametrize(("height", "width"), [(100, 150), (400, 60)])
def test_rrc_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    count = 3000
    augmentation = Rrc(scale=(0.2, 0.9))
    words = keys(count).words(augmentation.words)
    ours = np.array([augmentation.box(height, width, word) for word in words])
    image = Image.new("RGB", (width, height))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        get = transforms.RandomResizedCrop.get_params
        theirs = np.array([get(image, [0.2, 0.9], [0.75, 1.3333]) for _ in range(count)])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for mine, other in zip(ours.T, theirs.T, strict=True):  # top, left, height, width
        grid = np.union1d(mine, other)
        distance = np.abs(
            np.searchsorted(np.sort(mine), grid, "right") - np.searchsorted(np.sort(other), grid, "right")
        )
        assert distance.max() / count < 1.95 * (2 / count) ** 0.5  # Kolmogorov and Smirnov, at one in a thousand


@pytest.mark.parametrize(("height", "width"), [(20, 400), (400, 20), (1, 1), (1, 50)])
def test_rrc_falls_back_to_the_central_box(height: int, width: int) -> None:
    image = Image.new("RGB", (width, height))
    augmentation = Rrc(scale=(1.0, 1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = transforms.RandomResizedCrop.get_params(image, [1.0, 1.0], [0.75, 1.3333])
    box = augmentation.box(height, width, keys(1).words(augmentation.words)[0])
    assert box == tuple(reference)


def test_noise_is_normal_and_clipped() -> None:
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    noisy = Noise(std=0.1).change(grey, keys(20)).astype(float) - 128
    assert noisy.mean() == pytest.approx(0, abs=5 * 25.5 / noisy.size**0.5)
    # rounding to whole steps adds a twelfth to the variance
    assert noisy.var() == pytest.approx(25.5**2 + 1 / 12, rel=0.02)
    assert abs(np.corrcoef(noisy.reshape(20, -1)[:, :-1].ravel(), noisy.reshape(20, -1)[:, 1:].ravel())[0, 1]) < 0.02
    black = Noise(std=0.1).change(np.zeros((1, 32, 32, 1), np.uint8), keys(1))
    assert (black == 0).mean() == pytest.approx(0.5, abs=0.06)
    np.testing.assert_array_equal(Noise(std=0).change(grey, keys(20)), grey)
    assert normal_steps(0.1, 255)[-1] == round(4.3249 * 25.5)
    assert abs(normal_steps(0.1, 65535)[-1] - 4.3249 * 6553.5) < 1


def test_mixup_is_the_rounded_weighted_mean() -> None:
    images, partners = (np.stack([picture(16, 16, seed=s + k) for k in range(6)]) for s in (0, 50))
    augmentation = Mixup(alpha=1.0)
    mixed, share = augmentation.mix(images, partners, keys(6)), augmentation.weights(keys(6), 16)
    exact = images * share[:, None, None, None] + partners * (1 - share[:, None, None, None])
    assert np.abs(mixed - exact).max() <= 0.5
    assert ((share > 0) & (share < 1)).all()


@pytest.mark.parametrize("size", [7, 32, 224])
def test_cutmix_weight_is_the_share_of_own_pixels(size: int) -> None:
    augmentation = Cutmix(alpha=1.0)
    count = 40
    mixed = augmentation.mix(
        np.zeros((count, size, size, 1), np.uint8), np.full((count, size, size, 1), 255, np.uint8), keys(count)
    )
    own = (mixed == 0).mean(axis=(1, 2, 3))
    np.testing.assert_array_equal(augmentation.weights(keys(count), size), own.astype(np.float32))
    for image in mixed[:, :, :, 0]:  # a box, and nothing else
        rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        assert len(rows) * len(columns) == (image > 0).sum()
        if len(rows) and len(columns):
            assert np.ptp(rows) + 1 == len(rows)
            assert np.ptp(columns) + 1 == len(columns)


def test_cutmix_boxes_have_the_drawn_area_where_nothing_is_cut_off() -> None:
    size, many = 64, keys(20000)
    top, left, bottom, right = Cutmix(alpha=1.0).boxes(many, size)
    whole = (top > 0) & (left > 0) & (bottom < size) & (right < size)
    np.testing.assert_array_equal((bottom - top)[whole], (right - left)[whole])
    # λ is uniform for alpha = 1, so the side is √u·size; a box of side s is whole for (size-s-1)² of size² centres
    assert whole.mean() == pytest.approx(1 / 6, abs=0.02)  # ∫ (1-√u)² du


@pytest.mark.parametrize(
    ("augmentation", "transform"),
    [
        (Randaugment(n=3, m=12), transforms.RandAugment(3, 12)),
        (Trivialaugment(), transforms.TrivialAugmentWide()),
    ],
    ids=["randaugment", "trivialaugment"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_wrapped_augmentations_are_torchvisions_with_the_keys_seed(augmentation, transform, channels: int) -> None:
    images = np.stack([picture(32, 32, channels, seed) for seed in range(12)])
    words = keys(12).words(WORDS)
    ours = augmentation.change(images, keys(12))
    with torch.random.fork_rng(devices=[]):
        for image, word, mine in zip(images, words, ours, strict=True):
            torch.manual_seed(int(word[0]) >> 1)
            reference = transform(to_pil(image))
            np.testing.assert_array_equal(mine.squeeze(), np.asarray(reference))
    assert (ours != images).any(axis=(1, 2, 3)).sum() > 6


@pytest.mark.parametrize(
    "spec",
    [
        "flip:p=1.5",
        "crop:pad=-1",
        "crop:fill=65536",
        "crop:pad=x",
        "rrc:scale=0-1",
        "rrc:scale=0.9-0.1",
        "rrc:scale=0.5",
        "rrc:ratio=0-1",
        "noise:std=-1",
        "noise:std=2",
        "mixup:alpha=0",
        "mixup:alpha=100",
        "cutmix:alpha=0",
        "randaugment:m=31",
        "randaugment:n=0",
        "trivialaugment:m=1",
    ],
)
def test_impossible_options_are_one_line(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.create("views", spec)
    assert "\n" not in str(caught.value)
    assert spec.split(":")[0] in str(caught.value)


@pytest.mark.parametrize("name", registry.names("views"))
def test_every_augmentation_says_what_it_is(name: str) -> None:
    augmentation = registry.component("views", name)
    assert augmentation.kind in ("move", "image", "pixels", "mix")
    assert isinstance(augmentation.revision, int)
    assert augmentation.__doc__
    method = {"move": "motion", "image": "view", "pixels": "change", "mix": "mix"}[augmentation.kind]
    assert callable(getattr(augmentation, method))


def test_wrapped_augmentations_leave_the_generators_alone() -> None:
    images = np.stack([picture(32, 32)] * 3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    Randaugment().change(images, keys(3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[2], strict=True))
