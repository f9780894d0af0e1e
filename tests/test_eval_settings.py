"""Which runs are of one setting, and what tells settings apart."""

from __future__ import annotations

import dataclasses
from typing import Any

from softcache.config.record import Record
from softcache.config.train import TrainConfig
from softcache.sweeping.evaluation_lines import told_count
from softcache.sweeping.settings import grouped, setting_of, temperature, told_value, varied


def record(losses: tuple[tuple[str, str], ...] = (("kl", "4"),), **options: Any) -> Record[TrainConfig]:
    terms = [{"loss": loss, "weight": "1", "T": T} for loss, T in losses]
    caches = [{"path": "/caches/one", "cache_id": "1" * 64}]
    return Record("train", TrainConfig.of(**options), {}, losses=terms, caches=caches)


def of(run: Record[TrainConfig]) -> dict[str, Any]:
    return setting_of(run.options.to_json(), run)


def test_seed_and_machine_are_no_setting() -> None:
    one = of(record(seed=1, device="cpu", workers=0, data_dir="/a"))
    assert one == of(record(seed=2, device="cuda", workers=4, data_dir="/b"))
    assert one != of(record(lr=0.5))
    assert one != of(record((("kl", "2"),)))
    assert grouped("abc", [one, of(record(lr=0.5)), one]) == [["a", "c"], ["b"]]


def test_columns_are_the_options_that_differ() -> None:
    settings = [
        of(record((("dist:beta=1,gamma=1,eps=1e-08", T),), student="resnet18", alpha=alpha, beta=beta))
        for T, alpha, beta in (("4", "0.5", "0.5"), ("1", "0.9", "0.1"))
    ]
    assert varied(settings) == [{"T": "4", "alpha": "0.5"}, {"T": "1", "alpha": "0.9"}], "beta is 1 - alpha"
    settings[1]["beta"] = None
    assert list(varied(settings)[0]) == ["T", "alpha"], "so it is where nobody gave it"
    settings[1]["beta"] = "1"
    assert list(varied(settings)[0]) == ["T", "alpha", "beta"]
    assert varied(settings[:1]) == [{}]


def test_specs_are_as_short_as_tells_them_apart() -> None:
    losses = ("dist:beta=1,gamma=1,eps=1e-08", "kl"), ("kl:a=1", "kl:a=2")
    for given, told in zip(losses, (["dist", "kl"], ["kl:a=1", "kl:a=2"]), strict=True):
        settings = [of(record(((loss, "1"),))) for loss in given]
        assert [own["loss"] for own in varied(settings)] == told
    students = [of(record(student=f"/home/me/{name}.py:net")) for name in "ab"]
    assert [own["student"] for own in varied(students)] == ["a.py:net", "b.py:net"]


def test_only_what_differs_within_a_kind_or_must_be_common_is_a_column() -> None:
    """A student on labels alone has no loss, and a rate of its own."""
    taught = [{"student": "a", "loss": ["kl"], "T": T, "lr": 0.1, "alpha": 0.9} for T in (1.0, 4.0)]
    alone = {"student": "a", "loss": [], "lr": 0.3, "alpha": 0.0}
    told = varied([*taught, alone], [False, False, True])
    assert told == [{"T": "1"}, {"T": "4"}, {"T": "–"}]
    assert list(varied([*taught, alone])[0]) == ["loss", "T", "alpha", "lr"]
    told = varied([*taught, {**alone, "student": "b", "label_fraction": 0.1}], [False, False, True])
    assert told[2] == {"student": "b", "T": "–", "label_fraction": "0.1"}


def test_settings_that_are_told_apart_look_different() -> None:
    runs = [dataclasses.replace(record(), caches=[{"path": "/caches/one", "cache_id": number * 64}]) for number in "12"]
    assert [one["cache"] for one in varied([of(run) for run in runs])] == ["one 11111111…", "one 22222222…"]
    asked = [setting_of({"student": f"/{folder}/net", "seed": number}) for number, folder in enumerate("ab")]
    assert [one["student"] for one in varied(asked)] == ["/a/net", "/b/net"]


def test_a_value_is_told_without_its_defaults_and_its_folder() -> None:
    told = {
        ("loss", ("kl", "dist:beta=1,gamma=1,eps=1e-08")): "kl+dist",
        ("loss", "kl:T=2"): "kl:T=2",
        ("alpha", "0.50"): "0.5",
        ("alpha", "1:0.5:cosine"): "1:0.5:cosine",
        ("lr", 0.1): "0.1",
        ("cache", "/somewhere/caches/one"): "one",
        ("student", "runs/one"): "one",
        ("student", "timm:org/net"): "timm:org/net",
        ("hint", ()): "–",
        ("views", None): "–",
    }
    assert {key: told_value(*key) for key in told} == told


def test_the_temperature_is_that_of_the_logits_loss() -> None:
    assert temperature(record((("cosine:of=embedding", "1"), ("kl", "4:1:linear")))) == "4:1:linear"
    assert temperature(record((("kl:of=tags", "2"),))) is None
    assert temperature(record(())) is None


def test_counts_have_three_digits() -> None:
    told = {999: "999", 78_042: "78 k", 11_689_512: "11.7 M", 1_563_904: "1.56 M", 4_089_184_256: "4.09 G", 0: "0"}
    assert {number: told_count(number) for number in told} == told
    assert told_count(999_900) == "1,000 k"
    assert told_count(None) == "–"
