"""Training from a cache that keeps leaders and a tail: each loss sees the tail as it is at its own temperature."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness_ragged import asked, make_place
from harness_train import STUDENT, command, fit, lines, make_cache, make_teacher, same, weights
from torch.utils.data import DataLoader

import softcache
from softcache import functional
from softcache.cache.reader import Cache
from softcache.codecs._open import open_codec
from softcache.errors import UsageError
from softcache.losses._ensemble import average_probabilities
from softcache.losses._schedule import Schedule
from softcache.losses._target import Leaders
from softcache.losses._terms import parse_terms
from softcache.stages.keys import Keys
from softcache.stages.train import train
from softcache.stream.batches import Batch
from softcache.stream.counts import Counts
from softcache.stream.parts import Part
from softcache.stream.targets import CachedTargets, Targets, joined
from softcache.stream.windows import Windows
from softcache.training import learner
from softcache.training.graph import UNRECORDED, GraphedStep
from softcache.training.objective import Objective
from softcache.views._open import open_viewed

K, CLASSES = 3, 10
STEADY: dict[str, Any] = {
    "epochs": 3, "batch_size": 128, "seed": 3, "optimizer": "sgd", "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0,
    "schedule": "constant", "warmup": 0, "clip_grad": 0, "amp": "off", "channels_last": False, "device": "cpu",
    "nesterov": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaders")
    make_teacher(folder / "teacher")
    make_teacher(folder / "teacher_b", seed=2)
    make_cache(folder / "top", folder / "teacher", codec=f"topk:k={K}")
    make_cache(folder / "exact", folder / "teacher")
    make_cache(folder / "other", folder / "teacher_b")
    return folder


def plain(folder: Path, view: int) -> dict[str, np.ndarray]:
    """What docs/format.md says of ``topk``, of all rows: the leaders' logits and classes, and the tail's logit at T =
    1, 2 and 4."""
    with h5py.File(folder / f"view-{view:04d}" / "logits-00000.h5") as file:
        arrays = {name: file[name][:] for name in file}
    below, falls = ((arrays[name].astype(np.uint32) << 15).view(np.float32) for name in ("below", "falls"))
    bits = np.unpackbits(arrays["which"], axis=1, bitorder="little")[:, : 4 * K].reshape(-1, K, 4)
    top, tail = arrays["top"][:, None], arrays["tail"]
    return {
        "logits": np.concatenate([top, top - below], 1), "which": bits @ (1 << np.arange(4)),
        "tails": np.stack([tail, tail - falls[:, 0], tail - falls[:, 0] - falls[:, 1]], 1),
    }  # fmt: skip


def by_hand(student: torch.Tensor, kept: dict[str, np.ndarray], rows: np.ndarray, T: int) -> torch.Tensor:
    """T² KL from leaders and a flat tail to the student's softmax at T: a sum over leaders and one over the others."""
    logits, which = torch.from_numpy(kept["logits"][rows]), torch.from_numpy(kept["which"][rows])
    tail = torch.from_numpy(kept["tails"][rows, (1, 2, 4).index(T)])
    others = CLASSES - K
    whole = torch.logsumexp(torch.cat([logits / T, (tail / T)[:, None] + np.log(others)], 1), 1, keepdim=True)
    log_p, log_tail = logits / T - whole, tail[:, None] / T - whole  # of each leader, and of each other class
    log_q = F.log_softmax(student / T, 1)
    leading = (log_p.exp() * (log_p - log_q.gather(1, which))).sum(1)
    in_tail = torch.ones_like(student, dtype=torch.bool).scatter(1, which, False)
    rest = (log_tail.exp() * (log_tail - log_q)).where(in_tail, 0).sum(1)
    return T * T * (leading + rest).mean()


