"""A student alone and distilled: the bits of single runs, a paired test that scipy agrees with, and generations."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from harness_many import QUICK, small_cache
from harness_train import STUDENT, command, config, same, weights

from softcache.cache.reader import Cache
from softcache.config.record import read_record
from softcache.errors import UsageError
from softcache.stages.compare import Compared, compare
from softcache.stages.train import train

pytestmark = [
    pytest.mark.timeout(600),  # on a machine that is busy with other work
    pytest.mark.usefixtures("forked_crew"),
]
OPTIONS: dict[str, Any] = {"loss": "kl", "T": 2, "alpha": 0.9, **QUICK}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("compared")
    cache = small_cache(folder)
    path = folder / "teacher" / "config.json"
    # as ``teach`` leaves it; what it was measured to be is no matter here
    path.write_text(json.dumps({**json.loads(path.read_text()), "result": {"test": {"top1": 0.125}}}))
    return cache


@pytest.fixture(scope="module")
def done(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    out = tmp_path_factory.mktemp("comparison") / "out"
    return compare(student=STUDENT, cache=cache, seeds=3, out=str(out), **OPTIONS)


def test_both_students_have_the_bits_of_single_runs(done: Compared, cache: str, tmp_path: Path) -> None:
    alone, distilled = done.comparison.table.rows
    for row, own in ((alone, {"alpha": 0}), (distilled, OPTIONS)):
        for run in row.runs[:2]:
            out = tmp_path / run.name
            kept = train(STUDENT, cache=cache, seed=run.seed, order_seed=0, out=str(out), **{**QUICK, **own})
            assert same(weights(out), weights(done.folder / "runs" / run.name))
            assert kept.test is not None
            assert done.comparison.scores(row)[run.seed] == kept.test.top1
    # The rate that nobody gave is each one's own, as their presets have it.
    rates = [read_record(done.folder / "runs" / row.runs[0].name).options.lr for row in (alone, distilled)]
    single = [read_record(tmp_path / row.runs[0].name).options.lr for row in (alone, distilled)]
    assert rates == single


def test_the_difference_is_that_of_pairs_of_one_seed(done: Compared, capfd: pytest.CaptureFixture[str]) -> None:
    alone, distilled = (list(done.comparison.scores(row).values()) for row in done.comparison.table.rows)
    known = scipy.stats.ttest_rel(distilled, alone)
    found = done.comparison.difference(done.comparison.table.rows[1])
    assert found is not None
    assert found.pairs == 3
    assert found.mean == pytest.approx(statistics.mean(distilled) - statistics.mean(alone))
    assert found.p == pytest.approx(known.pvalue)
    # Shown again without training, from the folder alone.
    assert command("compare", "--resume", done.folder) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown[2].split()[-2:] == ["12.50", "%"]  # the teacher's, from its folder
    assert f"{100 * found.mean:+.2f} ± {100 * found.half_width:.2f} points" in shown[4]  # type: ignore[operator]


def test_a_teacher_that_has_changed_is_not_that_of_the_cache(done: Compared, cache: str) -> None:
    assert list(done.comparison.teachers.values()) == [0.125]
    file = Path(cache).parent / "teacher" / "teacher.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-4] + b"\0\0\0\1")
    try:
        assert compare(resume=str(done.folder)).comparison.teachers == {}
    finally:
        file.write_bytes(kept)


@pytest.mark.torture
def test_generations_go_on_while_held_out_rows_say_so(cache: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = compare(student=STUDENT, cache=cache, seeds=2, generations=3, out=str(out), **OPTIONS)
    rows = done.comparison.table.rows
    names = [row.combination.varied["row"] for row in rows]
    assert names == ["alone", "distilled", "generation 2", "generation 3"][: len(names)]
    means = [statistics.mean(row.vals) for row in rows]
    rose = [means[k] > means[k - 1] for k in range(2, len(rows))]
    assert all(rose[:-1])
    assert len(rows) == 4 or not rose[-1]
    # The second is taught by the better of the first, in the same views of the same rows.
    given, taught = Cache(cache), Cache(out / "caches" / "generation-2")
    assert taught.manifest.identity.recipe == given.manifest.identity.recipe
    assert (taught.views, taught.rows) == (given.views, given.rows)
    best = max(zip(rows[1].runs, rows[1].vals, strict=True), key=lambda pair: pair[1])[0]
    assert taught.manifest.state.made["teacher"].endswith(best.name)
    second = config(out / "runs" / rows[2].runs[0].name)
    assert second["caches"][0]["cache_id"] == taught.manifest.cache_id
    # Gone on with, it is as it was.
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    assert compare(resume=str(out)).to_json()["rows"] == done.to_json()["rows"]
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "--alpha 0 trains on labels alone"),
        ({"T": [1, 2]}, "--T must be a number"),
        ({"generations": 0}, "--generations must be at least 1"),
        ({"generations": 2, "val_fraction": 0.0}, "--val-fraction must be above 0"),
        ({"generations": 2, "hint": "fitnet:teacher=layer1,student=layer1"}, "needs one cache and no hints"),
        ({"seed": 3, "sedes": 2}, "no option 'sedes': did you mean seeds"),
    ],
)
def test_what_a_comparison_refuses(cache: str, here: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compare(student=STUDENT, cache=cache, **options)
    assert message in str(caught.value)
    assert not list(here.iterdir())
