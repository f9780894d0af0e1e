"""``--codec auto``: the smallest codec whose error is within a bound, measured on keys from everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness_dump import Setting, Warm, shards
from harness_ragged import asked, make_place
from harness_train import command

from softcache.cache.column import Column
from softcache.cache.compression import MIN_CHUNK_BYTES, is_asked_compression
from softcache.cache.reader import Cache
from softcache.cache.schema import ColumnRecord
from softcache.codecs._auto import Auto, asked_auto, candidates
from softcache.codecs._open import open_codec
from softcache.config.plan import PlanConfig
from softcache.dumping import codec_error
from softcache.dumping.bound import Bound
from softcache.dumping.choosing import judged, options_for
from softcache.dumping.drawn import Said
from softcache.errors import CacheError, NumericsError, UsageError
from softcache.stages.dump import Dumped, dump
from softcache.views._open import open_viewed

ROWS, CLASSES, TAGS, WIDTH = 600, 24, 8, 32
# The features of a row are what is said of it: logits, logits of a sigmoid each, an embedding of few directions.
TEACHER = f"""
import numpy as np


def make(num_classes={CLASSES}):
    def answer(features):
        return {{
            "logits": features[:, :{CLASSES}],
            "tags": features[:, {CLASSES}:{CLASSES + TAGS}],
            "embedding": features[:, {CLASSES + TAGS}:],
        }}

    return answer
"""
KINDS = {"logits": "classes", "tags": "binary", "embedding": "values"}
OUTPUTS = ("logits", "tags:kind=binary", "embedding")


def make_rows(folder: Path, features: np.ndarray) -> Path:
    (folder / "said.py").write_text(TEACHER)
    for split in ("train", "test"):
        np.save(folder / f"{split}_features.npy", features)
        np.save(folder / f"{split}_labels.npy", np.arange(ROWS) % CLASSES)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    low = rng.normal(0, 2, (ROWS, 6)) @ rng.normal(0, 1, (6, CLASSES)) + rng.normal(0, 0.1, (ROWS, CLASSES))
    vectors = rng.normal(0, 1, (ROWS, 5)) @ rng.normal(0, 1, (5, WIDTH)) + rng.normal(0, 0.01, (ROWS, WIDTH))
    features = np.concatenate([low, rng.normal(0, 4, (ROWS, TAGS)), vectors], 1).astype(np.float32)
    return make_rows(tmp_path_factory.mktemp("said"), features)


def dumped(place: Path, out: Path, codec: str | None, output: tuple[str, ...] = ("logits",), **more: Any) -> Dumped:
    return dump(
        f"{place / 'said.py'}:make", dataset=f"arrays:{place}", out=out, codec=codec, batch_size=50, device="cpu",
        workers=0, output=output, **{"shard_rows": 64, **more},
    )  # fmt: skip


def codecs(folder: Path) -> dict[str, str]:
    return {name: record.codec for name, record in Cache(folder).manifest.state.columns.items()}


def said_by(place: Path, column: str) -> torch.Tensor:
    """What the teacher says of all rows."""
    features = torch.from_numpy(np.load(place / "train_features.npy"))
    return dict(zip(KINDS, features.split([CLASSES, TAGS, WIDTH], 1), strict=True))[column]


def lost(kind: str, said: torch.Tensor, kept: torch.Tensor) -> list[float]:
    """The means that a bound is about, by PyTorch's own functions."""
    said, kept = said.double(), kept.double()
    if kind == "values":
        return [float(((said - kept).norm(dim=1) / said.norm(dim=1)).mean())]
    if kind == "binary":  # of two classes each
        said, kept = (torch.stack([values, torch.zeros_like(values)], -1).flatten(0, 1) for values in (said, kept))
    return [
        float(F.kl_div((kept / T).log_softmax(1), (said / T).log_softmax(1), log_target=True, reduction="batchmean"))
        for T in (1, 2, 4, 8)
    ]