@pytest.mark.parametrize("T", [1, 2, 4])
def test_a_training_learns_what_the_stored_leaders_and_tail_say_at_its_temperature(
    T: int, made: Path, tmp_path: Path
) -> None:
    run = train(STUDENT, cache=(str(made / "top"),), out=tmp_path / "run", loss=("kl",), T=T, alpha=0.9, **STEADY)
    keys, kept = Keys(made / "exact"), [plain(made / "top", view) for view in range(2)]
    student = softcache.open_network(
        STUDENT, classes=10, statistics=open_viewed("digits", "train").samples.statistics, seed=3
    ).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    sampler = keys.sampler(128, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for batch in DataLoader(keys, batch_sampler=sampler, collate_fn=keys.collate):
            logits = student(batch.inputs["pixels"])
            soft = by_hand(logits, kept[int(batch.views[0])], batch.rows.numpy(), T)
            (0.9 * soft + 0.1 * F.cross_entropy(logits, batch.labels)).backward()
            optimizer.step()
            optimizer.zero_grad()
    theirs = softcache.open_network(str(run.folder), classes=10).state_dict()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=2e-5, msg=name)


def test_a_loop_of_ones_own_trains_the_student_that_train_trains(made: Path, tmp_path: Path) -> None:
    """Bit for bit, with a temperature at which the tail is interpolated, and one beyond."""
    losses = ("kl:T=3", "dist:T=8,weight=0.5", "ttm:weight=2")
    run = train(STUDENT, cache=(str(made / "top"),), out=tmp_path / "run", loss=losses, alpha=0.9, **STEADY)
    keys = Keys(made / "top")
    student = softcache.open_network(
        STUDENT, classes=10, statistics=open_viewed("digits", "train").samples.statistics, seed=3
    ).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.0, fused=True)
    sampler = keys.sampler(128, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for batch in DataLoader(keys, batch_sampler=sampler, collate_fn=keys.collate):
            logits, target = student(batch.inputs["pixels"]), batch.targets["logits"]
            assert isinstance(target, softcache.Leaders)
            soft = 1.0 * functional.kl(logits, target, T=3)
            soft = soft + 0.5 * functional.dist(logits, target, T=8)
            soft = soft + 2.0 * functional.ttm(logits, target)
            (0.9 * soft + (1 - 0.9) * F.cross_entropy(logits, batch.labels)).backward()
            optimizer.step()
            optimizer.zero_grad()
    theirs = softcache.open_network(str(run.folder), classes=10).state_dict()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6, msg=name)


ASKED: dict[str, dict[str, Any]] = {
    "T": {"T": "4"},
    "schedule": {"T": "8:1:linear", "accumulate": 2, "loss": ("kl", "dkd", "rld:T=2")},
    "two": {"caches": ("top", "other"), "teacher_weight": (0.7, 0.3), "T": "4", "loss": ("kl", "mse:weight=0.01")},
    "probs": {"caches": ("other", "top"), "combine": "probs", "T": "3"},
    "held": {"val_fraction": 0.2, "label_fraction": 0.3},
}


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", ASKED)
def test_resumed_equals_undisturbed_wherever_targets_lie(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(ASKED[name])
    options["cache"] = tuple(str(made / cache) for cache in options.pop("caches", ("top",)))
    fit(tmp_path / "whole", **options, epochs=4)
    fit(tmp_path / "gathered", **options, epochs=4, resident="off")
    fit(tmp_path / "blocks", **options, epochs=4, resident="off", shuffle="block")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "gathered"))
    save = learner.save_checkpoint

    def stopping(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        if state["epoch"] == 2:
            raise Stopped

    monkeypatch.setattr(learner, "save_checkpoint", stopping)
    with pytest.raises(Stopped):
        fit(tmp_path / "resumed", **options, epochs=4)
    monkeypatch.undo()
    train(resume=str(tmp_path / "resumed"))
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))
    told = [[line["loss"] for line in lines(tmp_path / run)] for run in ("resumed", "whole", "gathered")]
    assert told[0] == told[1] == told[2]


def leading(rows: int = 6, classes: int = 7, seed: int = 0) -> tuple[Leaders, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=rng) * 3
    coder = open_codec("topk:k=2").shaped((classes,))
    return coder.target(coder.encode(logits)), logits


def objective(losses: list[str], T: float, **more: Any) -> Objective:
    return Objective(parse_terms(losses), Schedule.constant(1), None, Schedule.constant(T), 1, **more)


