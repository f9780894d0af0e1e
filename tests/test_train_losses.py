"""Every loss trains a small student on digits from a cache, through the command line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from harness_train import HINTS, STUDENT, command, config, fit, lines, make_cache, make_teacher, student, weights

from softcache import registry
from softcache.cache.reader import Cache
from softcache.losses._loss import loss_type
from softcache.models._open import open_network
from softcache.views._open import open_viewed

LAYERS = {
    "reviewkd": "teacher=layer1/layer2/fc:in,student=layer1/layer2/fc:in",
    "simkd": "teacher=layer2,student=layer2",
    "crd": "teacher=fc:in,student=fc:in,negatives=64",
}
VECTORS = ("cc", "rkd", "pkt")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losses")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS)
    return folder


def arguments(made: Path, out: Path) -> list[str | Path]:
    quick = ["--epochs", "1", "--batch-size", "128", "--workers", "0", "--json"]
    return ["--quiet", "train", "--student", STUDENT, "--cache", made / "cache", "--out", out, *quick]


def layers(name: str) -> str:
    where = "fc:in" if name in VECTORS else "layer2"
    return f"{name}:{LAYERS.get(name, f'teacher={where},student={where}')}"


def test_losses_lists_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("losses", "--json") == 0
    found = {(row["kind"], row["name"]): row for row in json.loads(capsys.readouterr().out)}
    assert {name for kind, name in found if kind == "loss"} == set(registry.names("losses"))
    assert {name for kind, name in found if kind == "hint"} == set(registry.names("losses.hints"))
    assert found["loss", "dkd"]["needs"] == "classes, labels"
    assert all(row["formula"] and row["source"] and row["weight"] for row in found.values())
    assert command("losses") == 0
    assert "negatives=16384" in capsys.readouterr().out


@pytest.mark.parametrize("name", [n for n in registry.names("losses") if "classes" in loss_type(n).kinds])
def test_a_loss_on_logits_trains(name: str, made: Path, tmp_path: Path) -> None:
    assert command(*arguments(made, tmp_path / "run"), "--loss", f"{name}:weight=1", "--alpha", "0.9") == 0
    (line,) = lines(tmp_path / "run")
    assert math.isfinite(line["soft_loss"])
    assert line["soft_loss"] != 0
    assert line["loss"] == pytest.approx(0.9 * line["soft_loss"] + 0.1 * line["hard_loss"], rel=1e-4)
    recorded = config(tmp_path / "run")
    assert recorded["losses"][0]["T"] == f"{registry.component('losses', name).default_T or 1:g}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", registry.names("losses.hints"))
def test_a_hint_loss_trains_and_is_saved_apart(name: str, made: Path, tmp_path: Path) -> None:
    spec = layers(name)
    needs = ["--teacher", made / "teacher"] if name == "simkd" else []
    assert command(*arguments(made, tmp_path / "run"), "--alpha", "0", "--beta", "1", "--hint", spec, *needs) == 0
    (line,) = lines(tmp_path / "run")
    assert math.isfinite(line["hint_loss"])
    ((shown, value),) = line["hint_losses"].items()
    assert shown.startswith(name)
    weight = float(registry.component("losses.hints", name).default_weight)  # type: ignore[attr-defined]
    assert line["hint_loss"] == pytest.approx(weight * value, rel=1e-4)
    assert line["loss"] == pytest.approx(line["hint_loss"] + line["hard_loss"], rel=1e-4)
    assert (tmp_path / "run" / "regressors.safetensors").exists()
    if name != "simkd":
        assert weights(tmp_path / "run").keys() == student(10).state_dict().keys()


def test_what_a_hint_loss_trains_moves(made: Path, tmp_path: Path) -> None:
    specs = ("fitnet:teacher=layer2,student=layer1", "vid:teacher=layer1,student=layer1")
    fit(tmp_path / "one", cache=(str(made / "cache"),), hint=specs, epochs=1)
    fit(tmp_path / "two", cache=(str(made / "cache"),), hint=specs, epochs=2)
    one, two = (weights(tmp_path / run, "regressors.safetensors") for run in ("one", "two"))
    scale = "by_term.1.by_layer.0.scale"  # vid's variances, which are forgotten in more than one collection
    assert scale in one
    assert all(not torch.equal(one[key], two[key]) for key in one if not key.endswith("num_batches_tracked"))
    line = lines(tmp_path / "two")[1]
    assert len(line["hint_losses"]) == 2
    assert sum(w * v for w, v in zip((100, 1), line["hint_losses"].values(), strict=True)) == pytest.approx(
        line["hint_loss"], rel=1e-4
    )


def test_simkd_answers_through_the_teachers_classifier_when_opened_again(made: Path, tmp_path: Path) -> None:
    done = fit(
        tmp_path / "run",
        cache=(str(made / "cache"),),
        alpha="0",
        beta="0",
        hint=("simkd:teacher=layer2,student=layer2",),
        teacher=str(made / "teacher"),
    )
    saved, classifier = weights(tmp_path / "run"), weights(made / "teacher", "teacher.safetensors")
    assert torch.equal(saved["classifier.weight"], classifier["fc.weight"])
    assert torch.equal(saved["classifier.bias"], classifier["fc.bias"])
    opened = open_network(str(tmp_path / "run"), classes=10).eval()
    viewed = open_viewed("digits", "test", augment="none", size=8)
    rows = list(range(len(viewed)))
    with torch.no_grad():
        pixels = viewed.clean(rows)
        logits = opened(pixels)
        model = opened.model
        feature = model.backbone.layer2(model.backbone.layer1(opened.prepare(pixels)))
        by_hand = model.projector(feature).mean((2, 3)) @ classifier["fc.weight"].T + classifier["fc.bias"]
    assert torch.allclose(logits, by_hand, atol=1e-5)
    labels = torch.from_numpy(viewed.samples.labels)
    assert float((logits.argmax(1) == labels).double().mean()) == pytest.approx(done.test.top1, abs=1e-9)
    assert command("eval", tmp_path / "run") == 0


def test_hints_of_a_live_teacher_are_those_of_its_cache(made: Path, tmp_path: Path) -> None:
    common = {"hint": ("fitnet:teacher=layer1,student=layer1", "rkd:teacher=fc:in,student=fc:in"), "epochs": 1}
    common |= {"amp": "off", "optimizer": "adamw", "lr": 2e-3}
    fit(tmp_path / "cached", cache=(str(made / "cache"),), **common)
    fit(tmp_path / "live", online=True, teacher=str(made / "teacher"), views=2, size=8, **common)
    cached, live = lines(tmp_path / "cached")[0], lines(tmp_path / "live")[0]
    for name in ("loss", "soft_loss", "hint_loss"):
        assert cached[name] == pytest.approx(live[name], rel=1e-4)


def test_hints_may_come_from_another_cache(made: Path, tmp_path: Path) -> None:
    make_teacher(tmp_path / "other", seed=5)
    plain = make_cache(tmp_path / "plain", tmp_path / "other")
    hint = ("at:teacher=layer1,student=layer1",)
    fit(tmp_path / "run", cache=(str(plain),), hint_cache=(str(made / "cache"),), hint=hint, epochs=1)
    found = [Path(entry["path"]).name for entry in config(tmp_path / "run")["caches"]]
    assert found == ["plain", "cache"]
    fit(tmp_path / "logits", cache=(str(plain),), epochs=1, alpha="0.9")
    assert lines(tmp_path / "run")[0]["hint_loss"] > 0
    assert lines(tmp_path / "logits")[0]["hint_loss"] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--hint", "fitnet:teacher=layer3,student=layer1"], "layer1, layer2.*softcache dump.*--hint layer3 --out"),
        (["--hint", "fitnet:teacher=layer1,student=leyer1"], "no layer 'leyer1'.*did you mean layer1"),
        (["--hint", "at:teacher=fc:in,student=fc:in"], "compares positions of a map"),
        (["--hint-epochs", "2"], "name one with --hint"),
        (["--T", "8:2"], "--T: '8:2' is not a number, START:END:linear"),
        (["--loss", "mse", "--T", "2"], "--T 2 has no effect: mse has no temperature"),
        (
            ["--loss", "kl:T=1", "--loss", "ttm", "--T", "2"],
            "--T 2 has no effect: kl has a T of its own, ttm has no temperature",
        ),
        (["--alpha", "2"], "give --beta"),
        (["--beta", "-1"], "--beta can't be negative"),
        (["--loss", "kl:T=0"], "T must be above 0"),
        (["--combine", "probs", "--loss", "mse"], "loss 'mse' needs logits"),
        (["--teacher-weight", "1,2"], "2 numbers for 1 caches"),
        (["--freeze", "layer9.*"], "matches no parameter"),
        (["--freeze", "*"], "nothing is left to train"),
        (["--init-map", "layer1"], "is not STUDENT=TEACHER"),
        (["--teacher-size", "9"], "--teacher-size goes with --online"),
        (["--targets", "mean", "--hint", "at:teacher=layer1,student=layer1"], "no hints"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    options: list[str], says: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments(made, tmp_path / "run"), *options) in (1, 2)
    error = capsys.readouterr().err.strip().replace("\n", " ")
    assert re.search(says, error), error
    assert not (tmp_path / "run").exists()


def test_networks_may_see_the_same_crop_at_other_sizes(made: Path, tmp_path: Path) -> None:
    sizes = {"student_size": 12, "teacher_size": 16}
    fit(tmp_path / "run", online=True, teacher=str(made / "teacher"), size=8, views=1, epochs=1, **sizes)
    recorded = config(tmp_path / "run")
    assert recorded["model"]["preprocess"]["size"] == 12
    opened = open_network(str(tmp_path / "run"), classes=10)
    assert opened.prepare(open_viewed("digits", "test", size=8).clean([0, 1])).shape == (2, 1, 12, 12)
    fit(tmp_path / "same", online=True, teacher=str(made / "teacher"), size=8, views=1, epochs=1)
    assert lines(tmp_path / "run")[0]["soft_loss"] != lines(tmp_path / "same")[0]["soft_loss"]


def test_a_teacher_of_another_size_is_recorded_and_resumed_with_it(made: Path, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", made / "teacher", views=1, teacher_size=16)
    again = make_cache(cache, made / "teacher", views=2)
    assert Cache(again).manifest.identity.teacher.preprocess["size"] == 16
    common = {"amp": "off", "epochs": 1}
    fit(tmp_path / "cached", cache=(str(cache),), **common)
    fit(tmp_path / "live", online=True, teacher=str(made / "teacher"), teacher_size=16, size=8, views=2, **common)
    cached, live = lines(tmp_path / "cached")[0], lines(tmp_path / "live")[0]
    assert cached["soft_loss"] == pytest.approx(live["soft_loss"], rel=1e-4)
    assert command("verify", cache, "--teacher", made / "teacher") == 0