def as_kept(codec: str, values: torch.Tensor, halves: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What a codec is judged on, and what it makes of it."""
    found = open_codec(codec)
    if hasattr(found, "fit"):
        coder, values = found.fitted(found.fit(halves[0])), halves[1]
    else:
        coder = found.shaped(tuple(values.shape[1:])) if hasattr(found, "shaped") else found
    return values, coder.decode(coder.encode(values))


@pytest.mark.parametrize("column", KINDS)
@pytest.mark.parametrize("most", [3e-1, 3e-2, 3e-3, 1e-4])
def test_no_smaller_codec_holds(column: str, most: float, place: Path, tmp_path: Path) -> None:
    """Each candidate is tried, and its bytes are those of the files of a cache in it."""
    kind, output = KINDS[column], next(spec for spec in OUTPUTS if spec.startswith(column))
    option = "max_error" if kind == "values" else "max_kl"
    dumped(place, tmp_path / "auto", f"auto:{option}={most}", (output,), shard_rows=1024)
    chosen, said = codecs(tmp_path / "auto")[column], said_by(place, column)
    halves = Said(said, np.arange(ROWS), ROWS).halves()
    assert not set(map(tuple, halves[0].tolist())) & set(map(tuple, halves[1].tolist()))
    sizes = {}
    viewed = open_viewed(f"arrays:{place}", "train")
    record, drawn = ColumnRecord(kind, [said.shape[1]], "fp32", 64), Said(said, np.arange(ROWS), ROWS)
    for one in options_for(column, record, drawn, viewed, 1024, 1):
        worst = max(lost(kind, *as_kept(one.record.codec, said, halves)))
        if worst < most * 0.8:  # else the few keys that are left out of a half decide
            sizes[one.record.codec] = one.key_bytes
        if one.record.codec == chosen:
            assert worst <= most * (1 + 1e-6)
            files = [*(tmp_path / "auto").glob("view-*/*.h5"), *(tmp_path / "auto").glob("column-*.h5")]
            assert one.key_bytes == sum(path.stat().st_size for path in files) / ROWS
            found = one.key_bytes
    assert found <= min(sizes.values())


def test_what_a_codec_keeps_exactly_is_kept_in_it(tmp_path: Path) -> None:
    """16 whole numbers are the 16 levels of ``int:bits=4``, and nothing else that small keeps them."""
    rng = np.random.default_rng(0)
    features = np.zeros((ROWS, CLASSES + TAGS + WIDTH), np.float32)
    features[:, :CLASSES] = rng.permuted(np.tile(np.r_[np.arange(16), np.arange(8)], (ROWS, 1)), axis=1)
    dumped(make_rows(tmp_path, features), tmp_path / "cache", "auto:max_kl=1e-30", shard_rows=1024)
    assert codecs(tmp_path / "cache") == {"logits": "int:bits=4"}
    features[:, :CLASSES] = rng.normal(0, 3, (ROWS, CLASSES))
    dumped(make_rows(tmp_path, features), tmp_path / "other", "auto:max_kl=1e-30", shard_rows=1024)
    assert codecs(tmp_path / "other") == {"logits": "fp32"}


def test_a_codec_that_is_fitted_is_not_judged_by_what_it_was_fitted_to() -> None:
    """With as many directions as rows, a basis fits those rows, and says nothing of others of the same kind."""
    values = torch.randn(60, 4000, generator=torch.Generator().manual_seed(0))
    column = Column("x", "values", (4000,), open_codec("basis:rank=60,bits=8,top=0"), 64)
    bound = Bound("max_error", 0.1, ("relative_error_mean",))
    found = judged(column, Said(values, np.arange(60), 60), bound, 10_000, torch.device("cpu"))
    assert not found.holds
    _, kept = as_kept("basis:rank=60,bits=8,top=0", values, (values, values))
    assert lost("values", values, kept)[0] < 0.1


def test_keys_that_were_not_drawn_are_allowed_for() -> None:
    """Two standard errors of the mean, but none where every key was looked at."""
    said = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 30, 400)[:, None]
    column = Column("x", "classes", (6,), open_codec("int:bits=4"), 64)
    coder = open_codec("int:bits=4").shaped((6,))
    errors = F.kl_div(
        coder.decode(coder.encode(said)).double().log_softmax(1), said.double().log_softmax(1),
        log_target=True, reduction="none",
    ).sum(1)  # fmt: skip
    mean, wider = float(errors.mean()), float(errors.std(unbiased=False)) / 20
    for most, keys, holds in (
        (mean + 1.9 * wider, 10**9, False), (mean + 2.1 * wider, 10**9, True), (mean * 1.001, 400, True),
        (mean * 0.999, 400, False),
    ):  # fmt: skip
        bound = Bound("max_kl", most, ("kl_mean_T1",))
        assert judged(column, Said(said, np.arange(400), 400), bound, keys, torch.device("cpu")).holds == holds


def test_a_mean_that_can_not_come_back_below_its_bound_is_not_computed_to_the_end() -> None:
    said = torch.randn(3 * 2**14, 256) * 5
    column = Column("x", "classes", (256,), open_codec("int:bits=4"), 64)
    bound = Bound("max_kl", 1e-6, ("kl_mean_T1",))
    found = judged(column, Said(said, np.arange(len(said)), len(said)), bound, 10**6, torch.device("cpu"))
    assert found.at_least
    assert not found.holds
    assert found.error > 1e-6


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1000,), (16, 7, 7), (5, 21_841)])
@pytest.mark.parametrize("kind", ["classes", "binary", "values"])
def test_candidates_keep_every_number_and_the_last_one_exactly(kind: str, shape: tuple[int, ...]) -> None:
    if not shape and kind != "values":
        pytest.skip("single numbers are values")
    found = candidates(kind, shape)
    assert found[-1] == "fp32"
    assert not [codec for codec in found if codec.startswith("topk")]
    for codec in found:
        record = ColumnRecord(kind, [*shape], codec, 64)
        assert Column.of("x", record, open_codec(codec)).arrays(3)


def test_the_same_command_goes_on_with_what_was_chosen(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, asking = tmp_path / "cache", "auto:max_kl=1e-3,max_error=0.01"
    dumped(place, folder, asking, OUTPUTS, part=(1, 2))
    said, chosen = capfd.readouterr().err, codecs(folder)
    assert all(f"{name}: {codec}, " in said for name, codec in chosen.items())
    assert all(record.codec != asking for record in Cache(folder).manifest.state.columns.values())
    dumped(place, folder, asking, OUTPUTS, part=(2, 2))
    assert dumped(place, folder, asking, OUTPUTS).keys == 0
    assert "looked for" not in capfd.readouterr().err
    assert codecs(folder) == chosen
    dumped(place, tmp_path / "whole", asking, OUTPUTS)
    assert shards(folder) == shards(tmp_path / "whole")
    before = shards(folder)
    assert dumped(place, folder, "auto:max_kl=0.5", ("logits",)).keys == 0  # what is there loses less
    assert dumped(place, folder, chosen["logits"], ("logits",)).keys == 0
    with pytest.raises(
        CacheError, match=r"logits is there in .*, which loses .* \(mean KL at T=\d, 600 keys\), more than"
    ):
        dumped(place, folder, "auto:max_kl=1e-9", ("logits",))
    assert shards(folder) == before


def test_a_column_in_the_codec_that_is_chosen_is_compressed(place: Path, tmp_path: Path) -> None:
    """In the codec that is chosen without, and the same command goes on."""
    asking, outputs, compress = (
        "auto:max_kl=1e-2,max_error=0.01",
        ("logits", "embedding"),
        ("zstd:level=3", "embedding=none"),
    )
    dumped(place, tmp_path / "plain", asking, outputs)
    dumped(place, tmp_path / "kept", asking, outputs, compress=compress, part=(1, 2))
    dumped(place, tmp_path / "kept", asking, outputs, compress=compress)
    records = Cache(tmp_path / "kept").manifest.state.columns
    assert codecs(tmp_path / "kept") == codecs(tmp_path / "plain")
    assert records["embedding"].compress is None
    assert is_asked_compression("zstd:level=3", records["logits"].compress)
    assert dumped(place, tmp_path / "kept", asking, outputs, compress=compress).keys == 0
    plain, kept = (Cache(tmp_path / name).column("logits").gather(0, np.arange(ROWS)) for name in ("plain", "kept"))
    assert all(values.tobytes() == kept[name].tobytes() for name, values in plain.items())


def test_codecs_that_do_not_fit_the_chunks_asked_for_are_left_out(place: Path, tmp_path: Path) -> None:
    """So many rows in half precision are as much as a chunk has to have, and in 4 bits less than that."""
    rows = -(-MIN_CHUNK_BYTES // (2 * CLASSES))
    rows = 1 << (rows - 1).bit_length()
    assert rows * CLASSES // 2 < MIN_CHUNK_BYTES
    dumped(place, tmp_path / "cache", "auto:max_kl=0.5", compress=(f"zstd:rows={rows}",))
    record = Cache(tmp_path / "cache").manifest.state.columns["logits"]
    assert is_asked_compression(f"zstd:rows={rows}", record.compress)


def test_processes_that_share_a_dump_choose_once(setting: Setting, warm: Warm, tmp_path: Path) -> None:
    auto = ("--codec", "auto:max_kl=1e-4,max_error=0.02")
    assert warm.run(setting.command(tmp_path / "whole", *auto)).status == 0
    folder = tmp_path / "parts"
    ended = [
        warm.wait(pid) for pid in [warm.start(setting.command(folder, *auto, "--part", f"{k}/3")) for k in (1, 2, 3)]
    ]
    assert [end.status for end in ended] == [0] * 3, "\n".join(end.output for end in ended)
    assert sum("logits: the smallest codec" in end.output for end in ended) == 1
    assert codecs(folder) == codecs(tmp_path / "whole")
    assert shards(folder) == shards(tmp_path / "whole")


def test_a_dump_stops_when_its_bound_can_not_hold_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted so that later rows are harder: of the first ones, with which the cache was begun, nothing is lost."""
    features = np.zeros((ROWS, CLASSES + TAGS + WIDTH), np.float32)
    features[ROWS // 2 :, :CLASSES] = np.random.default_rng(0).normal(0, 4, (ROWS // 2, CLASSES))
    place, folder = make_rows(tmp_path, features), tmp_path / "cache"
    dumped(place, folder, "int:bits=4", part=(1, 10))
    assert Cache(folder).manifest.state.columns["logits"].error["kl_mean_T1"] == 0
    monkeypatch.setattr(codec_error, "TELL_S", 0.0)
    coder, said = open_codec("int:bits=4").shaped((CLASSES,)), said_by(place, "logits")
    mean = max(lost("classes", said, coder.decode(coder.encode(said))))
    with pytest.raises(NumericsError, match=r"logits in int:bits=4 loses .*the mean over all keys will be more"):
        dumped(place, folder, f"auto:max_kl={mean * 0.4}")
    cache = Cache(folder)
    missing = {number for _, _, number in cache.missing(["logits"], 1)}
    assert missing
    assert missing.isdisjoint(range(ROWS // 2 // 64))  # the rows of which nothing is lost
    before = shards(folder)
    assert dumped(place, folder, "int:bits=4").keys
    assert before.items() <= shards(folder).items()
    with pytest.raises(CacheError, match="more than max_kl="):
        dumped(place, folder, f"auto:max_kl={mean * 0.9}")
    assert dumped(place, folder, f"auto:max_kl={mean * 1.1}").keys == 0


def test_a_bound_that_is_missed_by_the_last_rows_is_told_at_the_end(tmp_path: Path) -> None:
    features = np.zeros((ROWS, CLASSES + TAGS + WIDTH), np.float32)
    features[-20:, :CLASSES] = np.random.default_rng(0).normal(0, 4, (20, CLASSES))
    place, folder = make_rows(tmp_path, features), tmp_path / "cache"
    dumped(place, folder, "int:bits=4", part=(1, 10))
    with pytest.raises(NumericsError, match=r"logits in int:bits=4 loses .*, more than max_kl=1e-08"):
        dumped(place, folder, "auto:max_kl=1e-8")


def test_places_of_rows_that_have_lengths_of_their_own(tmp_path: Path) -> None:
    make_place(tmp_path)
    outputs = ("states", "tags:kind=classes:codec=auto:max_kl=0.01", "sizes")
    dump(**asked(tmp_path, tmp_path / "cache", output=outputs, codec="auto:max_error=0.05"))
    for name, record in Cache(tmp_path / "cache").manifest.state.columns.items():
        bound = Bound.asked("auto:max_kl=0.01,max_error=0.05", record.kind)
        assert bound is not None
        assert record.codec in candidates(record.kind, record.tail)
        assert bound.worst(record.error)[1] <= bound.most, name


def test_a_dry_run_says_what_would_be_chosen_and_writes_nothing(
    place: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ("--dataset", f"arrays:{place}", "--device", "cpu", "--out", "cache", "--codec", "auto:max_kl=0.01")
    assert command("dump", "--teacher", f"{place / 'said.py'}:make", *more, "--dry-run") == 0
    found = capfd.readouterr()
    (chosen,) = re.findall(r"logits: (\S+), [\d.,]+ bytes a key: .*, chosen", found.err)
    assert not list(here.iterdir())
    assert command("dump", "--teacher", f"{place / 'said.py'}:make", *more) == 0
    assert codecs(Path("cache")) == {"logits": chosen}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("auto:max_kl=0", "max_kl=0 must be above 0"),
        ("auto:max_kl=nan", "max_kl=nan must be above 0"),
        ("auto:bits=4", "codec 'auto' has no option 'bits'"),
        ("auto:max_error=x", "max_error='x' is not a number"),
    ],
)
def test_bounds_that_can_not_be(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        asked_auto(spec)


def test_a_bound_of_another_kind_is_refused_where_it_is_said_of_a_column(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a column of kind values is bounded by max_error, not by max_kl"):
        dumped(place, tmp_path / "cache", None, ("embedding:codec=auto:max_kl=0.1",))
    assert not (tmp_path / "cache").exists()


def test_plan_names_the_dry_run() -> None:
    for asking in ({"codec": "auto"}, {"output": ("logits:codec=auto:max_kl=0.1",)}):
        with pytest.raises(UsageError, match="softcache dump --dry-run with the same options"):
            PlanConfig(rows=10, classes=5, **asking)


def test_options_of_auto_have_defaults() -> None:
    assert asked_auto("auto") == Auto(max_kl=1e-3, max_error=1e-2)
    assert asked_auto("auto:max_kl=1e-2") == Auto(max_kl=1e-2)
    assert asked_auto("int8") is None
