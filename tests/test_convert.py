"""``softcache convert``: what is copied keeps its bytes, what is coded anew is what a dump keeps, and what it loses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness_convert import BLOCK, CLASSES, KINDS, ROWS, VIEWS, dumped, files, make_place, records, values_of
from harness_ragged import asked as asked_ragged
from harness_ragged import make_place as make_ragged_place
from harness_train import command
from hypothesis import given
from hypothesis import strategies as st

import softcache
from softcache.cache.reader import Cache
from softcache.cache.writer import Block
from softcache.converting import stream
from softcache.dumping import codec_error
from softcache.stages.convert import convert
from softcache.stages.dump import dump
from softcache.stages.verify import verify


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module")
def exact(place: Path) -> Path:
    return dumped(place, place / "exact")


def same_cache(made: Path, wanted: Path) -> None:
    """Byte for byte but for the manifest, which says when and how each was made; there errors are equal to rounding."""
    assert files(made) == files(wanted)
    assert records(made) == records(wanted)
    one, other = Cache(made).manifest, Cache(wanted).manifest
    assert one.identity == other.identity
    for name, record in one.state.columns.items():
        assert record.error == pytest.approx(other.state.columns[name].error, rel=1e-9)
    assert one.state.teacher_top1 == pytest.approx(other.state.teacher_top1, abs=0.03)  # a rough codec changes it
    assert verify(made).ok
    assert verify(made).foreign == []


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int:bits=8", "int:bits=5", "int8"])
def test_from_fp32_it_is_what_a_dump_keeps(codec: str, place: Path, exact: Path, tmp_path: Path) -> None:
    found = convert(exact, tmp_path / "made", codec=codec, device="cpu")
    same_cache(tmp_path / "made", dumped(place, tmp_path / "wanted", codec))
    assert found.shards == (VIEWS * len(KINDS) * -(-ROWS // BLOCK))
    assert found.bytes_after == sum(p.stat().st_size for p in (tmp_path / "made").rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "codec", ["topk:k=5", "basis:bytes=20", "basis:rank=8,bits=3,top=2", "basis:max_kl=0.5", "int:bits=4"]
)
def test_from_fp32_logits_are_what_a_dump_keeps(codec: str, place: Path, exact: Path, tmp_path: Path) -> None:
    """Codecs that code the numbers of a row together, too: the teacher says the same in every batch here, so that they
    are fitted to the same values, and rows are coded in the batches of the dump."""
    dropped = tuple(name for name in KINDS if name not in ("logits", "maps"))
    convert(exact, tmp_path / "made", output=f"logits:codec={codec}", drop_output=dropped, device="cpu")
    outputs = (f"logits={codec}", "maps")
    same_cache(tmp_path / "made", dumped(place, tmp_path / "wanted", "fp32", outputs))


def test_a_network_with_hints(tmp_path: Path, setting, warm) -> None:
    """Codecs that fit nothing keep the same bytes. What is fitted nearly agrees: a network's last bits depend on what
    else is in the batch, and the drawn keys are in other batches when a dump fits."""
    for codec in ("fp32", "fp16", "int8"):
        assert warm.run(setting.command(tmp_path / codec, "--codec", codec)).status == 0
    for codec in ("fp16", "int8"):
        convert(tmp_path / "fp32", tmp_path / f"made-{codec}", codec=codec, device="cpu")
    assert files(tmp_path / "made-fp16") == files(tmp_path / "fp16")
    made, wanted = Cache(tmp_path / "made-int8"), Cache(tmp_path / "int8")
    for name in wanted.manifest.columns:
        ours, theirs = (cache.layout(name).constants() for cache in (made, wanted))  # type: ignore[misc]
        for constant, values in theirs.items():
            torch.testing.assert_close(ours[constant], values, rtol=1e-5, atol=1e-6)
        assert made.manifest.state.columns[name].fitted_views == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_makes_the_same_bytes_of_codecs_that_round_each_number(exact: Path, tmp_path: Path) -> None:
    for codec in ("fp16", "int:bits=5", "int8"):
        made = [convert(exact, tmp_path / f"{codec}-{d}", codec=codec, device=d).folder for d in ("cpu", "cuda")]
        assert files(made[0]) == files(made[1])


@pytest.mark.parametrize("compress", [(), ("zstd",)])
def test_bytes_a_key_are_those_of_files(compress: tuple[str, ...], exact: Path, tmp_path: Path) -> None:
    """Before and after alike, so that the two can be compared; what a codec is fitted to counts."""
    found = convert(exact, tmp_path / "made", codec="int8", compress=compress, views=1, device="cpu")
    for name, column in found.columns.items():
        for folder, told in ((exact, column.bytes_before), (tmp_path / "made", column.bytes_after)):
            paths = [*folder.glob(f"view-0000/{name}-*.h5"), *folder.glob(f"column-{name}.h5")]
            assert told == round(sum(path.stat().st_size for path in paths) / ROWS)


def test_no_secret_of_the_command_line_is_written_down(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["softcache", "convert", "https://me:word@host/cache"])
    convert(exact, tmp_path / "made", codec="fp16", device="cpu")
    assert (
        Cache(tmp_path / "made").manifest.state.made["later"][-1]["command"] == "softcache convert https://host/cache"
    )


# What is copied.


def test_without_options_it_is_the_same_cache(exact: Path, tmp_path: Path) -> None:
    found = convert(exact, tmp_path / "made")
    same_cache(tmp_path / "made", exact)
    assert all(column.before == column.after == "fp32" for column in found.columns.values())
    again = convert(exact, tmp_path / "made")
    assert again.shards == 0


@pytest.mark.parametrize("codec", ["int:bits=5", "int8", "topk:k=5"])
def test_shards_are_cut_anew_from_what_is_stored(codec: str, place: Path, tmp_path: Path) -> None:
    source = dumped(place, tmp_path / "source", "int8", (f"logits={codec}", "maps"))
    convert(source, tmp_path / "small", shard_rows=16)
    convert(tmp_path / "small", tmp_path / "back", shard_rows=BLOCK)
    assert files(tmp_path / "back") == files(source)
    assert records(tmp_path / "back") == records(source)
    small = Cache(tmp_path / "small", verify_reads=True)
    assert {name: record.shard_rows for name, record in small.manifest.state.columns.items()} == dict.fromkeys(
        ("logits", "maps"), 16
    )
    for name, record in small.manifest.state.columns.items():
        assert record.error == Cache(source).manifest.state.columns[name].error
        assert record.constants == Cache(source).manifest.state.columns[name].constants
        for view in range(VIEWS):
            stored, there = (c.column(name).gather(view, np.arange(ROWS)) for c in (small, Cache(source)))
            assert all(stored[array].tobytes() == there[array].tobytes() for array in there)
    assert verify(small.folder).ok


def test_fewer_views_and_columns_keep_the_bytes_of_the_others(exact: Path, tmp_path: Path) -> None:
    convert(exact, tmp_path / "made", views=1, drop_output=("tags", "maps"))
    whole = files(exact)
    kept = {k: v for k, v in whole.items() if "view-0001" not in k and "tags" not in k and "maps" not in k}
    assert files(tmp_path / "made") == kept
    made = Cache(tmp_path / "made")
    assert (made.views, made.manifest.columns) == (1, ["embedding", "logits", "number"])
    assert made.manifest.cache_id == Cache(exact).manifest.cache_id


def test_rows_that_have_lengths_of_their_own(tmp_path: Path) -> None:
    place = make_ragged_place(tmp_path)
    outputs = ("logits", "states", "tags:kind=classes", "pairs", "sizes")
    for codec in ("fp32", "int:bits=5", "int8"):
        dump(**{**asked_ragged(place, place / codec.replace(":", "-"), codec=codec), "output": outputs})
    made = convert(place / "fp32", place / "made", codec="int:bits=5", device="cpu").folder
    assert files(made) == files(place / "int-bits=5")
    assert verify(made).ok
    convert(place / "int8", place / "small", shard_rows=4)
    assert files(convert(place / "small", place / "back", shard_rows=16).folder) == files(place / "int8")
    fitted = convert(place / "fp32", place / "fitted", codec="int8", device="cpu").folder
    for name in Cache(fitted).manifest.columns:
        step = max(float(s.max()) for s in (Cache(fitted).layout(name).coder.step,))
        assert np.abs(values_of(fitted, name) - values_of(place / "fp32", name)).max() <= 0.501 * step
    both = Cache(fitted).manifest.state.columns, Cache(place / "int8").manifest.state.columns
    for name, record in both[0].items():
        assert record.error == pytest.approx(both[1][name].error, rel=1e-3, abs=1e-6)


@given(
    st.integers(1, 300), st.sampled_from([1, 4, 16, 64]), st.integers(1, 70), st.sets(st.integers(0, 300)),
    st.booleans(),
)  # fmt: skip
def test_pieces_are_small_in_order_and_all_that_is_missing(
    exact_rows: int, size: int, batch: int, absent: set[int], joint: bool
) -> None:
    cache = _Sized(exact_rows, size, batch, joint)
    every = range(-(-exact_rows // size))
    missing = tuple(("logits", number) for number in every if number in absent) or (("logits", 0),)
    found = list(stream.pieces(cache, cache, Block(0, 0, exact_rows, missing), "logits", joint=True))  # type: ignore[arg-type]
    covered = [row for first, rows in found for row in range(first, first + rows)]
    assert covered == sorted(set(covered))
    assert {row for _, number in missing for row in range(number * size, min((number + 1) * size, exact_rows))} <= set(
        covered
    )
    step = batch if joint else stream.PIECE_BYTES // (4 * _Sized.WIDTH)
    assert all(first % step == 0 and rows <= step for first, rows in found)
    for first, rows in found:  # none without anything that is missing
        assert any(number * size < first + rows and first < (number + 1) * size for _, number in missing)


class _Sized:
    """As much of a cache as pieces ask for: rows of 1 MiB."""

    WIDTH = 1 << 18

    def __init__(self, rows: int, size: int, batch: int, joint: bool):
        self.rows, self.size = rows, size
        self.manifest = self.identity = self.grid = self
        self.batch = batch
        self.codec, self.ragged, self.shape = (_Joint() if joint else None), False, (self.WIDTH,)

    def layout(self, name: str) -> _Sized:
        return self

    def shard_range(self, name: str, number: int) -> tuple[int, int]:
        return number * self.size, min(self.size, self.rows - number * self.size)


class _Joint:
    joint = True


# What codecs lose.


def divergences(said: np.ndarray, kept: np.ndarray, T: float) -> torch.Tensor:
    p, q = (F.log_softmax(torch.from_numpy(z).double() / T, 1) for z in (said, kept))
    return (p.exp() * (p - q)).sum(1)


def test_an_error_is_against_what_the_source_has(place: Path, exact: Path, tmp_path: Path) -> None:
    rough = dumped(place, tmp_path / "rough", "int:bits=4", ("logits", "embedding"))
    made = convert(rough, tmp_path / "made", codec="int:bits=6").folder
    columns = Cache(made).manifest.state.columns
    before, after = ([values_of(folder, "logits", view) for view in range(VIEWS)] for folder in (rough, made))
    said, kept = np.concatenate(before), np.concatenate(after)
    assert columns["logits"].error["keys"] == ROWS * VIEWS
    for T in (1, 2, 4, 8):
        wanted = divergences(said, kept, T)
        assert columns["logits"].error[f"kl_mean_T{T}"] == pytest.approx(float(wanted.mean()), rel=1e-9)
        assert columns["logits"].error[f"kl_p99_T{T}"] == pytest.approx(float(wanted.quantile(0.99)), rel=1e-9)
    said, kept = (np.concatenate([values_of(f, "embedding", v) for v in range(VIEWS)]) for f in (rough, made))
    lost = np.linalg.norm(kept.astype(np.float64) - said, axis=1) / np.linalg.norm(said.astype(np.float64), axis=1)
    assert columns["embedding"].error["relative_error_mean"] == pytest.approx(lost.mean(), rel=1e-9)
    for name, record in Cache(rough).manifest.state.columns.items():
        (step,) = columns[name].converted
        assert (step.codec, step.constants, step.error) == ("int:bits=4", None, record.error)
    assert Cache(exact).manifest.state.columns["logits"].converted == []


def test_a_part_of_the_keys_is_drawn_as_a_dump_draws_it(
    place: Path, exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec_error, "MEASURED_KEYS", 90)
    made = convert(exact, tmp_path / "made", codec="int:bits=4", device="cpu").folder
    wanted = dumped(place, tmp_path / "wanted", "int:bits=4")
    for name, record in Cache(wanted).manifest.state.columns.items():
        assert 50 < record.error["keys"] < 130
        assert Cache(made).manifest.state.columns[name].error == pytest.approx(record.error, rel=1e-9)


def test_every_step_of_a_chain_is_kept_and_shown(
    exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, folder = ["int8", "fp16", "fp32", "int:bits=5"], exact
    for codec in chain:
        folder = convert(folder, tmp_path / codec.replace(":", "-"), codec=codec, drop_output="tags").folder \
            if folder == exact else convert(folder, tmp_path / codec.replace(":", "-"), codec=codec).folder  # fmt: skip
    state = Cache(folder).manifest.state.columns
    for name, record in state.items():
        assert [step.codec for step in record.converted] == chain[:-1]
        for step in record.converted:
            there = Cache(tmp_path / step.codec).manifest.state.columns[name]
            assert (step.error, step.constants) == (there.error, there.constants)
        assert record.converted[2].error.get("kl_mean_T1", record.converted[2].error.get("relative_error_mean")) == 0
    capsys.readouterr()
    assert command("info", folder) == 0
    line = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("logits "))
    assert line.count(" against its source, which was in ") == 3
    assert line.index("int:bits=5") < line.index("was in fp32") < line.index("in fp16") < line.index("in int8")
    assert command("info", "--json", folder) == 0
    shown = json.loads(capsys.readouterr().out)["columns"]["logits"]["converted"]
    assert [step["codec"] for step in shown] == chain[:-1]


def test_what_is_copied_keeps_what_it_went_through(exact: Path, tmp_path: Path) -> None:
    first = convert(exact, tmp_path / "a", codec="fp16").folder
    second = convert(first, tmp_path / "b", codec="int:bits=8", views=1).folder
    third = convert(second, tmp_path / "c", shard_rows=8).folder
    for name, record in Cache(third).manifest.state.columns.items():
        before = Cache(second).manifest.state.columns[name]
        assert (record.converted, record.error) == (before.converted, before.error)
        assert [step.codec for step in record.converted] == ["fp16"]


# Trained from.


def test_a_training_from_shards_of_another_size_gives_the_same_bits(place: Path, exact: Path, here: Path) -> None:
    convert(exact, here / "made", shard_rows=8)
    (here / "student.py").write_text(
        "from torch import nn\n\n\ndef make(num_classes):\n    class Net(nn.Module):\n        def __init__(self):\n"
        "            super().__init__()\n            self.net = nn.Linear(60, num_classes)\n\n"
        "        def forward(self, features):\n            return self.net(features)\n\n    return Net()\n"
    )
    for cache, out in ((exact, "one"), (here / "made", "other")):
        softcache.train(
            f"{here / 'student.py'}:make", cache=cache, out=out, epochs=2, batch_size=32, seed=3, device="cpu",
            workers=0, optimizer="sgd", lr=0.1, dataset=f"arrays:{place}",
        )  # fmt: skip
    assert (here / "one/student.safetensors").read_bytes() == (here / "other/student.safetensors").read_bytes()
    metrics = [(here / name / "metrics.jsonl").read_text() for name in ("one", "other")]
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in metrics]
    assert losses[0] == losses[1]


def test_what_was_given_for_the_source_is_known_of_what_is_made_of_it(
    exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dataset and a teacher in files are opened only where the user named them."""
    made = convert(exact, tmp_path / "made", codec="fp16").folder
    teacher = f"{exact.parent / 'teacher.py'}:make"
    assert command("verify", made, "--teacher", teacher, "--device", "cpu") == 0, capsys.readouterr()
    assert Cache(made).layout("logits").width == CLASSES


