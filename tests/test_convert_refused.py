"""What can't be converted is one line that says what to do, before anything is written; and what a dump adds to."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_convert import KINDS, ROWS, VIEWS, dumped, files, make_place, values_of
from harness_train import command

from softcache.cache.reader import Cache
from softcache.converting import columns
from softcache.errors import CacheError, IntegrityError, NumericsError, SoftcacheError, UsageError
from softcache.stages.convert import convert
from softcache.stages.trim import trim
from softcache.stages.verify import verify


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module")
def exact(place: Path) -> Path:
    return dumped(place, place / "exact")


@pytest.fixture(scope="module")
def leading(place: Path) -> Path:
    return dumped(place, place / "leading", "fp16", ("logits=topk:k=5", "tags"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "int:bits=9"}, "bits=9: numbers have 4 to 8 bits"),
        ({"codec": "fp61"}, "fp61"),
        ({"codec": "auto:max_kl=1e-3"}, "--codec auto chooses while the teacher runs"),
        ({"output": "logits:codec=auto"}, "--codec auto chooses while the teacher runs"),
        ({"codec": "topk:k=5"}, "codec 'topk:k=5' is for columns of kind classes, and --output embedding:kind=values"),
        ({"output": "logits:codec=topk:k=30"}, "would keep all logits of 30 classes"),
        ({"output": "embedding:codec=basis:bytes=4,top=1"}, "top=1 is for columns of classes"),
        ({"output": "number:codec=basis:bytes=4"}, "single numbers have no directions"),
        ({"output": "logits"}, "--output logits: say in which codec, --output logits:codec=fp16"),
        ({"output": "none"}, "leave outputs out one by one, with --drop-output NAME"),
        ({"output": "logit:codec=fp16"}, "has no output 'logit': did you mean logits?"),
        ({"hint": "layer3:codec=fp16"}, "has no hint 'layer3'"),
        ({"output": "tags:kind=classes:codec=fp16"}, "has it as binary, which a conversion doesn't change"),
        ({"drop_output": "tag"}, "has no output 'tag': did you mean tags?"),
        ({"drop_hint": "layer3"}, "has no hint 'layer3'"),
        ({"drop_output": "tags", "output": "tags:kind=binary:codec=fp16"}, "is given a codec and left out"),
        ({"drop_output": tuple(KINDS)}, "nothing would be left of"),
        ({"views": 0}, "--views must be at least 1, is 0"),
        ({"views": 3}, "has 2, and only a dump can add views to it"),
        ({"shard_rows": 48}, "--shard-rows must be a power of two, is 48"),
        ({"shard_rows": 128}, "has at most 64 rows, as the dump was asked for"),
        ({"compress": "lz4"}, "--compress lz4: 'lz4' is unknown"),
        ({"compress": "logit=zstd"}, "--compress logit=…: there is no such column"),
        ({"drop_output": "tags", "compress": "tags=zstd"}, "--compress tags=…: there is no such column"),
        ({"device": "abacus"}, "--device 'abacus' is unknown"),
    ],
    ids=str,
)
def test_what_can_not_be_done_writes_nothing(
    exact: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        convert(exact, tmp_path / "made", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_list_of_views_is_refused_with_the_reason(exact: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("convert", exact, "made", "--views", "0,2") == 2
    assert "the first N views can be kept and no others" in capfd.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize("codec", ["fp16", "topk:k=3", "int:bits=8"])
def test_of_leaders_no_other_codec_is_made(leading: Path, tmp_path: Path, codec: str) -> None:
    with pytest.raises(UsageError, match=r"only its largest logits.*--output logits:codec=topk:k=5.*dump it again"):
        convert(leading, tmp_path / "made", output=f"logits:codec={codec}")
    assert not list(tmp_path.iterdir())
    made = convert(leading, tmp_path / "made", codec="int:bits=5", output="logits:codec=topk:k=5").folder
    assert {k: v for k, v in files(made).items() if "tags" not in k} == {
        k: v for k, v in files(leading).items() if "tags" not in k
    }


def test_numbers_that_a_codec_can_not_hold_name_their_key(place: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    make_place(large)
    features = np.load(large / "train_features.npy")
    features[70, 3] = 1e5
    np.save(large / "train_features.npy", features)
    source = dumped(large, tmp_path / "source", outputs=("embedding", "logits"), augment="none", views=1)
    with pytest.raises(NumericsError, match=r"row 70 in view 0: logits of .* is not finite as fp16.*bf16"):
        convert(source, tmp_path / "made", codec="fp16")
    assert verify(convert(source, tmp_path / "other", codec="bf16").folder).ok


# Where it goes.


@pytest.mark.parametrize("where", ["same", "inside", "link", "inside a link", "around", "dots", "name"])
def test_nothing_is_converted_in_place(place: Path, tmp_path: Path, where: str, monkeypatch: Any) -> None:
    source = dumped(place, tmp_path / "caches" / "a", outputs=("logits",))
    before = files(source)
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    out = {
        "same": source, "inside": source / "b" / "c", "link": tmp_path / "link", "inside a link": Path("link/b"),
        "around": tmp_path / "caches", "dots": source / "b" / "..", "name": Path("caches/../caches/a"),
    }[where]  # fmt: skip
    with pytest.raises(UsageError, match="nothing is converted in place: name a folder beside it"):
        convert(source, out, codec="fp16")
    with pytest.raises(UsageError, match="nothing is converted in place"):
        convert(tmp_path / "link", out, codec="fp16")
    assert files(source) == before
    assert sorted(path.name for path in source.iterdir()) == [
        "cache.h5", "cache.json", "rows.h5", "samples.h5", "view-0000", "view-0001",
    ]  # fmt: skip


@pytest.mark.parametrize("place_", ["SRC", "OUT"])
def test_an_address_is_refused(exact: Path, here: Path, place_: str, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["s3://bucket/a", "made"] if place_ == "SRC" else [str(exact), "s3://bucket/a"]
    assert command("convert", *given) == 2
    assert f"{place_} s3://bucket/a is an address" in capfd.readouterr().err
    assert not list(here.iterdir())


def test_another_cache_is_not_written_into(place: Path, exact: Path, tmp_path: Path) -> None:
    other = dumped(place, tmp_path / "other", outputs=("logits",), view_seed=5)
    before = files(other)
    with pytest.raises(CacheError, match=r"is a cache of something else than .*: name another folder"):
        convert(exact, other)
    made = convert(exact, tmp_path / "made", codec="fp16").folder
    for options in ({"codec": "int:bits=8"}, {"codec": "fp16", "shard_rows": 8}, {}):
        with pytest.raises(CacheError, match=r"holds \w+ as fp16 in shards of 64 rows.*would be converted to"):
            convert(exact, made, **options)
    with pytest.raises(CacheError, match="has 2 views, and 1 would be converted"):
        convert(exact, made, codec="fp16", views=1)
    middle = convert(exact, tmp_path / "middle", codec="int:bits=4").folder
    with pytest.raises(CacheError, match="would be converted to fp16 in shards of 64 rows, made of int:bits=4"):
        convert(middle, made, codec="fp16")
    assert files(other) == before


def test_a_source_that_is_not_whole(place: Path, tmp_path: Path) -> None:
    source = dumped(place, tmp_path / "source", outputs=("logits", "tags"))
    (source / "view-0001/tags-00001.h5").unlink()
    with pytest.raises(CacheError, match=r"is not complete, 1 shard .* is missing, view-0001/tags-00001\.h5 first"):
        convert(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert verify(convert(source, tmp_path / "a", views=1).folder).ok
    assert verify(convert(source, tmp_path / "b", drop_output="tags").folder).ok
    (source / "rows.h5").unlink()
    with pytest.raises(CacheError, match=r"is not complete, rows\.h5 is missing: run the command again"):
        convert(source, tmp_path / "made", views=1)
    with pytest.raises(CacheError, match="is no cache"):
        convert(tmp_path / "none", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("codec", [None, "int:bits=5", "int8"])
def test_a_damaged_shard_of_the_source_is_named(place: Path, tmp_path: Path, codec: str | None) -> None:
    source = dumped(place, tmp_path / "source", outputs=("logits", "tags"))
    shard = source / "view-0001/logits-00002.h5"
    sound = shard.read_bytes()
    with Cache(source).shard(1, "logits", 2) as file:
        at = file.extents["values"].offset + 100
    shard.write_bytes(sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :])
    with pytest.raises(IntegrityError, match=r"view-0001/logits-00002\.h5: values doesn't match its checksum"):
        convert(source, tmp_path / "made", codec=codec, device="cpu")
    assert not list((tmp_path / "made").rglob(".*.part"))
    shard.write_bytes(sound)
    convert(source, tmp_path / "made", codec=codec, device="cpu")
    convert(source, tmp_path / "wanted", codec=codec, device="cpu")
    assert files(tmp_path / "made") == files(tmp_path / "wanted")


def test_of_a_chain_without_end(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two codecs in turn, from one folder to the next."""
    monkeypatch.setattr(columns, "MAX_CONVERSIONS", 2)
    folder = dumped(place, tmp_path / "source", "fp16", ("number",))
    for step in range(2):
        folder = convert(folder, tmp_path / str(step), codec=("bf16", "fp16")[step % 2]).folder
    with pytest.raises(UsageError, match="it was converted 2 times already: dump it again"):
        convert(folder, tmp_path / "more", codec="fp32")


