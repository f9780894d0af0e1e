"""The manifest: its id and checksums are those that docs/format.md defines, and nothing else is believed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_cache import write_shard
from harness_damage import small_cache

from softcache.cache.manifest import Manifest, parse, render
from softcache.cache.reader import Cache
from softcache.cache.schema import MAX_MANIFEST_BYTES, canonical_json
from softcache.cli._main import run
from softcache.config.given import recorded_dataset, recorded_recipe, recorded_teacher
from softcache.errors import CacheError, IntegrityError, NotNamedError, SoftcacheError, UsageError
from softcache.stages.train import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_cache(tmp_path / "cache").folder


def _document(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cache.json").read_bytes())


def _sign(folder: Path, document: dict[str, Any]) -> Path:
    """Writes a manifest with the checksums that its content asks for, as anybody can."""
    document["cache_id"] = hashlib.sha256(_canonical(document["identity"])).hexdigest()
    document["state_sha256"] = hashlib.sha256(_canonical(document["state"])).hexdigest()
    (folder / "cache.json").write_text(json.dumps(document))
    return folder


def _canonical(value: Any) -> bytes:
    """As docs/format.md says: names sorted, no spaces, UTF-8."""
    if isinstance(value, dict):
        items = sorted(value.items())
        return b"{" + b",".join(_canonical(k) + b":" + _canonical(v) for k, v in items) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(_canonical, value)) + b"]"
    return json.dumps(value, ensure_ascii=False).encode()


def test_canonical_json() -> None:
    value = {"b": [1, 2.5, 1e-07, True, None], "a": {"é": "x\n", "B": ""}}
    assert canonical_json(value) == b'{"a":{"B":"","\xc3\xa9":"x\\n"},"b":[1,2.5,1e-07,true,null]}'
    assert canonical_json(value) == _canonical(value)


def test_ids_are_what_the_specification_says(folder: Path) -> None:
    document = _document(folder)
    assert document["softcache"] == 2
    assert document["cache_id"] == hashlib.sha256(_canonical(document["identity"])).hexdigest()
    assert document["state_sha256"] == hashlib.sha256(_canonical(document["state"])).hexdigest()
    assert (folder / "cache.json").read_bytes() == render(document)


def test_signing_in_a_test_gives_a_cache_that_reads(folder: Path) -> None:
    """So that the refusals below come from the values, not from the checksums."""
    assert Cache(_sign(folder, _document(folder))).column("logits").gather(0, np.arange(3))["digest"].shape == (3,)


BYTES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "Expecting value"),
    "no JSON": (b"hello", "Expecting value"),
    "no object": (b"[1]", "not a softcache manifest"),
    "of another program": (b'{"name": 1}', "not a softcache manifest"),
    "not UTF-8": (b'{"softcache": "\xff"}', "can't decode byte 0xff"),
    "UTF-16": ('{"softcache": 1}'.encode("utf-16"), "can't decode"),
    "byte order mark": (b'\xef\xbb\xbf{"softcache": 1}', "BOM"),
    "NaN": (b'{"softcache": NaN}', "NaN is not a number"),
    "infinity": (b'{"softcache": -Infinity}', "-Infinity is not a number"),
    "a name twice": (b'{"softcache": 1, "softcache": 1}', "twice"),
    "deep": (b'{"softcache": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", "recursion|nested|Recursion"),
    "a little too deep": (b'{"softcache": ' + b"[" * 100 + b"]" * 100 + b"}", "nested more than 100 levels"),
    "endless number": (b'{"softcache": ' + b"9" * 100_000 + b"}", "a number of 100000 digits"),
    "the first format": (b'{"softcache": 1}', "has format 1, this softcache reads format 2"),
    "a later format": (b'{"softcache": 3}', "reads format 2"),
    "version as text": (b'{"softcache": "2"}', "reads format 2"),
    "fields missing": (b'{"softcache": 2}', "wrong fields"),
    "too large": (b" " * (MAX_MANIFEST_BYTES + 1), "too large"),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_manifest(name: str, folder: Path) -> None:
    text, message = BYTES[name]
    (folder / "cache.json").write_bytes(text)
    with pytest.raises(CacheError, match=message) as caught:
        Cache(folder)
    assert len(str(caught.value)) < 400 + len(str(folder))


def test_a_lone_surrogate_is_refused(folder: Path) -> None:
    text = (folder / "cache.json").read_bytes().replace(b'"made": {}', b'"made": {"x": "\\ud800"}')
    (folder / "cache.json").write_bytes(text)
    with pytest.raises(IntegrityError, match="surrogates"):
        Cache(folder)


def test_a_number_beyond_every_float_is_refused(folder: Path) -> None:
    text = (folder / "cache.json").read_bytes().replace(b'"teacher_top1": null', b'"teacher_top1": 1e999')
    (folder / "cache.json").write_bytes(text)
    with pytest.raises(IntegrityError, match=r"Out of range float|JSON compliant"):
        Cache(folder)


def _at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *parents, key = path.split(".")
        node = document
        for parent in parents:
            node = node[parent]
        node[key] = value

    return change


COLUMN = {
    "kind": "values", "shape": [1], "codec": "fp16", "shard_rows": 16, "lengths": None, "stride": 1, "error": {},
}  # fmt: skip
VALUES: list[tuple[str, Any]] = [
    ("identity.format", 1),
    ("identity.grid.block_rows", 17),
    ("identity.grid.block_rows", 0),
    ("identity.grid.block_rows", 2**31),
    ("identity.grid.block_rows", 8),  # less than a shard has
    ("identity.grid.block_rows", True),
    ("identity.grid.block_rows", 16.0),
    ("identity.dataset.rows", -1),
    ("identity.dataset.rows", 2**39),  # 2**35 shards: their names alone would take hours
    ("identity.dataset.inputs", {}),
    ("identity.dataset.inputs", {"ids": {"dtype": "uint8", "shape": [8, 8, 1], "pad": 0}}),
    ("identity.dataset.inputs", {"index": {"dtype": "uint8", "shape": [8, 8, 1], "pad": 0}}),
    ("identity.dataset.inputs.pixels.dtype", "float64"),
    ("identity.teacher.preprocess.size", 2**20),
    ("identity.dataset.inputs.pixels.shape", [8, 8, 2**20]),
    ("identity.dataset.inputs.pixels.shape", [8, 9, 1]),
    ("identity.dataset.inputs.pixels.shape", [8, 8]),
    ("identity.dataset.more", 1),
    ("identity.teacher.weights", "x" * 64),
    ("identity.grid.batch", 0),
    ("identity.grid.batch", 2**40),
    ("identity.teacher.numerics.tf32", 1),
    ("identity.teacher.preprocess", {}),
    ("identity.teacher.preprocess.mean", "0"),
    ("identity.recipe", {}),
    ("identity.recipe.spec", 3),
    ("identity.recipe.seed", -1),
    ("identity.recipe.seed", 2**64),
    ("identity.recipe.seed", "0"),
    ("identity.recipe.size", 2**20),
    ("identity.recipe.revisions", [1]),
    ("state.class_names", [1]),
    ("state.labels", "x" * 64),
    ("state.views", 2**31),
    ("state.views", -1),
    ("state.name_bytes", 2**20),
    ("identity.dataset.inputs.pixels.shape", [None, 8, 1]),
    ("identity.dataset.inputs.pixels.pad", 1),
    ("state.samples", -1),
    ("state.samples", 21),  # more rows than there are
    ("state.samples", []),
    ("state.samples_lengths", {"pixels": 3}),
    ("state.samples_lengths", []),
    ("state.columns", {}),
    ("state.columns", {"../../x": COLUMN}),
    ("state.columns", {"hint.a/b": COLUMN}),
    ("state.columns", {"hint.": COLUMN}),
    ("state.columns", {"hint.fc@in": COLUMN}),
    ("state.columns", {"rows": COLUMN}),  # names of other files
    ("state.columns", {"samples": COLUMN}),
    ("state.columns", {"x" * 500: COLUMN}),
    ("state.columns", {f"x{k}": COLUMN for k in range(1001)}),
    ("state.columns.logits.kind", "labels"),
    ("state.columns.logits.shape", []),
    ("state.columns.logits.shape", [0]),
    ("state.columns.logits.shape", [2**40]),
    ("state.columns.logits.shape", [True]),
    ("state.columns.logits.shape", [40.0]),
    ("state.columns.logits.shape", [1] * 40),
    ("state.columns.logits.shard_rows", 3),
    ("state.columns.logits.shard_rows", 0),
    ("state.columns.logits.shard_rows", 2**31),
    ("state.columns.logits.codec", "nothing"),
    ("state.columns.logits.codec", "os"),
    ("state.columns.logits.codec", "fp16:bits=3"),
    ("state.columns.logits.codec", "../../codecs/fp16"),
    ("state.columns.logits.codec", 16),
    ("state.columns.logits.error", {"kl": "x"}),
    ("state.columns.logits", {"kind": "classes", "shape": [40], "codec": "fp16"}),
    ("state.teacher_top1", "1"),
]


@pytest.mark.parametrize(("path", "value"), VALUES, ids=lambda v: str(v)[:30])
def test_values_that_no_cache_has_though_the_checksums_agree(path: str, value: Any, folder: Path) -> None:
    document = _document(folder)
    _at(path, value)(document)
    with pytest.raises(CacheError) as caught:
        Cache(_sign(folder, document))
    assert len(str(caught.value)) < 400 + len(str(folder))


@pytest.mark.parametrize("part", ["identity", "state"])
def test_an_edit_without_the_checksum_is_refused(part: str, folder: Path) -> None:
    document = _document(folder)
    node, key = {"identity": (document["identity"]["grid"], "batch"), "state": (document["state"], "views")}[part]
    node[key] += 1
    (folder / "cache.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=f"the {part} doesn't match"):
        Cache(folder)


def test_a_shape_without_end_takes_no_time(folder: Path) -> None:
    document = _document(folder)
    document["identity"]["recipe"] = {"spec": "none", "revisions": {}, "seed": 0}
    document["identity"]["dataset"]["inputs"] = {"x": {"dtype": "float32", "shape": [2**30 + 1] * 200_000, "pad": 0}}
    _sign(folder, document)
    began = time.monotonic()
    with pytest.raises(IntegrityError, match=r"inputs\.shape"):
        Cache(folder)
    assert time.monotonic() - began < 5, "its product was computed"


def test_a_pipe_for_a_manifest_is_not_opened(folder: Path) -> None:
    (folder / "cache.json").unlink()
    os.mkfifo(folder / "cache.json")
    with pytest.raises(IntegrityError, match="no file"):
        Cache(folder)


def test_kept_samples_of_rows_that_are_not_there(tmp_path: Path) -> None:

    cache = small_cache(tmp_path / "cache")
    path = cache.folder / "samples.h5"
    arrays = {"index": np.array([20], "<i8"), "pixels": np.zeros((1, 8, 8, 1), np.uint8)}
    path.unlink()
    write_shard(path, cache.file_attributes("samples"), arrays)
    with pytest.raises(IntegrityError, match="rows that the cache doesn't have"):
        _ = cache.samples


def test_too_many_shards_are_refused_before_they_are_written(folder: Path) -> None:
    manifest = Manifest.load(folder)
    before = (folder / "cache.json").read_bytes()
    manifest.state.views = 600_000
    with pytest.raises(CacheError, match="raise --shard-rows"):
        manifest.save(folder)
    assert (folder / "cache.json").read_bytes() == before


@pytest.fixture
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that leaves a file when it is imported."""
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\ndef factory(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return "planted"


@pytest.mark.parametrize("form", ["python:{}:factory", "{file}:factory", "crop:pad=4+python:{}:factory"])
@pytest.mark.parametrize("where", ["identity.recipe.spec", "state.made", "identity.dataset.spec"])
def test_no_code_that_a_manifest_names_is_imported(
    form: str, where: str, marked: str, folder: Path, tmp_path: Path
) -> None:
    document = _document(folder)
    document["identity"]["dataset"]["spec"] = "digits"
    spec = form.format(marked, file=tmp_path / "planted.py")
    _at(where, {"dataset": spec, "teacher": spec} if where == "state.made" else spec)(document)
    _sign(folder, document)
    with pytest.raises(SoftcacheError, match="named only in a cache"):
        train("cifar:resnet8", cache=(str(folder),), out=tmp_path / "run")
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("made", "trusted"),
    [
        ("digits", True),
        ("cifar100", True),
        ("torchvision:FashionMNIST", True),
        ("folder:/etc", False),
        ("folder:pets", False),
        ("arrays:x", False),
        ("../secret", False),
        ("python:os:getcwd", False),
        ("a.py:factory", False),
        ("/etc/passwd", False),
    ],
)
def test_only_names_of_datasets_are_followed(made: str, trusted: bool, folder: Path) -> None:
    document = _document(folder)
    document["state"]["made"] = {"dataset": made}
    cache = Cache(_sign(folder, document))
    if trusted:
        assert recorded_dataset(cache) == made
    else:
        with pytest.raises(NotNamedError, match="--dataset"):
            recorded_dataset(cache)
    assert recorded_dataset(cache, "folder:/mine") == "folder:/mine"


