"""Checkpoints as people have them, what the errors say, fingerprints, and folders."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from softcache.errors import ModelError
from softcache.models._checkpoint import load_state
from softcache.models._folder import describe, save_network
from softcache.models._open import open_network, weights_file
from softcache.models._weights import fingerprint, fingerprint_file_cached, fit

GREY = ((0.5,), (0.25,))
PIXELS = torch.arange(2 * 16 * 16).remainder(251).to(torch.uint8).view(2, 16, 16, 1)


def model(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


NESTS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}, "param_groups": []}},
    "model": lambda s: {"model": s, "best_acc": torch.tensor(0.7)},
    "net": lambda s: {"net": s, "acc": 93.2, "epoch": 199},
    "ema": lambda s: {"ema": {"module": s}},
    "module.": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "averaged": lambda s: {"n_averaged": torch.tensor(4), **{f"module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".tar"])
@pytest.mark.parametrize("nest", NESTS)
def test_every_usual_nest_gives_the_same_parameters(tmp_path, nest, suffix):
    state = model().state_dict()
    torch.save(NESTS[nest](dict(state)), tmp_path / f"x{suffix}")
    assert equal(load_state(tmp_path / f"x{suffix}"), state)


def test_safetensors_and_the_old_torch_format_are_read(tmp_path):
    state = model().state_dict()
    save_file(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert equal(load_state(tmp_path / "x.safetensors"), state)
    assert equal(load_state(tmp_path / "x.pth"), state)


def test_a_prefix_that_the_module_does_not_have_is_taken_off():
    state = {f"model.{key}": value for key, value in model().state_dict().items()}
    target = model()
    assert fit(target, state) == ()
    assert all(torch.equal(target.state_dict()[key.removeprefix("model.")], value) for key, value in state.items())
    wrapped = nn.ModuleDict({"model": model()})  # its own names begin so: nothing is taken off
    fit(wrapped, state)
    assert equal(wrapped.state_dict(), state)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_with_more_than_tensors_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for extra, named in ((argparse.Namespace(lr=1), "argparse.Namespace"), (Payload(), "mkdir")):
        torch.save({"state_dict": model().state_dict(), "args": extra}, "x.pth")
        with pytest.raises(ModelError, match=f"holds more than tensors .*{named}") as caught:
            load_state("x.pth")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "made-by-a-pickle").exists()


@pytest.mark.parametrize("content", [b"", b"some text, not a checkpoint", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} (can't be read|has no state dict)"):
        load_state(tmp_path / name)


def test_a_truncated_file_is_named(tmp_path):
    for name, save in (("x.pth", torch.save), ("x.safetensors", save_file)):
        save(model().state_dict(), tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ModelError, match="damaged"):
            load_state(tmp_path / name)


def test_missing_and_unknown_files_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"no file of weights at .*gone.pth"):
        load_state(tmp_path / "gone.pth")
    (tmp_path / "x.bin").write_bytes(b"1")
    with pytest.raises(ModelError, match=r"x.bin .* should end in \.safetensors, \.pt"):
        load_state(tmp_path / "x.bin")


def test_a_checkpoint_that_does_not_fit_says_where_and_changes_nothing():
    state = model().state_dict()
    state["3.weight"] = torch.zeros(10, 5)
    del state["0.weight"], state["0.bias"], state["1.weight"], state["1.bias"]
    state |= {"extra": torch.zeros(1)}
    target = model()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        fit(target, state, owner="x.pth")
    assert str(caught.value) == (
        "x.pth does not fit Sequential: 4 missing (0.weight, 0.bias, 1.weight, …); 1 unexpected (extra); "
        "1 of another shape (3.weight (10, 5) for (10, 4))"
    )
    assert equal(target.state_dict(), before)


def test_counters_that_old_checkpoints_lack_may_be_missing():
    state = model().state_dict()
    del state["1.num_batches_tracked"]
    assert fit(model(), state) == ()


def test_fine_tuning_keeps_only_the_classifiers_start():
    state, target = model(1000).state_dict(), model(10)
    start = target[3].weight.detach().clone()
    assert fit(target, state, new_classifier=10) == ("3.weight", "3.bias")
    assert torch.equal(target[3].weight, start)
    assert torch.equal(target[0].weight, state["0.weight"])
    state["0.weight"] = torch.zeros(5, 3, 3, 3)  # another layer's difference is still an error
    with pytest.raises(ModelError, match="1 of another shape"):
        fit(target, state, new_classifier=10)


def test_the_fingerprint_is_the_sha256_that_the_docstring_describes():
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(7)}
    by_hand = hashlib.sha256()
    by_hand.update(b"1:a int64 [] " + struct.pack("<q", 7))
    by_hand.update(b"1:b float32 [2] " + struct.pack("<2f", 1.0, 2.0))
    assert fingerprint(state) == by_hand.hexdigest()


def test_the_fingerprint_sees_names_dtypes_shapes_and_bits_but_neither_order_nor_strides():
    x = torch.arange(6.0).view(2, 3)
    base = fingerprint({"a": x, "b": x})
    assert fingerprint({"b": x.t().contiguous().t(), "a": x}) == base
    others = [{"a": x, "c": x}, {"a": x, "b": x.double()}, {"a": x, "b": x.view(3, 2)}, {"a": x}]
    others += [{"a": x, "b": torch.cat([x[:1], x[1:] * (1 + 2**-23)])}]
    assert len({base, *map(fingerprint, others)}) == 6
    assert len(fingerprint({"h": torch.zeros(3, dtype=torch.bfloat16), "e": torch.zeros(0)})) == 64


def test_a_files_fingerprint_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCACHE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "x.safetensors"
    state = model().state_dict()
    save_file(state, path)
    assert fingerprint_file_cached(path) == fingerprint(state)
    assert fingerprint_file_cached(path, compute=lambda: pytest.fail("computed again")) == fingerprint(state)
    [kept] = (tmp_path / "cache" / "fingerprints").iterdir()
    kept.write_text("{half")
    assert fingerprint_file_cached(path) == fingerprint(state)
    status = path.stat()
    save_file({**state, "3.bias": torch.ones(10)}, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint_file_cached(path) != fingerprint(state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "x.safetensors"]
    with pytest.raises(ModelError, match="no file of weights"):
        fingerprint_file_cached(tmp_path / "gone.pt")


def test_a_fingerprint_that_can_not_be_kept_is_given_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCACHE_CACHE", str(tmp_path / "a file" / "cache"))  # also stops the superuser
    (tmp_path / "a file").touch()
    state = model().state_dict()
    save_file(state, tmp_path / "x.safetensors")
    assert fingerprint_file_cached(tmp_path / "x.safetensors") == fingerprint(state)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_kept_fingerprint_of_one_file_is_not_that_of_another(tmp_path):
    for name, bias in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        save_file({**model().state_dict(), "3.bias": torch.full((10,), bias)}, tmp_path / name / "x.safetensors")
    a, b = (fingerprint_file_cached(tmp_path / name / "x.safetensors") for name in "ab")
    assert a != b
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "b" / "x.safetensors")
    never = functools.partial(pytest.fail, "computed again")
    assert fingerprint_file_cached(tmp_path / "link.safetensors", compute=never) == b


@pytest.fixture
def folder(tmp_path):
    network = open_network("cifar:resnet8", classes=10, statistics=GREY, seed=1)
    return save(network, tmp_path / "teachers" / "one")


def save(network, path):
    path.mkdir(parents=True)
    save_network(network, path, "teacher.safetensors")
    document = {"model": {**describe(network), "weights": "teacher.safetensors"}, "other": 1}
    (path / "config.json").write_text(json.dumps(document))
    return path


def test_a_folder_gives_the_same_network_to_the_bit(folder):
    original = open_network("cifar:resnet8", classes=10, statistics=GREY, seed=1).eval()
    again = open_network(str(folder), classes=None)
    assert again.weights_path == weights_file(str(folder)) == folder / "teacher.safetensors"
    assert (again.spec, again.classes, again.preprocess) == ("cifar:resnet8", 10, original.preprocess)
    assert torch.equal(again.eval()(PIXELS), original(PIXELS))
    assert equal(load_file(folder / "teacher.safetensors"), original.model.state_dict())  # names without a prefix
    assert fingerprint_file_cached(folder / "teacher.safetensors") == fingerprint(original.model.state_dict())
    assert sorted(os.listdir(folder)) == ["config.json", "teacher.safetensors"]


def test_the_same_network_is_saved_as_the_same_bytes(tmp_path, folder):
    network = open_network(str(folder), classes=10).to(memory_format=torch.channels_last)
    other = save_network(network, tmp_path, "again.safetensors")
    (tmp_path / "plain").touch()
    assert other.stat().st_mode & 0o777 == (tmp_path / "plain").stat().st_mode & 0o777  # others may read it too
    assert other.read_bytes() == (folder / "teacher.safetensors").read_bytes()


def test_a_models_own_size_and_normalization_survive_the_folder(tmp_path):
    network = open_network("cifar:resnet8", classes=3, normalize="0.1,0.2,0.3/1,2,3", size=20, seed=0).eval()
    again = open_network(str(save(network, tmp_path / "run")), classes=3, statistics=GREY).eval()
    assert again.preprocess == network.preprocess
    assert again.preprocess.size == 20
    assert torch.equal(again(PIXELS), network(PIXELS))
    # its file alone, for the same architecture, brings the normalization too
    alone = open_network("cifar:resnet8", classes=3, statistics=GREY, weights=tmp_path / "run" / "teacher.safetensors")
    assert alone.preprocess == network.preprocess


def test_a_folder_for_other_classes_is_refused_or_fine_tuned(folder):
    with pytest.raises(ModelError, match="has 10 classes and the data has 7"):
        open_network(str(folder), classes=7)
    network = open_network(str(folder), classes=7, new_classifier=True, seed=4)
    assert network.fresh == ("fc.weight", "fc.bias")
    state = load_file(folder / "teacher.safetensors")
    assert torch.equal(network.model.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    assert network.eval()(PIXELS).shape == (2, 7)


def test_a_file_of_other_classes_says_so(tmp_path):
    network = open_network("cifar:resnet8", classes=10, statistics=GREY)
    torch.save({"model": network.model.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"x.pth has 10 classes and the data has 4: fine-tune it first"):
        open_network("cifar:resnet8", classes=4, statistics=GREY, weights=tmp_path / "x.pth")
    with pytest.raises(ModelError, match="does not fit CifarResNet: 30 missing"):
        open_network("cifar:resnet14", classes=10, statistics=GREY, weights=tmp_path / "x.pth")
    again = open_network("cifar:resnet8", classes=10, statistics=GREY, weights=str(tmp_path / "x.pth"))
    assert equal(again.model.state_dict(), network.model.state_dict())


def test_folders_that_are_no_teacher_say_what_they_lack(tmp_path, folder):
    def refused(match):
        with pytest.raises(ModelError, match=match) as caught:
            open_network(str(folder), classes=10)
        assert "\n" not in str(caught.value)

    config = json.loads((folder / "config.json").read_text())
    (folder / "teacher.safetensors").unlink()
    (folder / "checkpoint.pt").write_bytes(b"in progress")
    refused("has no teacher.safetensors: its training has not finished")
    save_file({"a": torch.zeros(1)}, folder / "teacher.safetensors")
    refused("does not fit CifarResNet: .* missing .* 1 unexpected")
    del config["model"]["preprocess"]
    (folder / "config.json").write_text(json.dumps(config))
    refused("no whole description")
    (folder / "config.json").write_text("{}")
    refused("can't be read as the configuration")
    (folder / "config.json").unlink()
    refused("is no teacher and no run: it has no config.json")
    with pytest.raises(ModelError, match=r"no folder .*gone"):
        open_network(str(tmp_path / "gone"), classes=10)


def test_an_unwritable_place_is_one_line_and_leaves_nothing(tmp_path):
    network = open_network("cifar:resnet8", classes=10, statistics=GREY)
    with pytest.raises(ModelError, match=r"can't write .*gone"):
        save_network(network, tmp_path / "gone", "teacher.safetensors")
    (tmp_path / "teacher.safetensors").mkdir()
    with pytest.raises(ModelError, match="can't write"):
        save_network(network, tmp_path, "teacher.safetensors")
    assert os.listdir(tmp_path) == ["teacher.safetensors"]
