"""What a cache keeps of a teacher: several outputs of several kinds, hints alone, each in a codec of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from harness_train import command

from softcache.cache.column import Column
from softcache.cache.reader import Cache
from softcache.dumping.codec_error import CodecError
from softcache.errors import CacheError, SoftcacheError, UsageError
from softcache.stages.dump import dump
from softcache.stages.keys import Keys
from softcache.stages.verify import verify
from softcache.views._open import open_viewed

ROWS, CLASSES, WIDTH = 70, 4, 6
TEACHERS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.neck = nn.Linear(8, 6)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        embedding = self.neck(self.body(x))
        return {"logits": self.head(embedding), "embedding": embedding, "norm": embedding.norm(dim=1),
                "tags": embedding[:, :3] * 4, "words": ["x"] * len(x)}


class Embedder(Net):
    def forward(self, x):
        return super().forward(x)["embedding"]


def made(cls, classes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return cls(classes)


def several(num_classes=4):
    return made(Net, num_classes)


def embedder(num_classes=4):
    return made(Embedder, num_classes)
"""
ALL = ("logits", "embedding:codec=bf16", "norm", "tags:kind=binary:codec=fp32")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    (folder / "teacher.py").write_text(TEACHERS)
    rng = np.random.default_rng(5)
    for split in ("train", "test"):
        np.save(folder / f"{split}_images.npy", rng.integers(0, 256, (ROWS, 8, 8, 1), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(ROWS) % CLASSES)
    for split in ("several", "embedder"):
        space: dict[str, Any] = {}
        exec(TEACHERS, space)
        torch.save(space[split]().state_dict(), folder / f"{split}.pt")
    return folder


def asked(place: Path, teacher: str = "several", **more: Any) -> dict[str, Any]:
    return {
        "teacher": f"{place / 'teacher.py'}:{teacher}",
        "teacher_weights": str(place / f"{teacher}.pt"),
        "dataset": f"arrays:{place}",
        "size": 8,
        "views": 2,
        "augment": "crop:pad=1",
        "batch_size": 16,
        "shard_rows": 32,
        "device": "cpu",
        "amp": "off",
        **more,
    }


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    dump(**asked(place, out=place / "whole", output=ALL, hint=("body.1:codec=bf16", "neck:in")))
    return place / "whole"


def online(place: Path, view: int) -> dict[str, torch.Tensor]:
    """The teacher's answer in the dump's batches, without any of the dump."""
    space: dict[str, Any] = {}
    exec(TEACHERS, space)
    network = space["several"]().eval()
    network.load_state_dict(torch.load(place / "several.pt", weights_only=True))
    viewed = open_viewed(f"arrays:{place}", "train", augment="crop:pad=1", size=8)
    mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in viewed.samples.statistics)
    caught: dict[str, list[torch.Tensor]] = {}
    network.body[1].register_forward_hook(lambda *given: caught.setdefault("hint.body.1", []).append(given[2]))
    network.neck.register_forward_hook(lambda *given: caught.setdefault("hint.neck:in", []).append(given[1][0]))
    with torch.inference_mode():
        for block in range(0, ROWS, 32):
            for first in range(block, min(block + 32, ROWS), 16):
                pixels = viewed.batch(np.arange(first, min(first + 16, block + 32, ROWS)), view)
                answer = network(pixels.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std))
                for name in ("logits", "embedding", "norm", "tags"):
                    caught.setdefault(name, []).append(answer[name])
    return {name: torch.cat(parts) for name, parts in caught.items()}


def test_every_column_is_what_the_teacher_says_in_its_codec(place: Path, whole: Path) -> None:
    cache = Cache(whole, verify_reads=True)
    assert cache.manifest.columns == ["embedding", "logits", "norm", "tags", "hint.body.1", "hint.neck:in"]
    shapes = {name: tuple(record.shape) for name, record in cache.manifest.state.columns.items()}
    assert shapes == {
        "embedding": (WIDTH,), "logits": (CLASSES,), "norm": (), "tags": (3,), "hint.body.1": (8, 8, 8),
        "hint.neck:in": (8,),
    }  # fmt: skip
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    for view in range(2):
        said = online(place, view)
        for name, record in cache.manifest.state.columns.items():
            reader = cache.column(name)
            found = reader.decode(reader.gather(view, np.arange(ROWS)))
            assert torch.equal(found, said[name].to(dtypes[record.codec]).float()), name
    kinds = {name: record.kind for name, record in cache.manifest.state.columns.items()}
    assert kinds == dict.fromkeys(kinds, "values") | {"logits": "classes", "tags": "binary"}
    found = verify(whole)
    assert (found.ok, found.foreign) == (True, [])


