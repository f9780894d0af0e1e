"""Same key, same pixels: whatever the order, batch, process or device; and recipes are read as they are written."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional

from softcache.datasets._samples import Samples
from softcache.errors import DatasetError, UsageError
from softcache.userfile import load_file
from softcache.views._digest import digest
from softcache.views._image import resize_and_crop, to_pil
from softcache.views._keys import Keys
from softcache.views._move import Motion, move_array
from softcache.views._recipe import parse_recipe
from softcache.views._viewed import ViewedDataset
from tests.test_views_augmentations import picture

TRANSFORMS = """
import numpy as np, random, torch
from torchvision.transforms import v2

def jitter():
    return v2.Compose([v2.RandomResizedCrop(24), v2.ColorJitter(0.4, 0.4, 0.4)])

def tensor():
    return v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip()])

def three_generators():
    def shift(image):
        values = np.asarray(image).astype(int)
        return (values + random.randrange(20) + np.random.randint(20) + int(torch.randint(20, ()))).astype(np.uint8)
    return shift

class Keyed:
    keyed = True
    def __call__(self, pixels, words):
        return np.roll(pixels, int(words[0]) % 7, axis=1)

def keyed():
    return Keyed()

def floats():
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

def grey():
    return v2.Grayscale()

def broken():
    def fail(image):
        raise ValueError("no such luck")
    return fail

def nothing():
    return None
