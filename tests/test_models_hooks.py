"""Taps, the list of layers, and the layer that makes the logits, on torchvision's and small networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

from softcache.errors import ModelError
from softcache.models._hooks import Taps, classifier_path
from softcache.models._layers import list_layers
from softcache.models._network import Network
from softcache.models._preprocess import IMAGENET, Preprocess

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
PIXELS = torch.arange(2 * 32 * 32 * 3).remainder(251).to(torch.uint8).view(2, 32, 32, 3)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return torchvision.models.resnet18(num_classes=10).eval()


def wrap(model: nn.Module, classes: int = 10) -> Network:
    return Network(model, spec="test", classes=classes, channels=3, preprocess=Preprocess(*IMAGENET))


def test_outputs_and_inputs_are_those_of_a_forward_by_hand(resnet):
    with torch.no_grad(), Taps(resnet, ["layer3", "fc:in", "avgpool", "fc"]) as taps:
        logits = resnet(X)
        stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(X))))
        layer3 = taps["layer3"]
        assert torch.equal(layer3, resnet.layer3(resnet.layer2(resnet.layer1(stem))))
        assert layer3.shape == (2, 256, 2, 2)
        assert torch.equal(taps["fc:in"], taps["avgpool"].flatten(1))
        assert torch.equal(resnet.fc(taps["fc:in"]), logits)
    assert list(taps) == ["layer3", "fc:in", "avgpool", "fc"]


def test_pooled_maps_are_means_over_blocks(resnet):
    """Against PyTorch's own pooling, and with its gradients."""
    layers = ["layer1", "layer1:pool=4", "layer2.0.conv1:in:pool=2", "layer1:pool=8"]
    with Taps(resnet, layers) as taps:
        resnet(X)
    whole = taps["layer1"]  # 64 maps of 8 × 8
    torch.testing.assert_close(taps["layer1:pool=4"], F.avg_pool2d(whole, 2))
    torch.testing.assert_close(taps["layer2.0.conv1:in:pool=2"], F.avg_pool2d(whole, 4))
    torch.testing.assert_close(taps["layer1:pool=8"], whole)
    (ours,) = torch.autograd.grad(taps["layer1:pool=4"].square().sum(), resnet.conv1.weight, retain_graph=True)
    (theirs,) = torch.autograd.grad(F.avg_pool2d(whole, 2).square().sum(), resnet.conv1.weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_maps_that_can_not_be_pooled_are_refused(resnet):
    for layer, shape in (
        ("layer1:pool=3", r"\(64, 8, 8\)"),
        ("layer1:pool=16", r"\(64, 8, 8\)"),
        ("fc:pool=1", r"\(10,\)"),
    ):
        with torch.no_grad(), Taps(resnet, [layer]), pytest.raises(ModelError, match=f"gives {shape}: maps"):
            resnet(X)
    with pytest.raises(ModelError, match="no layer 'layer1:pool=x'"):
        Taps(resnet, ["layer1:pool=x"])


def test_maps_in_half_precision_are_averaged_in_single(resnet):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Identity()

        def forward(self, x):
            return self.same(x.half())

    model = Half()
    with Taps(model, ["same:pool=2"]) as taps:
        model(1000 * X)
    torch.testing.assert_close(taps["same:pool=2"], F.avg_pool2d((1000 * X).half().double(), 16).float())


def test_a_layer_before_an_inplace_one_keeps_its_own_values(resnet):
    block = resnet.layer1[0]
    with torch.no_grad(), Taps(resnet, ["maxpool", "layer1.0.bn2"]) as taps:
        resnet(X)
        x = taps["maxpool"]
        by_hand = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    assert (by_hand < 0).any()  # a ReLU afterwards would have shown
    assert torch.equal(taps["layer1.0.bn2"], by_hand)


def test_gradients_flow_through_what_is_caught(resnet):
    with Taps(resnet, ["layer1"]) as taps:
        resnet(X)
    taps["layer1"].square().sum().backward()
    assert resnet.conv1.weight.grad is not None
    assert resnet.conv1.weight.grad.abs().sum() > 0
    assert resnet.layer2[0].conv1.weight.grad is None
    resnet.zero_grad(set_to_none=True)


def test_hooks_are_gone_afterwards_even_after_an_error(resnet):
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in resnet.modules())

    def run() -> None:
        with Taps(resnet, ["layer3", "fc:in"]):
            assert hooks() == 2
            resnet(torch.zeros(1, 5, 8, 8))

    with pytest.raises(RuntimeError):
        run()
    assert hooks() == 0


