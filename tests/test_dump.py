"""What a dump records of itself, what it takes up again, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from harness_dump import BATCH, HINTS, SHARD_ROWS, Setting, make_setting, shards, times
from PIL import Image

import softcache.models._open
import softcache.models._weights
import softcache.stages._dumping
from softcache import dump, evaluate, teach, train
from softcache.cache.agreement.identity import differing, refuse_other
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.writer import BlockWriter
from softcache.config.dump import DumpConfig
from softcache.config.record import read_record
from softcache.errors import CacheError, ModelError, PixelsError, UsageError
from softcache.inputs import InputField
from softcache.remembered import portable
from softcache.stages.layers import layers

LARGE = ("resnet18", "vit_b_32", "densenet121", "swin_t", "convnext_tiny", "googlenet", "maxvit_t", "inception_v3")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return make_setting(tmp_path / "setting")


def options(setting: Setting, **more: Any) -> dict[str, Any]:
    return {
        "teacher": f"{setting.root / 'teacher.py'}:make",
        "teacher_weights": str(setting.root / "weights.pt"),
        "dataset": f"arrays:{setting.root / 'data.npz'}",
        "device": "cpu",
        **more,
    }


def fresh(setting: Setting, **more: Any) -> dict[str, Any]:
    """For a cache that isn't there yet: with what a later call then takes from it."""
    size = {"size": 8, "batch_size": BATCH, "shard_rows": SHARD_ROWS, "augment": "crop:pad=1+flip", "views": 2}
    return options(setting, **{**size, **more})


def edit_teacher(setting: Setting, old: str, new: str) -> None:
    path = setting.root / "teacher.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_finished_cache_answers_without_its_teacher(setting, tmp_path, monkeypatch):
    dump(**fresh(setting, out=tmp_path / "cache"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}

    def never(*_: Any, **__: Any) -> Any:
        pytest.fail("the teacher was read, hashed or run")

    for module, name in (
        (softcache.stages._dumping, "find_teacher"),
        (softcache.stages._dumping, "Forward"),
        (softcache.models._weights, "fingerprint"),
        (softcache.stages._dumping, "weights_fingerprint"),
        (softcache.models._open, "fit"),
    ):
        monkeypatch.setattr(module, name, never)
    again = dump(**options(setting, out=tmp_path / "cache"))
    assert again.keys == 0
    assert again.teacher_top1 is not None
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")} == before


@pytest.mark.parametrize(
    "spec",
    [
        "mobilenet_v3_small",
        "cifar:wrn_16_1",
        "cifar:vgg8",
        *(pytest.param(n, marks=pytest.mark.torture) for n in LARGE),
    ],
)
def test_the_identity_is_the_same_with_and_without_parameters(tmp_path, spec):
    from softcache.datasets._open import open_samples
    from softcache.dumping.identity import identify, known_identity
    from softcache.models._open import open_network
    from softcache.views._viewed import ViewedDataset

    network = open_network(spec, classes=10, statistics=((0.3,), (0.2,)), seed=0)
    torch.save(network.model.state_dict(), tmp_path / "weights.pt")
    samples = open_samples("digits", "train")
    viewed = ViewedDataset(samples)
    numerics, weights = DumpConfig(amp="off").settled(None).numerics("cpu"), str(tmp_path / "weights.pt")

    def known() -> Any:
        given = {"normalize": None, "size": None, "full": False, "batch": 64, "block_rows": None, "bucket": False}
        return known_identity(viewed, spec, weights, numerics, **given)

    assert known() is None, "nothing is known of a file that nobody has read"
    real = open_network(spec, classes=10, statistics=samples.statistics, weights=str(tmp_path / "weights.pt"))
    sha256 = softcache.models._weights.fingerprint_file_cached(tmp_path / "weights.pt")
    wanted = identify(real, sha256, samples.fingerprint(), viewed, numerics, batch=64, block_rows=None)
    assert known() == wanted


def test_other_weights_of_the_same_size_and_time_are_noticed(setting, tmp_path):
    dump(**fresh(setting, out=tmp_path / "cache"))
    path = setting.root / "weights.pt"
    state, before = torch.load(path), path.stat()
    state["head.bias"] = state["head.bias"] + 1
    torch.save(state, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(CacheError, match=r"teacher\.weights: .* there, .* now\): match the same weights or use"):
        dump(**options(setting, out=tmp_path / "cache"))


def test_the_identity_does_not_depend_on_where_things_lie(setting, tmp_path):
    first = dump(**fresh(setting, out=tmp_path / "cache"))
    shutil.copytree(setting.root, tmp_path / "elsewhere" / "deep")
    other = Setting(tmp_path / "elsewhere" / "deep")
    second = dump(**fresh(other, out=tmp_path / "second"))
    assert first.info["cache_id"] == second.info["cache_id"]
    assert shards(first.folder) == shards(second.folder)
    assert dump(**options(other, out=tmp_path / "cache")).keys == 0
    assert str(setting.root) not in str(dataclasses.asdict(Cache(first.folder).manifest.identity))
    made = Cache(first.folder).manifest.state.made
    assert made["dataset"] == f"arrays:{setting.root / 'data.npz'}"
    assert made["teacher"] == f"{setting.root / 'teacher.py'}:make"


def test_the_fingerprint_of_a_folder_is_kept_until_the_folder_changes(tmp_path, monkeypatch):
    import softcache.datasets._index as index
    from softcache.datasets._open import open_samples

    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(np.full((9, 9, 3), 40 * k, np.uint8)).save(root / "train" / name / f"{k}.png")

    def samples():
        return open_samples(f"folder:{root}", "train")

    index.keep_fingerprint(samples(), "just now")
    assert index.known_fingerprint(samples()) is None, "what has changed just now may change again unseen"
    monkeypatch.setattr(index, "SETTLED_S", -3600.0)
    for change in (
        lambda: (root / "train" / "cat" / "1.png").write_bytes(b"longer than it was, and among those that are asked"),
        lambda: (root / "train" / "cat" / "0.png").unlink(),
        lambda: shutil.copy(root / "train" / "dog" / "1.png", root / "train" / "dog" / "7.png"),
        lambda: (root / "train" / "dog" / "1.png").rename(root / "train" / "cat" / "8.png"),
        lambda: os.replace(shutil.copy(root / "train" / "dog" / "2.png", root / "x"), root / "train" / "dog" / "0.png"),
    ):
        index.keep_fingerprint(samples(), "kept")
        assert index.known_fingerprint(samples()) == "kept"
        change()
        assert index.known_fingerprint(samples()) is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("resnet50", "resnet50"),
        ("cifar:resnet8", "cifar:resnet8"),
        ("folder:/data/pets", "folder:pets"),
        ("arrays:/d/x.npz", "arrays:x.npz"),
        ("/home/me/net.py:make", "net.py:make"),
        ("timm:hf_hub:timm/a", "timm:hf_hub:timm/a"),
        ("python:/home/me/data.py:make", "data.py:make"),
        ("python:package.module:make", "python:package.module:make"),
    ],
)
def test_portable(spec, expected):
    assert portable(spec) == expected


