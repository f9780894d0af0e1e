"""Training on hints that are kept for a share of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_ranks import trained
from harness_train import HINTS, SIZE, STUDENT, fit, lines, make_cache, make_teacher, same, weights

from softcache import registry
from softcache.cache.shares import places_in
from softcache.config.parsed import parse
from softcache.config.train import TrainConfig
from softcache.errors import SoftcacheError, UsageError
from softcache.losses._counted import Counted
from softcache.losses.hints._spec import parse_hint
from softcache.models._open import open_network
from softcache.ragged import offsets_of
from softcache.stages._training import _synchronize_batch_norms, prepare
from softcache.stages.train import train
from softcache.stream.counts import Counts
from softcache.stream.parts import Part
from softcache.training import learner
from softcache.training.hint_losses import REGRESSORS_FILE, HintLosses, build_hint_losses
from softcache.training.ranks import Ranks

ROWS = 1438
LAYERS = {
    "fitnet": "layer1", "vid": "layer2", "at": "layer1", "nst": "layer1", "sp": "layer1", "rkd": "fc:in",
    "pkt": "fc:in", "cc": "fc:in", "crd": "fc:in", "reviewkd": "layer1/layer2", "simkd": "layer2",
}  # fmt: skip
MORE = {"crd": ",negatives=64,dim=8", "fitnet": ",weight=1", "nst": ",weight=1", "at": ",weight=1", "pkt": ",weight=1"}


def terms(share: str, *names: str) -> tuple[str, ...]:
    """Hint losses, by default all but ``simkd``, of the teacher's layers with ``share`` after them."""
    found = []
    for name in names or [name for name in LAYERS if name != "simkd"]:
        teacher = "/".join(f"{layer}{share}" for layer in LAYERS[name].split("/"))
        found.append(f"{name}:teacher={teacher},student={LAYERS[name]}{MORE.get(name, '')}")
    return tuple(found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float64, rounded to float32, so that the teacher's batches don't show."""
    folder = tmp_path_factory.mktemp("shares")
    make_teacher(folder / "teacher")
    hints = [f"{layer}{share}" for layer in HINTS for share in ("", ":rows=1", ":rows=0.3", ":rows=0.05")]
    make_cache(folder / "cache", folder / "teacher", hint=tuple(hints), views=1, augment="none", dtype="float64")
    return folder


def test_every_hint_loss_is_here() -> None:
    assert set(LAYERS) == set(registry.names("losses.hints"))


# A batch of twelve has 0.6 rows in the mean.
SPARSE: dict[str, Any] = {
    "hint": (*terms(":rows=0.05"), *terms(":rows=0.3", "fitnet")), "alpha": "0", "beta": "1", "epochs": 1,
    "batch_size": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def live(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a live teacher."""
    teacher = {"teacher": str(made / "teacher"), "online": True, "dtype": "float64", "augment": "none", "size": SIZE}
    folder = tmp_path_factory.mktemp("live") / "run"
    fit(folder, views=1, **teacher, **SPARSE)
    return folder


@pytest.mark.parametrize("how", [{}, {"resident": "off", "shuffle": "full"}, {"workers": 1, "resident": "off"}])
def test_cached_equals_live_to_the_bit(made: Path, live: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    fit(tmp_path / "cached", cache=made / "cache", **SPARSE, **how)
    for name in ("student.safetensors", REGRESSORS_FILE):
        cached, online = weights(tmp_path / "cached", name), weights(live, name)
        assert same(cached, online)
        assert all(torch.isfinite(values).all() for values in cached.values())


@pytest.mark.parametrize("names", [(), ("simkd",)], ids=["all", "simkd"])
def test_a_share_of_all_rows_is_the_whole_column(made: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    learning = {"alpha": "0", "beta": "0" if names else "1", "epochs": 1, "cache": made / "cache", "val_fraction": 0.2}
    fit(tmp_path / "whole", hint=terms("", *names), **learning)
    fit(tmp_path / "share", hint=terms(":rows=1", *names), **learning)
    fit(tmp_path / "fewer", hint=terms(":rows=0.3", *names), **learning)
    whole, share, fewer = (weights(tmp_path / name) for name in ("whole", "share", "fewer"))
    assert same(whole, share)
    assert not same(whole, fewer)
    assert same(*(weights(tmp_path / name, REGRESSORS_FILE) for name in ("whole", "share")))


def test_a_student_learns_from_a_share(made: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", cache=made / "cache", hint=terms(":rows=0.3", "fitnet"), alpha="0", beta="0", epochs=4)
    losses = [line["hint_loss"] for line in lines(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]


def test_the_value_is_that_of_the_rows_that_are_there() -> None:
    """Against the rows picked by hand; of rows 2, 5, 7 and 8 of nine that are trained on, 5 and 8 are in the share."""
    term, whole = (parse_hint(f"fitnet:teacher=a{share},student=b") for share in (":rows=0.5", ""))
    module = term.build([(3, 2, 2)], [(4, 2, 2)], row_count=2, classes=4, seed=5)
    losses = HintLosses([term, whole], [module, module], np.array([2, 5, 7, 8]), 9, 1, (), {0.5: np.array([5, 8])})
    rng = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(3, 3, 2, 2, generator=rng).requires_grad_(), torch.randn(3, 4, 2, 2, generator=rng)
    rows, labels, offsets = (
        torch.tensor([8, 2, 5]),
        torch.tensor([1, 2, 3]),
        {"hint.a:rows=0.5": np.array([0, 1, 1, 2])},
    )
    hints = {"a:rows=0.5": teacher[[0, 2]], "a": teacher}
    module.eval()  # batch norm by its running statistics, so that rows don't matter to each other
    some, all_of_them = losses({"b": student}, hints, rows, labels, offsets)
    each = [losses({"b": student[k : k + 1]}, {**hints, "a": teacher[k : k + 1]}, rows[k : k + 1], labels[k : k + 1],
                   {"hint.a:rows=0.5": np.array([0, 0])})[1] for k in range(3)]  # fmt: skip
    assert some.item() == pytest.approx((each[0] + each[2]).item() / 2, rel=1e-6)
    assert all_of_them.item() == pytest.approx(sum(each).item() / 3, rel=1e-6)
    (gradient,) = torch.autograd.grad(some, student)
    assert not gradient[1].any()
    assert gradient[[0, 2]].abs().min() > 0
    nothing = losses({"b": student}, {**hints, "a:rows=0.5": teacher[:0]}, rows, labels, {"hint.a:rows=0.5": [0] * 4})
    (gradient,) = torch.autograd.grad(nothing[0], student)
    assert (nothing[0].item(), gradient.abs().max().item()) == (0, 0)


OWN = """
import torch
from dataclasses import dataclass
from typing import ClassVar

from softcache.losses.hints._hint_loss import HintLoss


class Recorded(torch.nn.Module):
    def forward(self, student, teacher, **given):
        self.given = given
        return student.sum()


@dataclass(frozen=True)
class Everything(HintLoss):
    needs: ClassVar[frozenset] = frozenset({"labels", "positions", "row labels"})

    def build(self, student_shape, teacher_shape, **given):
        made = Recorded()
        made.built = given
        return made
"""


def test_positions_and_labels_are_those_of_the_rows_that_are_there(here: Path, made: Path) -> None:
    """Of the rows that are trained on, the memory has those of the share, counted from 0 in their order."""
    Path("own.py").write_text(OWN)
    hint = ("own.py:Everything:teacher=fc:in:rows=0.3,student=fc:in",)
    options = {"cache": (str(made / "cache"),), "val_fraction": 0.2, "label_fraction": 0.5, "hint": hint, "alpha": 0}
    prepared = prepare(parse(TrainConfig.of(student=STUDENT, device="cpu", **options)))
    losses, rows = prepared.hint_losses, prepared.rows
    assert losses is not None
    module, share = losses.by_term[0].by_layer[0], places_in(0.3, ROWS)  # type: ignore[union-attr]
    kept = [row for row in rows.train.tolist() if share[row]]
    assert 0 < len(kept) < len(rows.train) < ROWS
    assert module.built["row_count"] == len(kept)
    assert module.built["row_labels"].tolist() == rows.visible[kept].tolist()
    batch = np.array([kept[4], *[row for row in rows.train.tolist() if not share[row]][:2], kept[1]])
    vectors, offset = torch.randn(4, 8), offsets_of(share[batch])
    labels = torch.from_numpy(rows.visible[batch].astype(np.int64))
    losses({"fc:in": vectors}, {"fc:in:rows=0.3": vectors[[0, 3]]}, torch.from_numpy(batch), labels,
           {"hint.fc:in:rows=0.3": offset})  # fmt: skip
    assert module.given["positions"].tolist() == [4, 1]
    assert module.given["labels"].tolist() == labels[[0, 3]].tolist()


def test_counts_are_of_rows_that_have_a_place_and_a_label() -> None:
    labels, places = np.array([3, -1, 2, 1, -1, 0], np.int32), np.array([1, 1, 0, 1, 0, 1])
    parts = [[[Part(np.array(rows), (0,))] for rows in ranks] for ranks in ([[0, 1, 2], [3]], [[4, 2], [5, 0]])]
    counts = Counts(parts, labels, {"hint.a:rows=0.5": places}, lambda rows, view: None)
    for what, wanted in (("filled", [[2, 1], [0, 2]]), ("labels", [[1, 1], [0, 2]])):
        assert counts.of(Counted(what, "hint.a:rows=0.5")).tolist() == wanted  # type: ignore[arg-type]
    assert counts.of(Counted("labels")).tolist() == [[2, 1], [1, 2]]
    assert counts.of(Counted("rows")).tolist() == [[3, 1], [2, 2]]
    assert parse_hint("vid:teacher=a:rows=0.5,student=b").counted("c", of_rows=True) == Counted("filled", "c")
    assert parse_hint("vid:teacher=a,student=b").counted("c") == Counted("places", "c")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("count", [1, 2])
def test_every_loss_takes_few_rows(name: str, count: int) -> None:
    """A batch may have one row of the share. Values and gradients are numbers, in the first step and in the third."""
    (term,) = (parse_hint(spec) for spec in terms(":rows=0.3", name))
    ours, theirs = {"layer1": (4, 4, 4), "layer2": (8, 2, 2), "fc:in": (8,)}, {}
    theirs = {"layer1": (6, 4, 4), "layer2": (12, 2, 2), "fc:in": (12,)}
    layers = LAYERS[name].split("/")
    module = term.build(
        [ours[layer] for layer in layers], [theirs[layer] for layer in layers], row_count=70, classes=10, seed=1,
        row_labels=torch.arange(70) % 10, teacher_classifier=torch.nn.Linear(12, 10),
    )  # fmt: skip
    rng = torch.Generator().manual_seed(2)
    for _ in range(3):
        student = [torch.randn(count, *ours[layer], generator=rng).requires_grad_() for layer in layers]
        teacher = [torch.randn(count, *theirs[layer], generator=rng) for layer in layers]
        value = term.value(module, student, teacher, positions=torch.arange(count), labels=torch.arange(count))
        value.backward()
        assert torch.isfinite(value)
        assert all(torch.isfinite(x.grad).all() for x in student if x.grad is not None)
        assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_batches_that_are_accumulated_are_one_large_batch(made: Path, tmp_path: Path) -> None:
    """Batches of eight have 0 to 3 rows of the share, and a training of 32 the mean over those of all four."""
    learning = {"hint": terms(":rows=0.05", "fitnet", "vid", "at"), "cache": (str(made / "cache"),), "epochs": 1}
    learning |= {"loss": ("kl",)}
    whole = trained({**learning, "batch_size": 32}, tmp_path / "whole")["parameters"]
    parts = trained({**learning, "batch_size": 8, "accumulate": 4}, tmp_path / "parts")["parameters"]
    start = trained({**learning, "batch_size": 32, "lr": 1e-12}, tmp_path / "start")["parameters"]
    moved = max((whole[name] - start[name]).abs().max().item() for name in whole)
    assert max((whole[name] - parts[name]).abs().max().item() for name in whole) < 1e-12 < 1e-3 < moved


def test_a_run_that_is_killed_goes_on_with_the_same_bits(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = {"cache": made / "cache", "hint": terms(":rows=0.3", "fitnet", "crd"), "alpha": "0", "beta": "1"}
    fit(tmp_path / "whole", **learning)
    save = learner.save_checkpoint

    def stop(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(learner, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "killed", **learning)
    monkeypatch.undo()
    train(resume=tmp_path / "killed")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_a_stage_on_hints_alone_and_several_views_of_each_row(made: Path, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", made / "teacher", hint=("layer1:rows=0.05",), views=2)
    common = {"cache": tmp_path / "cache", "hint": terms(":rows=0.05", "fitnet")}
    fit(tmp_path / "stages", **common, hint_epochs=1, epochs=1, batch_size=8)
    fit(tmp_path / "views", **common, views_per_image=2, epochs=1)
    for name in ("stages", "views"):
        assert all(np.isfinite(line["loss"]) for line in lines(tmp_path / name))
        assert lines(tmp_path / name)[0]["hint_loss"] > 0


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (
            "reviewkd:teacher=layer1/layer2:rows=0.3,student=layer1/layer2",
            "kept for different rows",
        ),
        ("reviewkd:teacher=layer1:rows=0.05/layer2:rows=0.3,student=layer1/layer2", "name layers with the same rows="),
        ("fitnet:teacher=layer1,student=layer1:rows=0.3", r"write student=layer1"),
        ("fitnet:teacher=layer1:rows=0.4,student=layer1", r"no cache has the hint 'layer1:rows=0\.4'"),
        ("fitnet:teacher=layer1:rows=.3,student=layer1", "no share of the rows"),
        ("fitnet:teacher=layer1:rows=2,student=layer1", "no share of the rows"),
    ],
)
def test_what_can_not_be_is_refused_before_a_run_is_begun(made: Path, tmp_path: Path, hint: str, message: str) -> None:
    with pytest.raises(SoftcacheError, match=message) as caught:
        fit(tmp_path / "run", cache=made / "cache", hint=(hint,))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_rows_of_which_none_is_in_the_share_are_refused(made: Path) -> None:
    network = open_network(STUDENT, classes=10, statistics=((0.5,), (0.5,)), seed=1)
    term, places = parse_hint("fitnet:teacher=a:rows=0.3,student=layer1"), np.zeros(9, np.int64)
    with pytest.raises(UsageError, match=r"of the 4 rows that are trained on none is kept in 'a:rows=0\.3'"):
        build_hint_losses(
            network, [term], torch.zeros(2, SIZE, SIZE, 1, dtype=torch.uint8), lambda layers: [(6, 4, 4)],
            np.arange(4), np.zeros(9), classes=10, seed=1, places={"hint.a:rows=0.3": places},
        )  # fmt: skip


def test_statistics_over_ranks_are_refused(made: Path) -> None:
    """They would wait for ever for a rank whose batch has no such row."""
    options = {"cache": (str(made / "cache"),), "hint": terms(":rows=0.3", "fitnet")}
    prepared = prepare(parse(TrainConfig.of(student=STUDENT, device="cpu", **options)))
    with pytest.raises(UsageError, match="--sync-bn needs samples on every rank in each step"):
        _synchronize_batch_norms(prepared.network, prepared.hint_losses, torch.device("cuda"), Ranks(0, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_learns_from_a_share_as_a_cpu_does(made: Path, tmp_path: Path) -> None:
    """Held on the device and gathered from memory maps; batches of twelve have 0.6 rows in the mean."""
    learning = {"cache": made / "cache", "hint": terms(":rows=0.05", "fitnet", "at", "rkd"), "epochs": 1, "amp": "off"}
    learning |= {"alpha": "0", "beta": "1", "batch_size": 12, "channels_last": False}
    fit(tmp_path / "cpu", device="cpu", **learning)
    for resident in ("device", "off"):
        fit(tmp_path / resident, device="cuda", resident=resident, **learning)
    on_cpu, held, gathered = (weights(tmp_path / name) for name in ("cpu", "device", "off"))
    assert all(torch.allclose(held[name], gathered[name], rtol=1e-4, atol=1e-5) for name in held)
    assert all(torch.allclose(on_cpu[name].float(), held[name].float(), rtol=0.05, atol=0.02) for name in held)
