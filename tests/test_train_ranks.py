"""Training under torchrun: several ranks are one training."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import harness_process
import numpy as np
import pytest
import torch
from harness_ragged import asked, make_place
from harness_ranks import on_ranks, torchrun, trained
from harness_train import HINTS, STUDENT, fit, lines, make_cache, make_teacher, same, weights

from softcache.config.parsed import parse
from softcache.config.record import read_record
from softcache.config.train import TrainConfig
from softcache.errors import UsageError
from softcache.losses._loss import loss_type
from softcache.losses._schedule import Schedule
from softcache.losses.hints._hint_loss import hint_loss_type
from softcache.stages._together import begun_before, refuse_ranks
from softcache.stages._training import prepare
from softcache.stages.dump import dump
from softcache.stages.eval import evaluate
from softcache.stream.parts import Part, divided, key_rows
from softcache.stream.plan import FreshShare, Plan
from softcache.training.ranks import Ranks

pytestmark = pytest.mark.timeout(600)
OF_WORDS: dict[str, Any] = {"batch_size": 5, "bucket": True, "alpha": 1, "beta": 0.5}
# Means over a row's places are taken of the teacher's float32, filled up to the longest row of a share.
TOLERANCE = {"means over places": 1e-6}
EPOCHS = 10
FITNET = "fitnet:teacher=layer1,student=layer1,weight=1"
CRD = "crd:teacher=fc:in,student=fc:in,negatives=64,dim=8"
# In float64 each of these is the same training on one rank and on two.
CASES: dict[str, dict[str, Any]] = {
    "kl": {"loss": ["kl"]},
    "dist": {"loss": ["dist"]},
    "partly labelled": {"loss": ["nkd", "dkd:weight=1"], "label_fraction": 0.3, "alpha": 1, "beta": 1},
    "relations": {
        "loss": ["dist", "kl"],
        "hint": ["sp:teacher=layer1,student=layer1"]
        + [f"{name}:teacher=fc:in,student=fc:in" for name in ("rkd", "pkt", "cc")], "epochs": 1,
    },
    "regressors": {"hint": [FITNET, "vid:teacher=layer2,student=layer2", "at:teacher=layer1,student=layer1,weight=1"]},
    "crd": {"loss": ["kl"], "hint": [CRD]},
    # The last batch has three keys: one rank takes all of them.
    "a rank without keys": {"loss": ["dist", "nkd"], "hint": [CRD, FITNET], "batch_size": 287, "label_fraction": 0.4},
    "stages": {"hint": [FITNET], "hint_epochs": 1, "val_fraction": 0.2},
    "accumulated": {"loss": ["nkd", "kl"], "label_fraction": 0.3, "batch_size": 64, "accumulate": 3},
    "mixed": {"loss": ["nkd", "kl"], "label_fraction": 0.5, "cache": "mixed"},
    "views": {"loss": ["kl"], "views_per_image": 2, "batch_size": 130},
    "both": {"loss": ["kl"], "targets": "both", "fresh_share": 0.3},
    # Some shares have rows without a place alone, and some batches too.
    "places": {
        "loss": ["kl:of=tags,T=2", "dist:of=tags", "mse:of=states", "kl:weight=0.5"],
        "hint": ["vid:teacher=words,student=mixed"], "cache": "words", **OF_WORDS,
    },
    # Batches of 13 have none or a few rows of the share, and many ranks none.
    "a share of the rows": {
        "hint": [FITNET.replace("layer1,", "layer1:rows=0.1,", 1), "vid:teacher=layer2:rows=0.1,student=layer2"],
        "loss": ["kl"], "cache": "shares", "batch_size": 13, "epochs": 1,
    },
    "relations of a share": {
        "hint": [f"{name}:teacher=fc:in:rows=0.1,student=fc:in" for name in ("sp", "rkd", "pkt", "cc")]
        + [CRD.replace("fc:in", "fc:in:rows=0.1", 1)], "loss": ["kl"], "cache": "shares", "batch_size": 47, "epochs": 1,
    },
    "means over places": {
        "loss": ["rkd:of=states"], "hint": ["cc:teacher=words,student=words"], "cache": "words", **OF_WORDS,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS)
    make_cache(folder / "shares", folder / "teacher", hint=tuple(f"{layer}:rows=0.1" for layer in HINTS))
    make_cache(folder / "mixed", folder / "teacher", augment="mixup:alpha=1")
    (folder / "place").mkdir()
    place = make_place(folder / "place")
    kept = ("logits", "states:codec=fp32", "tags:kind=classes:codec=fp32")
    dump(**asked(place, folder / "words", output=kept, hint=("words:codec=fp32",), codec="fp32"))
    return folder


def options_of(name: str, made: Path) -> dict[str, Any]:
    options = dict(CASES[name])
    cache = options.pop("cache", "cache")
    if cache == "words":
        options |= {"student": f"{made / 'place' / 'models.py'}:learner", "dataset": f"arrays:{made / 'place'}"}
    return {**options, "cache": [str(made / cache)]}


@pytest.fixture(scope="module")
def on_two(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return on_ranks({name: options_of(name, made) for name in CASES}, tmp_path_factory.mktemp("two") / "runs")


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def numbers(line: dict[str, Any]) -> dict[str, float]:
    found = {**line, **line.get("hint_losses", {})}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def as_tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_does(
    name: str, made: Path, on_two: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    alone, (first, second) = trained(as_tuples(options_of(name, made)), tmp_path / "one"), on_two[name]
    assert all(torch.equal(value, second["parameters"][key]) for key, value in first["parameters"].items())
    assert furthest(alone["parameters"], first["parameters"]) < TOLERANCE.get(name, 1e-9)
    start = trained(as_tuples({**options_of(name, made), "lr": 1e-12}), tmp_path / "start")
    assert furthest(alone["parameters"], start["parameters"]) > 1e-3
    assert first["lines"] == second["lines"]
    for ours, theirs in zip(alone["lines"], first["lines"], strict=True):
        assert ours["samples"] == theirs["samples"]
        assert numbers(theirs) == pytest.approx(numbers(ours), rel=1e-5)


@pytest.mark.parametrize("losses", [["kl"], ["nkd", "kl", "dkd:weight=1"]])
def test_batches_that_are_accumulated_are_one_large_batch(losses: list[str], made: Path, tmp_path: Path) -> None:
    """Of losses that are means over samples; the batches have different numbers of labels."""
    learning = {"loss": losses, "hint": [FITNET], "label_fraction": 0.3, "cache": [str(made / "cache")]}
    whole = trained(as_tuples({**learning, "batch_size": 128}), tmp_path / "whole")
    parts = trained(as_tuples({**learning, "batch_size": 64, "accumulate": 2}), tmp_path / "parts")
    assert furthest(whole["parameters"], parts["parameters"]) < 1e-12


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "more",
    [{}, {"per_image": 2}, {"fresh": FreshShare(Schedule.constant(0.4), 4)}],
    ids=["plain", "views", "fresh"],
)
def test_shares_are_the_order_of_one_rank_cut_into_pieces(ranks: int, more: dict[str, Any]) -> None:
    alone = Plan(np.arange(101), 24, 5, 4, **more)
    plans = [Plan(np.arange(101), 24, 5, 4, share=(rank, ranks), **more) for rank in range(ranks)]
    for epoch in range(3):
        seen = []
        for whole, *shares in zip(alone.batches(epoch), *(plan.batches(epoch) for plan in plans), strict=True):
            own = [[part for part in share if not part.spare] for share in shares]
            rows = [row for share in own for part in share for row in part.rows.tolist()]
            assert rows == [row for part in whole for row in part.rows.tolist()]
            parts = [part for share in own for part in share]
            keys = [(row, view, part.fresh) for part in parts for view in part.views for row in part.rows]
            assert sorted(keys) == sorted((r, v, p.fresh) for p in whole for v in p.views for r in p.rows)
            assert all(sum(map(len, share)) >= 2 for share in shares)  # enough for a batch norm
            seen += keys
        assert len(seen) == len(set(seen)) == alone.keys


def test_a_batch_that_is_too_small_leaves_ranks_without_keys() -> None:
    shares = divided([Part(np.arange(5), (3,))], 4)
    assert [key_rows(parts).tolist() for parts in shares] == [[0, 1], [2, 3, 4], [0, 1], [0, 1]]
    assert [parts[0].spare for parts in shares] == [False, False, True, True]


def test_losses_that_relate_samples_say_so() -> None:
    relating = {"dist", "rkd", "sp", "pkt", "cc"}
    for name in ("kl", "ce", "nkd", "mse", "cosine", *relating):
        assert (loss_type(name).scope == "batch") == (name in relating)
    for name in ("fitnet", "vid", "at", "nst", "reviewkd", "simkd", "crd", *(relating - {"dist"})):
        assert (hint_loss_type(name).scope == "batch") == (name in relating | {"crd"})


# The command.


def command(made: Path, out: Path, *more: str, epochs: int = 2) -> list[str | Path | int]:
    return [
        "-m", "softcache", "train", "--student", STUDENT, "--cache", made / "cache", "--out", out, "--epochs", epochs,
        "--batch-size", 128, "--seed", 3, "--workers", 0, "--log-every", 4, "--hint", FITNET, "--hint", CRD, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def undisturbed(made: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run of two ranks that nobody disturbed, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(
        torchrun(*command(made, folder, epochs=EPOCHS)), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_one_rank_writes_and_speaks(undisturbed: tuple[Path, str], made: Path, tmp_path: Path) -> None:
    folder, said = undisturbed
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt", "config.json", "metrics.jsonl", "regressors.safetensors", "steps.jsonl", "student.safetensors",
    ]  # fmt: skip
    assert said.count("test top-1") == 1
    assert said.count(f"epoch   1/{EPOCHS}") == 1
    assert "Warning" not in said
    # Batch norms are each rank's own, so that it isn't the training of one rank, but one like it.
    alone = fit(tmp_path / "alone", cache=str(made / "cache"), hint=(FITNET, CRD), epochs=EPOCHS, log_every=4)
    ours, theirs = lines(folder), alone.lines
    assert [line["samples"] for line in ours] == [line["samples"] for line in theirs]
    assert [line["lr"] for line in ours] == [line["lr"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=0.2)
    assert [line["step"] for line in lines(folder, "steps.jsonl")] == list(range(0, 12 * EPOCHS, 4))
    assert read_record(folder).result["test_top1"] == ours[-1]["test_top1"]
    assert evaluate(str(folder), compare=False)["top1"] == ours[-1]["test_top1"]


@pytest.mark.torture
@pytest.mark.parametrize("kills", [10])
def test_a_rank_that_is_killed_is_started_again_and_ends_as_undisturbed(
    kills: int, undisturbed: tuple[Path, str], made: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    whole, run = undisturbed[0], tmp_path / "run"
    rng = random.Random(kills)
    with subprocess.Popen(
        torchrun(*command(made, run, epochs=EPOCHS), restarts=2 * kills),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as started:  # fmt: skip
        try:
            for epoch in sorted(rng.choices(range(EPOCHS - 2), k=kills)):
                while started.poll() is None and _epochs(run) <= epoch:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.2))  # within this epoch or a later one, or at a start
                while started.poll() is None and not (ranks := _children(started.pid)):
                    time.sleep(0.005)
                os.kill(rng.choice(ranks), signal.SIGKILL)
            output, _ = started.communicate(timeout=400)
        finally:
            started.terminate()  # torchrun takes its ranks with it
    assert started.returncode == 0, output
    assert "resuming after epoch" in output
    for name in ("student.safetensors", "regressors.safetensors"):
        assert same(weights(whole, name), weights(run, name))
    assert lines(whole, "steps.jsonl") == lines(run, "steps.jsonl")


def _epochs(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def _children(pid: int) -> list[int]:
    """The processes that one has started and that live."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if line.split()[1][0] != "Z"]


