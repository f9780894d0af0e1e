"""Codecs that are fitted to what the teacher says: once a cache, on keys from everywhere, and never again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from harness_dump import BATCH, DIE_AT_STEP, ROWS, VIEWS, Setting, Warm, shards, temporaries
from harness_ragged import asked, make_place
from harness_train import command

import softcache.dumping.drawn
from softcache.cache.constants import constants_name, constants_sha256
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST, canonical_json
from softcache.codecs._open import open_codec
from softcache.dumping.drawn import drawn_keys
from softcache.errors import CacheError, IntegrityError, NumericsError, UsageError
from softcache.stages.dump import dump
from softcache.stages.verify import verify

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
CODEC = ("--codec", "int8")


@pytest.fixture(scope="module")
def whole(setting: Setting, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logits and hints in ``int8``, in one go."""
    folder = tmp_path_factory.mktemp("constants") / "cache"
    ended = warm.run(setting.command(folder, *CODEC))
    assert ended.status == 0, ended.output
    return folder


@pytest.fixture(scope="module")
def exact(setting: Setting, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in ``fp32``."""
    folder = tmp_path_factory.mktemp("exact") / "cache"
    assert warm.run(setting.command(folder, "--codec", "fp32")).status == 0
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def values_of(folder: Path, column: str, view: int) -> np.ndarray:
    reader = Cache(folder).column(column)
    return reader.decode(reader.gather(view, np.arange(ROWS))).numpy()


def recorded(folder: Path) -> dict[str, str | None]:
    return {name: record.constants for name, record in Cache(folder).manifest.state.columns.items()}


@pytest.mark.parametrize("shape", [(), (5,), (4, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_each_channel_has_the_steps_of_its_own_range(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    axis = 0 if len(shape) == 3 else len(shape) - 1
    scale = np.exp(rng.uniform(-8, 8, shape[axis] if shape else 1)).astype(np.float32)
    spread = [1] * len(shape)
    if shape:
        spread[axis] = shape[axis]
    values = (rng.standard_normal((60, *shape)) * scale.reshape(spread)).astype(np.float32)
    codec = open_codec("int8")
    constants = codec.fit(torch.from_numpy(values))
    assert {name: tuple(array.shape) for name, array in constants.items()} == {
        name: size for name, (_, size) in codec.constants(shape).items()
    }
    coder = codec.fitted(constants)
    error = np.abs(coder.decode(coder.encode(torch.from_numpy(values))).numpy() - values)
    others = tuple(k for k in range(values.ndim) if not shape or k != axis + 1)
    spans = values.max(others) - values.min(others)
    # half of the 255th part of the range, which has become 1/8 larger
    assert bool((error.max(others) <= spans / 255 / 2 * (1 + 1 / 8) * 1.001).all())
    beyond = torch.from_numpy(values) + torch.from_numpy(scale.reshape(spread)) * 100
    assert bool((coder.decode(coder.encode(beyond)).numpy().max(others) <= values.max(others) + spans / 15.9).all())


def test_what_a_relu_gives_keeps_its_zeros_and_what_never_changes_is_exact() -> None:
    values = torch.randn(50, 3).relu()
    values[:, 1] = 0
    values[:, 2] = -3.25
    codec = open_codec("int8")
    coder = codec.fitted(codec.fit(values))
    decoded = coder.decode(coder.encode(values))
    assert torch.equal(decoded[:, 1:], values[:, 1:])
    assert bool((decoded[values == 0] == 0).all())


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_are_the_same_on_every_device(device: str) -> None:
    values = torch.randn(40, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    codec = open_codec("int8")
    coder = codec.fitted(codec.fit(values))
    here, there = coder.encode(values), coder.encode(values.to(device))
    assert torch.equal(here["values"], there["values"].cpu())
    assert torch.equal(coder.decode(here), coder.decode(there).cpu())


def test_a_reader_needs_the_two_files_alone(whole: Path, exact: Path) -> None:
    """h5py and the formula of docs/format.md."""
    columns = Cache(whole).manifest.columns
    assert len(columns) > 1
    for column in columns:
        with h5py.File(whole / constants_name(column)) as file:
            low, step = file["low"][:], file["step"][:]
        for view in range(VIEWS):
            decoded = values_of(whole, column, view)
            found = []
            for number in range(Cache(whole).manifest.shards(column)):
                with h5py.File(Cache(whole).shard_path(view, column, number)) as file:
                    found.append(file["values"][:])
            spread = (-1, 1, 1) if decoded.ndim == 4 else (-1,)
            by_hand = low.reshape(spread) + step.reshape(spread) * np.concatenate(found).astype(np.float32)
            np.testing.assert_array_equal(decoded, by_hand)
            assert np.abs(decoded - values_of(exact, column, view)).max() <= step.max() * 0.51


def test_the_range_is_that_of_all_rows_and_views(whole: Path, exact: Path) -> None:
    """All keys of so few rows are looked at."""
    for column in Cache(whole).manifest.columns:
        every = np.concatenate([values_of(exact, column, view) for view in range(VIEWS)])
        others = tuple(k for k in range(every.ndim) if k != (1 if every.ndim == 4 else every.ndim - 1))
        low, high = every.min(others), every.max(others)
        with h5py.File(whole / constants_name(column)) as file:
            np.testing.assert_allclose(
                file["low"][:], np.where(low == 0, 0, low - (high - low) / 16), rtol=1e-4, atol=1e-5
            )


def test_keys_are_drawn_over_all_rows_and_views() -> None:
    keys = drawn_keys("ab" * 32, 50_000, 8)
    assert keys.shape == (4096, 2)
    assert len(np.unique(keys, axis=0)) == 4096
    assert np.bincount(keys[:, 0], minlength=8).min() > 400  # 512 in the mean
    assert np.bincount(keys[:, 1] // 5000, minlength=10).min() > 300  # 410 in the mean
    assert np.array_equal(keys, drawn_keys("ab" * 32, 50_000, 8))
    assert not np.array_equal(keys, drawn_keys("cd" * 32, 50_000, 8))


def test_large_maps_are_fitted_on_fewer_keys(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(softcache.dumping.drawn, "MOST_BYTES", 4 * 7 * BATCH + 1)  # logits of a batch and a half
    assert command(*setting.command(tmp_path / "cache", *CODEC)) == 0
    said = capfd.readouterr().err
    assert f"logits: the codec is fitted on {2 * BATCH} keys of 3 views" in said
    assert f"hint.body.2: the codec is fitted on {BATCH} keys of 3 views" in said


def test_parts_of_a_dump_share_one_fit(setting: Setting, warm: Warm, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    pids = [warm.start(setting.command(folder, *CODEC, "--part", f"{k}/3")) for k in (1, 2, 3)]
    ended = [warm.wait(pid) for pid in pids]
    assert [end.status for end in ended] == [0] * 3, "\n".join(end.output for end in ended)
    assert sum("the codec is fitted" in end.output for end in ended) == 1
    assert shards(folder) == shards(whole)
    assert recorded(folder) == recorded(whole)


STEPS = (3, 11)  # of some 180: the lock, three files of constants, rows, samples, manifest


@pytest.mark.parametrize(
    "step", [k if k in STEPS else pytest.param(k, marks=pytest.mark.torture) for k in range(1, 60)]
)
def test_killed_before_any_step_equals_undisturbed(
    setting: Setting, warm: Warm, whole: Path, tmp_path: Path, step: int
) -> None:
    folder, asking = tmp_path / "cache", setting.command(tmp_path / "cache", *CODEC)
    for die in (step, 7):
        ended = warm.run(asking, prepare=DIE_AT_STEP.format(step=die))
        assert ended.status in (-9, 0), ended.output
    ended = warm.run(asking)
    assert ended.status == 0, ended.output
    assert shards(folder) == shards(whole)
    assert recorded(folder) == recorded(whole)
    assert temporaries(folder) == []
    found = verify(folder)
    assert found.ok
    assert found.foreign == []
    assert not list(folder.glob(".*lock*"))


def test_a_view_more_is_kept_with_the_same_constants(setting: Setting, warm: Warm, copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.glob("column-*.h5")}
    ended = warm.run(setting.command(copy, "--views", str(VIEWS + 1)))
    assert ended.status == 0, ended.output
    assert "fitted" not in ended.output
    assert {path.name: path.read_bytes() for path in copy.glob("column-*.h5")} == before


def test_a_column_is_added_and_fitted_alone(setting: Setting, warm: Warm, exact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exact, tmp_path / "cache"))
    ended = warm.run(setting.command(folder, "--hint", "body.0:codec=int8"))
    assert ended.status == 0, ended.output
    found = recorded(folder)
    assert [name for name, sha256 in found.items() if sha256] == ["hint.body.0"]
    assert verify(folder).ok


def test_lost_constants_are_made_again_and_damaged_ones_are_found(
    setting: Setting, warm: Warm, copy: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = copy / "column-logits.h5"
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        content[file["step"].id.get_offset()] ^= 1
    path.write_bytes(content)
    found = verify(copy)
    assert [(damage.file, damage.array) for damage in found.damaged] == [("column-logits.h5", "step")]
    with pytest.raises(IntegrityError, match=r"column-logits\.h5 is damaged"):
        Cache(copy).column("logits")
    assert Cache(copy).column("hint.body.2").gather(0, np.arange(3))  # others can be read
    ended = warm.run(setting.command(copy, "--views", str(VIEWS + 1)))
    assert ended.status == 1
    assert "verify" in ended.output
    assert "--repair" in ended.output
    assert command("-q", "verify", copy, "--repair") == 1
    assert not path.exists()
    assert verify(copy).missing == ["column-logits.h5"]
    ended = warm.run(setting.command(copy))
    assert ended.status == 0, ended.output
    assert path.read_bytes() == (whole / path.name).read_bytes()
    assert verify(copy).ok


def test_lost_constants_of_a_cache_that_has_grown_since(setting: Setting, warm: Warm, tmp_path: Path) -> None:
    """They are fitted again on keys of as many views as at first."""
    folder = tmp_path / "cache"
    for views in (1, 2):
        assert warm.run(setting.command(folder, *CODEC, "--views", str(views), base=True)).status == 0
    path = folder / "column-logits.h5"
    before = path.read_bytes()
    path.unlink()
    ended = warm.run(setting.command(folder, "--views", "3", base=True))
    assert ended.status == 0, ended.output
    assert "of 1 view" in ended.output
    assert path.read_bytes() == before
    assert verify(folder).ok
    assert command("-q", "trim", folder, "--views", "1") == 0
    path.unlink()
    assert warm.run(setting.command(folder, base=True)).status == 0
    assert path.read_bytes() == before


def test_a_codec_that_loses_much_says_so(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "far.py").write_text(
        "import numpy as np\n\n\ndef make():\n    def answer(features):\n"
        "        return {'logits': features, 'far': np.where(features > 2.9, 1e4, features)}\n\n    return answer\n"
    )
    np.savez(here / "data.npz", train_features=np.random.default_rng(0).uniform(1, 3, (400, 3)).astype(np.float32))
    asked = ["dump", "--teacher", "far.py:make", "--dataset", f"arrays:{here}/data.npz", "--out", "cache"]
    assert command(*asked, "--output", "logits", "--output", "far:codec=int8", "--device", "cpu") == 0
    said = capfd.readouterr().err
    assert "warning: far: its codec loses" in said
    assert "logits: its codec loses" not in said


def test_other_constants_are_refused_even_with_sound_checksums(copy: Path, setting: Setting, tmp_path: Path) -> None:
    """Those of another cache of the same teacher: the shards would be decoded to other numbers."""
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["state"]["columns"]["logits"]["constants"] = "0" * 64
    _rewrite(copy, manifest)
    assert [damage.what for damage in verify(copy).damaged if damage.file == "column-logits.h5"] == [
        "holds other constants than those that the shards were made with"
    ]
    with pytest.raises(IntegrityError, match="holds other constants"):
        Cache(copy).column("logits")
    (copy / "column-logits.h5").unlink()
    assert command("-q", *setting.command(copy)) == 1


def test_a_teacher_that_gives_others_now_is_refused(
    setting: Setting, warm: Warm, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "column-logits.h5").unlink()
    prepare = (
        "import softcache.codecs.int8 as int8\nfit = int8.Int8.fit\n"
        "int8.Int8.fit = lambda self, values: fit(self, values * 1.5)\n"
    )
    ended = warm.run(setting.command(copy), prepare=prepare)
    assert ended.status == 1
    assert "the constants of logits are lost, and the teacher now gives others" in ended.output
    assert not (copy / "column-logits.h5").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"constants": None, "fitted_views": None}, "the column 'logits' has no constants"),
        ({"codec": "fp16"}, "has constants, of which its codec has none"),
        ({"constants": "abc"}, "columns.constants"),
    ],
)
def test_manifests_that_can_not_be(copy: Path, change: dict[str, str | None], message: str) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["state"]["columns"]["logits"] |= change
    _rewrite(copy, manifest)
    with pytest.raises(CacheError, match=message):
        Cache(copy)


def _rewrite(folder: Path, manifest: dict) -> None:
    import hashlib

    manifest["state_sha256"] = hashlib.sha256(canonical_json(manifest["state"])).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def test_trim_takes_the_constants_of_what_it_drops(copy: Path, setting: Setting, warm: Warm, whole: Path) -> None:
    assert command("-q", "trim", copy, "--drop-output", "logits", "--dry-run") == 0
    assert (copy / "column-logits.h5").exists()
    assert command("-q", "trim", copy, "--drop-output", "logits") == 0
    assert not (copy / "column-logits.h5").exists()
    assert verify(copy).ok
    assert warm.run(setting.command(copy, "--output", "logits:codec=int8")).status == 0
    assert shards(copy) == shards(whole)


def test_places_of_rows_that_have_lengths_of_their_own(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    kept = ("states:codec=int8", "tags:kind=classes:codec=fp32", "logits:codec=int8")
    dump(**asked(place, tmp_path / "small", output=kept))
    dump(**asked(place, tmp_path / "exact", output=("states", "logits"), codec="fp32"))
    for column in ("states", "logits"):
        ours, theirs = (Cache(tmp_path / name).column(column) for name in ("small", "exact"))
        values, wanted = (reader.decode(reader.gather(0, np.arange(ours.cache.rows))) for reader in (ours, theirs))
        step = ours.layout.coder.step
        assert bool(((values - wanted).abs() <= step * 0.51 + 1e-6).all())
    assert verify(tmp_path / "small").ok


OWN = """
from dataclasses import dataclass
import torch

@dataclass(frozen=True)
class Centred:
    digits: int = 2

    def arrays(self, shape):
        return {"rest": ("<i2", shape)}

    def constants(self, shape):
        return {"mean": ("<f8", shape)}

    def fit(self, values):
        return {"mean": values.double().mean(0) WRONG}

    def fitted(self, constants):
        return Ready(constants["mean"], 10 ** self.digits)


class Ready:
    def __init__(self, mean, steps):
        self.mean, self.steps = mean, steps

    def encode(self, values):
        return {"rest": ((values.double() - self.mean) * self.steps).round().to(torch.int16)}

    def decode(self, arrays):
        return (arrays["rest"].double() / self.steps + self.mean).float()
"""


def test_code_of_ones_own_may_be_fitted(setting: Setting, exact: Path, here: Path) -> None:
    (here / "own.py").write_text(OWN.replace("WRONG", ""))
    assert command("-q", *setting.command(here / "cache", "--codec", "own.py:Centred:digits=3")) == 0
    for column in ("logits", "hint.body.2"):
        assert np.abs(values_of(here / "cache", column, 1) - values_of(exact, column, 1)).max() <= 0.00051
    assert verify("cache").ok
    (here / "own.py").write_text(OWN.replace("WRONG", "[None]"))
    with pytest.raises(UsageError, match=r"fit\(\) gave .*, constants\(\) says"):
        open_codec("own.py:Centred").fit(torch.zeros(4, 3))
    for wrong, message in (
        (".numpy() * float('nan')", "fit() gave 'mean' with numbers that are not finite"),
        ("[:2]", "fit() gave"),
    ):
        (here / "own.py").write_text(OWN.replace(" WRONG", wrong))
        with pytest.raises(UsageError, match=re.escape(message)):
            open_codec("own.py:Centred").fit(torch.ones(4, 3))
    (here / "own.py").write_text(OWN.replace(" WRONG", ".bfloat16().requires_grad_()"))
    assert open_codec("own.py:Centred").fit(torch.ones(4, 3))["mean"].tolist() == [1.0] * 3
    (here / "own.py").write_text(OWN.replace(" WRONG", "").replace('{"mean": ("<f8", shape)}', '{"mean": ("<f8", ())}'))
    with pytest.raises(UsageError, match=re.escape("'mean' of shape (): make it (1,)")):
        open_codec("own.py:Centred").constants((3,))
    (here / "own.py").write_text(OWN.replace(" WRONG", "").replace("def decode", "def other"))
    with pytest.raises(UsageError, match=re.escape("fitted() gave Ready without encode or decode")):
        open_codec("own.py:Centred").fit(torch.ones(4, 3))
    (here / "lacks.py").write_text(OWN.replace("def fitted", "def other").replace("WRONG", ""))
    with pytest.raises(UsageError, match="lacks fitted"):
        open_codec("lacks.py:Centred")


def test_a_teacher_that_says_nothing_finite(here: Path, setting: Setting) -> None:
    (here / "bad.py").write_text(
        "def make():\n    return lambda pixels: pixels.reshape(len(pixels), -1)[:, :7] * float('nan')\n"
    )
    np.savez(here / "data.npz", train_images=np.zeros((9, 8, 8), np.uint8))
    with pytest.raises(NumericsError, match="nothing that the teacher says as logits is finite"):
        dump("bad.py:make", dataset=f"arrays:{here}/data.npz", size=8, codec="int8", out=here / "cache", device="cpu")


def test_the_hash_covers_names_shapes_and_numbers() -> None:
    plain = {"low": np.zeros(4, np.float32), "step": np.ones(4, np.float32)}
    changed = [
        {**plain, "low": np.zeros((2, 2), np.float32)},
        {**plain, "low": np.zeros(4, np.float64)},
        {**plain, "step": -plain["step"]},
        {"high": plain["low"], "step": plain["step"]},
    ]
    assert len({constants_sha256(some) for some in (plain, *changed)}) == 5
    assert constants_sha256(dict(reversed(plain.items()))) == constants_sha256(plain)
    assert constants_sha256({name: array.astype(">f4") for name, array in plain.items()}) == constants_sha256(plain)
