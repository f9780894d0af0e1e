"""Trained networks in files that other programs run: what they compute, what they say, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import harness_process
import numpy as np
import pytest
import torch
from harness_export import NETWORKS, answers, code_blocks, make_trained, without_softcache, write_networks
from harness_train import command, make_cache
from safetensors import safe_open

import softcache
from softcache.cache.manifest import Manifest
from softcache.cli.train import command as train_command_line
from softcache.errors import ModelError, UsageError
from softcache.exporting._format import format_names
from softcache.extras import install_command
from softcache.stages._export_facts import wilson
from softcache.stages.export import BATCHES, export
from softcache.views._open import open_viewed

pytest.importorskip("onnx", reason="needs onnx, of the extra [export]")
pytest.importorskip("onnxscript", reason="needs onnxscript, of the extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the extra [export]")

COMPUTING = ("torch-export", "onnx", "torchscript")
ROWS = np.array([0, 7, 100, 101, 200])
DEADLY = """
import os, signal


class Deadly(Small):
    def forward(self, x):
        if torch.jit.is_tracing() and os.environ.get("DEADLY"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def deadly(num_classes=10):
    return Deadly(num_classes)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of a user's own, and what a real student learnt in an epoch from a cache of what it said."""
    folder = tmp_path_factory.mktemp("export")
    file = write_networks(folder)
    teacher = make_trained(folder / "teacher", f"{file}:small")
    make_cache(folder / "cache", teacher, size=8)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        softcache.train(f"{file}:small", cache=[str(folder / "cache")], out=folder / "run", epochs=1, workers=0)
    return folder


@pytest.fixture(scope="module")
def made(place: Path) -> Any:
    """All formats, whose inputs are those of the bare network."""
    return export(place / "run", format=format_names(), out=place / "out", license="mit")


@pytest.fixture(scope="module")
def prepared(place: Path) -> Any:
    """All formats that compute, whose inputs are pictures."""
    return export(place / "run", format=COMPUTING, out=place / "prepared", preprocess=True)


def test_what_it_measures_is_within_what_float32_loses(made: Any) -> None:
    assert [one.format for one in made.files] == list(format_names())
    for one in made.files:
        assert one.difference.samples == sum(BATCHES)
        assert one.difference.batches == BATCHES
        assert 1 in BATCHES
        assert one.difference.same == 1
        assert one.difference.largest <= 1e-4 * max(1, one.difference.scale)
        assert one.bytes == one.path.stat().st_size > 0


def test_the_code_of_the_card_runs_without_softcache_on_real_pictures(place: Path, made: Any) -> None:
    viewed = open_viewed("digits", "test", augment="none", size=8)
    np.save(place / "pixels.npy", viewed.clean(ROWS).numpy())
    wanted = answers(place / "run", viewed, ROWS)
    blocks = code_blocks(made.card)
    assert len(blocks) == len(format_names())
    code = "found = []\n"
    for block in blocks:
        assert "np.zeros((1, 8, 8, 1), np.uint8)" in block
        code += block.replace("np.zeros((1, 8, 8, 1), np.uint8)", f"np.load({str(place / 'pixels.npy')!r})")
        code += "\nfound.append(np.asarray(logits).tolist())\n"
    found = without_softcache(code, made.out, place)
    for one in found:
        np.testing.assert_allclose(one, wanted, atol=1e-4)


def test_with_preprocess_pictures_go_in(place: Path, prepared: Any) -> None:
    viewed = open_viewed("digits", "test", augment="none", size=8)
    np.save(place / "pixels.npy", viewed.clean(ROWS).numpy())
    wanted = answers(place / "run", viewed, ROWS)
    code = "found = []\n"
    for block in code_blocks(prepared.card):
        assert "pixels = np.zeros((1, 8, 8, 1), np.uint8)" in block
        code += block.replace("np.zeros((1, 8, 8, 1), np.uint8)", f"np.load({str(place / 'pixels.npy')!r})")
        code += "\nfound.append(np.asarray(logits).tolist())\n"
    for one in without_softcache(code, prepared.out):
        np.testing.assert_allclose(one, wanted, atol=1e-4)


def test_each_file_says_what_it_is(place: Path, made: Any) -> None:
    """Read with the formats' own libraries. JSON values by name."""
    manifest = Manifest.load(place / "cache")
    mean, std = open_viewed("digits", "train").samples.statistics
    with safe_open(made.out / "model.safetensors", "pt") as file:
        header = file.metadata()
    said = {"safetensors": header, "onnx": onnxruntime.InferenceSession(
        str(made.out / "model.onnx"), providers=["CPUExecutionProvider"]
    ).get_modelmeta().custom_metadata_map}  # fmt: skip
    documents = {name: {key: _value(text) for key, text in texts.items()} for name, texts in said.items()}
    for name, suffix in (("torch-export", "pt2"), ("torchscript", "pt")):
        with zipfile.ZipFile(made.out / f"model.{suffix}") as archive:
            inside = next(one for one in archive.namelist() if one.endswith("extra/softcache.json"))
            documents[name] = json.loads(archive.read(inside))
    for document in documents.values():
        assert document["class_names"] == [str(digit) for digit in range(10)]
        assert document["preprocessing"]["mean"] == pytest.approx(list(mean) * 3)
        assert document["preprocessing"]["std"] == pytest.approx(list(std) * 3)
        assert document["preprocessing"]["input_size"] == [8, 8]
        assert document["preprocessing"]["in_the_graph"] is False
        assert document["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
        assert document["model"] == "networks.py:small"
        assert document["softcache"] == softcache.__version__
        assert document["license"] == "mit"
        (teacher,) = document["teachers"]
        assert teacher["cache_id"] == manifest.cache_id
        assert teacher["weights_sha256"] == manifest.identity.teacher.weights
        assert document["dataset"]["fingerprint"] == manifest.identity.dataset.fingerprint
        result = json.loads((place / "run" / "config.json").read_text())["result"]
        assert document["scores"]["test"]["top1"] == result["test_top1"]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_no_file_says_where_it_was_made(place: Path, made: Any, prepared: Any) -> None:
    for path in [*made.out.iterdir(), *prepared.out.iterdir()]:
        content = path.read_bytes()
        for told in (str(place), str(place).encode().hex()):  # modules of users' files have the path in their names
            assert told.encode() not in content, path
        assert str(Path(softcache.__file__).parent).encode() not in content, path
        assert b"site-packages" not in content, path


def test_records_of_torchscript_begin_where_torch_has_them(made: Any) -> None:
    """At multiples of 64 bytes, so that tensors can be mapped; none has the origin of operations."""
    with open(made.out / "model.pt", "rb") as file, zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        assert not any(one.filename.endswith(".debug_pkl") for one in records)
        for one in records:
            file.seek(one.header_offset + 26)
            name, extra = np.frombuffer(file.read(4), "<u2").tolist()
            assert (one.header_offset + 30 + name + extra) % 64 == 0
            assert one.compress_type == zipfile.ZIP_STORED


def test_the_card_has_the_command_that_trains_it_again(place: Path, made: Any) -> None:
    """It is parsed as it stands, with the options that the run has recorded."""
    (line,) = [line for line in made.card.read_text().splitlines() if line.startswith("    softcache train")]
    arguments = shlex.split(line)[2:]
    parsed = train_command_line.make_context("train", arguments).params
    recorded = json.loads((place / "run" / "config.json").read_text())["options"]
    assert parsed["student"] == "networks.py:small"
    assert parsed["cache"] == ("cache",)
    for name in ("epochs", "batch_size", "lr", "optimizer", "weight_decay"):
        assert parsed[name] == recorded[name], name


def test_the_card_says_how_good_it_is_and_its_teacher(place: Path, made: Any) -> None:
    card = made.card.read_text()
    result = json.loads((place / "run" / "config.json").read_text())["result"]
    low, high = wilson(result["test_top1"], 359)
    assert f"{100 * result['test_top1']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f} %" in card
    assert Manifest.load(place / "cache").cache_id in card
    assert card.startswith("---\nlicense: mit\n")


@pytest.mark.parametrize(("share", "count"), [(0.0, 20), (0.5, 7), (0.983, 359), (1.0, 50)])
def test_the_interval_of_wilson_solves_its_equation(share: float, count: int) -> None:
    """Its ends are the shares p from which the found one lies 1.96 standard errors of p away."""
    for p in wilson(share, count):
        assert (share - p) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / count, abs=1e-12)


def test_the_axis_of_a_batch_is_open_and_named(made: Any, prepared: Any) -> None:
    for out, name, shape in ((made.out, "input", [3, 8, 8]), (prepared.out, "pixels", [8, 8, 1])):
        session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
        (given,), (answer,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape) == (name, ["batch", *shape])
        assert (answer.name, answer.shape) == ("logits", ["batch", 10])


def test_opset_is_what_was_asked_for(place: Path, tmp_path: Path) -> None:
    import onnx

    one = export(place / "run", format="onnx", opset=18, out=tmp_path / "a.onnx")
    assert [own.version for own in onnx.load(one.out).opset_import if own.domain == ""] == [18]
    assert one.card is None


def test_softcache_takes_an_exported_file_as_weights(place: Path, made: Any) -> None:
    viewed = open_viewed("digits", "test", augment="none", size=8)
    again = softcache.open_network(
        f"{place / 'networks.py'}:small", classes=10, weights=made.out / "model.safetensors"
    ).eval()
    with torch.no_grad():
        np.testing.assert_array_equal(again(viewed.clean(ROWS)).numpy(), answers(place / "run", viewed, ROWS))


def test_a_network_of_a_larger_input_is_resized_in_the_file_and_by_the_code_of_the_card(
    place: Path, tmp_path: Path
) -> None:
    folder = make_trained(tmp_path / "large", f"{place / 'networks.py'}:small", size=44)
    viewed = open_viewed("digits", "test", augment="none")
    np.save(tmp_path / "pixels.npy", viewed.clean(ROWS).numpy())
    code = "found = []\n"
    for preprocess in (False, True):
        one = export(folder, format="onnx", out=tmp_path / f"out{preprocess}", preprocess=preprocess)
        assert one.document["preprocessing"]["input_size"] == [44, 44]
        (block,) = code_blocks(one.card)
        block = block.replace("np.zeros((1, 32, 32, 1), np.uint8)", f"np.load({str(tmp_path / 'pixels.npy')!r})")
        code += f"{block.replace('model.onnx', f'{one.out}/model.onnx')}\nfound.append(logits.tolist())\n"
    for logits in without_softcache(code, tmp_path):
        np.testing.assert_allclose(logits, answers(folder, viewed, ROWS), atol=1e-4)


def test_a_file_that_computes_something_else_is_refused_and_nothing_is_left(place: Path, tmp_path: Path) -> None:
    """A trace takes the number of samples for a constant; that is found out on other numbers of samples."""
    folder = make_trained(tmp_path / "t", f"{place / 'networks.py'}:sizes")
    out = tmp_path / "into" / "out"
    with pytest.raises(ModelError, match="torchscript computes something else"):
        export(folder, format="torchscript", out=out)
    assert list(out.parent.iterdir()) == []


def test_what_a_killed_export_left_is_removed_by_the_next(place: Path, tmp_path: Path) -> None:
    """The process is killed by the network that it exports, so while it writes."""
    (tmp_path / "deadly.py").write_text(NETWORKS + DEADLY)
    folder = make_trained(tmp_path / "t", f"{tmp_path / 'deadly.py'}:deadly")
    into = tmp_path / "into"
    code = f"import softcache; softcache.export({str(folder)!r}, format='torchscript', out={str(into / 'out')!r})"
    done = harness_process.run([sys.executable, "-c", code], env={**os.environ, "DEADLY": "1"})
    assert done.returncode == -signal.SIGKILL
    (left,) = into.iterdir()
    assert left.name.startswith(".out~")
    export(folder, format="torchscript", out=into / "out")
    assert [path.name for path in into.iterdir()] == ["out"]


def test_a_network_that_looks_at_numbers_is_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    folder = make_trained(tmp_path / "t", f"{place / 'networks.py'}:chooses")
    for name in ("torch-export", "onnx"):
        with pytest.raises(ModelError, match=r"torch\.export can't record .*networks\.py:chooses") as caught:
            export(folder, format=name, out=tmp_path / "out")
        assert "\n" not in str(caught.value)
    export(folder, format="safetensors", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "onnyx"], "no export format is called 'onnyx': did you mean onnx"),
        (["--format", "safetensors", "--preprocess"], "preprocessing can't be in it"),
        (["--format", "safetensors", "--quantize", "int8"], "take onnx or torch-export"),
        (["--format", "torchscript", "--quantize", "int8"], "take onnx or torch-export"),
        (["--format", "torch-export", "--quantize", "int8", "--calibrate", "0"], "take onnx"),
        (["--quantize", "int4"], "there is int8 alone"),
        (["--calibrate", "8"], "--calibrate is of --quantize int8"),
        (["--max-drop", "0.1"], "--max-drop is of --quantize int8"),
        (["--quantize", "int8", "--max-drop", "2"], "must be a share, from 0 to 1"),
        (["--opset", "18"], "--opset is of onnx"),
        (["--format", "onnx", "--opset", "9"], "must be from 18 to"),
        (["--format", "onnx,onnx"], "each once"),
        (["--format", "onnx", "-o", "a.pt2"], "would be a file of torch-export"),
        (["--format", "onnx,torch-export", "-o", "a.onnx"], "are several: name a folder"),
        (["--format", "onnx", "-o", "a.onnx", "--card"], "a card is the README.md of a folder"),
        (["-o", "."], "exists: remove it, or name another place"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    arguments: list[str], said: str, place: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert command("export", place / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert sorted(here.iterdir()) == before


def test_what_is_no_folder_of_a_network_is_refused(here: Path) -> None:
    with pytest.raises(UsageError, match="no folder of a run or a teacher"):
        export("resnet18", out=here / "out")


def test_the_command_prints_what_it_made(place: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("export", place / "run", "--format", "safetensors", "--no-card") == 0
    printed = capsys.readouterr().out
    assert "exports/run/model.safetensors" in printed
    assert "top-1 equal on 100.00 % of 128 samples" in printed
    assert [path.name for path in (here / "exports" / "run").iterdir()] == ["model.safetensors"]
    assert command("export", place / "run", "--format", "safetensors", "-o", "b.safetensors", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == "b.safetensors"
    assert found["files"][0]["bytes"] == (here / "b.safetensors").stat().st_size


def test_a_missing_package_is_told_with_its_extra(
    place: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert command("export", place / "run", "--format", "onnx") == 1
    assert f"--format onnx needs onnxscript: {install_command('export')}" in capsys.readouterr().err
