"""From specs to networks: published parameter counts, seeds, downloads, a user's own code, bad specs."""

from __future__ import annotations

import json
import math
import re
import sys
import urllib.request

import numpy as np
import pytest
import torch
import torchvision.models
import torchvision.transforms
from torch import nn

from softcache import registry
from softcache.datasets._open import open_samples
from softcache.errors import MissingExtraError, ModelError, SoftcacheError, UsageError
from softcache.extras import install_command
from softcache.models._layers import list_layers
from softcache.models._network import logits_of
from softcache.models._open import open_network, weights_file
from softcache.models._preprocess import IMAGENET
from softcache.models._source import source_of
from softcache.models.cifar import NAMES

GREY = ((0.5,), (0.25,))


def pixels(size: int = 32, channels: int = 3, batch: int = 2) -> torch.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (batch, size, size, channels), dtype=np.uint8)
    return torch.from_numpy(values)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# For 100 classes, as papers give them in millions: 0.28 0.47 0.86 1.74 1.23 7.43 0.70 0.57 2.26 3.97 9.46
PUBLISHED = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
}


def resnet_count(depth: int) -> int:
    """By hand: 3x3 convolutions without bias, two numbers a channel for batch norm, 1x1 shortcuts."""
    n = (depth - 2) // 6
    total = 3 * 9 * 16 + 2 * 16 + 64 * 100 + 100
    for before, width in ((16, 16), (16, 32), (32, 64)):
        total += 9 * before * width + 9 * width * width * (2 * n - 1) + 2 * width * 2 * n
        total += 0 if before == width else before * width + 2 * width
    return total


@pytest.mark.parametrize("name", NAMES)
def test_cifar_networks_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        built = count(source_of(f"cifar:{name}")[0].build(100))
    if name in PUBLISHED:
        assert built == PUBLISHED[name]
    if name.startswith("resnet") and "x" not in name:
        assert built == resnet_count(int(name[6:]))
    if name == "wrn_16_1":  # wrn_40_1 has four blocks more a stage: of two convolutions and two batch norms
        assert PUBLISHED["wrn_40_1"] - built == sum(4 * (2 * 9 * w * w + 2 * 2 * w) for w in (16, 32, 64))


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("resnet8", {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8), "fc": (10,)}),
        ("resnet8x4", {"layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer3": (256, 8, 8), "fc": (10,)}),
        ("wrn_16_1", {"block1": (16, 32, 32), "block2": (32, 16, 16), "block3": (64, 8, 8), "fc": (10,)}),
        (
            "vgg8",
            {"block0": (64, 32, 32), "block2": (256, 8, 8), "block3": (512, 4, 4), "block4": (512, 4, 4)},
        ),
    ],
)
def test_cifar_stages_are_hint_paths_with_the_papers_shapes(name, paths):
    network = open_network(f"cifar:{name}", classes=10, statistics=GREY, seed=0)
    shapes = {layer.path: layer.shape for layer in list_layers(network, pixels())}
    assert {path: shapes[path] for path in paths} == paths


