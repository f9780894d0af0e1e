"""``--hint layer1:rows=0.25``: activations that are kept for a share of the rows."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from harness_cache import write_shard
from harness_dump import DIE_AT_STEP, Setting, Warm, shards
from harness_https import certificate, https_server
from harness_ragged import asked
from harness_ragged import make_place as make_words
from harness_store import Proxy, Server
from harness_train import SIZE, command, fit, make_cache, make_teacher, same, weights

from softcache.cache.reader import Cache
from softcache.cache.schema import MAX_SHARD_BYTES, ColumnRecord, canonical_json
from softcache.cache.shard import open_shard, read_array
from softcache.cache.shares import places_in
from softcache.dumping import columns
from softcache.dumping.drawn import drawn_keys
from softcache.dumping.signals import asked_compressions, parse_hint
from softcache.errors import CacheError, IntegrityError, SoftcacheError, UsageError
from softcache.stages._card import card_of
from softcache.stages.convert import convert
from softcache.stages.copy import copy
from softcache.stages.dump import dump
from softcache.stages.keys import Keys
from softcache.stages.plan import plan
from softcache.stages.verify import verify

ROWS, MASK = 1438, 2**64 - 1
QUARTER, POOLED = "layer1:rows=0.25", "layer1:pool=2:rows=0.5"


def splitmix(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def rows_of(share: float, rows: int = ROWS) -> list[int]:
    """As docs/format.md says, in whole numbers of any size."""
    drawn = [splitmix(splitmix(0x726F7773) ^ row) >> 32 for row in range(rows)]
    among = drawn[:4096]
    always = among.index(min(among))
    return [row for row in range(rows) if row == always or drawn[row] * 10**6 < round(share * 10**6) * 2**32]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views in shards of 256 rows and batches of 32: the whole maps, a quarter of them, half of pooled ones."""
    folder = tmp_path_factory.mktemp("shares")
    make_teacher(folder / "teacher")
    hints = ("layer1", QUARTER, POOLED, "layer1:rows=0.001")
    make_cache(folder / "cache", folder / "teacher", hint=hints, shard_rows=256, batch_size=32)
    return folder


def dumped(made: Path, out: Path, *hint: str, **more: Any) -> Path:
    return make_cache(out, made / "teacher", **{"hint": hint, "shard_rows": 256, "batch_size": 32, "views": 1, **more})


@pytest.mark.parametrize("share", [1, 0.999999, 0.5, 0.25, 0.01, 0.000001])
def test_which_rows_a_share_has(share: float) -> None:
    for rows in (1, 2, 300, 5000):
        wanted = rows_of(share, rows)
        assert np.flatnonzero(places_in(share, rows)).tolist() == wanted
        assert wanted
    for first, last in ((0, 5000), (17, 4100), (4999, 5000), (40, 40)):
        assert np.array_equal(places_in(share, 5000, first, last), places_in(share, 5000)[first:last])
    many, count = 400_000, int(places_in(share, 400_000).sum())
    assert abs(count - share * many) < 5 * math.sqrt(many * share * (1 - share)) + 1


