"""Specs of losses and hints, schedules, averages of several teachers, and the table of losses."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softcache import registry
from softcache.errors import UsageError
from softcache.losses._describe import describe_losses
from softcache.losses._ensemble import average_probabilities
from softcache.losses._schedule import Schedule
from softcache.losses._terms import parse_term, parse_terms, refuse_kind, refuse_shapes
from softcache.losses.hints._spec import parse_hint, parse_hints

torch.set_num_threads(1)


# Schedules.


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4", [4, 4, 4, 4, 4]),
        ("8:2:linear", [8, 6.5, 5, 3.5, 2]),
        ("8:2:cosine", [8, 2 + 3 * (1 + math.sqrt(0.5)), 5, 2 + 3 * (1 - math.sqrt(0.5)), 2]),
        ("0:1:alternate", [0, 1, 0, 1, 0]),
        ("0:1:warmup=4", [0.25, 0.5, 0.75, 1, 1]),
        ("1:3:warmup=1", [3, 3, 3, 3, 3]),
        ("0:1:warmup=2/5", [0.5, 1, 1, 1, 1]),
        ("0:1:warmup=1/2", [0.4, 0.8, 1, 1, 1]),
        ("2:7:warmup=1/1", [3, 4, 5, 6, 7]),
        ("0:1:warmup=1/12", [1, 1, 1, 1, 1]),
    ],
)
def test_schedules_over_five_epochs(text, values):
    schedule = Schedule.parse(text)
    assert [schedule.at(epoch, 5) for epoch in range(5)] == pytest.approx(values)
    assert str(schedule) == text
    assert Schedule.parse(str(schedule)) == schedule


def test_schedules_of_short_and_finished_runs():
    assert Schedule.parse("8:2:linear").at(0, 1) == 8
    assert Schedule.parse("8:2:linear").at(9, 5) == 2
    assert Schedule.parse("0:1:warmup=20").at(0, 1) == 0.05
    assert Schedule.parse("8:2:cosine").bounds() == (2, 8)
    assert Schedule.parse("8:2:alternate").at(0, 1) == 8


def test_a_twelfth_of_the_paper_s_epochs_are_its_twenty():
    share, epochs = Schedule.parse("0:1:warmup=1/12"), Schedule.parse("0:1:warmup=20")
    assert [share.at(epoch, 240) for epoch in range(240)] == [epochs.at(epoch, 240) for epoch in range(240)]
    for count in range(1, 60):
        assert share.at(count - 1, count) == 1  # however short
        assert share.at(0, count) == pytest.approx(min(1, 12 / count))


def test_schedules_keep_every_digit():
    third = 1 / 3
    assert Schedule.parse(str(Schedule(third, 0.1, "linear"))).start == third
    assert str(Schedule.constant(0.9)) == "0.9"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "nan",
        "inf",
        "8:2",
        "8:2:square",
        "8:2:linear=3",
        "0:1:warmup",
        "0:1:warmup=0",
        "1:2:3:4",
        "0:1:alternate=2",
    ]
    + [
        f"0:1:warmup={share}"
        for share in ("0.1", "0/12", "-1/12", "-1/-12", "13/12", "1/0", "1/", "/2", "1/2/3", "a/b")
    ],
)
def test_bad_schedules_name_the_forms(text):
    with pytest.raises(UsageError, match=r"is not a number, START:END:linear, .*warmup=EPOCHS"):
        Schedule.parse(text)


# Terms.


@pytest.mark.parametrize(
    "spec",
    [
        "kl",
        "kl:weight=0.9,T=2,standardize=true",
        "kl:weight=0:1:warmup=20",
        "dkd:alpha=1,beta=2,weight=1,T=8:2:linear",
        "nkd:gamma=0.5,T=1",
        "rld:alpha_T=1,weight=0:1:warmup=1/12,T=4",
        "ttm:gamma=0.3,weight=0:45:warmup=3",
        "ctkd:instance=true,loops=5,T_range=8,weight=2",
        "mlkd:batch=0,T=2,standardize=true",
        "mse:standardize=true",
        "cosine:of=embedding,weight=2",
        "rkd:angle=0,of=embedding",
    ],
)
def test_terms_round_trip(spec):
    term = parse_term(spec)
    assert parse_term(str(term)) == term


def test_losses_are_of_the_logits_unless_another_output_is_named():
    assert parse_term("kl").of == "logits"
    assert parse_term("cosine:of=embedding").of == "embedding"
    assert str(parse_term("mse:of=logits")) == "mse"
    with pytest.raises(UsageError, match="of names an output of the teacher"):
        parse_term("mse:of=")
    with pytest.raises(UsageError, match="is given twice"):
        parse_terms(["mse:of=embedding", "mse:of=embedding"])
    assert len(parse_terms(["mse", "mse:of=embedding"])) == 2


@pytest.mark.parametrize(
    ("spec", "kind", "advice"),
    [
        ("kl", "binary", "binary_kl, mse$"),
        ("kl:of=embedding", "values", "cc, cosine, mse, pkt, rkd, smooth_l1, sp$"),
        ("cosine", "classes", "ce, ctkd, dist, dkd, hard, kl, mlkd, mse, nkd, rld, ttm, wsld, wttm$"),
    ],
)
def test_an_output_of_another_kind_is_refused_with_the_losses_that_would_do(spec, kind, advice):
    with pytest.raises(UsageError, match=f"of caches/a is of kind {kind}: losses that take it are .*{advice}"):
        refuse_kind(parse_term(spec), kind, "caches/a")
    refuse_kind(parse_term("mse"), kind, "caches/a")


def test_only_logits_of_a_softmax_are_standardized():
    refuse_kind(parse_term("mse:standardize=true"), "classes", "caches/a")
    with pytest.raises(UsageError, match=r"is of kind values, of which nothing is standardized: leave standardize out"):
        refuse_kind(parse_term("mse:standardize=true"), "values", "caches/a")


def test_shapes_that_cannot_be_compared_are_refused_with_both():
    with pytest.raises(UsageError, match=r"shape \(3,\) for a sample, the teacher's \(4,\)"):
        refuse_shapes(parse_term("mse:of=embedding"), (3,), (4,))
    refuse_shapes(parse_term("mse:of=embedding"), (1,), ())  # one number a sample, with an axis or without
    refuse_shapes(parse_term("rkd:of=embedding"), (3,), (4,))


def test_positions_are_samples_and_for_relations_their_mean():
    s, t = torch.randn(2, 6, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat_s, flat_t = s.reshape(18, 5), t.reshape(18, 5)
    torch.testing.assert_close(parse_term("kl")(s, t, 2.0), parse_term("kl")(flat_s, flat_t, 2.0))
    torch.testing.assert_close(parse_term("cosine")(s, t, 1.0), parse_term("cosine")(flat_s, flat_t, 1.0))
    torch.testing.assert_close(parse_term("rkd")(s, t, 1.0), parse_term("rkd")(s.mean(1), t.mean(1), 1.0))
    one = parse_term("mse")(s[:, 0, 0], t[:, 0, 0], 1.0)  # (B,): one number a sample
    torch.testing.assert_close(one, (s[:, 0, 0] - t[:, 0, 0]).square().mean())


@pytest.mark.parametrize("name", ["rkd", "sp", "pkt", "cc"])
def test_relations_of_an_output_are_those_of_activations(name):
    s, t = (torch.randn(6, width, dtype=torch.float64) for width in (4, 7))
    hint = parse_hint(f"{name}:teacher=a,student=a")
    module = hint.build([(4,)], [(7,)], row_count=6, classes=2, seed=0)
    assert torch.equal(parse_term(name)(s, t, 1.0), module([s], [t]))
    assert parse_term(name).weight_schedule() == hint.weight_schedule()


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_the_binary_kl_of_one_output_is_the_kl_of_two_classes(T):
    s, t = torch.randn(2, 8, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    zero = torch.zeros_like(s)
    pair = parse_term("kl")(torch.cat([s, zero], 1), torch.cat([t, zero], 1), T)
    torch.testing.assert_close(parse_term("binary_kl")(s, t, T), pair)


def test_cosine_of_vectors_without_a_direction_has_no_gradient():
    s = torch.zeros(2, 3)
    s[1, 0] = 1e-30
    s.requires_grad_()
    value = parse_term("cosine")(s, torch.ones(2, 3), 1.0)
    value.backward()
    assert value.item() == pytest.approx(1 - 0.5 / math.sqrt(3), rel=1e-5)
    assert not s.grad[0].any()


def test_every_loss_has_a_default_term():
    for name in registry.names("losses"):
        term = parse_term(name)
        assert parse_term(str(term)) == term
        assert term.weight_schedule().bounds()[1] > 0
        assert term.T_schedule().bounds()[0] > 0


def test_whose_temperature_holds():
    given = Schedule.parse("3")
    assert parse_term("kl:T=2").T_schedule(given).at(0, 1) == 2
    assert parse_term("kl").T_schedule(given).at(0, 1) == 3
    assert parse_term("kl").T_schedule().at(0, 1) == 4
    assert parse_term("nkd").T_schedule().at(0, 1) == 1
    assert parse_term("kl:standardize=true").T_schedule().at(0, 1) == 2
    assert parse_term("hard").T_schedule().at(0, 1) == 1


def test_whose_weight_holds():
    assert parse_term("kl").weight_schedule() == Schedule.constant(1)
    assert parse_term("kl:weight=0.5").weight_schedule() == Schedule.constant(0.5)
    assert parse_term("kl:standardize=true").weight_schedule() == Schedule.constant(9)
    assert parse_term("dist:standardize=true").weight_schedule() == Schedule.constant(2)
    assert parse_term("dkd").weight_schedule() == Schedule.parse("0:1:warmup=1/12")
    assert parse_term("rld").weight_schedule() == Schedule.parse("0:1:warmup=1/12")
    assert parse_term("ttm").weight_schedule() == Schedule.constant(45)
    assert parse_term("mlkd").weight_schedule() == Schedule.constant(5)


def test_a_term_standardizes_both_sides():
    s, t = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = parse_term("kl:standardize=true")(s, t, 2.0)
    torch.testing.assert_close(parse_term("kl:standardize=true")(3 * s + 1, 5 * t - 2, 2.0), plain, rtol=1e-5, atol=0)
    z = [(x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in (s, t)]
    torch.testing.assert_close(parse_term("kl")(z[0], z[1], 2.0), plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kll", "no loss is called 'kll': did you mean kl?"),
        ("kl:wieght=2", "loss 'kl' has no option 'wieght': did you mean weight?"),
        ("dkd:bta=2", "loss 'dkd' has no option 'bta': did you mean beta"),
        ("dkd:beta=big", "loss 'dkd': beta='big' is not a number"),
        ("kl:weight=-1", "'kl:weight=-1': a weight can't be negative"),
        ("kl:T=0", "'kl:T=0': T must be above 0"),
        ("kl:T=4:0:linear", "T must be above 0"),
        ("kl:T=hot", "'kl:T=hot': T: 'hot' is not a number, START:END:linear"),
        ("kl:standardize=maybe", "standardize='maybe' is not true or false"),
        ("hard:standardize=true", "standardized logits give the same loss 'hard': leave out standardize"),
        ("mse:T=2", "loss 'mse' has no temperature: leave out T"),
        ("ttm:T=2", "loss 'ttm' has no temperature: leave out T"),
        ("ttm:gamma=0", "loss 'ttm': gamma=0 is a power and must be above 0"),
        ("ttm:gamma=nan", "loss 'ttm': gamma=nan is a power and must be above 0"),
        ("wttm:gamma=-1", "loss 'wttm': gamma=-1 is a power and must be above 0"),
        ("wttm:gamma=inf", "loss 'wttm': gamma=inf is a power and must be above 0"),
        ("rld:alpha_T=0", "loss 'rld': alpha_T=0 is a temperature and must be above 0"),
        ("rld:alpha_T=inf", "loss 'rld': alpha_T=inf is a temperature and must be above 0"),
        ("kl:weight", "'weight' is not option=value"),
    ],
)
def test_bad_terms(spec, message):
    with pytest.raises(UsageError) as caught:
        parse_term(spec)
    assert message in str(caught.value)


def test_several_terms():
    assert [term.name for term in parse_terms(["kl:weight=0.9", "dist:weight=2"])] == ["kl", "dist"]
    assert len(parse_terms(["kl:T=1", "kl:T=8"])) == 2
    with pytest.raises(UsageError, match="is given twice"):
        parse_terms(["kl", "kl"])


def test_labels_are_asked_for():
    s = torch.zeros(2, 3)
    with pytest.raises(UsageError, match="loss 'dkd' needs labels"):
        parse_term("dkd")(s, s, 4.0, None)


# Several teachers.


def test_averaged_probabilities_as_logits():
    generator = torch.Generator().manual_seed(0)
    s, a, b = torch.randn(3, 5, 7, dtype=torch.float64, generator=generator) * 3
    T, weights = 3.0, [0.7, 0.3]
    mean = 0.7 * torch.softmax(a / T, 1) + 0.3 * torch.softmax(b / T, 1)
    pseudo = average_probabilities([a, b], weights, T)
    torch.testing.assert_close(torch.softmax(pseudo / T, 1), mean)
    torch.testing.assert_close(average_probabilities([a, b], [7, 3], T), pseudo)
    wanted = T**2 * (mean * (mean.log() - torch.log_softmax(s / T, 1))).sum(1).mean()
    torch.testing.assert_close(parse_term("kl")(s, pseudo, T), wanted)
    assert torch.equal(pseudo.argmax(1), mean.argmax(1))


def test_averaged_sigmoids_are_those_of_the_pseudo_logits():
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator) * 4
    made = average_probabilities([a, b], [3, 1], 2.0, kind="binary")
    torch.testing.assert_close(torch.sigmoid(made / 2), 0.75 * torch.sigmoid(a / 2) + 0.25 * torch.sigmoid(b / 2))
    far = torch.tensor([[1e4, -1e4, 0.0]])
    assert torch.isfinite(average_probabilities([far, -far], [0.5, 0.5], 0.5, kind="binary")).all()


def test_averaged_probabilities_stay_finite():
    far = torch.tensor([[1e4, -1e4, 0.0]])
    assert torch.isfinite(average_probabilities([far, -far], [0.5, 0.5], 0.5)).all()


def test_which_losses_take_averaged_probabilities():
    takers = {name for name in registry.names("losses") if parse_term(name).through_softmax}
    assert {"kl", "ce", "hard", "dkd", "dist", "ttm", "wttm", "rld"} <= takers
    assert not takers & {"mse", "nkd", "wsld", "ctkd", "mlkd"}  # the latter two have other temperatures
    assert not parse_term("rld:alpha_T=1").through_softmax
    assert not parse_term("kl:standardize=true").through_softmax


# Hints.


def test_hints_parse():
    term = parse_hint("fitnet:teacher=layer3,student=layer2,weight=4:1:linear")
    assert (term.name, term.teacher, term.student) == ("fitnet", ("layer3",), ("layer2",))
    assert term.weight_schedule().at(0, 2) == 4
    assert parse_hint("rkd:teacher=fc:in,student=fc:in").teacher == ("fc:in",)
    assert parse_hint("at:teacher=layer1/layer2,student=a.0/a.1").student == ("a.0", "a.1")
    assert parse_hint("crd:teacher=fc:in,student=fc:in").needs == {"vectors", "positions", "row labels"}
    assert parse_hint("simkd:teacher=a,student=b").replaces_logits


def test_hints_round_trip():
    for name in registry.names("losses.hints"):
        term = parse_hint(f"{name}:teacher=layer1,student=fc:in,weight=0:5:warmup=20")
        assert parse_hint(str(term)) == term
        term = parse_hint(f"{name}:teacher=layer1,student=layer2")
        assert parse_hint(str(term)) == term
        assert term.weight_schedule().bounds()[1] > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fitnets:teacher=a,student=b", "no hint loss is called 'fitnets': did you mean fitnet?"),
        ("fitnet", "'fitnet' lacks both layers: write --hint fitnet:teacher=layer3,student=layer3"),
        ("fitnet:teacher=a", "lacks the student's layer: write --hint fitnet:teacher=layer3,student=layer3"),
        ("fitnet:student=a", "lacks the teacher's layer"),
        ("rkd:teacher=a,student=b,angel=2", "hint loss 'rkd' has no option 'angel': did you mean angle"),
        ("rkd:teacher=a,student=b,angle=x", "hint loss 'rkd': angle='x' is not a number"),
        ("at:teacher=a/b,student=c", "names 2 of the teacher's layers and 1 of the student's"),
        ("at:teacher=a,student=c,weight=-1", "a weight can't be negative"),
        ("vid:teacher=a,student=c,initial=0", "is a variance and must be above 0"),
        ("vid:teacher=a,student=c,initial=inf", "is a variance and must be above 0"),
        ("pkt:teacher=a,student=c,eps=0", "must be above 0"),
        ("simkd:teacher=a,student=c,factor=0", "must be 1 or more"),
        ("reviewkd:teacher=a/b,student=c/d,channels=0", "must be 1 or more"),
        ("cc:teacher=a,student=c,order=0", "must be 1 or more"),
        ("crd:teacher=a,student=c,momentum=1", "momentum from 0 to below 1, found 16384, 128, 0.07 and 1"),
    ],
)
def test_bad_hints(spec, message):
    with pytest.raises(UsageError) as caught:
        parse_hint(spec)
    assert message in str(caught.value)


def test_several_hints():
    specs = ["at:teacher=a,student=a", "at:teacher=b,student=b"]
    assert len(parse_hints(specs)) == 2
    with pytest.raises(UsageError, match="is given twice"):
        parse_hints(specs[:1] * 2)
    with pytest.raises(UsageError, match="replaces the student's logits: give it once"):
        parse_hints(["simkd:teacher=a,student=a", "simkd:teacher=b,student=b"])
    with pytest.raises(UsageError, match="with one layer"):
        parse_hints(["simkd:teacher=a/b,student=a/b"])


def test_layers_of_one_hint_are_summed():
    term = parse_hint("sp:teacher=a/b,student=a/b")
    shapes = [(3, 2, 2), (5,)]
    module = term.build(shapes, shapes, row_count=4, classes=2, seed=0)
    generator = torch.Generator().manual_seed(0)
    s, t = ([torch.randn(4, *shape, generator=generator) for shape in shapes] for _ in range(2))
    single = parse_hint("sp:teacher=a,student=a")
    alone = [single.build([x], [x], row_count=4, classes=2, seed=0) for x in shapes]
    parts = [m([a], [b]) for m, a, b in zip(alone, s, t, strict=True)]
    torch.testing.assert_close(module(s, t), parts[0] + parts[1])


# The table.


def test_table_of_losses():
    rows = {(row.kind, row.name): row for row in describe_losses()}
    assert len(rows) == len(registry.names("losses")) + len(registry.names("losses.hints"))
    dkd = rows["loss", "dkd"]
    assert (dkd.options, dkd.needs, dkd.weight, dkd.T) == (
        ("alpha=1", "beta=8"), "classes, labels", "0:1:warmup=1/12", "4",
    )  # fmt: skip
    assert rows["loss", "mse"].T == ""
    assert rows["hint", "crd"].options[0] == "negatives=16384"
    assert all(len(row.formula.splitlines()) == 1 and len(row.formula) < 90 for row in rows.values())


def test_parsing_a_name_imports_no_other_loss():
    code = (
        "import sys; from softcache.losses._terms import parse_term; parse_term('kl');"
        "print(*(m for m in sys.modules if m.startswith('softcache.losses.') and '._' not in m))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["softcache.losses.kl"]


def test_every_loss_is_documented_with_its_defaults():
    text = (Path(__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
    parts = dict(zip(("loss", "hint"), text.split("\n## On activations\n"), strict=True))
    lines = {
        (kind, line.split("`")[1]): line
        for kind, part in parts.items()
        for line in part.splitlines()
        if line.startswith("| `") and ("arXiv" in line or "CVPR" in line)
    }
    for row in describe_losses():
        for part in (*row.options, row.weight, row.T, row.needs if row.kind == "loss" else ""):
            assert part in lines[row.kind, row.name], f"{row.name}: {part}"