# And then.


def test_a_dump_of_another_codec_names_the_conversion(
    place: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = dumped(place, here / "a b", "fp16", ("logits", "embedding"))
    with pytest.raises(CacheError, match="leave that out or use another --out, or convert it: ") as caught:
        dumped(place, source, "fp16", ("logits=int:bits=5", "embedding"))
    words = shlex.split(str(caught.value).rpartition("convert it: ")[2])
    assert words[:2] == ["softcache", "convert"]
    assert command(*words[1:]) == 0, capfd.readouterr()
    held = Cache(words[3]).manifest.state.columns
    assert {name: record.codec for name, record in held.items()} == {"embedding": "fp16", "logits": "int:bits=5"}
    assert f"{ROWS} rows × {VIEWS} views" in capfd.readouterr().out


def test_a_dump_of_another_compression_names_the_conversion(place: Path, here: Path) -> None:
    pytest.importorskip("zstandard")
    source = dumped(place, here / "a", "fp16", ("logits", "embedding"))
    with pytest.raises(CacheError, match=r"asked for compressed as zstd: .*, or convert it: ") as caught:
        dumped(place, source, "fp16", ("logits", "embedding"), compress="logits=zstd")
    words = shlex.split(str(caught.value).rpartition("convert it: ")[2])
    assert command(*words[1:]) == 0
    held = Cache(words[3]).manifest.state.columns
    assert {name: bool(record.compress) for name, record in held.items()} == {"embedding": False, "logits": True}


def test_of_leaders_the_conversion_is_not_named(place: Path, leading: Path) -> None:
    with pytest.raises(CacheError, match="leave that out or use another --out") as caught:
        dumped(place, leading, "fp16", ("logits=int:bits=5", "tags"))
    assert "convert" not in str(caught.value)


def test_a_dump_adds_to_what_was_made_from_fp32(place: Path, exact: Path, tmp_path: Path) -> None:
    made = convert(exact, tmp_path / "made", codec="int:bits=8", drop_output=("maps", "number"), device="cpu").folder
    outputs = ("logits", "embedding", "tags", "number=fp32")
    dumped(place, made, "int:bits=8", outputs, views=VIEWS + 1)
    assert files(made) == files(dumped(place, tmp_path / "wanted", "int:bits=8", outputs, views=VIEWS + 1))
    assert verify(made).ok


def test_to_what_had_lost_something_a_dump_adds_columns_and_no_views(
    place: Path, exact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rough = dumped(place, tmp_path / "rough", "int:bits=4", ("logits", "tags"))
    made = convert(rough, tmp_path / "made", codec="fp16").folder
    before = files(made)
    with pytest.raises(CacheError, match=r"keeps logits as it was converted from int:bits=4, and view 2 .*add"):
        dumped(place, made, "fp16", ("logits", "tags"), views=VIEWS + 1)
    assert files(made) == before
    teacher = f"{place / 'teacher.py'}:make"
    with pytest.raises(CacheError, match=r"every column of .* was converted from a codec that had lost something"):
        verify(made, teacher=teacher, device="cpu")
    dumped(place, made, "fp16", ("logits", "tags", "embedding"))
    after = files(made)
    assert {k: after[k] for k in before} == before
    wanted = dumped(place, tmp_path / "wanted", "fp16", ("embedding",))
    assert {k: v for k, v in after.items() if "embedding" in k} == {
        k: v for k, v in files(wanted).items() if "embedding" in k
    }
    assert verify(made, teacher=teacher, device="cpu").teacher.column == "embedding"  # type: ignore[union-attr]
    assert verify(made).ok
    # The way that the message says.
    dumped(place, rough, "int:bits=4", ("logits", "tags"), views=VIEWS + 1)
    convert(rough, made, codec="fp16")
    assert np.array_equal(values_of(made, "logits", 2), values_of(rough, "logits", 2).astype(np.float16))
    assert Cache(made).manifest.state.columns["logits"].error["keys"] == ROWS * (VIEWS + 1)


def test_it_is_trimmed_and_repaired_like_others(exact: Path, tmp_path: Path) -> None:
    made = convert(exact, tmp_path / "made", codec="int8", device="cpu").folder
    trim(made, views=1, drop_outputs=("tags",))
    assert verify(made).ok
    assert not (made / "column-tags.h5").exists()
    wanted = convert(exact, tmp_path / "wanted", codec="int8", device="cpu").folder
    convert(exact, made, codec="int8", device="cpu")  # it is asked for all of it again
    assert files(made) == files(wanted)
    for name in ("view-0000/logits-00001.h5", "column-logits.h5", "samples.h5"):
        (made / name).write_bytes(b"damaged")
    assert len(verify(made, repair=True).damaged) == 3
    convert(exact, made, codec="int8", device="cpu")
    assert files(made) == files(wanted)
    assert verify(made).ok


OWN = """
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rounded:
    step: float = 0.01

    def arrays(self, shape):
        return {"steps": ("<i2", shape)}

    def encode(self, values):
        return {"steps": (values / self.step).round().clamp(-32768, 32767).to(torch.int16)}

    def decode(self, arrays):
        return arrays["steps"].float() * self.step
"""


def test_code_of_ones_own(place: Path, exact: Path, here: Path, state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "own.py").write_text(OWN)
    made = convert(exact, here / "made", output="logits:codec=own.py:Rounded", drop_output=("maps", "tags")).folder
    wanted = dumped(place, here / "wanted", "fp32", ("logits=own.py:Rounded", "embedding", "number"))
    assert files(made) == files(wanted)
    # What was named is remembered, and what nobody named is not followed.
    back = convert(made, here / "back", output="logits:codec=fp16").folder
    (step,) = Cache(back).manifest.state.columns["logits"].converted
    assert step.codec.startswith("own.py:Rounded:step=0.01 sha256=")
    for file in (state / "given").iterdir():
        file.unlink()
    with pytest.raises(SoftcacheError, match=r"runs no code .* name it, --output logits:codec=own.py:Rounded"):
        convert(made, here / "other", codec="fp16")
    assert verify(convert(made, here / "other", codec="fp16", drop_output="logits").folder).ok
    copied = convert(made, here / "third", output="logits:codec=own.py:Rounded", shard_rows=8).folder
    assert np.array_equal(values_of(copied, codec="own.py:Rounded"), values_of(made, codec="own.py:Rounded"))
    (here / "more.py").write_text(OWN)
    with pytest.raises(UsageError, match="are both code"):
        convert(made, here / "fourth", output="embedding:codec=more.py:Rounded")


def test_a_folder_that_can_not_be_made_is_named(exact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SoftcacheError, match=f"can't write to {tmp_path}/file"):
        convert(exact, tmp_path / "file" / "made")
    assert os.listdir(tmp_path) == ["file"]