@pytest.mark.parametrize(
    ("first", "field"),
    [({"dtype": "float64"}, "dtype"), ({"amp": "bf16"}, "amp"), ({"tf32": True}, "tf32"),
     ({"channels_last": True}, "memory_format"), ({"batch_size": 5}, "batch"), ({"compile": True}, "compile")],
)  # fmt: skip
def test_a_resume_takes_the_recorded_numerics_and_refuses_others(setting, tmp_path, first, field, monkeypatch):
    if field == "compile":  # takes a compiler and half a minute
        monkeypatch.setattr(torch, "compile", lambda network: network)
    folder, other = tmp_path / "cache", {"batch_size": BATCH}.get(next(iter(first)))
    whole = dump(**fresh(setting, out=folder, **first))
    expected = shards(folder)
    (folder / "view-0001" / "logits-00002.h5").unlink()
    again = dump(**options(setting, out=folder))
    assert again.keys == SHARD_ROWS
    assert shards(folder) == expected
    assert again.info["cache_id"] == whole.info["cache_id"]
    defaults = {"dtype": "float32", "amp": "off", "tf32": False, "channels_last": False, "compile": False}
    name = next(iter(first))
    where = "grid" if field == "batch" else r"teacher\.numerics"
    with pytest.raises(CacheError, match=rf"{where}\.{field}: .* there, .* now\): match --"):
        dump(**options(setting, out=folder, **{name: defaults.get(name, other)}))


def test_codec_recipe_seed_and_size_are_taken_up_too(setting, tmp_path):
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder, codec="fp32", view_seed=9, views=1))
    more = dump(**options(setting, out=folder, views=2))
    assert more.keys == 300
    assert (more.info["columns"]["logits"]["codec"], more.info["view_seed"], more.info["size"]) == ("fp32", 9, 8)
    with pytest.raises(CacheError, match=r"recipe\.seed: 9 there, 8 now\): match --view-seed or use another --out"):
        dump(**options(setting, out=folder, view_seed=8))