def test_columns_that_are_added_one_by_one_have_the_same_bytes(place: Path, whole: Path, tmp_path: Path) -> None:
    """Logits too, which come last here, beside hints that were there alone."""
    folder = tmp_path / "cache"
    dump(**asked(place, out=folder, output=("none",), hint=("body.1:codec=bf16",)))
    assert Cache(folder).manifest.columns == ["hint.body.1"]
    assert Cache(folder).manifest.state.teacher_top1 is None
    for more in ({"hint": ("neck:in",)}, {"output": ("embedding:codec=bf16", "norm")}, {"output": (ALL[3],)}, {}):
        before = {path: path.read_bytes() for path in folder.rglob("view-*/*.h5")}
        keys = dump(**asked(place, out=folder, **more)).keys
        assert keys == (2 * ROWS if more else 0), "asked for nothing new, it adds nothing: not logits either"
        assert all(path.read_bytes() == data for path, data in before.items())
    dump(**asked(place, out=folder, output=("logits",)))
    assert Cache(folder).manifest.cache_id == Cache(whole).manifest.cache_id
    for path in whole.rglob("view-*/*.h5"):
        assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert Cache(folder).manifest.state.teacher_top1 == Cache(whole).manifest.state.teacher_top1
    assert (folder / "cache.h5").read_bytes() == (whole / "cache.h5").read_bytes()


