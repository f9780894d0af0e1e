"""Training on outputs and hints of which each row has a length of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_ragged import CLASSES, ROWS, WIDTH, asked, lengths_of_rows, make_place, model, rows_of
from harness_train import weights
from torch.nn.functional import kl_div, log_softmax
from torch.utils.data import DataLoader

import softcache.functional as F
from softcache.cache.blocks import BlockReader
from softcache.cache.reader import Cache
from softcache.errors import ModelError, SoftcacheError, UsageError
from softcache.losses._terms import parse_term
from softcache.models._open import open_network
from softcache.ragged import offsets_of
from softcache.stages.dump import dump
from softcache.stages.keys import Keys
from softcache.stages.train import Trained, train
from softcache.stream.mean import MeanTargets
from softcache.stream.parts import Part
from softcache.stream.plan import Plan
from softcache.stream.targets import CachedTargets, Targets
from softcache.stream.windows import Windows
from softcache.training import learner
from softcache.training.rows import choose_rows

KEPT = ("logits", "states:codec=fp32", "tags:kind=classes:codec=fp32", "pairs:codec=fp32")
# Every loss that there is of places, of means over them, and of a whole row.
TERMS = (
    "kl:of=tags,T=2", "dist:of=tags", "mse:of=states", "cosine:of=states,weight=0.1", "rkd:of=states", "sp:of=states",
    "kl:weight=0.5",
)  # fmt: skip
HINTS = (
    "fitnet:teacher=words,student=words,weight=1",
    "vid:teacher=words,student=mixed",
    "cc:teacher=words,student=words",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("ragged"))


@pytest.fixture(scope="module")
def cache(place: Path) -> Path:
    """In float64, rounded to float32: a teacher that rows are filled up for in other ways says the same."""
    dump(
        **asked(place, place / "cache", output=KEPT, hint=("words:codec=fp32", "answer"), codec="fp32", dtype="float64")
    )
    return place / "cache"


def trained(place: Path, out: Path, student: str = "learner", **more: Any) -> Trained:
    return train(
        f"{place / 'models.py'}:{student}", dataset=f"arrays:{place}", out=out, device="cpu",
        **{"epochs": 2, "batch_size": 16, "optimizer": "adamw", "lr": 0.01, "warmup": 0, **more},
    )  # fmt: skip


@pytest.mark.parametrize("how", [{}, {"workers": 1}, {"resident": "off", "shuffle": "full"}, {"bucket": True}])
def test_cached_equals_live_to_the_bit(place: Path, cache: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    learning = {"loss": TERMS, "hint": HINTS, "alpha": 1, "beta": 0.5, "bucket": "bucket" in how}
    trained(place, tmp_path / "cached", cache=cache, **{**learning, **how})
    trained(
        place, tmp_path / "live", online=True, teacher=f"{place / 'models.py'}:words", views=1, dtype="float64",
        teacher_weights=str(place / "t.pt"), **learning,
    )  # fmt: skip
    cached, live = weights(tmp_path / "cached"), weights(tmp_path / "live")
    assert all(torch.equal(cached[name], live[name]) for name in cached)
    assert all(torch.isfinite(cached[name]).all() for name in cached)
    trained(place, tmp_path / "start", cache=cache, **learning, lr=1e-9)
    start = weights(tmp_path / "start")
    assert not any(torch.allclose(cached[name], start[name], atol=1e-3) for name in ("tags.weight", "states.weight"))


def test_a_loop_of_ones_own_with_rows_of_like_length(place: Path, cache: Path, tmp_path: Path) -> None:
    """Bit for bit as ``softcache train --bucket``: the same rows in the same order."""
    plain = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "clip_grad": 0}
    options = {**plain, "schedule": "constant", "amp": "off", "seed": 4, "bucket": True}
    trained(place, tmp_path / "run", cache=cache, loss=("kl",), T=2, alpha=1, beta=0.5, **options)
    keys = Keys(cache, f"arrays:{place}")
    student = open_network(
        f"{place / 'models.py'}:learner", classes=CLASSES, statistics=((0.0,), (1.0,)), pictures=False, seed=4
    )
    optimizer = torch.optim.SGD(student.train().parameters(), lr=0.1, fused=True)
    sampler = keys.sampler(16, seed=4, bucket=True)
    lengths, padded = lengths_of_rows(), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in DataLoader(keys, batch_sampler=sampler, collate_fn=keys.collate):
            padded.append(batch.inputs["ids"].shape[1] * len(batch.rows) - lengths[batch.rows].sum())
            logits = student.model(batch.inputs["ids"], batch.inputs["attention_mask"])["logits"]
            soft = F.kl(logits, batch.targets["logits"], T=2)
            (soft + 0.5 * torch.nn.functional.cross_entropy(logits, batch.labels)).backward()
            optimizer.step()
            optimizer.zero_grad()
    theirs = weights(tmp_path / "run")
    assert all(torch.equal(value, theirs[name]) for name, value in student.model.state_dict().items())
    assert sum(padded) < 400  # places that rows are filled up in; 1,414 with the same batches in any order
    halves = [list(keys.sampler(8, seed=4, bucket=True, rank=rank, ranks=2)) for rank in (0, 1)]
    whole = list(keys.sampler(16, seed=4, bucket=True))
    assert [one + other for one, other in zip(*halves, strict=True)] == whole


def test_the_loss_of_places_is_the_mean_over_all_of_a_batch(place: Path) -> None:
    """Against a loop over rows, in float64, without anything of softcache."""
    rng = torch.Generator().manual_seed(0)
    lengths = [3, 0, 1, 5]
    student, teacher = (
        [torch.randn(n, 4, generator=rng, dtype=torch.float64) for n in lengths] for _ in ("student", "teacher")
    )
    offset = offsets_of(np.array(lengths))
    ours, theirs = torch.cat(student).requires_grad_(), torch.cat(teacher)
    total = 0.0
    for own, other in zip(student, teacher, strict=True):
        for z_s, z_t in zip(own, other, strict=True):
            told = kl_div(log_softmax(z_s / 3, 0), log_softmax(z_t / 3, 0), log_target=True, reduction="sum")
            total += 9 * told.item()
    found = parse_term("kl:of=tags")(ours, theirs, 3.0, None, offset)
    assert found.item() == pytest.approx(total / 9, rel=1e-6)
    means = [torch.stack([row.mean(0) for row in rows if len(row)]) for rows in (student, teacher)]
    related = parse_term("rkd:of=states")
    assert related(ours, theirs, 1.0, None, offset).item() == pytest.approx(related(*means, 1.0).item(), rel=1e-6)
    for spec in ("kl", "dist", "mse", "rkd", "cosine"):
        nothing = parse_term(spec)(ours[:0], theirs[:0], 1.0, None, np.zeros(5, np.int64))
        nothing.backward()
        assert nothing.item() == 0


def test_losses_as_functions_take_masks() -> None:
    """What is behind a mask may be anything; labels of places are looked at where the mask is."""
    rng = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(3, 4, 5, generator=rng), torch.randn(3, 4, 5, generator=rng)
    mask, labels = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]), torch.arange(12).view(3, 4) % 5
    own = mask.bool()
    for name, more in {"kl": {}, "dkd": {"labels": labels}, "rkd": {}}.items():
        wanted = F.__getattr__(name)(
            *([torch.stack([x[0, 1:3].mean(0), x[2].mean(0)]) for x in (student, teacher)] if name == "rkd"
              else [student[own], teacher[own]]), **{key: value[own] for key, value in more.items()}
        )  # fmt: skip
        broken = [x.masked_fill(~own[..., None], torch.nan) for x in (student, teacher)]
        assert F.__getattr__(name)(*broken, mask=mask, **more).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_batches_of_empty_rows_do_no_harm(place: Path, cache: Path, tmp_path: Path) -> None:
    """A block of 16 rows is empty, and batches are small enough that some have no place at all."""
    assert not lengths_of_rows()[32:48].any()
    run = trained(
        place, tmp_path / "run", cache=cache, batch_size=2, loss=TERMS[:6], hint=HINTS, alpha=1, beta=0, epochs=1
    )
    assert all(torch.isfinite(values).all() for values in weights(tmp_path / "run").values())
    assert np.isfinite(run.lines[0]["loss"])


def test_targets_are_the_rows_own_wherever_they_lie(cache: Path) -> None:
    """Held on the device, gathered from maps, read in blocks: the places of each key, two views or one."""
    opened = Cache(cache)
    rng = np.random.default_rng(1)
    windows = Windows(8, 2)
    order = windows.permutation(rng, np.arange(ROWS))
    parts = [(Part(rows, (0,)),) for rows in np.split(order, [5, 25, 64])]
    found: list[list[Targets]] = []
    for how in ({"hold": True}, {"hold": False}, {"hold": False, "blocks": windows}):
        source = CachedTargets({"states": [opened], "logits": [opened]}, {"words": opened}, torch.device("cpu"), **how)  # type: ignore[arg-type]
        source.begin(parts)
        found.append([source.targets(part, torch.from_numpy(part.rows), torch.empty(0)) for (part,) in parts])
    column = opened.column("states")
    for number, (part,) in enumerate(parts):
        for targets in (each[number] for each in found):
            wanted = column.gather(0, part.rows)
            assert torch.equal(targets.outputs["states"][0], column.decode(wanted))
            assert len(targets.hints["words"]) == lengths_of_rows()[part.rows].sum()
            for one, other in zip(targets.digests, found[0][number].digests, strict=True):
                assert torch.equal(one, other)
    assert (
        CachedTargets.bytes_per_view({"states": [opened]}, {})
        == sum(4 + 8 + 4 * WIDTH * int(n) for n in lengths_of_rows()) + 8
    )  # digests, offsets with the one of the end, places


@pytest.mark.parametrize("column", ["states", "pairs", "logits"])
@pytest.mark.parametrize(("block", "window"), [(1, 2), (4, 3), (16, 1), (32, 8)])
def test_blocks_have_the_places_of_every_row(cache: Path, column: str, block: int, window: int) -> None:
    opened = Cache(cache)
    order = Windows(block, window).permutation(np.random.default_rng(block), np.arange(ROWS))
    reader, maps = BlockReader(opened, column, 0, order, block, window), opened.column(column)
    for rows in np.split(order, [1, 30, 31]):
        found, wanted = reader.gather(rows), maps.gather(0, rows)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_logits_of_places_are_learnt_without_labels(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dump(**asked(place, tmp_path / "cache", "tokens", output=("logits:codec=fp32",)))
    caplog.set_level("INFO")
    run = trained(place, tmp_path / "run", "learner_of_tokens", cache=tmp_path / "cache", epochs=30, val_fraction=0.2)
    assert "labels are not learnt: they are of rows" in caplog.text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["beta"] == "0"
    assert (run.leading, run.test) == ("cosine", None)
    assert run.val is not None
    assert run.val > run.lines[0]["val_cosine"] + 0.2
    assert run.val == pytest.approx(cosine(place, tmp_path / "run", tmp_path / "cache"), abs=1e-5)


@torch.inference_mode()
def cosine(place: Path, run: Path, cache: Path) -> float:
    """The mean over all places of the rows that were held out, row by row."""
    chosen = choose_rows(
        (np.arange(ROWS) % CLASSES).astype(np.int32), val_fraction=0.2, label_fraction=1.0, seed=0, labels_alone=False,
        needing_labels=[], choosing_by_labels=False,
    ).held  # fmt: skip
    assert len(chosen) == json.loads((run / "config.json").read_text())["held_out_rows"]
    network = model(place, "learner_of_tokens", 5)
    network.load_state_dict(weights(run))
    rows, column, found = rows_of(place), Cache(cache).column("logits"), []
    for row in chosen.tolist():
        if len(rows[row]):
            ids = torch.from_numpy(rows[row])[None]
            ours = network(ids, torch.ones_like(ids))[0]
            theirs = column.decode(column.gather(0, np.array([row])))
            found.append(torch.nn.functional.cosine_similarity(ours, theirs, dim=1))
    return float(torch.cat(found).mean())


def test_a_run_that_is_killed_goes_on_with_the_same_bits(
    place: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = {"loss": TERMS, "hint": HINTS, "alpha": 1, "beta": 0.5, "epochs": 3}
    trained(place, tmp_path / "whole", cache=cache, **learning)
    save = learner.save_checkpoint

    def stop(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(learner, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(place, tmp_path / "killed", cache=cache, **learning)
    monkeypatch.undo()
    train(resume=tmp_path / "killed")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("count", [70, 64, 5])
def test_rows_of_like_length_share_a_batch(count: int) -> None:
    lengths = np.random.default_rng(0).integers(0, 100, count)
    plan = Plan(np.arange(count), 8, 3, 1, lengths=lengths)
    plain = Plan(np.arange(count), 8, 3, 1)
    epochs = [[part.rows for (part,) in plan.batches(epoch)] for epoch in range(20)]
    for batches in epochs:
        assert sorted(np.concatenate(batches)) == list(range(count))
        assert list(map(len, batches)) == [len(part.rows) for (part,) in plain.batches(0)]

    def filled(batches: list[np.ndarray]) -> int:
        return sum(len(rows) * int(lengths[rows].max()) for rows in batches)

    if count > 8:
        usual = [filled([part.rows for (part,) in plain.batches(epoch)]) for epoch in range(20)]
        assert max(map(filled, epochs)) < 1.25 * lengths.sum() < 0.8 * min(usual)
        assert {tuple(batches[0]) for batches in epochs} != {tuple(epochs[0][0])}
        last = [lengths[batches[-1]].mean() for batches in epochs]
        assert count % 8 == 0 or (min(last) < 25 and max(last) > 75), "the rows that are left over are of any length"
    again = [part.rows for (part,) in plan.batches(7)]
    assert all(np.array_equal(one, other) for one, other in zip(again, epochs[7], strict=True))


def test_rows_of_like_length_that_can_not_be(place: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which a shuffle in blocks can't: pass --shuffle full"):
        trained(place, tmp_path / "blocks", cache=cache, shuffle="block", bucket=True, loss=TERMS)
    with pytest.raises(UsageError, match="those of digits have no lengths of their own"):
        train("cifar:resnet8", dataset="digits", alpha=0, bucket=True, out=tmp_path / "digits")


LOUDER = """
import numpy as np