def test_torchvision_networks_are_torchvisions_own():
    network = open_network("resnet18", classes=10, statistics=GREY, seed=5).eval()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        theirs = torchvision.models.resnet18(num_classes=10).eval()
    x = (pixels().permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        torch.testing.assert_close(network(pixels()), theirs(x), rtol=1e-5, atol=1e-5)


def test_the_seed_decides_the_parameters_and_leaves_the_callers_generator_alone():
    torch.default_generator.manual_seed(7)
    expected = torch.rand(3)
    torch.default_generator.manual_seed(7)
    one, two, three = (open_network("cifar:resnet8", classes=10, statistics=GREY, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    states = [n.model.state_dict() for n in (one, two, three)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])
    torch.default_generator.manual_seed(7)  # without a seed: the caller's generator
    four, five = (open_network("cifar:resnet8", classes=10, statistics=GREY) for _ in range(2))
    assert not torch.equal(four.model.conv1.weight, five.model.conv1.weight)


@pytest.mark.parametrize(
    ("spec", "size", "minimum"),
    [
        ("resnet50", None, 1),
        ("alexnet", None, 63),
        ("vgg16", None, 32),
        ("inception_v3", None, 75),
        ("vit_b_16", 224, 1),
        ("maxvit_t", 224, 1),
        ("swin_t", None, 224),
        ("cifar:resnet8", None, 8),
        ("timm:test_vit", 160, 1),
        ("timm:test_resnet", None, 32),
    ],
)
def test_input_sizes(spec, size, minimum):
    if spec.startswith("timm:"):
        pytest.importorskip("timm")
    assert source_of(spec)[0].input_size() == (size, minimum)


@pytest.mark.parametrize("spec", ["googlenet", "squeezenet1_1", "timm:test_vit", "timm:test_resnet"])
def test_small_grey_images_run_through_networks_that_want_more(spec):
    if spec.startswith("timm:"):
        pytest.importorskip("timm")
    network = open_network(spec, classes=5, statistics=GREY, seed=0).train()
    logits = network(pixels(8, channels=1))  # in training mode too: no auxiliary outputs
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    assert network.preprocess.mean == (0.5, 0.5, 0.5)


def test_a_size_of_ones_own():
    network = open_network("vit_b_32", classes=3, statistics=GREY, size=64, seed=0).eval()
    assert network.preprocess.size == 64
    assert network.model.encoder.pos_embedding.shape == (1, 5, 768)  # (64 / 32)² patches and the class token
    assert network(pixels()).shape == (2, 3)
    with pytest.raises(ModelError, match="vit_b_32 can't be built for 3 classes, size 65"):
        open_network("vit_b_32", classes=3, statistics=GREY, size=65)
    with pytest.raises(UsageError, match="at least 1 pixel"):
        open_network("resnet18", classes=3, statistics=GREY, size=0)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's cache of downloads in an empty place, and a network that refuses connections."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # the one that is made with these proxies goes with them
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_published_weights_bring_their_normalization(hub):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        theirs = torchvision.models.squeezenet1_1().eval()
    name = "squeezenet1_1-b8a52dc0.pth"
    torch.save(theirs.state_dict(), hub / name)
    assert weights_file("squeezenet1_1", "DEFAULT") == hub / name
    preset = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    normalize = torchvision.transforms.Normalize(preset.mean, preset.std)
    image = pixels(64, batch=1)
    for weights in ("DEFAULT", "IMAGENET1K_V1", hub / name):  # a local file of that name is known too
        network = open_network("squeezenet1_1", classes=None, statistics=GREY, weights=weights).eval()
        assert (network.classes, network.weights_path) == (1000, hub / name)
        assert (network.preprocess.mean, network.preprocess.std) == IMAGENET
        assert network.preprocess.trained_size == preset.crop_size[0]
        with torch.no_grad():
            expected = theirs(normalize(image.permute(0, 3, 1, 2) / 255))
            torch.testing.assert_close(network(image), expected, rtol=1e-5, atol=1e-5)
    own = open_network("squeezenet1_1", classes=1000, statistics=GREY, weights="DEFAULT", normalize="dataset")
    assert own.preprocess.mean == (0.5,) * 3
    tuned = open_network("squeezenet1_1", classes=10, weights="DEFAULT", new_classifier=True, seed=0)
    assert tuned.fresh == ("classifier.1.weight", "classifier.1.bias")
    assert torch.equal(tuned.model.features[0].weight, theirs.features[0].weight)
    with pytest.raises(ModelError, match="has 1000 classes and the data has 10"):
        open_network("squeezenet1_1", classes=10, weights="DEFAULT")


def test_googlenet_gives_what_torchvisions_does_with_its_transformed_input(hub):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(12)
        theirs = torchvision.models.googlenet(transform_input=True, init_weights=True).eval()
    torch.save(theirs.state_dict(), hub / "googlenet-1378be20.pth")  # with its auxiliary classifiers
    ours = open_network("googlenet", classes=None, weights="DEFAULT").double().eval()
    image = pixels(64, batch=1)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in IMAGENET)
    with torch.no_grad():
        expected = theirs.double()((image.permute(0, 3, 1, 2).double() / 255 - mean) / std)
        torch.testing.assert_close(ours(image), expected, rtol=1e-9, atol=1e-9)


def test_densenets_old_names_are_understood(hub):
    old = {}
    for key, value in torchvision.models.densenet121(num_classes=1000).state_dict().items():
        for kind in ("norm", "conv"):
            for number in "12":
                if "denselayer" in key:
                    key = key.replace(f".{kind}{number}.", f".{kind}.{number}.")
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, hub / "densenet121-a639ec97.pth")
    network = open_network("densenet121", classes=None, weights="DEFAULT")
    name = "features.denseblock1.denselayer1.conv2.weight"
    assert torch.equal(network.model.state_dict()[name], old["features.denseblock1.denselayer1.conv.2.weight"])