def test_an_output_can_be_taken_away_and_the_last_column_stays(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "cache"
    dump(**asked(place, out=folder, output=("logits", "embedding")))
    assert command("trim", folder, "--drop-output", "logits") == 0
    assert Cache(folder).manifest.columns == ["embedding"]
    assert not list(folder.rglob("logits-*"))
    assert verify(folder).ok
    assert command("trim", folder, "--drop-output", "embedding") == 2
    assert command("trim", folder, "--drop-output", "logits") == 2
    said = capfd.readouterr().err
    assert "nothing would be left" in said
    assert "has no output 'logits': it has embedding" in said


def test_a_teacher_of_embeddings_alone(place: Path, tmp_path: Path) -> None:
    """It returns a tensor, which has no name, and the number of its outputs is not that of the classes."""
    folder = tmp_path / "cache"
    made = dump(**asked(place, "embedder", out=folder, output=("embedding:codec=fp32",)))
    assert made.teacher_top1 is None
    reader = Cache(folder).column("embedding")
    assert torch.equal(reader.decode(reader.gather(1, np.arange(ROWS))), online(place, 1)["embedding"])
    again = verify(folder, teacher=f"{place / 'teacher.py'}:embedder", teacher_weights=str(place / "embedder.pt"),
                   dataset=f"arrays:{place}", device="cpu").teacher  # fmt: skip
    assert again is not None
    assert (again.ok, again.column, again.same_top1, again.beyond) == (True, "embedding", None, 0)


def test_what_a_teacher_does_not_say(place: Path, tmp_path: Path) -> None:
    for output, message in (
        ("embeding", r"has no output 'embeding'.*embedding"),
        ("words", r"the output 'words' is list, not floating numbers"),
        ("norm:kind=classes", r"one number a sample has no axis of classes: use kind=values"),
    ):
        with pytest.raises(SoftcacheError, match=message):
            dump(**asked(place, out=tmp_path / "cache", output=(output,)))
    assert not (tmp_path / "cache").exists()


def test_another_kind_or_codec_of_a_column_is_refused(place: Path, whole: Path) -> None:
    before = (whole / "cache.json").read_bytes()
    for output in ("embedding:kind=binary", "embedding:codec=fp32", "tags", "logits:codec=fp32"):
        with pytest.raises(CacheError, match=r"is there as .*, asked for as .*: leave that out"):
            dump(**asked(place, out=whole, output=(output,)))
    assert (whole / "cache.json").read_bytes() == before
    assert dump(**asked(place, out=whole, output=("embedding", "tags:kind=binary"))).keys == 0


def test_info_says_what_is_kept(whole: Path, capfd: pytest.CaptureFixture) -> None:
    assert command("info", whole) == 0
    said = capfd.readouterr().out
    assert f"{CLASSES} classes in fp16, mean KL" in said
    assert f"{WIDTH} values in bf16, relative error" in said
    assert "8×8×8 values in bf16" in said
    assert command("info", whole, "--json") == 0
    columns = json.loads(capfd.readouterr().out)["columns"]
    assert columns["tags"]["error"]["sign_agreement"] == 1
    assert columns["tags"]["error"]["kl_mean_T1"] == 0
    assert columns["embedding"]["error"]["keys"] == 2 * ROWS


def test_losses_that_take_logits_say_so(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "cache"
    dump(**asked(place, out=folder, output=("embedding",)))
    train = ("train", "--student", "cifar:resnet8", "--dataset", f"arrays:{place}", "--cache", folder, "--epochs", 1)
    assert command(*train, "--out", tmp_path / "run") == 1
    assert "has no output 'logits' (it has embedding): add it with: softcache dump" in capfd.readouterr().err
    dump(**asked(place, out=folder, output=("logits:kind=values",)))
    assert command(*train, "--out", tmp_path / "run") == 2
    assert "the teacher's logits are of kind values, the labels of" in capfd.readouterr().err


def test_a_student_learns_from_a_cache_of_hints_alone(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    dump(**asked(place, out=folder, output=("none",), hint=("body.1",)))
    assert command(
        "train", "--student", "cifar:resnet8", "--dataset", f"arrays:{place}", "--cache", folder, "--epochs", 1,
        "--alpha", 0, "--hint", "fitnet:student=layer1,teacher=body.1", "--out", tmp_path / "run", "--device", "cpu",
    ) == 0  # fmt: skip
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["hint_loss"] > 0


def test_a_loop_of_ones_own_reads_any_output(place: Path, whole: Path) -> None:
    keys = Keys(whole, f"arrays:{place}", outputs=["embedding", "tags"], hints=["neck:in"])
    batch = keys.__getitems__([(5, 1), (69, 1), (0, 1)])
    said = online(place, 1)
    assert list(batch.targets) == ["embedding", "tags", "neck:in"]
    assert torch.equal(batch.targets["embedding"], said["embedding"][[5, 69, 0]].bfloat16().float())
    assert torch.equal(batch.targets["tags"], said["tags"][[5, 69, 0]])


def test_a_cache_whose_codec_changed_gets_its_one_file_anew(place: Path, tmp_path: Path) -> None:
    """Codecs are no part of the identity, so that the id alone doesn't say what ``cache.h5`` is over."""
    folder = tmp_path / "cache"
    for codec in ("fp16", "bf16"):
        dump(**asked(place, out=folder, codec=codec))
        with h5py.File(folder / "cache.h5") as file:
            assert file["logits/values"].dtype == {"fp16": np.float16, "bf16": np.uint16}[codec]
        for path in [folder / "cache.json", *folder.rglob("view-*/*.h5")]:
            path.unlink()


OWN = """
from dataclasses import dataclass
import torch

@dataclass(frozen=True)
class Whole:
    def arrays(self, shape):
        return {"values": ("<f4", shape)}

    def encode(self, values):
        return {"values": values.float()}

    def decode(self, arrays):
        return arrays["values"]
"""


def test_a_codec_of_ones_own_beside_others(place: Path, tmp_path: Path) -> None:
    folder, own = tmp_path / "cache", tmp_path / "own.py"
    own.write_text(OWN)
    dump(**asked(place, out=folder, output=(f"logits:codec={own}:Whole", f"norm:codec={own}:Whole")))
    dump(**asked(place, out=folder, output=("embedding",), codec="fp32"))
    codecs = {name: record.codec.partition(" ")[0] for name, record in Cache(folder).manifest.state.columns.items()}
    assert codecs == {"logits": "own.py:Whole", "norm": "own.py:Whole", "embedding": "fp32"}
    said = online(place, 0)
    for name in codecs:
        reader = Cache(folder).column(name)
        assert torch.equal(reader.decode(reader.gather(0, np.arange(ROWS))), said[name])
    with pytest.raises(UsageError, match="are both code: a cache has one codec of your own"):
        dump(**asked(place, out=folder, output=(f"a:codec={own}:Whole", "b:codec=other.py:Whole")))


# ---- What a codec loses, in closed form. ----


class Off:
    """A codec that gives back ``change(values)``."""

    def __init__(self, change: Any):
        self._change = change

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"values": ("<f4", shape)}

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": self._change(values)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        return arrays["values"]


def error(kind: str, values: torch.Tensor, change: Any) -> dict[str, float]:
    measure = CodecError(Column("x", kind, tuple(values.shape[1:]), Off(change), 64))
    measure(values)
    found = measure.result()
    assert found.keys == len(values)
    return found.error


def test_the_error_of_binary_logits_is_the_divergence_of_bernoulli_variables() -> None:
    """p = 1/2 and 3/4 for logits 0 and log 3: KL = ½ log(½ / ¾) + ½ log(½ / ¼) = ½ log(4/3)."""
    found = error("binary", torch.zeros(3, 2), lambda values: values + math.log(3))
    assert found["kl_mean_T1"] == found["kl_p99_T1"] == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert found["sign_agreement"] == 0
    q = 3**0.5 / (1 + 3**0.5)  # at T 2
    assert found["kl_mean_T2"] == pytest.approx(-0.5 * math.log(4 * q * (1 - q)), rel=1e-6)


def test_the_error_of_values_is_relative() -> None:
    found = error("values", torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]), lambda values: 1.1 * values)
    assert found["relative_error_mean"] == pytest.approx(0.2 / 3, rel=1e-5)
    assert found["relative_error_p99"] == pytest.approx(0.1, rel=1e-5)
    assert found["cosine"] == pytest.approx(1)
    turned = error("values", torch.tensor([[3.0, 4.0]]), lambda values: values.flip(1))
    assert turned["cosine"] == pytest.approx(24 / 25)
