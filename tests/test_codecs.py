"""Codecs: what comes back, and that what isn't finite is never stored."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from harness_train import HINTS, command, fit, lines, make_cache, make_teacher, same, weights

from softcache import registry
from softcache.cache.reader import Cache
from softcache.codecs._open import open_codec


@pytest.mark.parametrize("name", registry.names("codecs"))
def test_arrays_are_as_announced(name: str) -> None:
    codec, logits = open_codec(name), torch.randn(7, 25) * 10
    coder = codec.fitted(codec.fit(logits)) if hasattr(codec, "constants") else codec
    coder = codec.shaped((25,)) if hasattr(codec, "shaped") else coder
    announced = {key: (np.dtype(dtype), shape) for key, (dtype, shape) in codec.arrays((25,)).items()}
    encoded = {key: array.numpy() for key, array in coder.encode(logits).items()}
    assert {key: array.shape[1:] for key, array in encoded.items()} == {k: shape for k, (_, shape) in announced.items()}
    for key, array in encoded.items():
        assert array.dtype.itemsize == announced[key][0].itemsize
    decoded = coder.decode({key: torch.from_numpy(array) for key, array in encoded.items()})
    assert decoded.dtype == torch.float32
    assert decoded.shape == logits.shape


@pytest.mark.parametrize(("name", "bits"), [("fp32", 24), ("fp16", 11), ("bf16", 8)])
def test_the_error_is_half_of_the_last_bit(name: str, bits: int) -> None:
    """Rounding to the nearest number of ``bits`` binary digits errs by 2**-bits of it at most."""
    codec, logits = open_codec(name), torch.randn(200, 50) * 30
    error = (codec.decode(codec.encode(logits)) - logits).abs()
    assert bool((error <= logits.abs() * 2.0**-bits + (2.0**-24 if name == "fp16" else 0)).all())
    if name != "fp32":
        assert bool((error > logits.abs() * 2.0 ** -(bits + 1)).any())


def test_bf16_keeps_the_range_of_float32_and_bfloat16_itself() -> None:
    codec = open_codec("bf16")
    logits = torch.tensor([[3e38, -1e-38, 0.0, 65_520.0]])
    assert bool(torch.isfinite(codec.decode(codec.encode(logits))).all())
    said = torch.randn(9, 4).to(torch.bfloat16).float()
    assert torch.equal(codec.decode(codec.encode(said)), said)
    # the bits on disk are the upper half of float32's, which any reader can undo
    bits = codec.encode(said)["values"].numpy().view(np.uint16).astype(np.uint32) << 16
    assert np.array_equal(bits.view(np.float32), said.numpy())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codecs")
    make_teacher(folder / "teacher")
    for codec in ("fp32", "bf16"):
        make_cache(folder / codec, folder / "teacher", codec=codec, hint=HINTS, amp="bf16")
    return folder


def test_a_bf16_teacher_loses_nothing(made: Path, tmp_path: Path) -> None:
    exact, small = (Cache(made / codec) for codec in ("fp32", "bf16"))
    rows = np.arange(exact.rows)
    for view in range(2):
        columns = [cache.column("logits") for cache in (small, exact)]
        ours, theirs = (column.decode(column.gather(view, rows)) for column in columns)
        assert torch.equal(ours, theirs)
    path = small.shard_path(0, "logits", 0)
    with h5py.File(path) as file:
        assert file["values"].dtype == np.uint16
    assert small.manifest.state.columns["logits"].error["kl_mean_T1"] == 0
    for codec in ("fp32", "bf16"):
        for targets, resident in (("matched", "auto"), ("matched", "off"), ("mean", "auto")):
            fit(
                tmp_path / f"{codec}-{targets}-{resident}",
                cache=(str(made / codec),),
                targets=targets,
                resident=resident,
            )
    for way in ("matched-auto", "matched-off", "mean-auto"):
        assert same(weights(tmp_path / f"bf16-{way}"), weights(tmp_path / f"fp32-{way}"))
        assert [line["loss"] for line in lines(tmp_path / f"bf16-{way}")] == [
            line["loss"] for line in lines(tmp_path / f"fp32-{way}")
        ]


def test_such_a_cache_is_verified_and_resumed(made: Path) -> None:
    assert command("-q", "verify", made / "bf16", "--teacher", made / "teacher") == 0
    more = make_cache(made / "bf16", made / "teacher", codec="bf16", hint=HINTS, amp="bf16", views=3)
    assert Cache(more).complete_views() == [0, 1, 2]


WHOLE = """
from dataclasses import dataclass
import torch

@dataclass(frozen=True)
class Whole:
    def arrays(self, shape):
        return {"whole": ("<i4", shape)}

    def encode(self, logits):
        return {"whole": logits.nan_to_num(0, 0, 0).round().to(torch.int32)}

    def decode(self, arrays):
        return arrays["whole"].float()
"""


@pytest.mark.parametrize("codec", ["bf16", "whole.py:Whole"])
def test_what_is_not_finite_is_refused_also_where_whole_numbers_are_stored(
    codec: str, here: Path, small_teacher, capfd: pytest.CaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    (here / "whole.py").write_text(WHOLE)
    teacher = Path(small_teacher("teacher"))
    state = load_file(teacher / "teacher.safetensors")
    state["fc.bias"][3] = float("nan")
    save_file(state, teacher / "teacher.safetensors")
    asked = ("-q", "dump", "--teacher", teacher, "--size", 8, "--views", 1, "--codec", codec, "--out", "cache")
    assert command(*asked) == 1
    assert "row 0 in view 0: the teacher's logits are not finite" in capfd.readouterr().err
    assert not list(Path("cache").rglob("logits*"))