def test_another_kind_of_device_is_refused(setting, tmp_path):
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder))
    manifest = Manifest.load(folder)
    numerics = dataclasses.replace(manifest.identity.teacher.numerics, device="cuda")
    teacher = dataclasses.replace(manifest.identity.teacher, numerics=numerics)
    Manifest(dataclasses.replace(manifest.identity, teacher=teacher), manifest.state).save(folder)
    with pytest.raises(UsageError, match=r"computed on cuda, this would be on cpu, .* pass --device cuda, or another"):
        dump(**options(setting, out=folder))


def test_differing_fields_stand_side_by_side(setting, tmp_path):
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder))
    found = Cache(folder).manifest.identity
    refuse_other(found, found, folder)
    with pytest.raises(CacheError) as caught:
        dump(**options(setting, out=folder, batch_size=5, view_seed=1, amp="bf16"))
    assert str(caught.value).splitlines() == [
        f"{folder} is a cache of something else:",
        "  field                 there  now",
        "  teacher.numerics.amp  off    bf16",
        "  recipe.seed           0      1",
        "  grid.batch            8      5",
        "match --amp, --view-seed, --batch-size or use another --out",
    ]
    inputs = {"pixels": InputField("uint8", [8, 8, 3])}
    dataset = dataclasses.replace(found.dataset, fingerprint="a" * 63 + "b")
    other = dataclasses.replace(dataset, inputs=inputs, fingerprint="a" * 63 + "c")
    shown = differing(dataclasses.replace(found, dataset=dataset), dataclasses.replace(found, dataset=other))
    assert shown["dataset.inputs.pixels.shape"] == ("[2] 1", "[2] 3")
    assert shown["dataset.fingerprint"] == ("…aaaaaaaab", "…aaaaaaaac")


def test_a_new_hint_leaves_the_logits_alone(setting, tmp_path):
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder))
    before = times(folder)
    done = dump(**options(setting, out=folder, hint=(HINTS[0],)))
    assert done.keys == 600
    after = times(folder)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)
    cache = Cache(folder)
    for view in range(2):
        logits, hint = (cache.column(c).gather(view, np.arange(300)) for c in ("logits", f"hint.{HINTS[0]}"))
        assert np.array_equal(logits["digest"], hint["digest"])
    both = dump(**fresh(setting, out=tmp_path / "both", hint=(HINTS[0],)))
    assert shards(folder) == shards(both.folder)
    with pytest.raises(CacheError, match=r"hint\.body\.2 is there as values in fp16, asked for as values in fp32"):
        dump(**options(setting, out=folder, hint=(f"{HINTS[0]}:codec=fp32",)))


def test_only_what_is_missing_is_computed(setting, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder, hint=HINTS))
    expected = shards(folder)
    log = tmp_path / "forwards"
    monkeypatch.setenv("FORWARDS", str(log))
    for name in ("view-0000/hint.body.2-00001.h5", "view-0001/logits-00004.h5", "rows.h5"):
        (folder / name).unlink()
    kept = times(folder)
    assert dump(**options(setting, out=folder)).keys == SHARD_ROWS + 300 - 4 * SHARD_ROWS
    assert shards(folder) == expected
    assert {name: times(folder)[name] for name in kept} == kept
    assert log.stat().st_size == SHARD_ROWS // BATCH + -(-(300 - 4 * SHARD_ROWS) // BATCH) + 1  # one is compared


@pytest.mark.parametrize("more", [{"hint": (HINTS[0],)}, {"views": 3}], ids=["hint", "views"])
def test_a_teacher_that_says_something_else_is_not_mixed_in(setting, tmp_path, more):
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder))
    before = times(folder)
    edit_teacher(setting, "self.head(self.body(x))", "self.head(self.body(x).tanh())")
    with pytest.raises(CacheError, match=r"the teacher now says something else than .* has recorded"):
        dump(**options(setting, out=folder, **more))
    assert times(folder) == before


def test_last_bits_may_differ_and_are_reported(setting, tmp_path, capsys):
    """As on another machine: reported, and not refused."""
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder, codec="fp32"))
    edit_teacher(setting, "self.head(self.body(x))", "self.head(self.body(x)) * (1 + 2**-20)")
    dump(**options(setting, out=folder, hint=(HINTS[0],)))
    assert capsys.readouterr().err.count("differ from the recorded ones in their last bits") == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux lists them")