def louder():
    return lambda sample: {"sound": sample["sound"] * np.float32(np.random.uniform(0.5, 2))}
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds of lengths of their own, in three views of other loudness each, and what a network says of each place."""
    folder = tmp_path_factory.mktemp("noisy")
    lengths = np.random.default_rng(5).integers(0, 9, 40)
    for split in ("train", "test"):
        values = np.random.default_rng(6).normal(size=(lengths.sum(), 2)).astype(np.float32)
        np.save(folder / f"{split}_sound.npy", values)
        np.save(folder / f"{split}_sound_offsets.npy", np.cumsum([0, *lengths]))
    (folder / "models.py").write_text(
        "from torch import nn\n\n\nclass Each(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n"
        "        self.inner, self.outer = nn.Linear(2, width), nn.Linear(width, 3)\n\n"
        "    def forward(self, sound, attention_mask):\n        x = self.inner(sound).tanh()\n"
        "        return {'parts': self.outer(x), 'all': (x * attention_mask[..., None]).sum(1)}\n\n\n"
        "def each(num_classes=1):\n    return Each(5)\n"
    )
    torch.manual_seed(2)
    space: dict[str, Any] = {}
    exec((folder / "models.py").read_text(), space)
    torch.save(space["each"]().state_dict(), folder / "t.pt")
    (folder / "louder.py").write_text(LOUDER)
    dump(
        f"{folder / 'models.py'}:each", teacher_weights=str(folder / "t.pt"), dataset=f"arrays:{folder}", views=3,
        augment=f"{folder / 'louder.py'}:louder", output=("parts:codec=fp32", "all:codec=fp32"), out=folder / "cache",
        device="cpu", shard_rows=16, batch_size=8,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("budget", [None, 0])
def test_means_are_over_the_views_of_each_place(noisy: Path, budget: int | None) -> None:
    cache = Cache(noisy / "cache")
    means = MeanTargets({"parts": [cache], "all": [cache]}, (0, 1, 2), torch.device("cpu"), budget=budget)
    rows = np.array([7, 3, 3, 39, 0])
    found = means.targets(Part(rows, (50,), fresh=True), torch.from_numpy(rows), torch.empty(0))
    for name in ("parts", "all"):
        column = cache.column(name)
        of_views = [column.decode(column.gather(view, rows)).double() for view in range(3)]
        assert not torch.equal(of_views[0], of_views[1])
        assert torch.equal(found.outputs[name][0], torch.stack(of_views).sum(0).div(3).float())


@pytest.mark.parametrize("targets", ["mean", "both"])
def test_students_learn_other_outputs_from_means(noisy: Path, tmp_path: Path, targets: str) -> None:
    run = train(
        f"{noisy / 'models.py'}:each", dataset=f"arrays:{noisy}", cache=noisy / "cache", targets=targets,
        loss=("mse:of=parts", "mse:of=all"), out=tmp_path / "run", device="cpu", epochs=40, batch_size=8,
        optimizer="adamw", lr=0.02, warmup=0, seed=3, val_fraction=0.25,
    )  # fmt: skip
    assert run.val is not None
    assert run.val > 0.95
    assert run.lines[-1]["loss"] < run.lines[0]["loss"] / 3


def test_what_can_not_be_learnt_is_refused_before_anything_is_written(place: Path, cache: Path, tmp_path: Path) -> None:
    def refused(message: str, error: type[SoftcacheError] = UsageError, **options: Any) -> None:
        with pytest.raises(error, match=message):
            trained(place, tmp_path / "run", **{"cache": cache, "beta": 0, **options})
        assert not (tmp_path / "run").exists()

    refused("needs a label for each vector of 'tags', of which a row has several", loss=("dkd:of=tags",))
    refused("takes no layers whose rows have lengths of their own.*fitnet", hint=("at:teacher=words,student=words",))
    refused("compares layers that have other places", hint=("fitnet:teacher=words/answer,student=words/words",))
    refused("'answer' gives .3,. for a row that has 16 places", hint=("fitnet:teacher=words,student=answer",))
    refused("output 'pairs' is .* the longest has 8 places", ModelError, loss=("mse:of=pairs",), student="learner")
    dump(**asked(place, tmp_path / "tokens", "tokens", output=("logits",)))
    refused("--beta 0.3: labels are of rows", cache=tmp_path / "tokens", student="learner_of_tokens", beta=0.3)
    refused("output .logits. is .2, 5.* expected .2, 16", ModelError, cache=tmp_path / "tokens")
