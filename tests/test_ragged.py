"""Columns of which each row has a length of its own: hidden states and logits of tokens, from a teacher to a reader."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from harness_cache import write_shard
from harness_damage import small_ragged
from harness_ragged import CLASSES, OUTPUTS, ROWS, WIDTH, WORDS, asked, lengths_of_rows, make_place, model, rows_of
from harness_train import command
from torch.utils.data import DataLoader

from softcache.cache import mapping
from softcache.cache.reader import Cache
from softcache.cache.schema import MAX_SHARD_BYTES, ColumnRecord, canonical_json
from softcache.cache.shard import open_shard, read_array
from softcache.dumping import columns
from softcache.errors import CacheError, IntegrityError, NumericsError, SoftcacheError, UsageError
from softcache.stages.dump import dump
from softcache.stages.keys import Keys
from softcache.stages.verify import verify


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("ragged"))


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    dump(**asked(place, place / "whole", hint=("words:codec=fp32",)))
    return place / "whole"


def shards(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("view-*/*.h5"))}


@torch.inference_mode()
def said(place: Path) -> dict[str, list[np.ndarray]]:
    """What the model says of each row, in the batches of the dump, without anything of softcache; and a layer's."""
    network, rows = model(place), rows_of(place)
    network.load_state_dict(torch.load(place / "t.pt", weights_only=True))
    caught: list[torch.Tensor] = []
    network.words.register_forward_hook(lambda *given: caught.append(given[2]))
    found: dict[str, list[np.ndarray]] = {}
    for block in range(0, ROWS, 16):
        for first in range(block, min(block + 16, ROWS), 12):
            some = rows[first : min(first + 12, block + 16)]
            ids = torch.zeros(len(some), max(1, *map(len, some)), dtype=torch.int64)
            for k, row in enumerate(some):
                ids[k, : len(row)] = torch.from_numpy(row)
            mask = torch.tensor([[j < len(row) for j in range(ids.shape[1])] for row in some]).long()
            caught.clear()
            answers = network(ids, mask) | {"hint": caught[0]}
            for name, values in answers.items():
                for k, row in enumerate(some):
                    count = -(-len(row) // 2) if name == "pairs" else len(row)
                    of_all = name in ("logits", "grid")
                    if name in ("square", "halved", "swapped"):
                        continue
                    found.setdefault(name, []).append((values[k] if of_all else values[k, :count]).numpy())
    return found


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def test_every_row_is_what_the_teacher_says_of_its_own_places(place: Path, whole: Path) -> None:
    cache, wanted = Cache(whole, verify_reads=True), said(place)
    shapes = {name: (r.shape, r.lengths, r.stride) for name, r in cache.manifest.state.columns.items()}
    assert shapes == {
        "grid": ([2, 4], None, 1), "logits": ([CLASSES], None, 1), "pairs": ([None, 4], "ids", 2),
        "sizes": ([None], "ids", 1), "states": ([None, WIDTH], "ids", 1), "tags": ([None, 5], "ids", 1),
        "hint.words": ([None, WIDTH], "ids", 1),
    }  # fmt: skip
    order = np.random.default_rng(4).permutation(np.r_[np.arange(ROWS), 5, 5])
    for name, record in cache.manifest.state.columns.items():
        reader, rows = cache.column(name), wanted["hint" if name.startswith("hint") else name]
        arrays = reader.gather(0, order)
        coded = [torch.from_numpy(rows[k]).to(DTYPES[record.codec]).float().numpy() for k in order]
        if record.lengths is None:
            assert np.allclose(reader.decode(arrays).numpy(), np.stack(coded), rtol=1e-3, atol=1e-5)
            continue
        assert arrays["offset"].tolist() == np.cumsum([0, *map(len, coded)]).tolist()
        assert np.allclose(reader.decode(arrays).numpy(), np.concatenate(coded), rtol=1e-2, atol=1e-4), name
        values, mask = reader.padded(arrays)
        assert values.shape[1] == mask.shape[1] == max(map(len, coded))
        assert torch.equal(values[mask.bool()], reader.decode(arrays))
        assert not values[~mask.bool()].any()
        assert mask.sum(1).tolist() == list(map(len, coded))
    found = verify(whole)
    assert (found.ok, found.foreign) == (True, [])


def test_numbers_are_kept_to_the_bit_in_every_codec(place: Path, tmp_path: Path) -> None:
    """Whole numbers up to 49 and quarters of them are exact in all of them."""
    rows = rows_of(place)
    for codec in DTYPES:
        dump(**asked(place, tmp_path / codec, "each", output=(f"each:codec={codec}",)))
        reader = Cache(tmp_path / codec).column("each")
        arrays = reader.gather(0, np.arange(ROWS)[::-1])
        ids = np.concatenate(rows[::-1])
        assert np.array_equal(reader.decode(arrays).numpy(), np.stack([ids, -ids / 4], 1))
        empty = reader.gather(0, np.array([33, 3, 33]))
        assert empty["offset"].tolist() == [0, 0, 0, 0]
        assert reader.decode(empty).shape == (0, 2)
        values, mask = reader.padded(empty)
        assert (values.shape, int(mask.sum())) == ((3, 1, 2), 0)
        assert verify(tmp_path / codec, teacher=f"{place / 'models.py'}:each", dataset=f"arrays:{place}").ok


def test_resumed_divided_and_extended_have_the_same_bytes(place: Path, whole: Path, tmp_path: Path) -> None:
    wanted, hint = shards(whole), ("words:codec=fp32",)
    for part in (2, 1):
        dump(**asked(place, tmp_path / "divided", hint=hint), part=(part, 2))
    assert shards(tmp_path / "divided") == wanted
    for name in ("view-0000/states-00001.h5", "view-0000/pairs-00002.h5", "view-0000/logits-00004.h5"):
        (tmp_path / "divided" / name).unlink()
    dump(**asked(place, tmp_path / "divided", hint=hint))
    assert shards(tmp_path / "divided") == wanted
    for more in ({"output": ("none",), "hint": hint}, {"output": OUTPUTS[2:]}, {"output": OUTPUTS}):
        before = shards(tmp_path / "added")
        dump(**asked(place, tmp_path / "added", **more))
        assert shards(tmp_path / "added").items() >= before.items()
    assert shards(tmp_path / "added") == wanted
    assert command("trim", tmp_path / "added", "--drop-output", "states") == 0
    assert verify(tmp_path / "added").ok


def test_a_teacher_that_says_something_else_is_refused(place: Path, tmp_path: Path) -> None:
    """The first column is a ragged one, whose rows are compared."""
    folder, weights = tmp_path / "cache", torch.load(place / "t.pt", weights_only=True)
    dump(**asked(place, folder, output=("states",), teacher_weights=str(place / "t.pt")))
    rerun = {"teacher": f"{place / 'models.py'}:words", "dataset": f"arrays:{place}", "device": "cpu"}
    again = verify(folder, teacher_weights=str(place / "t.pt"), **rerun).teacher
    assert again is not None
    assert (again.ok, again.column, again.beyond, again.keys) == (True, "states", 0, ROWS)
    weights["words.weight"][9] += 1
    torch.save(weights, tmp_path / "other.pt")
    again = verify(folder, teacher_weights=str(tmp_path / "other.pt"), **rerun).teacher
    assert again is not None
    having = sum(9 in row for row in rows_of(place))
    assert having <= again.beyond < ROWS - 19, "rows without places agree with anything"


def test_values_that_are_not_finite_name_their_row(place: Path, tmp_path: Path) -> None:
    """In padding they don't count: ``states`` are NaN there."""
    ids, offsets = np.load(place / "train_ids.npy"), np.load(place / "train_ids_offsets.npy")
    for name in ("train_ids_offsets", "test_ids_offsets", "train_labels", "test_labels", "test_ids"):
        np.save(tmp_path / f"{name}.npy", np.load(place / f"{name}.npy"))
    ids[offsets[57] + 1] = 7
    np.save(tmp_path / "train_ids.npy", ids)
    assert lengths_of_rows()[57] > 1
    with pytest.raises(NumericsError, match=r"row 57 in view 0: the teacher's values of states are not finite as fp16"):
        dump(**{**asked(place, tmp_path / "cache", "loud", output=("states",)), "dataset": f"arrays:{tmp_path}"})


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("square", r"--output square.* and .*only the first axis of a sample may follow the lengths"),
        ("halved", r"--output halved.* has places that follow no input's length by ceil\(n / stride\): 1 for row 3"),
        ("swapped", r"the output 'swapped' is .*, not floating numbers \(B, …\) for 1 samples"),
        ("sizes:kind=classes", "one number a place has no axis of classes: use kind=values"),
    ],
)
def test_outputs_that_follow_no_rule(place: Path, tmp_path: Path, output: str, message: str) -> None:
    hint = "--hint swapped is .* for one sample: its first axis must be that of the samples"
    with pytest.raises(UsageError, match=hint):
        dump(**asked(place, tmp_path / "cache", output=("none",), hint=("swapped",)))
    with pytest.raises(SoftcacheError, match=message) as caught:
        dump(**asked(place, tmp_path / "cache", output=(output,)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_logits_of_tokens_may_be_called_logits(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    made = dump(**asked(place, tmp_path / "cache", "tokens", output=("logits:codec=fp32",)))
    record = Cache(tmp_path / "cache").manifest.state.columns["logits"]
    assert (record.kind, record.shape, record.lengths, made.teacher_top1) == ("classes", [None, 5], "ids", None)
    assert record.error["kl_mean_T1"] < 1e-6
    assert record.error["keys"] == ROWS
    rerun = {"dataset": f"arrays:{place}", "device": "cpu", "teacher_weights": str(place / "t.pt")}
    again = verify(tmp_path / "cache", teacher=f"{place / 'models.py'}:tokens", **rerun).teacher
    assert again is not None
    assert again.ok
    empty = (lengths_of_rows() == 0).mean()
    assert again.same_top1 == pytest.approx(1 - empty), "an empty row has no place with a largest class"


def test_rows_of_one_length_have_one_shape(place: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_ids.npy", np.arange(8 * 6) % WORDS)
        np.save(tmp_path / f"{split}_ids_offsets.npy", np.arange(9) * 6)
        np.save(tmp_path / f"{split}_labels.npy", np.arange(8) % CLASSES)
    options = asked(place, tmp_path / "cache", output=("states", "pairs"))
    dump(**{**options, "dataset": f"arrays:{tmp_path}"})
    shapes = {name: r.shape for name, r in Cache(tmp_path / "cache").manifest.state.columns.items()}
    assert shapes == {"states": [6, WIDTH], "pairs": [3, 4]}


def test_rows_a_shard_come_from_the_longest_run_of_rows() -> None:
    """64 rows of 4096 places among those of 1: 64 · 4096 · 2 kB are 512 MiB, and the digests come on top."""
    lengths = np.ones(2**13, np.int64)
    lengths[1000:1064] = 4096
    record = ColumnRecord("values", [None, 1024], "fp16", 1, "ids")
    column = columns.Column.of("states", record, columns.open_codec("fp16"))

    rows = columns.shard_rows(column, 2**13, 4096, {"ids": lengths}, "--output states")
    runs = lengths.reshape(-1, rows).sum(1).max()
    assert column.nbytes(rows, int(runs)) <= MAX_SHARD_BYTES
    runs = lengths.reshape(-1, 2 * rows).sum(1).max()
    assert column.nbytes(2 * rows, int(runs)) > MAX_SHARD_BYTES
    lengths[5] = 2**18
    with pytest.raises(UsageError, match=r"--output states: row 5 would take 512 MiB, and a row may take 256"):
        columns.shard_rows(column, 2**13, 4096, {"ids": lengths}, "--output states")


def test_a_loop_of_ones_own_has_targets_with_their_masks(place: Path, whole: Path) -> None:
    """States have the places of the inputs, pairs half as many."""
    keys = Keys(whole, f"arrays:{place}", outputs=["states", "pairs", "logits"], hints=["words"])
    wanted, lengths = said(place), lengths_of_rows()
    loader = DataLoader(keys, batch_sampler=keys.sampler(16), collate_fn=keys.collate, num_workers=1)
    for batch in loader:
        own = batch.inputs["attention_mask"]
        assert set(batch.masks) == {"states", "pairs", "words"}
        assert torch.equal(batch.masks["states"], own)
        assert torch.equal(batch.masks["words"], own)
        assert batch.masks["pairs"].sum(1).tolist() == (-(-lengths[batch.rows] // 2)).tolist()
        for name, mask in batch.masks.items():
            assert batch.targets[name].shape[:2] == mask.shape
            assert not batch.targets[name][~mask.bool()].any()
        for place_, row in enumerate(batch.rows.tolist()):
            mine = batch.targets["states"][place_][own[place_].bool()]
            assert np.allclose(mine, wanted["states"][row], rtol=1e-3, atol=1e-3)
    items = [(3, 0), (1, 0), (50, 0), (33, 0)]
    apart, together = Keys.collate([keys[item] for item in items]), keys.__getitems__(items)
    for parts in ("targets", "masks", "inputs"):
        one, other = getattr(apart, parts), getattr(together, parts)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert apart.to("cpu").masks.keys() == together.masks.keys()


def test_info_and_a_dry_run_say_how_much_is_kept(
    place: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    assert command("info", whole) == 0
    said = capfd.readouterr().out
    assert f"L×{WIDTH} values in fp16, L of ids, relative error" in said
    assert "⌈L/2⌉×4 values in bf16, L of ids" in said
    assert "L×5 classes in fp32, L of ids, mean KL" in said
    guess = dump(**asked(place, tmp_path / "cache", output=("states", "pairs")), dry_run=True).estimate
    assert guess is not None
    lengths, count = lengths_of_rows(), -(-ROWS // 16)
    offsets = 4 * ROWS + 8 * (ROWS + count)  # digests, and one more offset a shard than it has rows
    exact = 16 * lengths.sum() + 8 * (-(-lengths // 2)).sum() + 2 * offsets
    assert exact < guess.total <= exact + 2 * count * 10 * 4096
    dump(**asked(place, tmp_path / "cache", output=("states", "pairs")))
    files = [path.stat().st_size for path in (tmp_path / "cache").glob("view-*/*.h5")]
    assert sum(files) <= guess.total
    with h5py.File(whole / "cache.h5") as file:
        assert set(file) == {"logits", "grid"}, "columns of one shape alone"


def forged(cache: Cache, number: int, change: Any) -> None:
    """A shard of ``states`` with other arrays, every checksum right."""
    path = cache.shard_path(0, "states", number)
    with open_shard(path, cache.shard_attributes(0, "states", number), cache.shard_arrays("states", number)) as file:
        arrays = {name: read_array(file, name).copy() for name in file.extents}
    write_shard(path, cache.shard_attributes(0, "states", number), change(arrays))


def moved(arrays: dict[str, np.ndarray], by: int) -> dict[str, np.ndarray]:
    arrays["offset"][1] += by
    return arrays


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: moved(arrays, 1), "offset is not what the rows' lengths"),
        (lambda arrays: moved(arrays, -1), "offset is not what the rows' lengths"),
        (lambda arrays: moved(arrays, 2**62), "offset is not what the rows' lengths"),
        (lambda arrays: moved(arrays, -(2**63)), "offset is not what the rows' lengths"),
        (lambda arrays: {**arrays, "offset": arrays["offset"][:-1]}, "offset is int64"),
        (lambda arrays: {**arrays, "values": arrays["values"][:-1]}, "values is float16"),
        (lambda arrays: {**arrays, "values": np.zeros((0, WIDTH), "<f2")}, "values is float16"),
        (lambda arrays: {k: v for k, v in arrays.items() if k != "offset"}, "holds digest, values"),
    ],
)
def test_a_shard_whose_offsets_are_not_the_sums_of_the_lengths(
    whole: Path, tmp_path: Path, change: Any, message: str
) -> None:
    cache = Cache(shutil.copytree(whole, tmp_path / "cache"))
    forged(cache, 1, change)
    with pytest.raises(IntegrityError, match=message):
        cache.column("states").gather(0, np.arange(3))
    (damage,) = verify(cache.folder).damaged
    assert damage.file == "view-0000/states-00001.h5"
    assert message.split()[-1] in str(damage)


def test_lengths_that_no_row_can_have(whole: Path, tmp_path: Path) -> None:
    for lengths in (-1, 2**31, 2**63 - 1):
        cache = Cache(shutil.copytree(whole, tmp_path / str(lengths)))
        arrays = {"label": cache.labels, "length/ids": np.array(cache.lengths("ids"))}
        arrays["length/ids"][2] = lengths
        write_shard(cache.folder / "rows.h5", cache.file_attributes("rows"), arrays)
        with pytest.raises(IntegrityError, match=r"rows\.h5 has rows of ids of lengths that no row can have"):
            Cache(cache.folder).column("states")


def test_without_a_sound_list_of_lengths_ragged_shards_stay(place: Path, whole: Path, tmp_path: Path) -> None:
    """Nothing says then how long they should be: they are checked when the lengths are there again."""
    folder, hint = shutil.copytree(whole, tmp_path / "cache"), ("words:codec=fp32",)
    wanted = (folder / "rows.h5").read_bytes()
    changed = bytearray(wanted)
    changed[changed.index(lengths_of_rows().tobytes())] ^= 1
    (folder / "rows.h5").write_bytes(changed)
    found = verify(folder, repair=True)
    assert (found.removed, [d.file for d in found.damaged]) == (["cache.h5", "rows.h5"], ["rows.h5"])
    dump(**asked(place, folder, hint=hint))
    assert (folder / "rows.h5").read_bytes() == wanted
    assert shards(folder) == shards(whole)
    assert verify(folder).ok


@pytest.mark.parametrize("joined", [True, False])
def test_rows_are_taken_from_many_shards(whole: Path, monkeypatch: pytest.MonkeyPatch, joined: bool) -> None:
    """One range of addresses for all shards, or a map for each; one of them is empty."""
    if not joined:
        monkeypatch.setattr(mapping, "MAX_RESERVED", 0)
    reader = Cache(whole, verify_reads=True).column("states")
    every = reader.gather(0, np.arange(ROWS))
    rows = np.split(every["values"], every["offset"][1:-1])
    assert list(map(len, rows)) == lengths_of_rows().tolist()
    for order in (np.arange(ROWS)[::-1], np.array([69, 33, 3]), np.array([33]), np.array([], np.int64)):
        found = reader.gather(0, order)
        assert np.array_equal(found["values"], np.concatenate([rows[k] for k in order] or [rows[3]]))
        assert np.array_equal(found["digest"], every["digest"][order])


@pytest.mark.parametrize(
    "wrong",
    [
        {"lengths": None}, {"lengths": "words"}, {"lengths": 3}, {"lengths": ["ids"]}, {"stride": 0}, {"stride": -1},
        {"stride": 2**31}, {"stride": 2**70}, {"stride": 1.5}, {"stride": True}, {"shape": [3]}, {"shape": []},
        {"shape": [3, None]}, {"shape": [None, None]}, {"shape": [None, 0]}, {"shape": [None, 2**30]},
        {"shape": [None, *[1] * 8]}, {"kind": "classes", "shape": [None]}, {"shard_rows": 16}, {"shard_rows": 2**21},
    ],
    ids=str,
)  # fmt: skip
def test_ragged_columns_that_no_cache_has_though_the_checksums_agree(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = small_ragged(tmp_path / "cache").folder / "cache.json"
    document = json.loads(path.read_bytes())
    document["state"]["columns"]["states"] |= wrong
    document["state_sha256"] = hashlib.sha256(canonical_json(document["state"])).hexdigest()
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError) as caught:
        Cache(path.parent)
    assert len(str(caught.value)) < 400 + len(str(path))
    assert "\n" not in str(caught.value)


def test_another_stride_makes_another_column(tmp_path: Path) -> None:
    """The manifest of a forger fits, and no shard does."""
    path = small_ragged(tmp_path / "cache").folder / "cache.json"
    document = json.loads(path.read_bytes())
    document["state"]["columns"]["states"]["stride"] = 2**31 - 1
    document["state_sha256"] = hashlib.sha256(canonical_json(document["state"])).hexdigest()
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="has column_sha256"):
        Cache(path.parent).column("states").gather(0, np.arange(3))


def test_rows_of_like_length_come_together_and_are_kept_in_their_order(
    place: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """A teacher that answers with how far its rows are filled up shows which came together, and one of whole numbers
    that every row is kept where it belongs."""
    lengths = lengths_of_rows()
    dump(**asked(place, tmp_path / "wide", "widths", output=("width:codec=fp32",), bucket=True))
    column = Cache(tmp_path / "wide").column("width")
    width = column.decode(column.gather(0, np.arange(ROWS)))[:, 0].numpy()
    for first in range(0, ROWS, 16):
        rows = sorted(range(first, min(first + 16, ROWS)), key=lambda row: (lengths[row], row))
        for k in range(0, len(rows), 12):
            assert {width[row] for row in rows[k : k + 12]} == {max(1, *lengths[rows[k : k + 12]])}
    dump(**asked(place, tmp_path / "each", "each", output=("each:codec=fp32", "logits"), bucket=True))
    reader, ids = Cache(tmp_path / "each").column("each"), np.concatenate(rows_of(place))
    assert np.array_equal(reader.decode(reader.gather(0, np.arange(ROWS))).numpy(), np.stack([ids, -ids / 4], 1))
    assert verify(tmp_path / "each", teacher=f"{place / 'models.py'}:each", dataset=f"arrays:{place}").ok
    assert command("dump", "--bucket", "--dataset", "digits", "--out", tmp_path / "no") == 2
    assert "those of digits have no lengths of their own: leave it out" in capfd.readouterr().err
    with pytest.raises(CacheError, match=r"grid.bucket: None there, .*ids.* now.*match --bucket"):
        dump(**asked(place, whole, views=2, bucket=True))


def test_a_dump_of_rows_of_like_length_goes_on_with_the_same_bits(place: Path, tmp_path: Path) -> None:
    hint = ("words:codec=fp32",)
    dump(**asked(place, tmp_path / "whole", hint=hint, bucket=True))
    wanted = shards(tmp_path / "whole")
    for part in (2, 1):
        dump(**asked(place, tmp_path / "divided", hint=hint, bucket=True), part=(part, 2))
    assert shards(tmp_path / "divided") == wanted
    for name in ("view-0000/states-00001.h5", "view-0000/pairs-00002.h5", "view-0000/logits-00004.h5"):
        (tmp_path / "divided" / name).unlink()
    dump(**asked(place, tmp_path / "divided", hint=hint))  # as the cache has it
    assert shards(tmp_path / "divided") == wanted
    for output in (("states", "logits"), OUTPUTS):
        dump(**asked(place, tmp_path / "added", output=output, hint=hint, bucket=True, workers=1))
    assert shards(tmp_path / "added") == wanted


def test_a_teacher_of_rows_of_like_length_that_has_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch that is run again has rows of all of the block, some of them in the shard that is there."""
    monkeypatch.setattr(columns, "MAX_SHARD_BYTES", 2000)
    (tmp_path / "own").mkdir()
    own = make_place(tmp_path / "own")
    this = asked(own, own / "cache", output=("tags",), bucket=True, shard_rows=64)
    dump(**this)
    wanted = shards(own / "cache")
    assert 3 < len(wanted) < ROWS
    for number in (0, 2):
        (own / "cache" / "view-0000" / f"tags-0000{number}.h5").unlink()
    dump(**this)
    assert shards(own / "cache") == wanted
    code = (own / "models.py").read_text()
    (own / "models.py").write_text(code.replace("self.tags(x)", "self.tags(2 * x)"))
    (own / "cache" / "view-0000" / "tags-00000.h5").unlink()
    with pytest.raises(CacheError, match=r"says something else than .* has recorded \(row \d+ in view 0"):
        dump(**this)
    assert not (own / "cache" / "view-0000" / "tags-00000.h5").exists()
