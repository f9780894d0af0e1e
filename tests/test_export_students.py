"""Exports of students that were learnt in other ways than from logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from harness_export import answers, code_blocks, without_softcache
from harness_train import FEATURES, HINTS, SIZE, STUDENT, make_cache, make_teacher

from softcache.stages.export import export
from softcache.stages.train import train
from softcache.views._open import open_viewed

pytest.importorskip("onnx", reason="needs onnx, of the extra [export]")
pytest.importorskip("onnxscript", reason="needs onnxscript, of the extra [export]")
pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the extra [export]")


def test_a_student_that_has_learnt_an_embedding_gives_it(tmp_path: Path) -> None:
    make_teacher(tmp_path / "embedder", spec=FEATURES)
    cache = make_cache(tmp_path / "cache", tmp_path / "embedder", output=("embedding",))
    train(FEATURES, cache=[str(cache)], loss="cosine:of=embedding", out=tmp_path / "run", epochs=1, workers=0)
    made = export(tmp_path / "run", format="onnx", out=tmp_path / "out", preprocess=True)
    assert made.document["output"] == {"name": "embedding", "kind": "values"}
    (block,) = code_blocks(made.card or tmp_path)
    code = block.replace(f"np.zeros((1, {SIZE}, {SIZE}, 1), np.uint8)", f"np.load({str(tmp_path / 'pixels.npy')!r})")
    viewed, rows = open_viewed("digits", "test", augment="none", size=SIZE), np.array([3, 50])
    np.save(tmp_path / "pixels.npy", viewed.clean(rows).numpy())
    found = without_softcache(f"{code}\nfound = embedding.tolist()", made.out)
    np.testing.assert_allclose(found, answers(tmp_path / "run", viewed, rows, "embedding"), atol=1e-5)


def test_a_student_that_answers_through_its_teachers_classifier(tmp_path: Path) -> None:
    """It runs in all formats that compute; what is compared on real samples is the whole of it."""
    make_teacher(tmp_path / "teacher")
    cache = make_cache(tmp_path / "cache", tmp_path / "teacher", hint=HINTS)
    train(
        STUDENT,
        cache=[str(cache)],
        hint="simkd:teacher=layer2,student=layer2",
        teacher=str(tmp_path / "teacher"),
        out=tmp_path / "run",
        epochs=1,
        workers=0,
    )
    made = export(tmp_path / "run", format=("torch-export", "onnx", "torchscript", "safetensors"), out=tmp_path / "out")
    assert [one.difference.same for one in made.files] == [1, 1, 1, 1]