def test_a_failed_download_says_which_file_is_needed(hub):
    with pytest.raises(ModelError) as caught:
        open_network("resnet18", classes=1000, weights="DEFAULT")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert "--teacher-weights FILE" in message
    assert "\n" not in message
    assert list(hub.iterdir()) == []


FACTORIES = """
import dataclasses
import torch
from torch import nn

@dataclasses.dataclass
class Width:
    value: int = 4

def net(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

def grey(num_classes=3):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def fixed():
    return net(num_classes=12)

def anything(**options):
    return net(**options)

def wrong():
    return 3

def broken(num_classes):
    raise RuntimeError("no such\\nluck")

not_callable = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES)
    return path


def test_a_file_of_ones_own(file, monkeypatch):
    before = list(sys.path)
    monkeypatch.chdir(file.parent)
    network = open_network("./nets.py:net", classes=7, statistics=GREY)
    assert network(pixels()).shape == (2, 7)
    assert network.spec == f"{file}:net"  # from any folder the same
    assert sys.path == before
    assert "nets" not in sys.modules
    assert open_network(f"python:{file}:anything", classes=5, statistics=GREY)(pixels()).shape == (2, 5)
    grey = open_network("nets.py:grey", classes=3, statistics=GREY)
    assert (grey.channels, grey.preprocess.mean) == (1, (0.5,))
    assert grey(pixels(channels=1)).shape == (2, 3)
    file.write_text(FACTORIES.replace("AdaptiveAvgPool2d", "AdaptiveMaxPool2d"))
    assert isinstance(open_network("nets.py:net", classes=7, statistics=GREY).model[0], nn.AdaptiveMaxPool2d)


def test_a_module_of_ones_own():
    network = open_network("python:torchvision.models:squeezenet1_1", classes=6, statistics=GREY)
    assert network(pixels(64)).shape == (2, 6)
    assert network.spec == "python:torchvision.models:squeezenet1_1"


@pytest.mark.parametrize(
    ("factory", "match"),
    [
        ("wrong", "returned int, neither a torch.nn.Module nor a function"),
        ("broken", "raised RuntimeError: no such luck$"),
        ("grei", "no function 'grei': did you mean grey"),
        ("not_callable", "no function 'not_callable'"),
    ],
)
def test_factories_that_give_no_network(file, factory, match):
    with pytest.raises(ModelError, match=match):
        open_network(f"{file}:{factory}", classes=3, statistics=GREY)


def test_a_factory_for_other_classes_is_found_at_the_first_batch(file):
    with pytest.raises(ModelError, match="but the data has 3 classes"):
        open_network(f"{file}:fixed", classes=3, statistics=GREY)(pixels())


def test_files_and_modules_that_can_not_be_imported(file):
    with pytest.raises(ModelError, match=r"no file .*gone.py"):
        open_network(str(file.with_name("gone.py:net")), classes=3, statistics=GREY)
    file.write_text("import not_installed_anywhere")
    with pytest.raises(ModelError, match="can't be imported: ModuleNotFoundError"):
        open_network(f"{file}:net", classes=3, statistics=GREY)
    with pytest.raises(ModelError, match=r"path/to/file.py:factory"):
        open_network("python:not_installed_anywhere:net", classes=3, statistics=GREY)
    with pytest.raises(UsageError, match=r"is not package.module:factory"):
        open_network("python:math", classes=3, statistics=GREY)


@pytest.mark.parametrize(
    ("spec", "kind", "match"),
    [
        ("resnet5", UsageError, r"'resnet5': did you mean resnet50"),
        ("resnet56", UsageError, r"did you mean cifar:resnet56\?"),
        ("fcn_resnet50", UsageError, "no torchvision classification model"),
        ("cifar:resnet21", UsageError, "did you mean .*resnet20"),
        ("cifar", UsageError, "cifar:NAME"),
        ("cfar:resnet20", UsageError, "did you mean cifar"),
        ("runs/nowhere", ModelError, "no folder runs/nowhere"),
    ],
)
def test_unknown_specs(spec, kind, match):
    with pytest.raises(kind, match=match) as caught:
        open_network(spec, classes=10, statistics=GREY)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_published():
    with pytest.raises(ModelError, match=r"'IMAGENET1K_V3' .* resnet50: did you mean IMAGENET1K_V1|IMAGENET1K_V2"):
        open_network("resnet50", classes=1000, weights="IMAGENET1K_V3")
    with pytest.raises(ModelError, match="'DEFAULT' are published for cifar:resnet8: pass a file"):
        open_network("cifar:resnet8", classes=10, weights="DEFAULT")
    with pytest.raises(ModelError, match="how many classes"):
        open_network("cifar:resnet8", classes=None, statistics=GREY)
    assert weights_file("resnet18") is None


def test_timm_networks_are_timms_own():
    timm = pytest.importorskip("timm")
    network = open_network("timm:test_resnet", classes=10, statistics=GREY, seed=3)
    assert count(network.model) == count(timm.create_model("test_resnet", num_classes=10))
    known = source_of("timm:test_vit")[0].weights("DEFAULT")
    assert (known.size, known.statistics) == (160, ((0.5,) * 3, (0.5,) * 3))  # as its configuration records
    with pytest.raises(UsageError, match=r"timm has no model called 'tst_resnet': did you mean"):
        open_network("timm:tst_resnet", classes=10, statistics=GREY)
    with pytest.raises(ModelError, match="timm publishes no weights 'V2'"):
        open_network("timm:test_resnet", classes=1000, weights="V2")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=re.escape(f"timm: networks need timm: {install_command('timm')}")):
        open_network("timm:test_resnet", classes=10, statistics=GREY)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=re.escape(f"needs transformers: {install_command('hf')}")):
        open_network("hf:org/name", classes=10, statistics=GREY)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=re.escape(f"needs datasets: {install_command('hf')}")):
        open_samples("hf:org/name", "train")


EXAMPLES = {"cifar": "cifar:resnet8", "torchvision": "squeezenet1_1", "timm": "timm:test_resnet", "hf": "hf:vit"}
EXAMPLES["python"] = "python:torchvision.models:squeezenet1_1"


@pytest.mark.parametrize("name", registry.names("models"))
def test_every_source_keeps_the_contract(name, here):
    if name in ("timm", "hf"):
        pytest.importorskip(name.replace("hf", "transformers"))
    if name == "hf":
        config = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        (here / "vit").mkdir()
        (here / "vit" / "config.json").write_text(json.dumps({**config, "intermediate_size": 8, "image_size": 64}))
    source, spec = source_of(EXAMPLES[name])
    assert source_of(spec) == (source, spec)
    size, minimum = source.input_size()
    assert size is None or size >= 1
    assert minimum >= 1
    assert source.input_size(48)[0] == 48
    assert math.prod(logits_of(source.build(3)(torch.zeros(2, 3, 64, 64))).shape) == 6
    with pytest.raises(SoftcacheError):
        source.weights("of nobody")
