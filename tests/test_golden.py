"""Format 2: the golden caches are read bit-exactly, by softcache and by a reader made from docs/format.md."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zstandard

from softcache.cache.reader import Cache
from softcache.stages.verify import verify

GOLDEN = Path(__file__).parent / "golden" / "format-2"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
CACHE_IDS = {
    "fp16": "3f53dc69346466bd2fbe58c1f30969198523fc672376f6ff5eb5e57ae8591dea",
    "fp32": "5f49dcc32c20fb2f679bb14950b65459d46201bc016fe1a0f3812f8e7ca8cc4e",
}
ROWS, CLASSES, MASK = 20, 3, 2**64 - 1
caches = pytest.mark.parametrize("name", CACHE_IDS)


def stored(name: str, view: int, what: str) -> np.ndarray:
    """What the teacher said, (20, ...) as the codec keeps it."""
    dtype = "<f2" if what == "hint" or name == "fp16" else "<f4"
    data = bytes.fromhex(EXPECTED[name]["views"][view][what])
    return np.frombuffer(data, dtype).reshape(ROWS, -1)


@caches
def test_softcache_reads_it_bit_exactly(name: str) -> None:
    cache = Cache(GOLDEN / name, verify_reads=True)
    assert cache.manifest.cache_id == CACHE_IDS[name]
    assert cache.labels.tolist() == EXPECTED[name]["labels"]
    order = np.random.default_rng(0).permutation(ROWS)
    for view in range(cache.views):
        arrays = cache.column("logits").gather(view, order)
        wanted = stored(name, view, "logits")[order].astype(np.float32)
        assert cache.layout("logits").decode(arrays).numpy().tobytes() == wanted.tobytes()
        if name == "fp16":
            hints = cache.column("hint.fc:in").gather(view, order)
            assert hints["values"].tobytes() == stored(name, view, "hint")[order].tobytes()
            assert np.array_equal(hints["digest"], arrays["digest"])
    found = verify(GOLDEN / name)
    assert found.ok
    assert found.foreign == []


# ---- A reader made from docs/format.md alone: json, hashlib and zlib for the checks, h5py for the structure. ----


def canonical(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b",".join(canonical(k) + b":" + canonical(v) for k, v in sorted(value.items())) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(canonical, value)) + b"]"
    return repr(value).encode() if isinstance(value, float) else json.dumps(value, ensure_ascii=False).encode()


def widest(file: h5py.File) -> int:
    """The most bytes a row that an array of a codec has."""
    held = [node for key, node in file.items() if key not in ("digest", "offset")]
    return max(int(np.prod(node.shape[1:])) * node.dtype.itemsize for node in held)


def decompressed(path: Path, node: h5py.Dataset, compress: str, most: int) -> np.ndarray:
    """The numbers of a compressed array, chunk by chunk, each part of what is said of them checked."""
    name, _, options = compress.partition(":")
    asked = dict(option.split("=") for option in options.split(","))
    assert (name, list(asked)) == ("zstd", ["level", "rows", "shuffle"])
    width, rows = node.dtype.itemsize, int(asked["rows"])
    assert 2**14 <= rows * most <= 2**24
    while 2 * rows * int(np.prod(node.shape[1:])) * width <= int(asked["rows"]) * most:
        rows *= 2
    rows, tail = min(rows, len(node)), node.shape[1:]
    shuffled = asked["shuffle"] == "byte" and width > 1
    assert node.chunks == (rows, *tail)
    pipeline = node.id.get_create_plist()
    filters = [pipeline.get_filter(number)[:3] for number in range(pipeline.get_nfilters())]
    assert filters == [(2, 1, (width,))] * shuffled + [(32015, 1, (int(asked["level"]),))]
    assert node.id.get_num_chunks() == -(-len(node) // rows)
    size, crc, parts = rows * int(np.prod(tail)) * width, 0, []
    for first in range(0, len(node), rows):
        place = (first, *(0 for _ in tail))
        mask, frame = node.id.read_direct_chunk(place)
        info = node.id.get_chunk_info_by_coord(place)
        assert path.read_bytes()[info.byte_offset : info.byte_offset + info.size] == frame
        crc = zlib.crc32(frame, crc)
        said = zstandard.get_frame_parameters(frame)
        assert (mask, said.content_size, said.dict_id, said.has_checksum) == (0, size, 0, True)
        assert said.window_size <= max(size, 1024)
        assert len(frame) <= size + size // 256 + 64
        data = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8)
        if shuffled:
            data = data.reshape(width, -1).T
        parts.append(np.frombuffer(data.tobytes(), node.dtype).reshape(rows, *tail))
    whole = np.concatenate(parts)
    assert not whole[len(node) :].any()
    assert zlib.crc32(whole[: len(node)].tobytes()) == node.attrs["crc32"]
    assert crc == node.attrs["stored_crc32"]
    assert len(node.attrs) == 2
    return whole[: len(node)]


class Plain:
    """What docs/format.md says of a cache, and nothing of softcache."""

    def __init__(self, folder: Path):
        self.folder = folder
        manifest = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        assert manifest["softcache"] == 2
        assert hashlib.sha256(canonical(manifest["identity"])).hexdigest() == manifest["cache_id"]
        assert hashlib.sha256(canonical(manifest["state"])).hexdigest() == manifest["state_sha256"]
        self.id, self.identity, self.state = manifest["cache_id"], manifest["identity"], manifest["state"]

    def file(self, name: str, column: str, **attributes: int) -> dict[str, np.ndarray]:
        """All arrays of a file, mapped from where they lie, each with its checksum right."""
        found: dict[str, np.ndarray] = {}
        path = self.folder / name
        compress = self.state["columns"].get(column, {}).get("compress") if name.startswith("view-") else None

        def visit(key: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and compress and key not in ("digest", "offset") and node.size:
                found[key] = decompressed(path, node, compress, widest(file))
            elif isinstance(node, h5py.Dataset):
                assert node.chunks is None
                offset = node.id.get_offset()
                if node.size == 0:
                    assert (offset, node.attrs["crc32"]) == (None, 0)
                    found[key] = np.empty(node.shape, node.dtype)
                    return
                assert offset % 4096 == 0
                array = np.memmap(path, node.dtype, "r", offset, node.shape)
                assert zlib.crc32(array.tobytes()) == node.attrs["crc32"]
                found[key] = array
            else:
                assert len(node.attrs) == 0

        with h5py.File(path, "r") as file:
            texts = {"format": b"softcache", "cache_id": self.id.encode(), "column": column.encode()}
            if name == f"column-{column}.h5".replace(":", "@"):
                texts["codec"] = self.state["columns"][column]["codec"].encode()
                attributes = {"views": self.state["columns"][column]["fitted_views"]}
            elif column in self.state["columns"]:
                record = self.state["columns"][column]
                steps = [{k: v for k, v in step.items() if k != "error"} for step in record["converted"]]
                meaning = {name: value for name, value in record.items() if name not in ("error", "converted")}
                assert set(meaning) == {
                    "kind",
                    "shape",
                    "codec",
                    "constants",
                    "fitted_views",
                    "shard_rows",
                    "lengths",
                    "stride",
                    "compress",
                }
                meaning |= {"converted": steps} if steps else {}
                texts["column_sha256"] = hashlib.sha256(canonical(meaning)).hexdigest().encode()
            if column == "rows":
                texts["labels_sha256"] = self.state["labels"].encode()
            assert dict(file.attrs) == {**texts, "version": 2, **attributes}
            file.visititems(visit)
        return found

    def constants(self, column: str) -> dict[str, np.ndarray]:
        """What the codec of a column was fitted to."""
        found = self.file(f"column-{column}.h5".replace(":", "@"), column)
        digest = hashlib.sha256()
        for name, array in sorted(found.items()):
            digest.update(f"{name}\0{array.dtype.str}\0{','.join(map(str, array.shape))}\0".encode() + array.tobytes())
        assert digest.hexdigest() == self.state["columns"][column]["constants"]
        return found

    @staticmethod
    def of_share(share: str, rows: int) -> list[int]:
        """1 for the rows that a share has, else 0."""
        assert re.fullmatch(r"1|0\.\d{0,5}[1-9]", share)
        h = [splitmix(splitmix(0x726F7773) ^ row) >> 32 for row in range(rows)]
        millionths = int(1_000_000 * Fraction(share))
        first = h.index(min(h[:4096]))
        return [int(h[row] * 1_000_000 < millionths * 2**32 or row == first) for row in range(rows)]

    def column(self, view: int, column: str) -> dict[str, np.ndarray]:
        """All rows of a column of a view; of a ragged one the places of all rows, and ``offset`` of all."""
        record, (path, _, share) = self.state["columns"][column], column.partition(":rows=")
        rows, size, input_, begin = self.identity["dataset"]["rows"], record["shard_rows"], record["lengths"], 0
        assert self.identity["grid"]["block_rows"] % size == 0
        assert (record["shape"][:1] == [None]) == (input_ is not None or bool(share))
        lengths = None if input_ is None else self.file("rows.h5", "rows")[f"length/{input_}"].tolist()
        if share:
            assert path.startswith("hint.")
            assert (input_, record["stride"]) == (None, 1)
            lengths = self.of_share(share, rows)
        shards = []
        for number in range(-(-rows // size)):
            count = min(size, rows - number * size)
            name = f"view-{view:04d}/{column.replace(':', '@')}-{number:05d}.h5"
            shards.append(self.file(name, column, view=view, first_row=number * size, rows=count))
            if lengths is None:
                assert {len(array) for array in shards[-1].values()} == {count}
                continue
            wanted = [0]
            for n in lengths[number * size : number * size + count]:
                wanted.append(wanted[-1] + math.ceil(n / record["stride"]))
            found = shards[-1]
            assert found["offset"].dtype == "<i8"
            assert found["offset"].tolist() == wanted
            assert len(found["digest"]) == count
            assert {len(array) for name, array in found.items() if name not in ("digest", "offset")} == {wanted[-1]}
            found["offset"] = found["offset"][number > 0 :] + begin
            begin += wanted[-1]
        return {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}


def finalize(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def splitmix(z: int) -> int:
    return finalize((z + 0x9E3779B97F4A7C15) & MASK)


def digest(pixels: bytes) -> int:
    return finalize(total(pixels)) >> 32


def total(data: bytes) -> int:
    words = np.frombuffer(data + bytes(-len(data) % 4), "<i4").tolist()
    return sum((splitmix(j) | 1) * x for j, x in enumerate(words)) & MASK


def word(seed: int, view: int, position: int, index: int, k: int) -> int:
    chain = splitmix(splitmix(splitmix(seed) ^ view) ^ position)
    return splitmix((splitmix(chain ^ index) + k * 0x9E3779B97F4A7C15) & MASK)


def crop_and_flip(image: np.ndarray, seed: int, view: int, index: int, pad: int) -> np.ndarray:
    top, left = (((word(seed, view, 0, index, k) >> 32) * (2 * pad + 1)) >> 32 for k in range(2))
    size = len(image)
    cut = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[top : top + size, left : left + size]
    return cut[:, ::-1] if word(seed, view, 1, index, 0) >> 32 < round(0.5 * 2**32) else cut


def test_the_digests_that_the_specification_gives() -> None:
    assert [hex(digest(bytes(b))) for b in ([0] * 4, [1, 0, 0, 0], [255] * 4)] == ["0x0", "0x48218226", "0x78d7d986"]


@caches
def test_a_reader_made_from_the_specification_reads_it_bit_exactly(name: str) -> None:
    plain = Plain(GOLDEN / name)
    assert plain.id == CACHE_IDS[name]
    rows = plain.file("rows.h5", "rows")
    assert rows["label"].tolist() == EXPECTED[name]["labels"]
    assert hashlib.sha256(rows["label"].tobytes()).hexdigest() == plain.state["labels"]
    if name == "fp32":
        assert [n.decode() for n in rows["name"].tolist()] == EXPECTED[name]["names"]
    samples = plain.file("samples.h5", "samples")
    for view in range(plain.state["views"]):
        logits = plain.column(view, "logits")
        assert logits["values"].tobytes() == stored(name, view, "logits").tobytes()
        if view == 0:
            kept = [digest(pixels.tobytes()) for pixels in samples["pixels"]]
            assert logits["digest"][samples["index"]].tolist() == kept
        for column in plain.state["columns"].keys() - {"logits"}:
            hint = plain.column(view, column)
            assert hint["values"].tobytes() == stored(name, view, "hint").tobytes()
            assert np.array_equal(hint["digest"], logits["digest"])


def test_a_reader_made_from_the_specification_reads_inputs_and_columns_of_all_kinds() -> None:
    plain, expected = Plain(GOLDEN / "table"), EXPECTED["table"]
    assert plain.identity["dataset"]["inputs"] == {"features": {"dtype": "float32", "shape": [5], "pad": 0}}
    assert {name: record["kind"] for name, record in plain.state["columns"].items()} == {
        "logits": "classes", "steps": "values", "tags": "binary", "vector": "values", "whole": "values",
    }  # fmt: skip
    features = np.frombuffer(bytes.fromhex(expected["features"]), "<f4").reshape(ROWS, 5)
    header = hashlib.sha256(b'["features", "float32", [5]]').digest()[:8]
    begun = splitmix(int.from_bytes(header, "little"))
    digests = [splitmix(begun ^ total(row.tobytes())) >> 32 for row in features]
    samples = plain.file("samples.h5", "samples")
    assert np.array_equal(samples["features"], features[samples["index"]])
    assert plain.file("rows.h5", "rows")["label"].tolist() == expected["labels"]
    softcache = Cache(GOLDEN / "table", verify_reads=True)
    for name in plain.state["columns"]:
        found = plain.column(0, name)
        assert found["values"].tobytes() == bytes.fromhex(expected["views"][0][name])
        assert found["digest"].tolist() == digests
        reader = softcache.column(name)
        assert reader.gather(0, np.arange(ROWS))["values"].tobytes() == found["values"].tobytes()
    vector = softcache.column("vector")
    widened = np.frombuffer(bytes.fromhex(expected["views"][0]["vector"]), "<u2").astype("<u4") << 16
    assert vector.decode(vector.gather(0, np.arange(ROWS))).numpy().tobytes() == widened.tobytes()
    assert {name: record["constants"] is None for name, record in plain.state["columns"].items()} == {
        name: name != "steps" for name in plain.state["columns"]
    }
    low, step = (plain.constants("steps")[name] for name in ("low", "step"))
    assert {"low": low.tobytes().hex(), "step": step.tobytes().hex()} == expected["constants"]
    steps = softcache.column("steps")
    decoded = low + step * plain.column(0, "steps")["values"].astype(np.float32)
    assert steps.decode(steps.gather(0, np.arange(ROWS))).numpy().tobytes() == decoded.tobytes()
    assert np.abs(decoded - (features - np.float32(1))).max() <= step.max() * 0.5001


def test_a_reader_made_from_the_specification_reads_rows_that_have_lengths_of_their_own() -> None:
    plain, expected = Plain(GOLDEN / "words"), EXPECTED["words"]
    assert plain.identity["dataset"]["inputs"] == {
        "ids": {"dtype": "int32", "shape": [None], "pad": 0}, "more": {"dtype": "float32", "shape": [2], "pad": 0},
    }  # fmt: skip
    rows, samples, logits = (
        plain.file("rows.h5", "rows"),
        plain.file("samples.h5", "samples"),
        plain.column(0, "logits"),
    )
    cache = Cache(GOLDEN / "words", verify_reads=True)
    shapes = {"each": [None, 2], "rounded": [None, 2], "pairs": [None], "logits": [3]}
    assert {name: record["shape"] for name, record in plain.state["columns"].items()} == shapes
    for name in ("each", "rounded", "pairs"):
        found, reader = plain.column(0, name), cache.column(name)
        assert found["values"].tobytes() == bytes.fromhex(expected["views"][0][name])
        assert found["values"].shape[1:] == tuple(shapes[name][1:])
        assert np.array_equal(found["digest"], logits["digest"])
        read = reader.gather(0, np.arange(ROWS))
        assert all(np.array_equal(read[part], found[part]) for part in ("digest", "offset", "values"))
    exact = cache.column("each").gather(0, np.arange(ROWS))["values"]
    assert exact[:, 0].tolist() == expected["ids"]
    widened = np.frombuffer(bytes.fromhex(expected["views"][0]["rounded"]), "<u2").astype("<u4") << 16
    reader = cache.column("rounded")
    decoded = reader.decode(reader.gather(0, np.arange(ROWS))).numpy()
    assert decoded.tobytes() == widened.tobytes()
    with h5py.File(GOLDEN / "words" / "cache.h5") as file:
        assert list(file) == ["logits"]
    lengths = rows["length/ids"]
    assert lengths.tolist() == expected["lengths"]
    assert logits["values"].tobytes() == bytes.fromhex(expected["views"][0]["logits"])
    assert plain.state["samples"] == ROWS == len(samples["index"])
    assert plain.state["samples_lengths"] == {"ids": len(samples["ids"])}
    assert samples["ids"].tolist() == expected["ids"]
    ends = np.cumsum(lengths[samples["index"]])
    for row, (end, more) in enumerate(zip(ends, samples["more"], strict=True)):
        ids, state = samples["ids"][end - lengths[row] : end], 0
        for name, array in (("ids", ids), ("more", more)):
            header = json.dumps([name, array.dtype.name, list(array.shape)]).encode()
            state = splitmix(state ^ int.from_bytes(hashlib.sha256(header).digest()[:8], "little"))
            state = splitmix(state ^ total(array.tobytes()))
        assert logits["digest"][row] == state >> 32
    _, kept = Cache(GOLDEN / "words", verify_reads=True).samples
    wanted = [samples["ids"][end - n : end].tolist() for end, n in zip(ends, lengths, strict=True)]
    assert [row.tolist() for row in kept["ids"]] == wanted
    assert verify(GOLDEN / "words").ok


def numbers_of(packed: np.ndarray, widths: list[int]) -> np.ndarray:
    """(rows, len(widths)): whole numbers that lie end to end in bytes, their lowest bits first."""
    found = []
    for row in packed:
        whole = int.from_bytes(row.tobytes(), "little")
        found.append([])
        for width in widths:
            found[-1].append(whole & (1 << width) - 1)
            whole >>= width
        assert whole == 0  # what is left over
    return np.array(found)


def of_basis(packed: np.ndarray, constants: dict[str, np.ndarray], top: int) -> tuple[np.ndarray, np.ndarray]:
    """The vectors, and for each number by how much two readers may differ."""
    mean, directions, widths = (constants[name] for name in ("mean", "directions", "widths"))
    count = len(mean)
    k, b = min(top, count), (count - 1).bit_length()
    found = numbers_of(packed, [16] * k + [b] * k + widths.tolist())
    leaders, places, z = found[:, :k].astype("<u2").view("<f2"), found[:, k : 2 * k], found[:, 2 * k :]
    assert bool((z >> widths == 0).all())
    levels = np.where(widths > 0, constants["levels"][2 ** widths.astype(int) - 2 + z], np.float32(0))
    values = mean + levels @ directions
    allowed = 2.0**-22 * (np.abs(mean) + np.abs(levels) @ np.abs(directions))
    if k:
        below = np.nextafter(leaders.astype("<f4").min(1, keepdims=True), np.float32(-np.inf))
        values = np.minimum(values, below)
    np.put_along_axis(values, places, leaders.astype("<f4"), 1)
    np.put_along_axis(allowed, places, 0, 1)
    return values, allowed


def test_a_reader_made_from_the_specification_reads_few_bits_of_principal_directions() -> None:
    plain, cache = Plain(GOLDEN / "basis"), Cache(GOLDEN / "basis", verify_reads=True)
    codecs = {name: record["codec"] for name, record in plain.state["columns"].items()}
    assert codecs == {"logits": "basis:bytes=10,top=2", "vector": "basis:rank=7,bits=3,top=0"}
    for name, top, size in (("logits", 2, 10), ("vector", 0, 3)):
        constants, packed = plain.constants(name), plain.column(0, name)["packed"]
        assert packed.shape == (ROWS, size)
        values, allowed = of_basis(packed, constants, top)
        reader = cache.column(name)
        read = reader.gather(0, np.arange(ROWS))
        assert read["packed"].tobytes() == packed.tobytes()
        assert bool((np.abs(reader.decode(read).numpy() - values) <= allowed).all())
        said = np.frombuffer(bytes.fromhex(EXPECTED["basis"]["said"][name]), "<f4").reshape(ROWS, -1)
        assert np.linalg.norm(values - said) < 0.25 * np.linalg.norm(said - said.mean(0))
        leaders = np.argsort(-said, 1)[:, :top]
        assert np.array_equal(
            np.take_along_axis(values, leaders, 1), np.take_along_axis(said, leaders, 1).astype("<f2").astype("<f4")
        )
    assert verify(GOLDEN / "basis").ok


def made_of_three(keys: np.ndarray, classes: int) -> np.ndarray:
    """(…) whole numbers → (…, classes), as the function of ``vectors`` answers: exact in single precision."""
    k = np.arange(3)
    short = (keys[..., None] * (k + 2) ** 2 + 3 * k) % 11 - 5
    return (short @ ((k[:, None] + 1) * (np.arange(classes) + 3) ** 2 % 13 - 6)).astype("<f4")


def test_a_reader_made_from_the_specification_reads_vectors_along_any_axis() -> None:
    plain, cache = Plain(GOLDEN / "vectors"), Cache(GOLDEN / "vectors", verify_reads=True)
    codecs = {name: record["codec"] for name, record in plain.state["columns"].items()}
    rows = np.arange(ROWS)
    said = made_of_three(rows, 20)
    rank = int(np.linalg.matrix_rank(said - said.mean(0)))
    assert codecs == {"logits": f"factored:rank={rank},bits=16", "maps": "basis:bytes=2,top=0,axis=0"}
    coefficients, constants = plain.column(0, "logits")["coefficients"], plain.constants("logits")
    assert (coefficients.dtype, coefficients.shape) == (np.dtype("<f2"), (ROWS, rank))
    logits = constants["mean"] + coefficients.astype("<f4") @ constants["directions"]
    allowed = 2.0**-11 * np.abs(coefficients.astype(float)) @ np.abs(constants["directions"].astype(float)) + 1e-4
    assert bool((np.abs(logits - said) <= allowed).all())
    packed, places = plain.column(0, "maps")["packed"], 4 * rows[:, None, None] + np.array([[0, 1], [2, 3]])
    assert packed.shape == (ROWS, 2, 2, 2)
    vectors, _ = of_basis(packed.reshape(-1, 2), plain.constants("maps"), 0)
    said = made_of_three(places, 6)
    assert np.linalg.norm(vectors.reshape(said.shape) - said) < 0.1 * np.linalg.norm(said)
    for name, values in (("logits", logits), ("maps", np.moveaxis(vectors.reshape(said.shape), -1, 1))):
        read = cache.column(name)
        np.testing.assert_allclose(read.decode(read.gather(0, rows)).numpy(), values, rtol=1e-5, atol=1e-4)
    assert verify(GOLDEN / "vectors").ok


# ---- Codecs of few bits, by docs/format.md. ----


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """(rows, bytes) → (rows, count) whole numbers."""
    wholes = [int.from_bytes(row.tobytes(), "little") for row in packed]
    assert packed.shape[1] == -(-bits * count // 8)
    assert all(whole >> bits * count == 0 for whole in wholes)
    return np.array([[whole >> bits * j & 2**bits - 1 for j in range(count)] for whole in wholes])


def decoded_int(arrays: dict[str, np.ndarray], bits: int, shape: tuple[int, ...]) -> np.ndarray:
    own = shape[:1] if len(shape) == 3 else shape[:-1]
    ranges = own if math.prod(shape) >= 64 * math.prod(own) else ()
    rows = len(arrays["values"])
    assert arrays["step"].shape == arrays["top"].shape == (rows, *ranges)
    q = unpacked(arrays["values"], bits, math.prod(shape)).reshape(rows, *ranges, -1)
    step = (arrays["step"].astype("<u4") << 16).view("<f4").astype(np.float64)[..., None]
    exact = (arrays["top"].astype(int)[..., None] - 16 * q) * step / 16
    assert (exact.astype("<f4") == exact).all()
    return exact.astype("<f4").reshape(rows, *shape)


def leaders(arrays: dict[str, np.ndarray], k: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, k) logits and their classes."""
    top = arrays["top"][..., None]
    assert ("below" in arrays) == (k > 1)
    rest = [top - short_float(arrays["below"])] if k > 1 else []
    packed = arrays["which"]
    bits = math.ceil(math.log2(classes))
    which = unpacked(packed.reshape(-1, packed.shape[-1]), bits, k).reshape(*packed.shape[:-1], k)
    return np.concatenate([top, *rest], -1), which