# Compressed.


def test_compressed_and_back_is_the_same_cache(place: Path, exact: Path, tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    packed = convert(exact, tmp_path / "packed", compress=("zstd", "tags=none")).folder
    assert files(packed) == files(dumped(place, tmp_path / "wanted", compress=("zstd", "tags=none")))
    assert verify(packed).ok
    columns = Cache(packed).manifest.state.columns
    assert {name for name, record in columns.items() if record.compress is None} == {"tags"}
    assert all(record.converted == [] for record in columns.values())
    again = convert(packed, tmp_path / "again", shard_rows=16).folder  # compressed as it was
    assert {n: r.compress for n, r in Cache(again).manifest.state.columns.items()} == {
        name: record.compress for name, record in columns.items()
    }
    back = convert(again, tmp_path / "back", compress="none", shard_rows=BLOCK).folder
    same_cache(back, exact)
    small = convert(packed, tmp_path / "small", codec="int:bits=5", device="cpu").folder  # at the same level
    assert (Cache(small).manifest.state.columns["logits"].compress or "").startswith("zstd:level=1,")
    plain = convert(exact, tmp_path / "plain", codec="int:bits=5", device="cpu").folder
    for view in range(VIEWS):
        assert np.array_equal(values_of(small, "logits", view), values_of(plain, "logits", view))
    assert Cache(small).manifest.state.columns["logits"].error == Cache(plain).manifest.state.columns["logits"].error


def test_rows_of_their_own_lengths_are_compressed(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    place = make_ragged_place(tmp_path)
    outputs = ("logits", "states", "sizes")
    for name, more in (("plain", {}), ("packed", {"compress": "zstd"})):
        dump(**{**asked_ragged(place, place / name, codec="fp32", **more), "output": outputs})
    assert files(convert(place / "plain", place / "a", compress="zstd").folder) == files(place / "packed")
    assert files(convert(place / "packed", place / "b", compress="none").folder) == files(place / "plain")
    coded = [convert(place / n, place / f"{n}-8", codec="int8", compress="none", device="cpu").folder
             for n in ("plain", "packed")]  # fmt: skip
    assert files(coded[0]) == files(coded[1])
