"""What a published cache says and leaves out, on a stand-in for the hub's file system."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_train import HINTS, Net, command, make_cache, same, weights, write_teacher
from PIL import Image
from test_store_systems import memory as memory
from torch import nn

from softcache.cache.listing import LISTING, Listing
from softcache.cache.reader import Cache
from softcache.errors import UsageError
from softcache.models._open import open_network
from softcache.stages._card import card_of
from softcache.stages.convert import convert
from softcache.stages.copy import copy
from softcache.stages.train import train
from softcache.stages.verify import verify
from softcache.store.opened import open_store
from softcache.views._open import open_viewed

TEACHER, STUDENT = (f"{Path(__file__)}:{name}" for name in ("teacher", "student"))


def teacher(num_classes: int) -> nn.Module:
    return _colour(Net(num_classes, 6))


def student(num_classes: int) -> nn.Module:
    return _colour(Net(num_classes, 4))


def _colour(net: Net) -> nn.Module:
    net.layer1[0] = nn.Conv2d(3, net.layer1[0].out_channels, 3, stride=2, padding=1, bias=False)
    return net


def fit(out: Path, **options: Any) -> None:
    train(STUDENT, out=out, epochs=1, batch_size=40, seed=3, workers=0, **options)


@pytest.fixture
def cache(here: Path) -> Path:
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for number in range(10):
            folder = here / "secret-folder" / "digits" / split / f"class{number}"
            folder.mkdir(parents=True)
            for k in range(8):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"secret-name-{k}.png")
    dataset = f"folder:{here / 'secret-folder' / 'digits'}"
    samples = open_viewed(dataset, "train").samples
    network = open_network(TEACHER, classes=10, statistics=samples.statistics, seed=1)
    write_teacher(network, here / "secret-folder" / "teacher")
    return make_cache(here / "cache", here / "secret-folder" / "teacher", hint=HINTS[:1], dataset=dataset)


def content(address: str) -> dict[str, bytes]:
    store = open_store(address, "the test")
    return {name: store.read(name, 2**26) or b"" for name in store.files()}


def options(here: Path, **more: Any) -> dict[str, Any]:
    return {"dataset": f"folder:{here / 'secret-folder' / 'digits'}", "local_cache": str(here / "local"), **more}


def test_nothing_private_is_published(cache: Path, here: Path, memory: str) -> None:
    assert any(b"secret-folder" in p.read_bytes() for p in cache.rglob("*") if p.is_file())
    assert any(b"secret-name" in p.read_bytes() for p in cache.rglob("*") if p.is_file())
    copy(cache, memory)
    found = content(memory)
    assert {"README.md", "cache.json", LISTING, "rows.h5"} <= set(found)
    assert "samples.h5" not in found
    for name, held in found.items():
        assert b"secret" not in held, name
        assert str(here).encode() not in held, name
    assert "command" not in json.loads(found["cache.json"])["state"]["made"]


def test_a_training_from_its_address_needs_only_the_dataset(cache: Path, here: Path, memory: str) -> None:
    copied = copy(cache, memory)
    fit(here / "disk", cache=str(cache), **options(here))
    fit(here / "hub", cache=memory, expect=copied.pin, **options(here))
    assert same(weights(here / "disk"), weights(here / "hub"))
    found = verify(memory, local_cache=str(here / "local"), expect=[copied.pin])
    assert found.ok
    assert found.to_json()["folder"] == memory


def test_verify_names_the_address(cache: Path, here: Path, memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    copy(cache, memory)
    capsys.readouterr()
    assert command("verify", memory, "--local-cache", here / "local") == 0
    assert capsys.readouterr().out.startswith(f"{memory}: ")


def test_samples_of_an_earlier_copy_are_not_left_on_the_hub(
    cache: Path, here: Path, memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy(cache, memory, card=False)
    assert "samples.h5" in content(memory)
    copied = copy(cache, memory)
    assert not any(b"secret" in held for held in content(memory).values())
    assert "samples.h5" not in content(memory)
    assert "history keeps earlier files" in caplog.text
    assert verify(memory, local_cache=str(here / "local"), expect=[copied.pin]).ok


def test_the_card_says_what_it_is_and_its_command_runs(
    cache: Path, here: Path, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pin = copy(cache, memory, license="CC0-1.0").pin
    card = content(memory)["README.md"].decode()
    manifest = Cache(cache).manifest
    for told in (
        manifest.identity.teacher.weights,
        f"{100 * manifest.state.teacher_top1:.2f} %",
        "CC0-1.0",
        "`folder:digits`",
        manifest.identity.recipe["spec"],
        "`fp32`",
        "`hint.layer1`",
        pin,
        "@misc{",
    ):
        assert told in card, told
    [told] = re.findall(r"^    (softcache train .*?)\n\n", card, re.M | re.S)
    arguments = shlex.split(told.replace("\\\n", ""))[1:]
    at = arguments.index("--dataset")
    arguments[at + 1] = f"folder:{here / 'secret-folder' / 'digits'}"
    arguments[arguments.index("resnet18")] = STUDENT
    assert (
        command(*arguments, "--local-cache", here / "local", "--epochs", 1, "--workers", 0, "--out", here / "run") == 0
    )


@pytest.mark.parametrize(
    ("address", "compress", "package"),
    [
        ("hf://datasets/someone/teacher", (), "'softcache[hf]'"),
        ("gs://bucket/cache", ("zstd",), "'softcache[compress,gcs]'"),
        ("https://host/cache", (), "softcache"),
        ("/data/cache", ("zstd",), "'softcache[compress]'"),
    ],
)
def test_the_card_says_what_to_install_and_what_was_lost_before(
    cache: Path, here: Path, address: str, compress: tuple[str, ...], package: str
) -> None:
    convert(cache, here / "half", codec="fp16", device="cpu")
    convert(here / "half", here / "made", output="logits:codec=bf16", compress=compress, device="cpu")
    manifest = Cache(here / "made").manifest
    card = card_of(manifest, Listing(manifest.cache_id, {}), address, None)
    assert f"    pip install {package}\n" in card
    [line] = re.findall(r"^\| `logits` .*$", card, re.M)
    codec = " ".join(filter(None, ("bf16", manifest.state.columns["logits"].compress)))
    assert re.search(rf"`{codec}` \| mean KL .*, against its source, which was in `fp16` \(mean KL .* keys\) \|$", line)


def test_what_is_included_stays(cache: Path, here: Path, memory: str) -> None:
    copy(cache, here / "all", card=True, include=["samples", "names", "paths", "command"])
    whole, original = Cache(here / "all"), Cache(cache)
    assert whole.names == original.names
    assert (whole.samples[0] == original.samples[0]).all()
    assert whole.manifest.state.made["command"] == original.manifest.state.made["command"]
    assert "secret-folder" in whole.manifest.state.made["dataset"]
    copy(cache, here / "bare", card=True)
    bare = Cache(here / "bare")
    assert bare.names is None
    assert len(bare.samples[0]) == 0
    assert bare.samples[1]["pixels"].shape == (0, *original.samples[1]["pixels"].shape[1:])
    assert bare.manifest.cache_id == original.manifest.cache_id
    assert (bare.labels == original.labels).all()
    assert verify(here / "bare").ok
    assert verify(here / "bare").foreign == []  # the card is one of its files
    copy(cache, here / "plain", card=False)
    assert not (here / "plain" / "README.md").exists()


def test_what_cannot_be_included_is_refused(cache: Path, here: Path) -> None:
    with pytest.raises(UsageError, match="'sample' is unknown: did you mean samples"):
        copy(cache, here / "copy", card=True, include=["sample"])
    with pytest.raises(UsageError, match="add --card"):
        copy(cache, here / "copy", include=["samples"])


def test_a_published_cache_is_converted(cache: Path, here: Path) -> None:
    """One that keeps no inputs; what is made of it keeps none either, and the same command finds it done."""
    copy(cache, here / "bare", card=True)
    convert(here / "bare", here / "made", codec="fp16", device="cpu")
    made = Cache(here / "made")
    assert len(made.samples[0]) == 0
    assert not (here / "made" / "samples.h5").exists()
    assert made.manifest.cache_id == Cache(cache).manifest.cache_id
    assert verify(here / "made").ok
    assert verify(here / "made").missing == []
    assert convert(here / "bare", here / "made", codec="fp16", device="cpu").shards == 0