def test_only_names_of_teachers_are_followed(folder: Path) -> None:
    for made in ("resnet50", "cifar:resnet56", "timm:vit_tiny_patch16_224"):
        document = _document(folder)
        document["state"]["made"] = {"teacher": made}
        assert recorded_teacher(Cache(_sign(folder, document))) == made
    for made in ("teachers/mine", "python:os:getcwd", "x.py:factory", "/tmp/x", ".."):
        document["state"]["made"] = {"teacher": made}
        with pytest.raises(NotNamedError, match="--teacher"):
            recorded_teacher(Cache(_sign(folder, document)))
        assert recorded_teacher(Cache(folder), made) == made


def test_a_recipe_of_ones_own_is_taken_when_it_is_asked_for(folder: Path) -> None:
    document = _document(folder)
    cache = Cache(folder)
    assert recorded_recipe(cache) == "none"
    with pytest.raises(UsageError, match="was made with none"):
        recorded_recipe(cache, "flip")
    document["identity"]["recipe"]["spec"] = "python:torchvision.transforms.v2:Identity"
    cache = Cache(_sign(folder, document))
    with pytest.raises(NotNamedError, match="--augment"):
        recorded_recipe(cache)
    assert recorded_recipe(cache, "python:torchvision.transforms.v2:Identity").startswith("python:")