def short_float(numbers: np.ndarray) -> np.ndarray:
    return (numbers.astype("<u4") << 15).view("<f4")


def decoded_topk(arrays: dict[str, np.ndarray], k: int, classes: int, T: float) -> np.ndarray:
    logits, which = leaders(arrays, k, classes)
    a, b = np.float32(min(max(2 - 2 / T, 0), 1)), np.float32(max(2 - 4 / T, 0))
    falls = short_float(arrays["falls"])
    tail = arrays["tail"] - a * falls[..., 0] - b * falls[..., 1]
    dense = np.repeat(tail[..., None], classes, -1)
    np.put_along_axis(dense, which, logits, -1)
    return dense


def test_a_reader_made_from_the_specification_reads_what_was_converted(tmp_path: Path) -> None:
    plain, first = Plain(GOLDEN / "converted"), Plain(GOLDEN / "fp16")
    assert (plain.id, plain.identity) == (first.id, first.identity)
    assert (plain.state["views"], plain.state["labels"]) == (1, first.state["labels"])
    softcache = Cache(GOLDEN / "converted", verify_reads=True)
    assert softcache.manifest.cache_id == CACHE_IDS["fp16"]
    for name, record in plain.state["columns"].items():
        there, found = first.column(0, name), plain.column(0, name)
        assert np.array_equal(found["digest"], there["digest"])
        steps = record["converted"]
        assert [(step["codec"], step["constants"] is None) for step in steps] == [("fp16", True), ("int8", False)]
        assert steps[0]["error"] == first.state["columns"][name]["error"]
        assert steps[1]["error"]["keys"] == record["error"]["keys"] == ROWS
        decoded = decoded_int(found, 5, tuple(record["shape"]))
        reader = softcache.column(name)
        assert reader.decode(reader.gather(0, np.arange(ROWS))).numpy().tobytes() == decoded.tobytes()
        # half a step of each of the two codecs, whose constants of a channel are gone with it
        said = there["values"].astype(np.float64)
        wide, own = said.max(0) - said.min(0), said.max(1) - said.min(1)
        assert (np.abs(decoded - said) <= 0.54 * own[:, None] * 1.1 / 31 + 0.51 * wide * 1.13 / 255 + 1e-3).all()
    assert verify(GOLDEN / "converted").ok