def test_rows_of_a_smaller_share_are_among_those_of_a_larger_one() -> None:
    """And they are spread over rows that are sorted by class."""
    found = [set(rows_of(share, 5000)) for share in (0.000001, 0.01, 0.2, 0.5, 1)]
    assert all(one < other for one, other in itertools.pairwise(found))
    classes = np.bincount(np.array(sorted(found[2])) // 500)
    assert len(classes) == 10
    assert abs(classes - 100).max() < 5 * math.sqrt(500 * 0.2 * 0.8)


def test_every_view_keeps_the_same_rows_with_the_bits_of_the_whole_column(made: Path) -> None:
    cache = Cache(made / "cache", verify_reads=True)
    shapes = {name: record.shape for name, record in cache.manifest.state.columns.items()}
    assert shapes == {
        "logits": [10], "hint.layer1": [6, 4, 4], f"hint.{QUARTER}": [None, 6, 4, 4], f"hint.{POOLED}": [None, 6, 2, 2],
        "hint.layer1:rows=0.001": [None, 6, 4, 4],
    }  # fmt: skip
    order = np.random.default_rng(4).permutation(np.r_[np.arange(ROWS), 5, 5])
    for view in range(2):
        whole = cache.column("hint.layer1")
        maps = whole.decode(whole.gather(view, order)).numpy()
        for layer, share in ((QUARTER, 0.25), (POOLED, 0.5), ("layer1:rows=0.001", 0.001)):
            reader, kept = cache.column(f"hint.{layer}"), np.isin(order, rows_of(share))
            found = reader.gather(view, order)
            assert found["offset"].tolist() == np.cumsum([0, *kept]).tolist()
            wanted = maps[kept] if "pool" not in layer else maps[kept].reshape(-1, 6, 2, 2, 2, 2).mean((3, 5))
            assert np.allclose(reader.decode(found), wanted, rtol=0, atol=1e-6 if "pool" in layer else 0)
            assert np.array_equal(found["digest"], whole.gather(view, order)["digest"])
            values, mask = reader.padded(found)
            assert mask.tolist() == kept.astype(int).tolist()
            assert np.array_equal(values[mask.bool()], reader.decode(found))
            assert not values[~mask.bool()].any()
    assert (made / "cache" / "view-0001" / "hint.layer1@rows=0.25-00003.h5").exists()
    with h5py.File(made / "cache" / "cache.h5") as file:
        assert set(file) == {"logits", "hint.layer1"}, "columns of one shape alone"
    found_all = verify(made / "cache", teacher=str(made / "teacher"))
    assert (found_all.ok, found_all.foreign) == (True, [])


def test_a_plan_has_the_bytes_that_are_dumped(made: Path, tmp_path: Path) -> None:
    hints = (QUARTER, f"{POOLED}:codec=int8", "fc:in:rows=0.03:codec=basis:bytes=8")
    options: dict[str, Any] = {"hint": hints, "size": SIZE, "views": 2, "shard_rows": 256, "codec": "fp16"}
    found = plan(str(made / "teacher"), **options)
    dump(str(made / "teacher"), out=tmp_path / "cache", **options)
    there = {str(p.relative_to(tmp_path / "cache")): p.stat().st_size for p in (tmp_path / "cache").rglob("*.h5")}
    assert found.files.bytes == sum(there.values())
    assert found.files.shards == sum("/" in name for name in there)
    by_name = {column.name: column for column in found.columns}
    kept = len(rows_of(0.25))
    whole = 4 * ROWS + 8 * (ROWS + 6) + 2 * 96 * kept  # digests, offsets of six shards, maps
    assert by_name[f"hint.{QUARTER}"].key_bytes in (whole // ROWS, round((whole - 8 * 5) / ROWS))
    whole_maps = plan(str(made / "teacher"), **{**options, "hint": ("layer1",)}).columns[-1]
    assert by_name[f"hint.{QUARTER}"].key_bytes < 0.33 * whole_maps.key_bytes
    shape = plan(rows=1000, classes=10, hint=("layer3:rows=0.25:shape=64x8x8:codec=fp32",), size=8).columns[-1]
    assert (shape.shape, shape.key_bytes) == (
        [None, 64, 8, 8],
        round((12 * 1000 + 8 + 16384 * len(rows_of(0.25, 1000))) / 1000),
    )


def test_rows_a_shard_are_those_whose_maps_fill_it() -> None:
    """Maps of 1 MiB of which a tenth of the rows have one: 4,096 of them are 512 MiB, and some more."""
    record = ColumnRecord("values", [None, 512, 32, 32], "fp16", 1)
    column = columns.Column.of("hint.x:rows=0.1", record, columns.open_codec("fp16"))
    rows = columns.shard_rows(column, 2**14, 2**14, {}, "--hint x:rows=0.1")
    places = places_in(0.1, 2**14)
    assert column.nbytes(rows, int(places.reshape(-1, rows).sum(1).max())) <= MAX_SHARD_BYTES
    assert column.nbytes(2 * rows, int(places.reshape(-1, 2 * rows).sum(1).max())) > MAX_SHARD_BYTES


CODECS = ("fp32", "bf16", "int8", "int:bits=5", "basis:bytes=6", "basis:max_error=0.2", "auto:max_error=0.05")


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_keeps_a_share(codec: str, made: Path, tmp_path: Path) -> None:
    """Most batches of eight have no row of the share at all."""
    layer = "layer1:rows=0.02"
    dumped(made, tmp_path / "cache", f"{layer}:codec={codec}", batch_size=8, views=2)
    cache = Cache(tmp_path / "cache", verify_reads=True)
    record, reader = cache.manifest.state.columns[f"hint.{layer}"], cache.column(f"hint.{layer}")
    kept = rows_of(0.02)
    whole, wanted = Cache(made / "cache").column("hint.layer1"), []
    for view in range(2):
        theirs = whole.decode(whole.gather(view, np.array(kept)))
        ours = reader.decode(reader.gather(view, np.arange(ROWS)))
        wanted.append((ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1))
    assert record.error["keys"] == 2 * len(kept), "keys without a row of the share are not measured"
    assert record.error["relative_error_mean"] == pytest.approx(float(torch.cat(wanted).mean()), rel=1e-3, abs=1e-5)
    assert record.error["relative_error_mean"] < {"basis:bytes=6": 0.7, "basis:max_error=0.2": 0.25}.get(codec, 0.06)
    assert verify(tmp_path / "cache", teacher=str(made / "teacher")).ok
    size = convert(tmp_path / "cache", tmp_path / "other", codec="int:bits=6", device="cpu")
    assert size.columns[f"hint.{layer}"].error["keys"] == 2 * len(kept)
    assert verify(tmp_path / "other").ok


def test_codecs_are_fitted_to_rows_of_the_share_alone() -> None:
    whole, some = (drawn_keys("ab" * 32, 3000, 4, share) for share in (None, 0.3))
    assert np.array_equal(whole, drawn_keys("ab" * 32, 3000, 4, 1.0))
    assert set(some[:, 1]) <= set(rows_of(0.3, 3000))
    assert (len(whole), len(some)) == (4096, min(4096, 4 * len(rows_of(0.3, 3000))))
    assert len({tuple(key) for key in some.tolist()}) == len(some)
    assert set(some[:, 0]) == {0, 1, 2, 3}


def test_a_conversion_has_the_bytes_of_a_dump(made: Path, tmp_path: Path) -> None:
    layers = (QUARTER, POOLED)
    dumped(made, tmp_path / "fp32", *layers)
    for codec in ("fp16", "int:bits=5"):
        dumped(made, tmp_path / codec, *layers, codec=codec)
        convert(tmp_path / "fp32", tmp_path / f"made-{codec}", codec=codec, device="cpu")
        assert shards(tmp_path / f"made-{codec}") == shards(tmp_path / codec)
    again = convert(tmp_path / "fp32", tmp_path / "small", compress=("zstd",), shard_rows=64, device="cpu")
    assert again.info["complete"]
    convert(tmp_path / "small", tmp_path / "back", compress=("none",), shard_rows=256, device="cpu")
    assert shards(tmp_path / "back") == shards(tmp_path / "fp32")


def test_it_is_added_divided_taken_away_and_copied(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = shards(made / "cache")
    options: dict[str, Any] = {"views": 2, "hint": (QUARTER,)}
    for part in ((2, 2), (1, 2)):
        dump(str(made / "teacher"), out=tmp_path / "cache", size=SIZE, codec="fp32", amp="off", shard_rows=256,
             batch_size=32, part=part, **options)  # fmt: skip
    dumped(made, tmp_path / "cache", "layer1", POOLED, "layer1:rows=0.001", views=2)
    assert shards(tmp_path / "cache") == wanted
    copy(tmp_path / "cache", tmp_path / "copy")
    assert verify(tmp_path / "copy").ok
    assert command("-q", "trim", tmp_path / "cache", "--drop-hint", QUARTER) == 0
    assert Cache(tmp_path / "cache").manifest.hints == ["layer1", POOLED, "layer1:rows=0.001"]
    assert verify(tmp_path / "cache").ok
    capfd.readouterr()
    assert command("info", tmp_path / "copy") == 0
    said = capfd.readouterr().out
    assert "6×4×4 values in fp32, of 25 % of the rows, relative error" in said
    assert "6×2×2 values in fp32, of 50 % of the rows" in said
    assert "6×4×4 values in fp32, of 0.1 % of the rows" in said
    opened = Cache(tmp_path / "copy")
    from softcache.cache.listing import LISTING, Listing

    listing = Listing.parse((tmp_path / "copy" / LISTING).read_bytes(), LISTING)
    card = card_of(opened.manifest, listing, "s3://bucket/name", None)
    assert f"`hint.{QUARTER}` | values | 6×4×4, of 25 % of the rows |" in card


def test_a_server_gives_it_by_its_name(made: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = certificate(here / "keys")
    monkeypatch.setenv("SSL_CERT_FILE", str(keys[0]))
    copy(made / "cache", here / "served" / "shares")
    with https_server(here / "served", keys) as url:
        copy(f"{url}/shares", here / "again")
    assert shards(here / "again") == shards(made / "cache")


def test_a_store_takes_it_and_a_training_reads_it_from_there(
    made: Path, tmp_path: Path, server: Server, faults: Proxy
) -> None:
    address, folder = f"s3://{server.bucket()}/shares", tmp_path / "folder"
    kept: dict[str, Any] = {"size": SIZE, "views": 1, "shard_rows": 256, "batch_size": 32, "hint": (QUARTER,)}
    dump(str(made / "teacher"), out=address, staging=str(tmp_path / "staging"), **kept)
    dump(str(made / "teacher"), out=folder, **kept)
    copy(address, tmp_path / "copy")
    assert shards(tmp_path / "copy") == shards(folder)
    for shuffle in ("shards:3", "full"):
        learning = {"hint": (f"fitnet:teacher={QUARTER},student=layer1",), "epochs": 1, "shuffle": shuffle}
        fit(tmp_path / f"far-{shuffle[:4]}", cache=address, local_cache=str(tmp_path / "local"), **learning)
        fit(tmp_path / f"near-{shuffle[:4]}", cache=folder, **learning)
        assert same(*(weights(tmp_path / f"{where}-{shuffle[:4]}") for where in ("far", "near")))


@pytest.mark.parametrize("step", [12, *(pytest.param(k, marks=pytest.mark.torture) for k in (6, 25))])
def test_a_dump_that_is_killed_has_the_same_bytes(setting: Setting, warm: Warm, tmp_path: Path, step: int) -> None:
    more = ("--hint", "body.2:rows=0.2:codec=int8", "--hint", "head:in:rows=0.6", "--views", "2")
    assert warm.run(setting.command(tmp_path / "whole", *more, base=True)).status == 0
    folder = tmp_path / "killed"
    for die in (step, 9):
        ended = warm.run(setting.command(folder, *more, base=True), prepare=DIE_AT_STEP.format(step=die))
        assert ended.status in (-9, 0), ended.output
    assert warm.run(setting.command(folder, *more, base=True)).status == 0
    assert shards(folder) == shards(tmp_path / "whole")
    assert verify(folder).ok


def test_a_cache_of_nothing_else_is_repaired_and_compared(made: Path, tmp_path: Path) -> None:
    """The rows of the share are compared with the teacher, and the file that lengths would come from may be gone."""
    folder = dumped(made, tmp_path / "cache", QUARTER, output=("none",))
    rerun = verify(folder, teacher=str(made / "teacher"), sample=10**6).teacher
    assert rerun is not None
    assert (rerun.ok, rerun.keys, rerun.column) == (True, len(rows_of(0.25)), f"hint.{QUARTER}")
    make_teacher(tmp_path / "other", seed=2)
    other = verify(folder, teacher=str(tmp_path / "other"), sample=10**6).teacher
    assert other is not None
    assert other.beyond > 0.9 * len(rows_of(0.25))
    before = shards(folder)
    for name in ("rows.h5", "view-0000/hint.layer1@rows=0.25-00002.h5"):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2 + 700] ^= 1
        (folder / name).write_bytes(data)
    assert not verify(folder).ok
    verify(folder, repair=True)
    assert not (folder / "rows.h5").exists()
    dumped(made, folder, QUARTER, output=("none",))
    assert shards(folder) == before
    assert verify(folder).ok
    with pytest.raises(SoftcacheError, match=r"another --out"):
        dump(str(tmp_path / "other"), out=folder, size=SIZE, hint=(QUARTER, "layer2"))


@pytest.mark.parametrize(
    "spec",
    ["layer1:rows=0", "layer1:rows=2", "layer1:rows=nan", "layer1:rows=x", "layer1:rows=", "layer1:rows=-0.5",
     "layer1:rows=0.0", "layer1:rows=1.0", "layer1:rows=0.50", "layer1:rows=.5", "layer1:rows=1e-3",
     "layer1:rows=0.0000001", "layer1:rows=0.5:rows=0.5", "layer1:rows=0.5:pool=2"],
)  # fmt: skip
def test_what_is_no_share_of_the_rows_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=r"is no share of the rows: it is above 0 and at most 1"):
        parse_hint(spec)
    with pytest.raises(UsageError):
        parse_hint(f"{spec}:codec=fp16")


def test_specs_of_layers_with_all_that_may_be_said_of_them() -> None:
    assert parse_hint("a.0:in:pool=7:rows=0.125:codec=int:bits=4").column == "hint.a.0:in:pool=7:rows=0.125"
    assert parse_hint("layer1:rows=1").column == "hint.layer1:rows=1"
    with pytest.raises(UsageError, match=r"the options are pool=7, rows=0\.25 and codec=, in this order"):
        parse_hint("layer1:row=0.5")
    with pytest.raises(UsageError, match=r"in this order"):
        parse_hint("layer1:rows=0.5:in")
    assert asked_compressions([f"hint.{POOLED}=zstd:level=3,rows=4", "zstd:rows=64", "hint.layer1:pool=2=none"]) == {
        f"hint.{POOLED}": "zstd:level=3,rows=4", "": "zstd:rows=64", "hint.layer1:pool=2": "none",
    }  # fmt: skip


def test_rows_that_have_lengths_of_their_own_are_refused(tmp_path: Path) -> None:
    place = make_words(tmp_path)
    message = "--hint words:rows=0.5: rows= keeps whole activations of one shape, and rows of this layer have lengths"
    with pytest.raises(UsageError, match=message):
        dump(**asked(place, tmp_path / "cache", output=("logits",), hint=("words:rows=0.5",)))
    assert not (tmp_path / "cache").exists()
    dump(**asked(place, tmp_path / "cache", output=("logits", "states"), hint=("answer:rows=0.5",)))
    assert verify(tmp_path / "cache").ok, "a layer of whole rows beside those of places"


def test_columns_compressed_by_their_names(made: Path, tmp_path: Path) -> None:
    folder = dumped(made, tmp_path / "cache", QUARTER, POOLED, compress=(f"hint.{QUARTER}=zstd:level=2",))
    compress = {name: record.compress for name, record in Cache(folder).manifest.state.columns.items()}
    assert compress[f"hint.{QUARTER}"] == "zstd:level=2,rows=128,shuffle=byte"
    assert compress["logits"] is compress[f"hint.{POOLED}"] is None
    ours, theirs = Cache(folder).column(f"hint.{QUARTER}"), Cache(made / "cache").column(f"hint.{QUARTER}")
    rows = np.random.default_rng(0).permutation(ROWS)
    one, other = ours.gather(0, rows), theirs.gather(0, rows)
    assert all(np.array_equal(one[name], other[name]) for name in other)
    assert verify(folder).ok


def test_a_loop_of_ones_own_has_a_mask_of_rows(made: Path) -> None:
    keys = Keys(made / "cache", "digits", hints=["layer1", QUARTER], outputs=[])
    kept = set(rows_of(0.25))
    items = [(3, 0), (1, 1), (50, 0), (33, 1), (1000, 0), (7, 1)]
    apart, together = Keys.collate([keys[item] for item in items]), keys.__getitems__(items)
    for batch in (apart, together):
        assert set(batch.masks) == {QUARTER}
        assert batch.masks[QUARTER].tolist() == [int(row in kept) for row, _ in items]
        own, whole = batch.masks[QUARTER].bool(), batch.targets["layer1"]
        assert torch.equal(batch.targets[QUARTER], torch.where(own.view(-1, 1, 1, 1), whole, 0))
    assert 0 < int(apart.masks[QUARTER].sum()) < len(items)


# ---- hostile ----


def signed(folder: Path, change: Any) -> Path:
    """With the checksums that its content asks for, as anybody can."""
    document = json.loads((folder / "cache.json").read_bytes())
    change(document["state"]["columns"], document["identity"])
    for part in ("identity", "state"):
        digest = hashlib.sha256(canonical_json(document[part])).hexdigest()
        document["cache_id" if part == "identity" else "state_sha256"] = digest
    (folder / "cache.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("share", ["0", "2", "NaN", "x", "1.0", "0.50", "", "0.25:rows=0.25", "1e-1", "٠.٥"])
def test_names_that_no_column_has(made: Path, tmp_path: Path, share: str) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    shutil.copy(made / "cache" / "cache.json", folder)

    def rename(held: dict[str, Any], _: Any) -> None:
        held[f"hint.layer1:rows={share}"] = held.pop(f"hint.{QUARTER}")

    with pytest.raises(IntegrityError, match="columns"):
        Cache(signed(folder, rename))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (QUARTER, {"shape": [6, 4, 4]}),
        (QUARTER, {"shape": [6, None, 4]}),
        (QUARTER, {"lengths": "pixels"}),
        (QUARTER, {"stride": 2}),
        ("layer1", {"shape": [None, 6, 4, 4]}),
    ],
)
def test_records_that_no_column_has(made: Path, tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    shutil.copy(made / "cache" / "cache.json", folder)
    with pytest.raises(IntegrityError, match=r"columns\.(lengths|shape)"):
        Cache(signed(folder, lambda held, _: held[f"hint.{name}"].update(change)))


def test_a_shard_that_says_other_rows_is_refused(made: Path, tmp_path: Path) -> None:
    """Every checksum is right, and as many rows have an activation, but others."""
    folder = shutil.copytree(made / "cache", tmp_path / "cache")
    cache, name = Cache(folder), f"hint.{QUARTER}"
    path = cache.shard_path(0, name, 1)
    attributes, wanted = cache.shard_attributes(0, name, 1), cache.shard_arrays(name, 1)
    with open_shard(path, attributes, wanted) as file:
        arrays = {array: read_array(file, array).copy() for array in file.extents}
    counts = np.roll(np.diff(arrays["offset"]), 1)
    arrays["offset"] = np.cumsum([0, *counts])
    path.unlink()
    write_shard(path, attributes, arrays)
    with pytest.raises(IntegrityError, match="offset is not what"):
        Cache(folder).column(name).gather(0, np.arange(3))
    flaws = verify(folder).damaged
    assert [(flaw.array, flaw.view, flaw.first_row) for flaw in flaws] == [("offset", 0, 256)]


def test_a_manifest_of_many_rows_takes_no_memory(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "cache", tmp_path / "cache")

    def more(held: dict[str, Any], identity: dict[str, Any]) -> None:
        identity["dataset"]["rows"] = 2**36
        identity["grid"]["block_rows"] = 2**30
        for name in list(held):
            held[name]["shard_rows"] = 2**20
            if name != f"hint.{QUARTER}":
                del held[name]

    with pytest.raises(CacheError, match=r"rows\.h5"):
        Cache(signed(folder, more)).column(f"hint.{QUARTER}")