@pytest.mark.parametrize("T", [1.0, 3.0, 4.0, 16.0])
def test_several_teachers_are_combined_at_each_terms_temperature(T: float) -> None:
    top, _ = leading()
    whole, student, labels = torch.randn(6, 7), torch.randn(6, 7), torch.zeros(6, dtype=torch.int64)
    losses, at = ["kl", "kl:T=2", "mse", "wttm"], (T, 2.0, 1.0, 5.0)
    found = objective(losses, T, shares=(1, 3)).soft_values({"logits": student}, {"logits": [top, whole]}, labels, 0)
    for loss, value, own in zip(losses, found, at, strict=True):
        (term,) = parse_terms([loss])
        mean = top.at(own) * 0.25 + whole * 0.75
        torch.testing.assert_close(value, term(student, mean, T if loss == "kl" else own, labels))
    (value,) = objective(["kl"], T, combine="probs").soft_values(
        {"logits": student}, {"logits": [whole, top]}, labels, 0
    )
    pseudo = average_probabilities([whole, top.at(T)], [1, 1], T)
    torch.testing.assert_close(value, parse_terms(["kl"])[0](student, pseudo, T, labels))


def test_parts_of_a_batch_are_leaders_and_whole_logits() -> None:
    """As with a weak and a strong cache of which one keeps all."""
    top, _ = leading()
    whole = torch.randn(4, 7)
    both = joined([Targets({"logits": [top]}), Targets({"logits": [whole]})])
    (target,) = both.outputs["logits"]
    assert isinstance(target, Leaders)
    assert torch.equal(target.at(4.0), torch.cat([top.at(4.0), whole]))


class Recorder:
    """Records calls of the step as a GPU records kernels."""

    def __init__(self) -> None:
        self.replays = 0

    def CUDAGraph(self) -> Any:
        return self

    def graph(self, graph: Any, **options: Any) -> Any:
        return contextlib.nullcontext()

    def replay(self) -> None:
        self.replays += 1


def test_a_recorded_step_gets_the_leaders_of_each_batch() -> None:
    seen: list[Batch] = []
    step = GraphedStep(lambda batch: seen.append(batch) or torch.zeros(()), cuda=(cuda := Recorder()))  # type: ignore[func-returns-value]
    ids = torch.arange(6)
    counts = Counts([], ids.numpy(), {}, lambda *_: None)
    for seed in range(UNRECORDED + 2):
        top, _ = leading(seed=seed)
        step(Batch(ids, torch.zeros(6, 1), ids, ids, None, Targets({"logits": [top]}), {}, counts), (4.0,))
    assert cuda.replays == 2
    (held,) = seen[-1].targets.outputs["logits"]
    assert isinstance(held, Leaders)
    assert all(torch.equal(getattr(held, part), getattr(top, part)) for part in ("logits", "tail", "falls"))


@pytest.mark.parametrize("how", ["held", "gathered", "blocks"])
def test_targets_are_leaders_wherever_they_lie(how: str, made: Path) -> None:
    cache = Cache(made / "top")
    kept = plain(made / "top", 1)
    rows = np.random.default_rng(0).permutation(200)
    part = Part(rows, (1,))
    windows = Windows(64, 4) if how == "blocks" else None
    source = CachedTargets({"logits": [cache]}, {}, torch.device("cpu"), hold=how == "held", blocks=windows)
    source.begin([[part]])
    (target,) = source.targets(part, torch.from_numpy(rows), torch.zeros(200)).outputs["logits"]
    assert isinstance(target, Leaders)
    for T, column in ((1, 0), (2, 1), (4, 2)):
        dense = target.at(T).numpy()
        np.testing.assert_array_equal(np.take_along_axis(dense, kept["which"][rows], 1), kept["logits"][rows])
        np.put_along_axis(dense, kept["which"][rows], np.inf, 1)
        np.testing.assert_array_equal(dense.min(1), kept["tails"][rows, column])


def test_means_over_views_are_refused_by_name(made: Path, tmp_path: Path) -> None:
    for targets in ("mean", "both"):
        with pytest.raises(
            UsageError, match=rf"--targets {targets} takes means.*top keeps the largest of logits in each view"
        ):
            fit(tmp_path / targets, cache=(str(made / "top"),), targets=targets)


def test_a_loss_that_looks_at_every_logit_is_told_of(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path / "mse", cache=(str(made / "top"),), loss=("mse", "kl"), epochs=1)
    assert caplog.text.count("looks at each of the teacher's logits") == 1
    assert "loss 'mse' looks at" in caplog.text