def test_an_error_of_all_ranks_is_said_once(
    undisturbed: tuple[Path, str], made: Path, environment: dict[str, str]
) -> None:
    done = harness_process.run(
        torchrun(*command(made, undisturbed[0], epochs=5)), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("softcache:")]
    assert said.endswith("holds a run with another --epochs: use another --out")


def test_what_several_ranks_can_not_do_is_refused(made: Path) -> None:
    options: dict[str, Any] = {"cache": (str(made / "cache"),), "device": "cpu"}
    five = prepare(parse(TrainConfig.of(STUDENT, batch_size=9, **options)), ranks=Ranks(0, 5))
    with pytest.raises(UsageError, match="--batch-size 9 is that of all 5 ranks together"):
        refuse_ranks(five)
    for ranks, where in ((Ranks(0, 2), "on cpu"), (Ranks(), "without torchrun")):
        with pytest.raises(UsageError, match=f"--sync-bn {where}: it is for several GPUs under torchrun"):
            prepare(parse(TrainConfig.of(STUDENT, sync_bn=True, **options)), ranks=ranks)


def test_what_torchrun_starts_again_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UsageError, match="--max-restarts 3 needs to know which run goes on: give --out"):
        begun_before(TrainConfig.of(STUDENT), Ranks(0, 2))


def test_the_scope_of_a_loss_is_one_of_two(here: Path) -> None:
    Path("own.py").write_text(
        "from dataclasses import dataclass\n"
        "from softcache.losses import Loss\n"
        "@dataclass(frozen=True)\n"
        "class Own(Loss):\n"
        "    scope = 'rows'\n"
        "    def __call__(self, student, teacher, T, labels=None):\n"
        "        return student.sum()\n"
    )
    with pytest.raises(UsageError, match=r"scope must be one of samples, batch, found 'rows'"):
        loss_type("own.py:Own")