def numbers(keys: np.ndarray, *shape: int) -> np.ndarray:
    """What the teacher of ``small`` makes its answers of."""
    seeds = np.asarray(keys, np.int64).reshape(-1, *[1] * len(shape))
    places = np.arange(np.prod(shape)).reshape(1, *shape)
    return (((seeds * 7919 + 12345) * (places + 3) ** 2 % 1009 - 504) / 64).astype(np.float32)


def small_answers() -> dict[str, np.ndarray]:
    keys = np.arange(0, 2 * ROWS, 2)
    ids = np.arange((np.arange(ROWS) % 6).sum()) - 9
    return {
        "logits": numbers(keys, 3), "two": numbers(keys, 2, 70), "maps": numbers(keys, 2, 8, 8),
        "steps": numbers(keys, 4, 5), "bytes": numbers(keys, 66) * np.float32(1e30), "each": numbers(ids, 2) * 1000,
        "tags": numbers(ids, 70),
    }  # fmt: skip


def test_a_reader_made_from_the_specification_reads_codecs_of_few_bits() -> None:
    plain, cache = Plain(GOLDEN / "small"), Cache(GOLDEN / "small", verify_reads=True)
    assert plain.file("rows.h5", "rows")["label"].tolist() == EXPECTED["small"]["labels"]
    shares = {"maps": 64, "steps": 20, "bytes": 66, "each": 2}
    for name, said in small_answers().items():
        record, reader = plain.state["columns"][name], cache.column(name)
        shape = tuple(size for size in record["shape"] if size is not None)
        arrays, read = plain.column(0, name), reader.gather(0, np.arange(ROWS))
        codec, _, option = record["codec"].partition(":")
        value = int(option.partition("=")[2])
        if codec == "int":
            decoded = decoded_int(arrays, value, shape)
            assert reader.decode(read).numpy().tobytes() == decoded.tobytes()
            both = said.reshape(-1, shares[name]).astype(float), decoded.reshape(-1, shares[name]).astype(float)
            largest, smallest = both[0].max(1), both[0].min(1)
            step = (1 + 2**-7) * np.maximum((largest - smallest) / (2**value - 1), np.abs(largest) * 16 / 32767)
            assert (np.abs(both[1] - both[0]) <= 0.54 * step[:, None]).all()
            continue
        logits, which = leaders(arrays, value, shape[-1])
        order = np.argsort(-said, -1, kind="stable")
        assert np.array_equal(which, order[..., :value])
        exact = np.take_along_axis(said, which, -1)
        assert (np.abs(logits - exact) <= (exact[..., :1] - exact) * 2**-9 + 1e-5).all()
        assert reader.decode(read).numpy().tobytes() == decoded_topk(arrays, value, shape[-1], 1).tobytes()
        for T in (0.5, 1, 1.5, 2, 3, 4, 8, 100):
            dense = decoded_topk(arrays, value, shape[-1], T)
            np.testing.assert_allclose(reader.target(read).at(T).numpy(), dense, rtol=3e-7, atol=3e-7)  # type: ignore[union-attr]
            if T in (1, 2, 4):
                weights = [
                    np.exp((z - z.max(-1, keepdims=True)) / T) for z in (said.astype(float), dense.astype(float))
                ]
                shares_of_tail = [np.take_along_axis(w, order[..., value:], -1).sum(-1) / w.sum(-1) for w in weights]
                np.testing.assert_allclose(*shares_of_tail, rtol=1e-5 if T == 1 else 1e-2, atol=1e-12)
    assert verify(GOLDEN / "small").ok