def test_open_files_do_not_grow_with_the_shards_that_are_compared(setting, tmp_path, monkeypatch):
    folder, opened, write = tmp_path / "cache", [], BlockWriter.write
    dump(**fresh(setting, out=folder))

    def counted(self: BlockWriter, first: int, columns: dict, logits: torch.Tensor | None) -> None:
        write(self, first, columns, logits)
        opened.append(len(os.listdir("/proc/self/fd")))

    monkeypatch.setattr(BlockWriter, "write", counted)
    dump(**options(setting, out=folder, hint=HINTS))
    blocks = 2 * -(-300 // SHARD_ROWS)
    assert len(opened) > blocks
    assert max(opened) < opened[0] + blocks


def test_a_hint_whose_pixels_are_others_is_refused(setting, tmp_path, monkeypatch):
    """The kept samples show it at once; a digest does where those are the same."""
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder))
    before = times(folder)
    views = softcache.views._viewed.ViewedDataset
    original = views._views

    def changed(self: Any, rows: Any, wanted: Any) -> Any:
        found = original(self, rows, wanted)
        for images in found:
            images[rows == 139] ^= 1
        return found

    monkeypatch.setattr(views, "_views", changed)
    with pytest.raises(PixelsError, match="row 139 in view 0 has other pixels than logits was computed from"):
        dump(**options(setting, out=folder, hint=(HINTS[0],)))
    monkeypatch.setattr(views, "_views", lambda *a: [images ^ 1 for images in original(*a)])
    with pytest.raises(PixelsError, match="row 0 in view 0 has other pixels than the teacher saw"):
        dump(**options(setting, out=folder, hint=(HINTS[0],)))
    assert {name: times(folder)[name] for name in before} == before


def test_what_is_known_of_a_cache_stays_right_when_it_grows(setting, tmp_path):
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder, views=1))
    first = Cache(folder).manifest.state
    labels = np.load(setting.root / "data.npz")["train_labels"]
    logits = Cache(folder).column("logits").gather(0, np.arange(300))["values"]
    assert first.teacher_top1 == pytest.approx(float((logits.argmax(1) == labels).mean()))
    assert first.columns["logits"].error["keys"] == 300
    dump(**options(setting, out=folder, views=3, hint=(HINTS[1],)))
    grown = Cache(folder).manifest.state
    assert grown.teacher_top1 == first.teacher_top1
    assert grown.columns["logits"].error["keys"] == 900
    assert 0 <= grown.columns["logits"].error["kl_mean_T1"] < 1e-6
    with h5py.File(folder / "cache.h5") as file:
        assert file["logits/values"].shape == (3, 300, 7)
        assert file["hint.head:in/values"].shape == (3, 300, 54)
        assert np.array_equal(file["logits/values"][0], logits)


def test_a_folder_that_lost_its_manifest(setting, tmp_path):
    """Shards of this very cache are taken up, those of another are not."""
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder))
    expected, before = shards(folder), times(folder)
    (folder / "cache.json").unlink()
    dump(**fresh(setting, out=folder))
    assert shards(folder) == expected
    assert times(folder) == before
    (folder / "cache.json").unlink()
    with pytest.raises(CacheError, match=r"has no cache\.json, but shards of another cache \(view-0000"):
        dump(**fresh(setting, out=folder, batch_size=5))
    with pytest.raises(CacheError, match=r"but shards of logits in another codec, shape or size \(view-0000"):
        dump(**fresh(setting, out=folder, codec="fp32"))
    dump(**fresh(setting, out=folder))
    assert times(folder) == before


def test_no_file_of_a_cache_reaches_the_hdf5_library(setting, tmp_path, monkeypatch):
    """It may come from a stranger, and the library is a large parser in C: docs/trust.md."""
    folder, opened = tmp_path / "cache", h5py.File
    dump(**fresh(setting, out=folder))

    def in_memory_only(place: Any, *more: Any, **options: Any) -> Any:
        assert not isinstance(place, (str, bytes, os.PathLike)), place
        return opened(place, *more, **options)

    monkeypatch.setattr(h5py, "File", in_memory_only)
    before = (folder / "cache.h5").stat().st_mtime_ns
    assert dump(**options(setting, out=folder)).keys == 0
    assert (folder / "cache.h5").stat().st_mtime_ns == before
    assert dump(**options(setting, out=folder, hint=(HINTS[0],))).keys == 600
    (folder / "cache.json").unlink()
    assert dump(**fresh(setting, out=folder)).keys == 0


