"""Exports in numbers of 8 bits: what is int8 in them, and what they lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from harness_export import answers, code_blocks, make_trained, without_softcache, write_networks

from softcache.errors import ModelError
from softcache.stages.eval import evaluate
from softcache.stages.export import export
from softcache.views._open import open_viewed

onnx = pytest.importorskip("onnx", reason="needs onnx, of the extra [export]")
pytest.importorskip("onnxscript", reason="needs onnxscript, of the extra [export]")
pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the extra [export]")
pytest.importorskip("torchao", reason="needs torchao, of the extra [export]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    return make_trained(folder / "t", f"{write_networks(folder)}:small")


@pytest.mark.parametrize(("name", "preprocess"), [("torch-export", False), ("onnx", True), ("onnx", False)])
def test_static_int8_in_a_process_without_softcache(trained: Path, tmp_path: Path, name: str, preprocess: bool) -> None:
    made = export(
        trained, format=name, out=tmp_path / "out", quantize="int8", calibrate=64, max_drop=0.2, preprocess=preprocess
    )
    (one,) = made.files
    assert made.document["numbers"] == "int8, static"
    viewed, rows = open_viewed("digits", "test", augment="none"), np.arange(0, 300, 3)
    wanted = answers(trained, viewed, rows)
    assert one.before is not None
    assert one.after is not None
    assert one.before["top1"] == evaluate(str(trained), device="cpu")["top1"]
    np.save(tmp_path / "pixels.npy", viewed.clean(rows).numpy())
    (block,) = code_blocks(made.card)
    code = block.replace("np.zeros((1, 32, 32, 1), np.uint8)", f"np.load({str(tmp_path / 'pixels.npy')!r})")
    found = np.array(without_softcache(f"{code}\nfound = np.asarray(logits).tolist()", made.out))
    # Rounded, and not by more than one part in ten of what the logits span.
    assert 0 < np.abs(found - wanted).max() < 0.1 * np.ptp(wanted)


def test_all_weights_of_layers_are_int8(trained: Path, tmp_path: Path) -> None:
    """As many numbers as the convolutions and the linear layer have: 3·8·9 + 8·8·9 and 8·10."""
    weights = [3 * 8 * 9, 8 * 8 * 9, 8 * 10]
    whole = export(
        trained, format=("torch-export", "onnx"), out=tmp_path / "out", quantize="int8", calibrate=32, max_drop=1
    )
    model = onnx.load(whole.out / "model.onnx")
    held = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer]
    assert sorted(a.size for a in held if a.dtype == np.int8 and a.ndim > 1) == sorted(weights)
    program = torch.export.load(whole.out / "model.pt2")
    tensors = [*program.state_dict.values(), *program.constants.values()]
    int8 = [t.numel() for t in tensors if isinstance(t, torch.Tensor) and t.dtype == torch.int8 and t.ndim > 1]
    assert sorted(int8) == sorted(weights)


def test_weights_in_float32_are_not_kept_beside_those_of_int8(trained: Path, tmp_path: Path) -> None:
    made = export(trained, format="torch-export", out=tmp_path / "x.pt2", quantize="int8", calibrate=64)
    program = torch.export.load(made.out)
    matrices = [tensor for tensor in program.state_dict.values() if tensor.dim() > 1]
    assert matrices
    assert {tensor.dtype for tensor in matrices} == {torch.int8}


def test_dynamic_int8_of_linear_layers_needs_no_rows(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        np.save(folder / f"{split}_features.npy", rng.normal(size=(90, 5)).astype(np.float32))
        np.save(folder / f"{split}_labels.npy", np.arange(90) % 3)
    trained = make_trained(tmp_path / "t", f"{write_networks(tmp_path)}:pair", f"arrays:{folder}")
    made = export(
        trained, format="onnx", out=tmp_path / "a.onnx", quantize="int8", calibrate=0, max_drop=0.2, preprocess=True
    )
    assert made.document["numbers"] == "int8, dynamic"
    model = onnx.load(made.out)
    held = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer]
    assert sorted(a.size for a in held if a.dtype == np.int8 and a.ndim > 1) == [16 * 3, 5 * 16]
    assert made.files[0].difference.largest > 0


def test_a_loss_of_accuracy_beyond_what_is_allowed_is_refused(tmp_path: Path) -> None:
    """The label is the largest of three features, and the weights are 1 for it. Beside them each output has a weight
    of 10,000 for a feature that is always 0: in steps of 10,000 / 127 a weight of 1 is 0, and all answers are alike."""
    data, out = tmp_path / "table", tmp_path / "into" / "out"
    data.mkdir()
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        features = rng.normal(size=(300, 5)).astype(np.float32)
        features[:, 4] = 0
        np.save(data / f"{split}_features.npy", features)
        np.save(data / f"{split}_labels.npy", features[:, :3].argmax(1))
    folder = make_trained(tmp_path / "t", f"{write_networks(tmp_path)}:coarse", f"arrays:{data}")
    for name in ("onnx", "torch-export"):
        with pytest.raises(ModelError, match=rf"{name} in int8 loses [56]\d\.\d\d points of the top1 on the test"):
            export(folder, format=name, out=out, quantize="int8", calibrate=32)
        assert list(out.parent.iterdir()) == []
