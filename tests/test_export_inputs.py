"""Exports of networks whose inputs are no pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from harness_export import answers, code_blocks, loaded, make_trained, without_softcache, write_networks

from softcache.errors import ModelError, UsageError
from softcache.stages.export import export
from softcache.views._open import open_viewed

pytest.importorskip("onnx", reason="needs onnx, of the extra [export]")
pytest.importorskip("onnxscript", reason="needs onnxscript, of the extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the extra [export]")

COMPUTING = ("torch-export", "onnx", "torchscript")
ROWS, CLASSES = 60, 3


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    return write_networks(tmp_path)


@pytest.fixture
def table(tmp_path: Path) -> str:
    folder = tmp_path / "table"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        np.save(folder / f"{split}_features.npy", (5 * rng.normal(size=(ROWS, 5)) + 20).astype(np.float32))
        np.save(folder / f"{split}_labels.npy", np.arange(ROWS) % CLASSES)
    return f"arrays:{folder}"


def ragged(folder: Path, name: str, lengths: np.ndarray, values: np.ndarray) -> str:
    folder.mkdir()
    for split in ("train", "test"):
        np.save(folder / f"{split}_{name}.npy", values)
        np.save(folder / f"{split}_{name}_offsets.npy", np.cumsum([0, *lengths]))
        np.save(folder / f"{split}_labels.npy", np.arange(ROWS) % CLASSES)
    return f"arrays:{folder}"


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Rows of 1 to 19 tokens, one of them empty."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 20, ROWS)
    lengths[ROWS // 2] = 0
    return ragged(tmp_path / "text", "ids", lengths, rng.integers(0, 50, lengths.sum()))


@pytest.fixture
def sounds(tmp_path: Path) -> str:
    rng = np.random.default_rng(3)
    lengths = rng.integers(40, 90, ROWS)
    return ragged(tmp_path / "sounds", "waveform", lengths, (rng.normal(size=lengths.sum()) + 3).astype(np.float32))


@pytest.mark.parametrize("preprocess", [False, True])
def test_a_table(networks: Path, table: str, tmp_path: Path, preprocess: bool) -> None:
    """The code of the card standardizes the features itself where the file doesn't."""
    folder = make_trained(tmp_path / "t", f"{networks}:pair", table)
    names = ("onnx",) if preprocess else ("torch-export", "torchscript", "safetensors")
    made = export(folder, format=names, out=tmp_path / "out", preprocess=preprocess)
    assert made.document["inputs"] == [{"name": "features", "dtype": "float32", "shape": ["batch", 5]}]
    rows = np.arange(7)
    viewed = open_viewed(table, "test")
    wanted = answers(folder, viewed, rows)
    raw = np.load(Path(table.partition(":")[2]) / "test_features.npy")[rows]
    blocks = code_blocks(made.card)
    assert len(blocks) == len(names)
    np.save(tmp_path / "raw.npy", raw)
    code = "found = []\n"
    for block in blocks:
        assert ("mean, std" in block) is not preprocess
        whole = block.replace("np.zeros((1, 5), np.float32)", f"np.load({str(tmp_path / 'raw.npy')!r})")
        code += f"{whole}\nfound.append(np.asarray(logits).tolist())\n"
    for logits in without_softcache(code, made.out, networks.parent):
        np.testing.assert_allclose(logits, wanted, atol=1e-4)


def test_another_output_by_its_name(networks: Path, table: str, tmp_path: Path) -> None:
    folder = make_trained(tmp_path / "t", f"{networks}:pair", table)
    made = export(folder, format="onnx", out=tmp_path / "out", output="embedding", preprocess=True)
    viewed, rows = open_viewed(table, "test"), np.arange(5)
    raw = np.load(Path(table.partition(":")[2]) / "test_features.npy")[rows]
    (found,) = loaded(made.out, {"features": raw}, tmp_path, "embedding")
    np.testing.assert_allclose(found, answers(folder, viewed, rows, "embedding"), atol=1e-4)
    with pytest.raises(ModelError, match="has no output 'nothing'"):
        export(folder, format="onnx", out=tmp_path / "none", output="nothing")


def test_text_of_any_length(networks: Path, text: str, tmp_path: Path) -> None:
    folder = make_trained(tmp_path / "t", f"{networks}:words", text)
    made = export(folder, format=COMPUTING, out=tmp_path / "out")
    assert made.document["inputs"] == [
        {"name": "ids", "dtype": "int64", "shape": ["batch", "length"]},
        {"name": "attention_mask", "dtype": "int64", "shape": ["batch", "length"]},
    ]
    session = onnxruntime.InferenceSession(str(made.out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [one.shape for one in session.get_inputs()] == [["batch", "length"]] * 2
    viewed, rows = open_viewed(text, "test"), np.arange(9)
    given = {name: tensor.numpy() for name, tensor in viewed.clean(rows).named().items()}  # type: ignore[union-attr]
    for found in loaded(made.out, given, tmp_path):
        np.testing.assert_allclose(found, answers(folder, viewed, rows), atol=1e-4)
    with pytest.raises(UsageError, match="whole numbers, which the network takes as they are"):
        export(folder, format="onnx", out=tmp_path / "again", preprocess=True)


@pytest.mark.parametrize("preprocess", [False, True])
def test_sound_of_any_length(networks: Path, sounds: str, tmp_path: Path, preprocess: bool) -> None:
    """A network without a mask gets one where the file standardizes, for what rows are filled up with stays 0."""
    folder = make_trained(tmp_path / "t", f"{networks}:sound", sounds)
    made = export(folder, format=("torch-export", "onnx"), out=tmp_path / "out", preprocess=preprocess)
    names = [one["name"] for one in made.document["inputs"]]
    assert names == (["waveform", "attention_mask"] if preprocess else ["waveform"])
    viewed, rows = open_viewed(sounds, "test"), np.arange(5)
    if preprocess:
        given = {name: tensor.numpy() for name, tensor in viewed.clean(rows).named().items()}  # type: ignore[union-attr]
        for found in loaded(made.out, given, tmp_path):
            np.testing.assert_allclose(found, answers(folder, viewed, rows), atol=1e-4)


def test_a_function_of_arrays_is_no_network(networks: Path, table: str, tmp_path: Path) -> None:
    folder = make_trained(tmp_path / "t", f"{networks}:forest", table)
    with pytest.raises(ModelError, match="a function of arrays and no network: there is nothing to export"):
        export(folder, format="onnx", out=tmp_path / "out")
