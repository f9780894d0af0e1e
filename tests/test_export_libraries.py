"""Exports of networks of other libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from harness_export import answers, code_blocks, loaded, make_trained, without_softcache
from safetensors.torch import load_file

from softcache.stages.export import export
from softcache.views._open import open_viewed

pytest.importorskip("onnx", reason="needs onnx, of the extra [export]")
pytest.importorskip("onnxscript", reason="needs onnxscript, of the extra [export]")
pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the extra [export]")

COMPUTING = ("torch-export", "onnx", "torchscript")


@pytest.mark.parametrize("spec", ["squeezenet1_1", pytest.param("timm:test_vit", marks=pytest.mark.torture)])
def test_parameters_go_into_the_architectures_of_other_libraries(spec: str, tmp_path: Path) -> None:
    if spec.startswith("timm:"):
        pytest.importorskip("timm", reason="needs timm, of the extra [timm]")
    folder = make_trained(tmp_path / "t", spec)
    made = export(folder, format="safetensors", out=tmp_path / "out")
    viewed, rows = open_viewed("digits", "test", augment="none"), np.array([0, 11, 300])
    np.save(tmp_path / "pixels.npy", viewed.clean(rows).numpy())
    (block,) = code_blocks(made.card)
    code = block.replace("np.zeros((1, 32, 32, 1), np.uint8)", f"np.load({str(tmp_path / 'pixels.npy')!r})")
    found = without_softcache(f"{code}\nfound = logits.tolist()", made.out)
    np.testing.assert_allclose(found, answers(folder, viewed, rows), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "spec", ["timm:test_vit", *(pytest.param(one, marks=pytest.mark.torture) for one in ("squeezenet1_1", "resnet18"))]
)
def test_networks_of_torchvision_and_timm_in_files_that_compute(spec: str, tmp_path: Path) -> None:
    if spec.startswith("timm:"):
        pytest.importorskip("timm", reason="needs timm, of the extra [timm]")
    folder = make_trained(tmp_path / "t", spec)
    made = export(folder, format=("torch-export", "onnx"), out=tmp_path / "out", preprocess=True)
    for one in made.files:
        assert one.difference.same == 1
        assert one.difference.largest <= one.difference.allowed


def test_a_network_of_transformers(tmp_path: Path) -> None:
    """Tokens of any length; from_pretrained takes the folder with the parameters."""
    from harness_hf import CLASSES as NAMES
    from harness_hf import make_dataset, save_model, save_tokenizer

    source = tmp_path / "bert"
    source.mkdir()
    save_model(source)
    save_tokenizer(source)
    make_dataset().save_to_disk(tmp_path / "data")
    data = f"hf:{tmp_path / 'data'},tokenizer={source}"
    folder = make_trained(tmp_path / "t", f"hf:{source}", data)
    made = export(folder, format=(*COMPUTING, "safetensors"), out=tmp_path / "out")
    assert {one["name"] for one in made.document["inputs"]} >= {"input_ids", "attention_mask"}
    assert all(one["shape"] == ["batch", "length"] for one in made.document["inputs"])
    assert made.document["class_names"] == NAMES
    viewed, rows = open_viewed(data, "test"), np.arange(6)
    given = {name: tensor.numpy() for name, tensor in viewed.clean(rows).named().items()}  # type: ignore[union-attr]
    for found in loaded(made.out, given, tmp_path):
        np.testing.assert_allclose(found, answers(folder, viewed, rows), rtol=1e-4, atol=1e-4)
    state = load_file(made.out / "model.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(folder / "teacher.safetensors").items())