def test_what_is_no_logits_of_classes_is_refused_with_what_to_use(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asking = functools.partial(command, "-q", "dump", "--teacher", made / "teacher", "--size", 8, "--views", 1)
    assert asking("--codec", "topk:k=3", "--hint", "layer1", "--out", made / "none") == 2
    said = capfd.readouterr().err
    assert "codec 'topk:k=3' is for columns of kind classes, and --hint layer1 is of kind values" in said
    assert "--hint layer1:codec=int:bits=8" in said
    assert asking("--codec", "topk", "--out", made / "none") == 2
    assert "would keep all logits of 10 classes: take a smaller k" in capfd.readouterr().err
    assert asking("--codec", "topk:k=3", "--hint", "layer1:codec=int:bits=8", "--out", made / "both") == 0
    assert command("-q", "verify", made / "both", "--teacher", made / "teacher") == 0


@pytest.mark.parametrize("codec", [f"topk:k={K}", "int:bits=5"])
@pytest.mark.parametrize("wrong", ["nan", "inf", "-inf"])
def test_what_is_not_finite_is_refused_with_its_key(codec: str, wrong: str, tmp_path: Path) -> None:
    """Also where it would be in the tail."""
    for split in ("train", "test"):
        features = np.random.default_rng(0).normal(0, 1, (40, CLASSES)).astype(np.float32)
        features[17, 4] = float(wrong)
        np.save(tmp_path / f"{split}_features.npy", np.arange(40, dtype=np.float32)[:, None])
        np.save(tmp_path / f"{split}_labels.npy", np.arange(40) % CLASSES)
    np.save(tmp_path / "said.npy", features)
    (tmp_path / "told.py").write_text(
        "import numpy as np\n\n\ndef make(num_classes=10):\n"
        f"    said = np.load({str(tmp_path / 'said.npy')!r})\n"
        "    return lambda features: said[features[:, 0].astype(int)]\n"
    )
    with pytest.raises(softcache.SoftcacheError, match="row 17 in view 0: the teacher's logits are not finite"):
        softcache.dump(
            f"{tmp_path / 'told.py'}:make", dataset=f"arrays:{tmp_path}", out=tmp_path / "cache", codec=codec,
            workers=0, device="cpu",
        )  # fmt: skip


def test_places_of_rows_have_leaders_of_their_own(tmp_path: Path) -> None:
    make_place(tmp_path)
    out = ("logits", "tags:kind=classes:codec=topk:k=2", "exact:kind=classes:codec=fp32")
    models = (
        (tmp_path / "models.py")
        .read_text()
        .replace('"tags": self.tags(x), "pairs": pairs', '"tags": self.tags(x), "exact": self.tags(x), "pairs": pairs')
    )
    (tmp_path / "models.py").write_text(models)
    dump = softcache.dump(**asked(tmp_path, tmp_path / "cache", output=out))
    cache, rows = Cache(dump.folder), np.arange(70)
    top, exact = cache.column("tags"), cache.column("exact")
    kept, said = top.target(top.gather(0, rows)), exact.decode(exact.gather(0, rows))
    assert isinstance(kept, Leaders)
    assert torch.equal(kept.at(1.0).argmax(1), said.argmax(1))
    mass = said.sort(1, descending=True)[0].softmax(1)[:, 2:].sum(1)
    torch.testing.assert_close(
        kept.at(1.0).sort(1, descending=True)[0].softmax(1)[:, 2:].sum(1), mass, rtol=1e-4, atol=1e-5
    )
    run = softcache.train(
        f"{tmp_path / 'models.py'}:learner", cache=(str(dump.folder),), loss=("kl:of=tags",), T=4, epochs=2,
        out=tmp_path / "run", workers=0, device="cpu", beta=0,
    )  # fmt: skip
    assert all(np.isfinite(line["loss"]) for line in lines(run.folder))
    keys = Keys(dump.folder, outputs=["tags"])
    batch = next(iter(DataLoader(keys, batch_sampler=keys.sampler(16), collate_fn=keys.collate)))
    student = torch.randn(*batch.masks["tags"].shape, 5)
    target = batch.targets["tags"]
    assert isinstance(target, Leaders)
    own = batch.masks["tags"].bool()
    found = functional.kl(student, target, T=4, mask=batch.masks["tags"])
    torch.testing.assert_close(found, functional.kl(student[own], target.at(4)[own], T=4))