def test_a_file_over_all_shards_that_is_not_ours_is_written_again(setting, tmp_path):
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder))
    place, whole = folder / "cache.h5", (folder / "cache.h5").read_bytes()
    os.mkfifo(tmp_path / "pipe")
    time.sleep(1.1)  # HDF5's times are whole seconds: the file must not depend on them
    for other in (b"", b"\x89HDF\r\n\x1a\n" * 20, whole[:200], whole[:-1], None):
        place.unlink()
        if other is None:
            place.symlink_to(tmp_path / "pipe")  # reading it would wait for a writer
        else:
            place.write_bytes(other)
        assert dump(**options(setting, out=folder)).keys == 0
        assert place.read_bytes() == whole
        assert not place.is_symlink()


def test_a_folder_without_a_manifest_whose_shards_cannot_be_read(setting, tmp_path):
    folder = tmp_path / "cache"
    dump(**fresh(setting, out=folder))
    (folder / "cache.json").unlink()
    shard = folder / "view-0001" / "logits-00002.h5"
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(CacheError, match=r"has no cache\.json, and .*logits-00002\.h5 is no regular file: remove"):
        dump(**fresh(setting, out=folder))
    shard.unlink()
    shard.write_bytes(b"nothing")
    with pytest.raises(CacheError, match=r"has no cache\.json, and .*logits-00002\.h5 is no HDF5 file: remove"):
        dump(**fresh(setting, out=folder))


@pytest.mark.parametrize("there", [False, True], ids=["new", "extension"])
def test_a_dry_run_writes_nothing(setting, tmp_path, there, monkeypatch):
    folder = tmp_path / "cache"
    if there:
        dump(**fresh(setting, out=folder))
    monkeypatch.setenv("SOFTCACHE_CACHE", str(tmp_path / "own" / "cache"))
    monkeypatch.setenv("SOFTCACHE_STATE", str(tmp_path / "own" / "state"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = dump(**fresh(setting, out=folder, views=5, hint=(HINTS[0],)), dry_run=True).estimate
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert found is not None
    assert (found.keys, found.missing) == (1500, 1500)
    assert found.bytes_per_key == {"logits": 7 * 2 + 4, "hint.body.2": 6 * 3 * 3 * 2 + 4}
    assert min(found.seconds, found.pixels_per_second, found.teacher_per_second) > 0
    assert found.keys_per_second <= min(found.pixels_per_second, found.teacher_per_second)
    assert (found.needed < found.total) == there


def test_options_that_can_not_be(setting, tmp_path):
    for wrong, message in (
        ({"amp": "bf61"}, r"--amp 'bf61' is unknown: did you mean bf16"),
        ({"dtype": "float61"}, "--dtype 'float61' is unknown"),
        ({"hint": ("layer3:kind=classes",)}, "activations are values"),
        ({"output": ("logits:kind=class",)}, "kind 'class' is unknown"),
        ({"output": ("none", "logits")}, "--output none keeps no output, and others are asked for"),
        ({"output": ("none",)}, "there would be nothing to keep"),
        ({"output": ("a b",)}, "'a b' can't be the name of an output"),
        ({"output": ("x:codec=fp16", "x")}, "--output x:kind=values is asked for twice"),
        ({"fingerprint": "slow"}, "--fingerprint 'slow' is unknown"),
        ({"part": (5, 4)}, "--part 5/4: the first number must be 1 … 4"),
        ({"compile": True, "hint": ("body.2",)}, "--compile can't be used with --hint"),
    ):
        with pytest.raises(UsageError, match=message):
            dump(**fresh(setting, out=tmp_path / "cache", **wrong))
    assert not (tmp_path / "cache").exists()


def test_a_teachers_own_data_is_the_default(here: Path, colour_arrays: str) -> None:
    """Otherwise a teacher of one dataset would answer about another, without a word if it has as many classes."""
    taught = teach("cifar:resnet8", dataset=colour_arrays, size=9, epochs=1)
    made = dump(str(taught.folder), views=1)
    assert (made.info["dataset"], made.info["rows"], made.info["size"]) == ("arrays:colours", 150, 9)
    assert dump(taught.folder.name, views=1).folder == made.folder
    live = train("cifar:resnet8", online=True, teacher=str(taught.folder), views=1, epochs=1)
    assert read_record(live.folder).options.dataset == colour_arrays
    assert evaluate(str(taught.folder))["samples"] == 40
    assert layers(taught.folder.name)[0]["shape"] == layers("cifar:resnet8", dataset=colour_arrays)[0]["shape"]
    with pytest.raises(ModelError, match="5 classes"):
        dump(str(taught.folder), dataset="digits", out="other")
