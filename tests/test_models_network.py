"""What a network does to pixels, against torchvision's own preprocessing and against arithmetic by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torchvision.models
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from softcache.errors import ModelError, UsageError
from softcache.models._channels import input_channels
from softcache.models._network import Network, logits_of
from softcache.models._preprocess import IMAGENET, Preprocess, choose_statistics

HALVES = ((0.5,) * 3, (0.25,) * 3)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def network(model: nn.Module | None = None, *, classes: int = 4, statistics=HALVES, **fields) -> Network:
    model = model if model is not None else small(classes)
    preprocess = Preprocess(*statistics, **fields)
    return Network(model, spec="small", classes=classes, channels=input_channels(model, None), preprocess=preprocess)


def small(classes: int = 4, channels: int = 3) -> nn.Sequential:
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, classes))


def test_pixels_become_what_torchvisions_own_preset_makes_of_the_image():
    image = pixels(40, 40, 3)
    preset = ImageClassification(crop_size=40, resize_size=40)
    expected = preset(Image.fromarray(image.numpy()))
    got = network(statistics=IMAGENET).prepare(image[None])[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_normalization_by_hand():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    got = network(statistics=((0.5, 0.2, 0.0), (0.5, 0.1, 2.0))).double().prepare(image)
    # (0 - .5)/.5, (51/255 - .2)/.1, (1 - 0)/2
    torch.testing.assert_close(got.flatten(), torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64), atol=1e-15, rtol=0)


@pytest.mark.parametrize("size", [20, 64])
def test_a_fixed_size_is_torchvisions_antialiased_resize(size):
    image = pixels(3, 48, 48, 3)
    raw = image.permute(0, 3, 1, 2).to(torch.float32)
    expected = v2.functional.resize(raw, [size, size], v2.InterpolationMode.BILINEAR, antialias=True)
    got = network(statistics=((0.0,) * 3, (1.0,) * 3), size=size).prepare(image) * 255
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "given", "target"),
    [
        ({}, (8, 8), (8, 8)),
        ({"minimum": 32}, (8, 8), (32, 32)),
        ({"minimum": 32}, (40, 36), (40, 36)),
        ({"minimum": 32}, (16, 24), (32, 48)),
        ({"size": 224}, (32, 32), (224, 224)),
        ({"size": 224}, (256, 300), (224, 224)),
    ],
)
def test_the_rule_of_the_input_size(fields, given, target):
    assert Preprocess(*HALVES, **fields).target(*given) == target


def test_grey_pixels_are_repeated_and_colour_is_refused_by_a_grey_network():
    grey = pixels(2, 6, 6, 1)
    three = network().prepare(grey)
    assert three.shape == (2, 3, 6, 6)
    assert torch.equal(three[:, 0], three[:, 1])
    assert torch.equal(three, network().prepare(grey.expand(-1, -1, -1, 3).contiguous()))
    one = network(small(channels=1), statistics=((0.5,), (0.25,)))
    assert one.prepare(grey).shape == (2, 1, 6, 6)
    with pytest.raises(ModelError, match="takes images of 1 channel, but the data has 3"):
        one(pixels(2, 6, 6, 3))


def test_the_dtype_and_memory_format_are_those_of_the_parameters():
    image = pixels(2, 8, 8, 3)
    plain = network()
    assert plain.prepare(image).is_contiguous()
    last = network().to(memory_format=torch.channels_last)
    assert last.prepare(image).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last.prepare(image), plain.prepare(image))
    assert network().double().prepare(image).dtype == torch.float64
    half = network().to(torch.bfloat16).prepare(image)  # computed in float32, then rounded once
    assert torch.equal(half, plain.prepare(image).to(torch.bfloat16))


def test_float64_uses_all_digits_of_the_statistics():
    image = pixels(1, 4, 4, 3)
    got = network(statistics=IMAGENET).float().double().prepare(image)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in IMAGENET)
    expected = (image.permute(0, 3, 1, 2).double() / 255 - mean) / std
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


def test_copies_are_independent_and_equal():
    one = network().eval()
    two = copy.deepcopy(one)
    image = pixels(2, 8, 8, 3)
    assert torch.equal(one(image), two(image))
    with torch.no_grad():
        two.model[0].weight.zero_()
    assert not torch.equal(one(image), two(image))
    assert not any(name.startswith("_") for name in one.state_dict())  # constants are not parameters to be saved


def test_autocast_computes_in_the_low_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert network()(pixels(2, 8, 8, 3)).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_input_and_logits():
    model = torchvision.models.resnet18(num_classes=4)
    here = network(model, statistics=IMAGENET, size=48).double().eval()
    there = copy.deepcopy(here).cuda().to(memory_format=torch.channels_last)
    image = pixels(4, 32, 32, 3)
    torch.testing.assert_close(there.prepare(image.cuda()).cpu(), here.prepare(image), rtol=0, atol=1e-12)
    torch.testing.assert_close(there(image.cuda()).cpu(), here(image), rtol=1e-9, atol=1e-9)
    with torch.autocast("cuda", torch.float16):
        assert there.float()(image.cuda()).dtype == torch.float16


class Answers(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x.flatten(1)[:, :4])


class WithLogits:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(
    "make", [lambda x: x, lambda x: (x, x * 2), lambda x: [x], WithLogits, lambda x: {"loss": 0, "logits": x}]
)
def test_logits_are_found_in_what_models_return(make):
    image = pixels(2, 3, 3, 3)
    plain = network(Answers(lambda x: x))(image)
    assert torch.equal(network(Answers(make))(image), plain)


@pytest.mark.parametrize("output", [None, 3, {}, ()])
def test_other_outputs_are_an_error(output):
    with pytest.raises(ModelError, match="no logits"):
        logits_of(output, "odd")


def test_logits_of_another_number_of_classes_are_an_error():
    with pytest.raises(ModelError, match=r"shape \(2, 4\) for 2 samples, but the data has 5 classes"):
        network(small(4), classes=5)(pixels(2, 8, 8, 3))


def test_lazy_layers_are_an_error():
    with pytest.raises(ModelError, match="lazy layers"):
        network(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)))


@pytest.mark.parametrize("bad", [torch.zeros(2, 8, 8, 3), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_other_pixels_are_an_error(bad):
    with pytest.raises(ModelError, match="pixels must be uint8"):
        network()(bad)


def test_normalize_options():
    def choose(normalize, dataset=((0.1,), (0.2,)), weights=None, channels=3):
        return choose_statistics(normalize, dataset=dataset, weights=weights, channels=channels)

    grey = ((0.1,) * 3, (0.2,) * 3)
    assert choose(None) == choose("dataset") == choose("dataset", weights=IMAGENET) == grey
    assert choose(None, weights=HALVES) == HALVES
    assert choose("imagenet", weights=HALVES) == IMAGENET
    assert choose("none") == ((0.0,) * 3, (1.0,) * 3)
    assert choose("0.5,0.4,0.3/0.2,0.1,1") == ((0.5, 0.4, 0.3), (0.2, 0.1, 1.0))
    assert choose("0.5/0.25") == HALVES
    assert choose("0.5/0.25", channels=1) == ((0.5,), (0.25,))
    with pytest.raises(ModelError, match="takes 1 channel"):
        choose("imagenet", channels=1)
    with pytest.raises(ModelError, match="--normalize"):
        choose(None, dataset=None)


@pytest.mark.parametrize("bad", ["imagnet", "0.5", "0.5/0", "0.5,0.5/1", "a,b,c/1,1,1", "1/1/1", ""])
def test_bad_normalize_options(bad):
    with pytest.raises(UsageError, match="--normalize takes"):
        choose_statistics(bad, dataset=HALVES, weights=None, channels=3)


def test_preprocess_round_trips_through_json_values():
    given = Preprocess(*IMAGENET, size=224, minimum=7, trained_size=240)
    assert Preprocess.from_dict(given.to_dict()) == given
    with pytest.raises(ModelError, match="preprocessing"):
        Preprocess.from_dict({"mean": [0.5], "std": [0.5], "sizes": 3})
