"""``--student-size`` and ``--teacher-size`` for networks of torchvision, through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models
from harness_train import command, config
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from softcache.cache.reader import Cache
from softcache.models._open import open_network

ROWS, SIDE = 8, 12
STATISTICS = ((0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    """A data set ``arrays:set`` of a few random colour images; the images of its training split."""
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    made = rng.integers(0, 256, (ROWS, SIDE, SIDE, 3), dtype=np.uint8)
    for split in ("train", "test"):
        np.save(tmp_path / "set" / f"{split}_images.npy", made)
        np.save(tmp_path / "set" / f"{split}_labels.npy", np.arange(ROWS) % 2)
    return made


@pytest.mark.parametrize(("name", "built"), [("resnet18", {}), ("vit_b_16", {"image_size": 32})])
def test_a_teacher_says_what_torchvision_says_at_the_given_size(
    name: str, built: dict[str, int], images: np.ndarray, here: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        theirs = torchvision.models.get_model(name, num_classes=2, **built).eval()
        torch.nn.init.normal_(list(theirs.parameters())[-2])  # vision transformers answer 0 to everything at first
    state = {k: v.half() if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    save_file(state, here / "weights.safetensors")
    theirs.load_state_dict(state)
    teacher = ["--teacher", name, "--teacher-weights", "weights.safetensors", "--teacher-size", "32"]
    data = ["--dataset", "arrays:set", "--size", SIDE, "--normalize", "0.5,0.5,0.5/0.5,0.5,0.5", "--workers", "0"]
    views = ["--augment", "none", "--views", "1", "--codec", "fp32", "--amp", "off"]
    assert command("--quiet", "dump", *teacher, *data, *views, "--out", "cache") == 0
    cache = Cache(here / "cache")
    assert cache.manifest.identity.teacher.preprocess["size"] == 32
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = interpolate(x, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        wanted = theirs((x / 255 - 0.5) / 0.5)
    stored = cache.column("logits").map(0)["values"].parts[0]
    torch.testing.assert_close(torch.from_numpy(np.array(stored)), wanted, rtol=1e-4, atol=1e-4)


def test_a_resnet_student_of_another_size_is_trained_and_opened_with_it(images: np.ndarray, here: Path) -> None:
    student = ["--student", "resnet18", "--student-size", "64", "--alpha", "0", "--dataset", "arrays:set"]
    assert command("--quiet", "train", *student, "--epochs", "1", "--out", "run", "--workers", "0") == 0
    assert config(here / "run")["model"]["preprocess"]["size"] == 64
    opened = open_network("run", classes=None)
    assert opened.prepare(torch.from_numpy(images)).shape == (ROWS, 3, 64, 64)


@pytest.mark.parametrize("name", ["vgg11", "squeezenet1_1", "densenet121", "mobilenet_v3_small", "swin_t", "googlenet"])
def test_networks_without_a_fixed_size_are_built_the_same_for_any(name: str) -> None:
    usual, larger = (
        open_network(name, classes=2, statistics=STATISTICS, size=size, skeleton=True) for size in (None, 256)
    )
    shapes = [{k: v.shape for k, v in network.model.state_dict().items()} for network in (usual, larger)]
    assert shapes[0] == shapes[1]
    assert (usual.preprocess.size, larger.preprocess.size) == (None, 256)