def few(keys: np.ndarray, *shape: int) -> np.ndarray:
    """What the teacher of ``compressed`` makes its answers of."""
    seeds = np.asarray(keys, np.int64).reshape(-1, *[1] * len(shape))
    places = np.arange(np.prod(shape)).reshape(1, *shape)
    return ((seeds + places // 5) % 7 - 3).astype(np.float32) / 4 * (places % 3 > 0)


def test_a_reader_made_from_the_specification_reads_compressed_columns() -> None:
    plain, cache = Plain(GOLDEN / "compressed"), Cache(GOLDEN / "compressed", verify_reads=True)
    keys, ids = np.arange(0, 2 * ROWS, 2), np.arange((np.arange(ROWS) % 6).sum()) - 9
    said = {"logits": few(keys, 3), "maps": few(keys, 32, 64), "words": few(ids, 512), "left": few(keys, 5)}
    assert {name: record["compress"] is None for name, record in plain.state["columns"].items()} == {
        "logits": False, "maps": False, "words": False, "tags": False, "left": True,
    }  # fmt: skip
    for name in plain.state["columns"]:
        found, reader = plain.column(0, name), cache.column(name)
        read = reader.gather(0, np.arange(ROWS))
        assert found.keys() == read.keys()
        assert all(found[array].tobytes() == read[array].tobytes() for array in found)
        if name == "tags":
            logits, which = leaders(found, 2, 70)
            assert np.array_equal(which, np.argsort(-few(ids, 70), -1, kind="stable")[:, :2])
            assert np.array_equal(logits, np.take_along_axis(few(ids, 70), which, -1))
        else:
            assert found["values"].astype("<f4").tobytes() == said[name].astype("<f4").tobytes()
    with h5py.File(GOLDEN / "compressed/view-0000/words-00000.h5") as file:
        assert file["values"].id.get_num_chunks() == 5
    assert verify(GOLDEN / "compressed").ok


def test_a_reader_made_from_the_specification_reads_activations_of_a_share_of_the_rows() -> None:
    plain, expected = Plain(GOLDEN / "shares"), EXPECTED["shares"]
    cache = Cache(GOLDEN / "shares", verify_reads=True)
    layers = {
        "fc:in:rows=0.4": ("<f2", [None, 64]), "layer1:pool=2:rows=0.25": ("<f4", [None, 16, 2, 2]),
        "layer1:pool=1:rows=0.000001": ("<f2", [None, 16, 1, 1]),
    }  # fmt: skip
    shapes = {name: record["shape"] for name, record in plain.state["columns"].items()}
    assert shapes == {"logits": [3], **{f"hint.{layer}": shape for layer, (_, shape) in layers.items()}}
    order = np.random.default_rng(1).permutation(ROWS)
    for view in range(2):
        logits = plain.column(view, "logits")
        assert logits["values"].tobytes() == bytes.fromhex(expected["views"][view]["logits"])
        for layer, (dtype, shape) in layers.items():
            found, reader = plain.column(view, f"hint.{layer}"), cache.column(f"hint.{layer}")
            wanted = np.frombuffer(bytes.fromhex(expected["views"][view][layer]), dtype).reshape(-1, *shape[1:])
            near = {"<f2": 1e-3, "<f4": 1e-5}[dtype] if "pool" in layer else 0  # means may be summed in another order
            assert np.allclose(found["values"], wanted, rtol=near, atol=0)
            kept = np.diff(found["offset"])
            assert (len(found["offset"]), kept.sum(), kept.max()) == (ROWS + 1, len(wanted), 1)
            assert np.array_equal(found["digest"], logits["digest"])
            read = reader.gather(view, order)
            assert read["values"].tobytes() == np.concatenate([found["values"][a:b] for a, b in zip(
                found["offset"][order], found["offset"][order + 1], strict=True)]).tobytes()  # fmt: skip
            assert np.array_equal(np.diff(read["offset"]), kept[order])
    assert plain.of_share("0.000001", ROWS).count(1) == 1
    assert (GOLDEN / "shares" / "view-0000" / "hint.layer1@pool=2@rows=0.25-00001.h5").exists()
    found = verify(GOLDEN / "shares")
    assert (found.ok, found.foreign) == (True, [])


def test_views_can_be_made_again_from_the_specification() -> None:
    plain = Plain(GOLDEN / "fp16")
    recipe = plain.identity["recipe"]
    assert recipe["spec"] == "crop:pad=2,fill=0+flip:p=0.5"
    y, x = np.mgrid[:8, :8]
    samples = plain.file("samples.h5", "samples")
    assert samples["index"].tolist() == list(range(ROWS))
    for view in range(2):
        digests = plain.column(view, "logits")["digest"].tolist()
        for row in range(ROWS):
            image = ((37 * row + 11 * y + 5 * x + row * y * x) % 256).astype(np.uint8)[..., None]
            pixels = crop_and_flip(image, recipe["seed"], view, row, pad=2)
            assert digest(pixels.tobytes()) == digests[row], (row, view)
            assert view or np.array_equal(pixels, samples["pixels"][row])


@caches
def test_cache_h5_shows_the_same_numbers(name: str, tmp_path: Path) -> None:
    moved = shutil.copytree(GOLDEN / name, tmp_path / "moved")
    with h5py.File(moved / "cache.h5") as file:
        assert bytes(file.attrs["cache_id"]).decode() == CACHE_IDS[name]
        for view in range(len(file["logits/digest"])):
            assert file["logits/values"][view].tobytes() == stored(name, view, "logits").tobytes()
            if name == "fp16":
                assert file["hint.fc:in/values"][view].tobytes() == stored(name, view, "hint").tobytes()


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump_reads_every_file() -> None:
    for path in sorted(GOLDEN.rglob("*.h5")):
        shown = subprocess.run(["h5dump", "-H", str(path)], capture_output=True, text=True, check=True)
        assert "DATASET" in shown.stdout