def test_parse_gives_what_was_rendered() -> None:
    document = {"softcache": 1, "x": [1.5, "é", None]}
    assert parse(render(document), Path("cache.json")) == document


def test_where_a_missing_column_is_added_can_be_written_to(folder: Path) -> None:
    """A dump writes neither over https nor to the hub: the cache is copied first."""
    manifest = Manifest.load(folder)
    for where in ("caches/one", "s3://bucket/one"):
        assert manifest.lacking(where, "embedding").endswith(
            f": add it with: softcache dump … --out {where} --output embedding"
        )
    for where in ("https://host/one", "hf://datasets/me/one"):
        assert manifest.lacking(where, "hint.layer9").endswith(
            f": add it with: softcache copy {where} FOLDER && softcache dump … --out FOLDER --hint layer9"
        )


def test_info_lists_the_sound_beside_the_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("good", "bad"):
        small_cache(Path("caches") / name)
    Path("caches/bad/cache.json").write_text("{")
    assert run(["info"]) == 0
    shown = capsys.readouterr().out
    assert "caches/good" in shown
    assert "can't be read: caches/bad/cache.json is damaged" in shown
    assert run(["info", "--json"]) == 0
    bad, good = json.loads(capsys.readouterr().out)
    assert set(bad) == {"path", "error"}
    assert good["rows"] == 20


@pytest.mark.parametrize("columns", [80, 200])
def test_info_fits_the_terminal(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("caches/cifar-resnet20-digits-train", "caches/one")
    for name in names:
        small_cache(Path(name))
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["info"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= columns
    assert [line.split()[0] for line in shown if line.startswith("caches/")] == list(names)
    known = json.loads(_info_json(capsys))[0]
    for value in (known["teacher"], f"{known['dataset']}/{known['split']}", "complete=yes" if columns == 80 else "yes"):
        assert sum(value in line for line in shown) == 2


def test_info_of_a_damaged_cache_alone_has_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_cache(Path("caches/bad"))
    Path("caches/bad/cache.json").write_text("{")
    assert run(["info"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("can't be read: caches/bad/cache.json is damaged")


def _info_json(capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["info", "--json"]) == 0
    return capsys.readouterr().out
