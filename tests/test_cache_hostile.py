"""Shards are untrusted: whatever HDF5 can express beyond format 1 is refused before a byte of it is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from harness_cache import write_shard

from softcache.cache import shard
from softcache.cache.hdf5 import read_structure
from softcache.cache.hdf5_bytes import lookup3
from softcache.cache.shard import PAGE, Arrays, Attributes, Extent, read_array
from softcache.errors import IntegrityError

ROWS = 6
ATTRIBUTES: Attributes = {"format": "softcache", "version": 1, "cache_id": "a" * 64, "column": "logits"}
ARRAYS: Arrays = {"digest": ("<u4", (ROWS,)), "logits/values": ("<f2", (ROWS, 5))}
VALUES = {"digest": np.arange(ROWS, dtype="<u4"), "logits/values": np.arange(30, dtype="<f2").reshape(ROWS, 5)}


def open_shard(path: Path, attributes: Attributes, arrays: Arrays) -> dict[str, Extent]:
    """Where a shard's arrays lie, if it is one."""
    with shard.open_shard(path, attributes, arrays) as file:
        return file.extents


def by_hand(path: Path, change: Callable[[h5py.File, dict[str, Any]], None] | None = None) -> Path:
    """The same shard, made through h5py's ordinary calls, with something else in it.

    ``change`` gets the open file and the two arrays' creation arguments; it may make or replace what it likes.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_alignment(1, PAGE)
    create = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    create.set_obj_track_times(False)
    with h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, fcpl=create, fapl=access)) as file:
        for key, value in ATTRIBUTES.items():
            file.attrs.create(key, np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value))
        plan = {name: {"data": data, "track_times": False} for name, data in VALUES.items()}
        if change is not None:
            change(file, plan)
        group = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        group.set_obj_track_times(False)
        if "logits/values" in plan and "logits" not in file:
            h5py.h5g.create(file.id, b"logits", gcpl=group)
        for name, arguments in plan.items():
            made = file.create_dataset(name, **arguments)
            if "crc32" not in made.attrs:
                made.attrs.create("crc32", np.uint32(0))
    return path


def test_the_plain_one_opens_whoever_wrote_it(tmp_path: Path) -> None:
    ours = tmp_path / "ours.h5"
    write_shard(ours, ATTRIBUTES, VALUES)
    for path in (ours, by_hand(tmp_path / "theirs.h5")):
        extents = open_shard(path, ATTRIBUTES, ARRAYS)
        with h5py.File(path) as file:
            for name, extent in extents.items():
                assert extent.offset == file[name].id.get_offset()
                assert extent.nbytes == file[name].id.get_storage_size()
                assert extent.crc32 == int(file[name].attrs["crc32"])
    with shard.open_shard(ours, ATTRIBUTES, ARRAYS) as file:
        np.testing.assert_array_equal(read_array(file, "digest"), VALUES["digest"])


def test_a_description_in_several_pieces_is_read(tmp_path: Path) -> None:
    """Attributes that came after what lies behind their object's header are continued elsewhere."""
    path = by_hand(tmp_path / "shard.h5")
    before = open_shard(path, ATTRIBUTES, ARRAYS)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        value = file.attrs["cache_id"]
        del file.attrs["cache_id"]
        file.attrs.create("filler", np.bytes_(b"x" * 3000))
        file.attrs.create("cache_id", value)
    assert b"OCHK" in path.read_bytes()
    extents = open_shard(path, {**ATTRIBUTES, "filler": "x" * 3000}, ARRAYS)
    assert extents == before


def _set(name: str, **arguments: Any) -> Callable[[h5py.File, dict[str, Any]], None]:
    return lambda file, plan: plan[name].update(arguments)


def _instead(name: str, make: Callable[[h5py.File], Any]) -> Callable[[h5py.File, dict[str, Any]], None]:
    def change(file: h5py.File, plan: dict[str, Any]) -> None:
        del plan[name]
        make(file)

    return change


def _beside(make: Callable[[h5py.File], Any]) -> Callable[[h5py.File, dict[str, Any]], None]:
    return lambda file, plan: make(file)


def _raw(file: h5py.File, name: str, kind: Any, layout: Any = None) -> None:
    layout = layout or h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple((ROWS,)), layout)


def _virtual(file: h5py.File) -> None:
    layout, space = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple((ROWS,))
    layout.set_virtual(space, b"/etc/hostname", b"digest", space)
    _raw(file, "digest", h5py.h5t.STD_U32LE, layout)


def _external(file: h5py.File) -> None:
    file.create_dataset("digest", (ROWS,), "<u4", external=[("/etc/passwd", 0, 4 * ROWS)])


def _committed(file: h5py.File) -> None:
    kind = h5py.h5t.STD_U32LE.copy()
    kind.commit(file.id, b"kind")
    _raw(file, "digest", kind)