@pytest.mark.parametrize("layer", ["layerr3", "layerr3:in"])
def test_an_unknown_layer_names_the_nearest(resnet, layer):
    with pytest.raises(ModelError, match=r"no layer 'layerr3' in ResNet: did you mean .*layer3"):
        Taps(resnet, [layer])


class Odd(nn.Module):
    """A tuple, a dictionary, keyword arguments, a module that is used twice, and one that isn't used."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.twice = Double()
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x, _ = self.lstm(x[:, 0, :5, :4])
        x = self.twice(values=x)["values"]
        return self.head(self.twice(values=x)["values"].mean(1))


class Double(nn.Module):
    def forward(self, *, values):
        return {"name": "double", "values": values * 2}


def test_tuples_dictionaries_keywords_and_repeated_modules():
    model = Odd()
    with torch.no_grad(), Taps(model, ["lstm", "twice", "twice:in", "unused"]) as taps:
        model(X)
    assert taps["lstm"].shape == (2, 5, 4)
    assert torch.equal(taps["twice:in"], taps["lstm"] * 2)  # the last of two runs
    assert torch.equal(taps["twice"], taps["lstm"] * 4)
    with pytest.raises(ModelError, match="'unused' gave no tensor"):
        taps["unused"]


def test_layers_of_a_resnet(resnet):
    network = wrap(resnet)
    network.train()
    layers = {layer.path: layer for layer in list_layers(network, PIXELS)}
    assert network.training
    assert resnet.training
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in resnet.modules()) == 0
    # the shapes of the published architecture at 32 pixels
    shapes = {"conv1": (64, 16, 16), "layer1": (64, 8, 8), "layer2": (128, 4, 4), "layer3": (256, 2, 2)}
    shapes |= {"layer4": (512, 1, 1), "avgpool": (512, 1, 1), "fc": (10,)}
    assert {path: layers[path].shape for path in shapes} == shapes
    assert layers["layer2"].dtype == torch.float32
    assert "layer3.0" in layers
    assert "layer3.1" not in layers  # the same tensor as layer3
    assert "layer1.0.bn2" in layers  # another tensor than layer1.0, which adds to it in place


def test_layers_leave_out_what_does_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Identity(), nn.Dropout(), nn.ReLU(), nn.Linear(8, 10))
    assert [layer.path for layer in list_layers(wrap(model), PIXELS)] == ["0", "1", "4", "5"]


@pytest.mark.parametrize(
    ("name", "path"),
    [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3"), ("squeezenet1_1", "classifier.1")],
)
def test_the_classifier_is_found_by_its_number_of_outputs(name, path):
    model = torchvision.models.get_model(name, num_classes=10).eval()
    assert classifier_path(model, 10) == path
    with pytest.raises(ModelError, match="no linear or convolutional layer with 11 outputs"):
        classifier_path(model, 11)


def test_a_frozen_network_learns_in_its_classifier_only():
    network = wrap(torchvision.models.resnet18(num_classes=10)).train()
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    assert network.freeze_all_but_classifier() == "fc"
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(PIXELS).square().sum().backward()
    optimizer.step()
    after = network.model.state_dict()
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert changed == ["fc.weight", "fc.bias"]  # running means of batch norms stay too
    assert network.model.fc.training
    assert not network.model.bn1.training