"""

RECIPES = [
    "none",
    "flip",
    "crop",
    "crop:pad=3,fill=7+flip",
    "flip+crop:pad=20",
    "rrc",
    "rrc:scale=0.3-1+flip",
    "rrc+crop:pad=2+flip",
    "crop+noise:std=0.05+flip",
    "mixup",
    "crop+flip+mixup:alpha=1",
    "rrc+cutmix",
    "randaugment",
    "flip+trivialaugment+crop",
    "python:{path}:jitter",
    "none+python:{path}:tensor",
    "crop+python:{path}:three_generators+mixup",
    "{path}:keyed",
]


def in_memory(count: int = 40, side: int = 32, channels: int = 3, size: int = 32) -> Samples:
    images = np.stack([picture(side, side, channels, seed) for seed in range(count)])
    return samples_of(count, channels, size, size, images=images)


def samples_of(count: int, channels: int, size: int, resize: int, **where) -> Samples:
    half = (0.5,) * channels
    labels = np.zeros(count, np.int32)
    return Samples("made", "train", ("a",), labels, channels, size, resize, "crop+flip", (half, half), **where)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    root = tmp_path_factory.mktemp("pictures")
    names = [f"{k}.png" for k in range(10)]
    for k, name in enumerate(names):
        Image.fromarray(picture(40 + 3 * k, 61 - 2 * k, seed=k)).save(root / name)
    return samples_of(10, 3, 28, 32, names=names, root=root)


@pytest.fixture(scope="module")
def transforms_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "my_transforms.py"
    path.write_text(TRANSFORMS)
    return path


def global_state() -> tuple:
    numpy_state = np.random.get_state()
    return (torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), *numpy_state[2:])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_same_key_same_pixels(recipe: str, kind: str, folder: Samples, transforms_file: Path) -> None:
    samples = in_memory(12, side=20, size=24) if kind == "memory" else folder
    dataset = ViewedDataset(samples, recipe.format(path=transforms_file), seed=5)
    before = global_state()
    size, rows = dataset.size, np.arange(10)
    whole = dataset.batch(rows, 3)
    assert whole.dtype == torch.uint8
    assert whole.shape == (10, size, size, 3)
    one_by_one = np.stack([dataset.pixels(int(row), 3) for row in rows])
    np.testing.assert_array_equal(whole.numpy(), one_by_one)
    backwards = torch.cat([dataset.batch(rows[::-1][:7], 3), dataset.batch(rows[::-1][7:], 3)])
    assert torch.equal(backwards.flip(0), whole)
    for view, found in zip((4, 3, 0), dataset.batch_views(rows, [4, 3, 0]), strict=True):
        assert torch.equal(found, dataset.batch(rows, view))
    assert global_state() == before
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).batch(rows, 3), whole)
    if recipe != "none":
        assert not torch.equal(dataset.batch(rows, 4), whole)
        assert not torch.equal(ViewedDataset(samples, dataset.recipe.spec, seed=6).batch(rows, 3), whole)
    again = ViewedDataset(samples, dataset.recipe.spec, seed=5)
    assert again.identity() == dataset.identity()
    assert torch.equal(again.batch(rows, 3), whole)


def _digests(datasets: list[ViewedDataset], rows: np.ndarray, view: int) -> list[list[int]]:
    torch.manual_seed(99)  # another state of the generators than the parent's
    return [digest(dataset.batch(rows, view)).tolist() for dataset in datasets]


def test_same_key_same_pixels_in_another_process(folder: Samples, transforms_file: Path) -> None:
    datasets = [ViewedDataset(folder, recipe.format(path=transforms_file)) for recipe in RECIPES]
    rows = np.array([7, 0, 3])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(_digests, (datasets, rows, 2))
    assert theirs == [digest(dataset.batch(rows, 2)).tolist() for dataset in datasets]


@given(
    size=st.integers(1, 12),
    channels=st.sampled_from([1, 3]),
    pad=st.integers(0, 15),
    fill=st.integers(0, 255),
    flip_first=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    view=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_crop_and_flip_are_torchvisions(size, channels, pad, fill, flip_first, seed, view) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, size, size, channels), dtype=np.uint8)
    dataset = ViewedDataset(
        samples_of(6, channels, size, size, images=images),
        f"flip+crop:pad={pad},fill={fill}" if flip_first else f"crop:pad={pad},fill={fill}+flip",
        seed=seed,
    )
    found = dataset.batch(np.arange(6), view).numpy()
    crop_position, flip_position = (1, 0) if flip_first else (0, 1)
    crop, flip = dataset.recipe.augmentations[crop_position], dataset.recipe.augmentations[flip_position]
    for row in range(6):
        shift = crop.motion(Keys(seed, np.array([row]), view, crop_position), size)
        mirrored = flip.motion(Keys(seed, np.array([row]), view, flip_position), size).mirror[0]
        image = to_pil(images[row])
        image = functional.hflip(image) if flip_first and mirrored else image
        padded = functional.pad(image, [pad] * 4, fill=fill) if pad else image
        top, left = int(shift.top[0]) + pad, int(shift.left[0]) + pad
        image = functional.crop(padded, top, left, size, size)
        image = functional.hflip(image) if mirrored and not flip_first else image
        np.testing.assert_array_equal(found[row].squeeze(), np.asarray(image).squeeze())


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.booleans()), min_size=2, max_size=4))
@settings(max_examples=40, deadline=None)
def test_motions_compose(parts: list[tuple[int, int, bool]]) -> None:
    image = np.arange(1, 50, dtype=np.uint8).reshape(1, 7, 7, 1)
    motions = [Motion(np.array([0]), np.array([0]), np.array([mirror])) for _, _, mirror in parts]
    top, left, mirror = parts[0]
    motions[len(parts) // 2] = Motion(np.array([top]), np.array([left]), np.array([mirror]), pad=3, fill=200)
    stepwise, combined = image, motions[0]
    for place, motion in enumerate(motions):
        stepwise = move_array(stepwise, motion)
        combined = combined.then(motion) if place else motion
    np.testing.assert_array_equal(move_array(image, combined), stepwise)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("recipe", ["none", "flip", "crop", "crop:pad=9,fill=3+flip", "flip+crop"])
@pytest.mark.parametrize("side", [8, 32])
def test_moving_on_a_device_gives_the_same_bytes(recipe: str, device: str, side: int) -> None:
    dataset = ViewedDataset(in_memory(20, side=side, channels=1 if side == 8 else 3), recipe, seed=3)
    assert dataset.resident
    base = torch.from_numpy(dataset.base_images()).to(device)
    rows = np.random.default_rng(0).permutation(20)
    expected = dataset.batch(rows, 6)
    assert torch.equal(dataset.move(base[torch.from_numpy(rows).to(device)], rows, 6).cpu(), expected)
    # a whole epoch's parameters at once, as resident training draws them
    epoch = {name: torch.from_numpy(part).to(device) for name, part in dataset.parameters(np.arange(20), 6).items()}
    some = torch.from_numpy(rows[:5]).to(device)
    moved = dataset.move_by(base[some], {name: part[some] for name, part in epoch.items()})
    assert torch.equal(moved.cpu(), expected[:5])


def test_base_images_are_resized_once_and_stay_out_of_pickles() -> None:
    samples = in_memory(50, side=8, channels=1)
    dataset = ViewedDataset(samples, "crop")
    base = dataset.base_images()
    assert dataset.base_images() is base
    for row in (0, 17, 49):
        reference = to_pil(samples.images[row]).resize((32, 32), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(base[row, :, :, 0], np.asarray(reference))
    assert len(pickle.dumps(dataset)) < base.nbytes / 2
    native = in_memory(5)
    assert ViewedDataset(native).base_images() is native.images


def test_what_is_kept_is_never_changed() -> None:
    samples = in_memory(10)
    kept = samples.images.copy()
    for recipe in ("none", "flip", "crop+flip+noise", "randaugment+mixup", "rrc+cutmix"):
        dataset = ViewedDataset(samples, recipe)
        dataset.batch(np.arange(10), 0).zero_()
        dataset.clean(np.arange(10)).zero_()
    np.testing.assert_array_equal(samples.images, kept)


def test_clean_is_the_evaluation_geometry(folder: Samples) -> None:
    dataset = ViewedDataset(folder, "rrc+flip")
    assert not dataset.resident
    clean = dataset.clean([4, 1])
    for place, row in enumerate([4, 1]):
        np.testing.assert_array_equal(clean[place].numpy(), resize_and_crop(folder.image(row), 32, 28))
    assert torch.equal(clean, ViewedDataset(folder, "none").batch([4, 1], 9))
    # files are not in memory, but what was decoded can be moved
    cropped = ViewedDataset(folder, "crop+flip")
    assert not cropped.resident
    assert torch.equal(cropped.move(cropped.clean([4, 1]), [4, 1], 3), cropped.batch([4, 1], 3))
    with pytest.raises(DatasetError, match="not in memory"):
        dataset.base_images()


@pytest.mark.parametrize(("size", "resize"), [(None, 256), (224, 256), (112, 128), (384, 439), (7, 8)])
def test_the_side_before_the_crop_follows_the_size(size: int | None, resize: int) -> None:
    samples = samples_of(1, 3, 224, 256, decode=lambda index: picture(300, 300))
    assert ViewedDataset(samples, "none", size=size).resize == resize
    assert ViewedDataset(in_memory(1), "none", size=size or 32).resize == (size or 32)


@pytest.mark.parametrize("recipe", ["mixup:alpha=0.4", "flip+mixup", "crop+cutmix", "rrc+cutmix"])
def test_mixed_views_are_made_of_their_parts(recipe: str, folder: Samples) -> None:
    dataset, rows = ViewedDataset(folder, recipe, seed=8), np.arange(10)
    mixing = dataset.mixing(rows, 2)
    assert mixing is not None
    partners, own = mixing
    assert partners.shape == own.shape == (10,)
    assert own.dtype == np.float32
    assert (partners != rows).all()
    before = ViewedDataset(folder, recipe.rpartition("+")[0] or "none", seed=8)
    ours = before.batch(rows, 2).numpy().astype(float)
    theirs = before.batch(partners, 2).numpy().astype(float)
    mixed = dataset.batch(rows, 2).numpy()
    for row in range(10):
        if "mixup" in recipe:
            expected = own[row] * ours[row] + (1 - own[row]) * theirs[row]
            assert np.abs(mixed[row] - expected).max() <= 0.51
        else:
            same, other = (mixed[row] == ours[row]).all(axis=2), (mixed[row] == theirs[row]).all(axis=2)
            assert (same | other).all()
            assert (~same).mean() <= 1 - own[row] + 1e-6 <= other.mean() + 2e-6
    again = dataset.mixing(rows[::-1], 2)
    assert again is not None
    assert again[0][::-1].tolist() == partners.tolist()
    assert again[1][::-1].tolist() == own.tolist()
    assert before.mixing(rows, 2) is None


def test_partners_are_uniform_over_the_others() -> None:
    dataset = ViewedDataset(in_memory(5, side=4, size=4), "mixup")
    mixing = dataset.mixing(np.repeat([3], 1), 0)
    assert mixing is not None
    counts = np.zeros(5)
    for view in range(2000):
        counts[dataset.mixing([3], view)[0][0]] += 1
    assert counts[3] == 0
    assert ((counts[[0, 1, 2, 4]] - 500) ** 2).sum() / 500 < 16.3  # chi-squared, 3 degrees, one in a thousand
    alone = ViewedDataset(in_memory(1), "crop+mixup")
    assert alone.mixing([0], 0)[0].tolist() == [0]
    assert torch.equal(alone.batch([0], 0), ViewedDataset(in_memory(1), "crop").batch([0], 0))


def test_an_appended_augmentation_leaves_the_numbers_of_the_others() -> None:
    samples, rows = in_memory(10), np.arange(10)
    longer, crop = ViewedDataset(samples, "crop+flip:p=1"), ViewedDataset(samples, "crop")
    assert torch.equal(longer.batch(rows, 1), crop.batch(rows, 1).flip(2))
    assert torch.equal(ViewedDataset(samples, "none+crop").batch(rows, 1), crop.batch(rows, 1))


def test_an_empty_batch() -> None:
    for recipe in ("none", "flip", "crop+flip", "rrc", "noise", "randaugment", "mixup", "cutmix"):
        assert ViewedDataset(in_memory(3), recipe).batch([], 0).shape == (0, 32, 32, 3)


def test_identity_is_what_pixels_depend_on() -> None:
    identity = ViewedDataset(in_memory(1), "rrc:scale=0.08-1+flip", seed=4, size=48).identity()
    assert identity == {
        "spec": "rrc:scale=0.08-1,ratio=0.75-1.3333+flip:p=0.5",
        "revisions": {"rrc": 1, "flip": 1},
        "size": 48,
        "resize": 48,
        "seed": 4,
    }
    assert json.loads(json.dumps(identity)) == identity
    assert ViewedDataset(in_memory(1)).identity()["spec"] == "crop:pad=4,fill=0+flip:p=0.5"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("corp", "did you mean crop"),
        ("crop+flop", "did you mean"),
        ("", "empty augmentation"),
        ("crop+", "empty augmentation"),
        ("crop:pat=4", "did you mean pad"),
        ("flip+crop+flip", "twice"),
        ("crop+none", "can only stand first"),
        ("crop+rrc", "must stand first"),
        ("mixup+flip", "must stand last"),
        ("mixup+cutmix", "must stand last"),
        ("python:no_such_module_at_all:f", "no_such_module_at_all"),
        ("nowhere/at/all.py:f", "no file"),
        ("python", "needs something after the colon"),
    ],
)
def test_recipes_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_recipe(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [("floats", "uint8"), ("grey", "3 channels"), ("broken", "ValueError: no such luck")],
)
def test_transforms_that_give_no_pixels(name: str, says: str, transforms_file: Path) -> None:
    dataset = ViewedDataset(in_memory(2), f"{transforms_file}:{name}")
    before = global_state()
    with pytest.raises(DatasetError, match=says) as caught:
        dataset.batch([0], 0)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert global_state() == before


@pytest.mark.parametrize(("name", "says"), [("nothing", "can be called"), ("absent", "has no 'absent'"), ("Keyed", "")])
def test_factories_that_give_no_transform(name: str, says: str, transforms_file: Path) -> None:
    if not says:
        assert parse_recipe(f"{transforms_file}:{name}").first is not None
        return
    with pytest.raises(UsageError, match=says):
        parse_recipe(f"python:{transforms_file}:{name}")


def test_a_transform_gets_the_decoded_image_first_and_the_view_later(folder: Samples, tmp_path: Path) -> None:
    path = tmp_path / "sizes_seen.py"
    path.write_text(
        "import numpy as np\nseen = []\ndef factory():\n"
        "    def note(image):\n        seen.append(image.size)\n        return image\n    return note\n"
    )
    expected = folder.image(2)
    pixels = ViewedDataset(folder, f"{path}:factory").pixels(2, 0)
    np.testing.assert_array_equal(pixels, resize_and_crop(expected, 28, 28))
    later = ViewedDataset(folder, f"none+{path}:factory").pixels(2, 0)
    np.testing.assert_array_equal(later, resize_and_crop(expected, 32, 28))
    assert load_file(path).seen == [(expected.shape[1], expected.shape[0]), (28, 28)]


@pytest.mark.parametrize(("seed", "size"), [(-1, 32), (1 << 64, 32), (0, 0)])
def test_seeds_and_sizes_that_cannot_be(seed: int, size: int) -> None:
    with pytest.raises(UsageError):
        ViewedDataset(in_memory(1), seed=seed, size=size)