def _compact(file: h5py.File) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.COMPACT)
    _raw(file, "digest", h5py.h5t.STD_U32LE, layout)


def _late(file: h5py.File) -> None:
    _raw(file, "digest", h5py.h5t.STD_U32LE)


def _deep(file: h5py.File) -> None:
    file.create_group("logits/values/more")


def _round(file: h5py.File) -> None:
    file["logits"] = file["/"]


def _many(file: h5py.File) -> None:
    for number in range(200):
        file.create_group(f"g{number}")


HOSTILE: dict[str, tuple[Callable[[h5py.File, dict[str, Any]], None], str]] = {
    "external storage": (_instead("digest", _external), "external storage"),
    "virtual": (_instead("digest", _virtual), "virtual"),
    "chunked": (_set("logits/values", chunks=(2, 5)), "chunked"),
    "compressed": (_set("logits/values", compression="gzip"), "filters|chunked"),
    "checksummed chunks": (_set("digest", fletcher32=True), "filters|chunked"),
    "resizable": (_set("digest", maxshape=(None,)), "grow|chunked"),
    "compact": (_instead("digest", _compact), "compact"),
    "no bytes yet": (_instead("digest", _late), "without bytes"),
    "big-endian": (_set("digest", dtype=">u4"), "type"),
    "signed": (_set("digest", dtype="<i4"), "expected uint32"),
    "wider": (_set("digest", dtype="<u8"), "expected uint32"),
    "double": (_set("logits/values", dtype="<f8"), "expected float16"),
    "boolean (enum)": (_set("digest", data=np.ones(ROWS, bool)), "type"),
    "compound": (_set("digest", data=np.zeros(ROWS, [("a", "<u2"), ("b", "<u2")])), "type"),
    "array type": (_set("digest", data=np.zeros(ROWS, [("a", "<u1", (4,))])), "type"),
    "opaque": (_set("digest", data=np.zeros(ROWS, "V4")), "type"),
    "variable-length text": (_set("digest", data=["x"] * ROWS, dtype=h5py.string_dtype()), "type"),
    "ragged": (_set("digest", data=None, shape=(ROWS,), dtype=h5py.vlen_dtype(np.uint32)), "type"),
    "references": (_set("digest", data=None, shape=(ROWS,), dtype=h5py.ref_dtype), "type"),
    "committed type": (_instead("digest", _committed), "object header|shared"),
    "fewer rows": (_set("digest", data=VALUES["digest"][:-1]), "expected uint32"),
    "other shape": (_set("logits/values", data=VALUES["logits/values"].T), "expected float16"),
    "scalar": (_set("digest", data=np.uint32(3)), "expected uint32"),
    "empty": (_set("digest", data=h5py.Empty("<u4")), "shape|without bytes|expected"),
    "soft link": (_instead("digest", lambda f: f.__setitem__("digest", h5py.SoftLink("/logits/values"))), "not hard"),
    "external link": (
        _instead("digest", lambda f: f.__setitem__("digest", h5py.ExternalLink("/etc/x.h5", "/"))),
        "not hard",
    ),
    "group for an array": (_instead("digest", lambda f: f.create_group("digest", track_order=False)), "digest"),
    "array for a group": (_instead("logits/values", lambda f: f.create_dataset("logits", data=[1.0])), "logits"),
    "extra group": (_beside(lambda f: f.create_group("more")), "holds|times|object header"),
    "extra array": (_beside(lambda f: f.create_dataset("more", data=[1])), "more"),
    "groups within groups": (_instead("logits/values", _deep), "groups within groups|object header"),
    "a group that holds itself": (_beside(_round), "several links"),
    "many groups": (_beside(_many), "too many|heap|object header"),
    "extra attribute": (_beside(lambda f: f.attrs.create("more", np.int64(1))), "attributes that shards don't have"),
    "huge attribute": (_beside(lambda f: f.attrs.create("more", np.zeros(7000, "<i8"))), "attribute|header"),
    "attribute of variable length": (_beside(lambda f: f.attrs.create("column", "logits")), "type"),
    "attribute of another value": (_beside(lambda f: f.attrs.create("cache_id", np.bytes_(b"b" * 64))), "cache_id"),
    "attribute of another kind": (_beside(lambda f: f.attrs.create("version", np.bytes_(b"1"))), "version"),
    "attribute that is missing": (_beside(lambda f: f.attrs.__delitem__("column")), "lacks its attribute 'column'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_shards_do_not_have_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    path = by_hand(tmp_path / "shard.h5", change)
    with pytest.raises(IntegrityError, match=message) as caught:
        open_shard(path, ATTRIBUTES, ARRAYS)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_other_versions_of_the_container_are_refused(tmp_path: Path) -> None:
    for bound in ("earliest", "latest"):
        path = tmp_path / f"{bound}.h5"
        with h5py.File(path, "w", libver=bound, userblock_size=512 if bound == "latest" else 0) as file:
            file["digest"] = VALUES["digest"]
        with pytest.raises(IntegrityError, match=r"superblock|no HDF5 file"):
            open_shard(path, ATTRIBUTES, ARRAYS)


@pytest.mark.parametrize("shift", [-PAGE, 8, PAGE, 1 << 40, (1 << 64) - PAGE])
def test_an_array_elsewhere_is_refused_though_the_checksums_agree(shift: int, tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    write_shard(path, ATTRIBUTES, VALUES)
    offset = open_shard(path, ATTRIBUTES, ARRAYS)["digest"].offset
    _forge(path, offset.to_bytes(8, "little"), ((offset + shift) % 2**64).to_bytes(8, "little"))
    with pytest.raises(IntegrityError):
        open_shard(path, ATTRIBUTES, ARRAYS)


def test_two_arrays_over_the_same_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    arrays = {"digest": VALUES["digest"], "logits/values": VALUES["digest"]}
    held: Arrays = dict.fromkeys(arrays, ("<u4", (ROWS,)))
    write_shard(path, ATTRIBUTES, arrays)
    one, other = (open_shard(path, ATTRIBUTES, held)[name].offset for name in held)
    _forge(path, one.to_bytes(8, "little"), other.to_bytes(8, "little"))
    with pytest.raises(IntegrityError, match="over something else"):
        open_shard(path, ATTRIBUTES, held)


def _forge(path: Path, old: bytes, new: bytes) -> None:
    """Replaces bytes in an object header and makes its checksum good again."""
    data = bytearray(path.read_bytes())
    with open(path, "rb") as file:
        regions = read_structure(file.fileno(), len(data)).described
    for start, length in regions:
        changed = bytes(data[start : start + length - 4]).replace(old, new)
        data[start : start + length] = changed + lookup3(changed).to_bytes(4, "little")
    assert bytes(data) != path.read_bytes()
    path.write_bytes(data)


@pytest.mark.parametrize(("size", "message"), [(60_000, "at greater length"), (40, "object header of")])
def test_a_description_that_goes_round_ends(size: int, message: str, tmp_path: Path) -> None:
    def signed(data: bytes) -> bytes:
        return data + lookup3(data).to_bytes(4, "little")

    def text(kind: int, body: bytes) -> bytes:
        return bytes([kind, *len(body).to_bytes(2, "little"), 0]) + body

    again = text(0x10, PAGE.to_bytes(8, "little") + (size + 32).to_bytes(8, "little"))  # in itself
    chunk = signed(b"OCHK" + again + text(0, bytes(size)))
    header = signed(b"OHDR\x02\x01" + len(again).to_bytes(2, "little") + again)
    numbers = [0, 2**64 - 1, PAGE + len(chunk), 1024]
    start = signed(b"\x89HDF\r\n\x1a\n\x03\x08\x08\0" + b"".join(n.to_bytes(8, "little") for n in numbers))
    path = tmp_path / "shard.h5"
    path.write_bytes((start.ljust(1024, b"\0") + header).ljust(PAGE, b"\0") + chunk)
    with pytest.raises(IntegrityError, match=message):
        open_shard(path, ATTRIBUTES, ARRAYS)


@pytest.mark.parametrize(("keep", "more"), [(0, 0), (7, 0), (100, 0), (5000, 0), (-1, 0), (None, 1), (None, 5000)])
def test_truncated_and_lengthened_files_are_refused(keep: int | None, more: int, tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    write_shard(path, ATTRIBUTES, VALUES)
    path.write_bytes(path.read_bytes()[:keep] + b"\0" * more)
    with pytest.raises(IntegrityError, match=r"no HDF5 file|truncated"):
        open_shard(path, ATTRIBUTES, ARRAYS)


def test_pipes_devices_and_folders_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening one for reading would wait for a writer for ever
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zero"):
        with pytest.raises(IntegrityError, match="no regular file"):
            open_shard(tmp_path / name, ATTRIBUTES, ARRAYS)
    with pytest.raises(IntegrityError, match="is missing"):
        open_shard(tmp_path / "absent.h5", ATTRIBUTES, ARRAYS)


def test_a_link_to_a_shard_is_followed_and_checked_like_a_file(tmp_path: Path) -> None:
    write_shard(tmp_path / "store", ATTRIBUTES, VALUES)
    (tmp_path / "shard.h5").symlink_to("store")
    assert open_shard(tmp_path / "shard.h5", ATTRIBUTES, ARRAYS).keys() == ARRAYS.keys()
    (tmp_path / "other.h5").symlink_to("/etc/passwd")
    with pytest.raises(IntegrityError, match="no HDF5 file"):
        open_shard(tmp_path / "other.h5", ATTRIBUTES, ARRAYS)


def test_lookup3_is_bob_jenkins() -> None:
    # the values that lookup3.c (public domain, May 2006) states for hashlittle
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551
