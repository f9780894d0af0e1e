"""``ttm``, ``wttm``, ``rld`` and ``mlkd`` where they differ from the other losses on logits: identities and edges."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from softcache.errors import UsageError
from softcache.losses._schedule import Schedule
from softcache.losses._terms import parse_term
from softcache.losses.dkd import DKD
from softcache.losses.mlkd import MLKD
from softcache.losses.rld import RLD
from softcache.losses.ttm import TTM
from softcache.losses.wttm import WTTM
from softcache.training.objective import Objective

torch.set_num_threads(1)


def logits(batch: int = 6, classes: int = 5, seed: int = 0, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s, t = scale * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    return s, t


def gradient(loss, s: torch.Tensor, *others) -> tuple[float, torch.Tensor]:
    s = s.clone().requires_grad_()
    value = loss(s, *others)
    (grad,) = torch.autograd.grad(value, s)
    return value.item(), grad


# ttm and wttm.


def test_ttm_s_gradient_is_the_student_s_probabilities_minus_the_transformed_teacher_s():
    s, t = logits()
    _, grad = gradient(TTM(gamma=0.25), s, t, 1.0)
    torch.testing.assert_close(grad, (F.softmax(s, 1) - F.softmax(t / 4, 1)) / len(s))


@pytest.mark.parametrize("loss", [TTM(gamma=1.0), WTTM(gamma=1.0)])
def test_with_gamma_1_both_are_kl_at_T_1(loss):
    """Then r is p_t, whose sum, the weight of wttm, is 1."""
    s, t = logits()
    (value, grad), (wanted, wanted_grad) = gradient(loss, s, t, 7.0), gradient(parse_term("kl"), s, t, 1.0)
    assert value == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(grad, wanted_grad)


def test_ttm_is_not_kl_with_a_temperature():
    """kl at T 4 softens the student too and multiplies by T²."""
    s, t = logits()
    assert TTM(gamma=0.25)(s, t, 4.0).item() != pytest.approx(parse_term("kl")(s, t, 4.0).item(), rel=0.1)


def test_the_weight_of_wttm_is_that_of_a_certain_and_of_an_ignorant_teacher():
    """Σ p^γ: 1 for a certain teacher, C^(1-γ) for a uniform one."""
    s, gamma, classes = logits(batch=1)[0], 0.3, 5
    sure, flat = torch.zeros(1, classes, dtype=torch.float64), torch.zeros(1, classes, dtype=torch.float64)
    sure[0, 1] = 1e4
    for teacher, weight in ((sure, 1.0), (flat, classes ** (1 - gamma))):
        plain, weighted = TTM(gamma=gamma)(s, teacher, 1.0), WTTM(gamma=gamma)(s, teacher, 1.0)
        assert weighted.item() == pytest.approx(weight * plain.item(), rel=1e-12)


def test_a_power_keeps_what_underflows_as_a_probability():
    """p = e^-200 is 0 in float32, and so is its power by ``pow``; p^0.1 = e^-20 is not."""
    s, t = torch.zeros(1, 2), torch.tensor([[0.0, -200.0]])
    rest = math.exp(-20) / (1 + math.exp(-20))
    _, grad = gradient(TTM(gamma=0.1), s, t, 1.0)
    assert grad[0, 1].item() == pytest.approx(0.5 - rest, rel=1e-6)
    s = torch.tensor([[0.0, -1e4]])
    value, _ = gradient(TTM(gamma=0.1), s, t, 1.0)
    assert value == pytest.approx(rest * (1e4 + math.log(rest)) + (1 - rest) * math.log1p(-rest), rel=1e-3)


@pytest.mark.parametrize("name", ["ttm", "wttm"])
def test_averaged_probabilities_are_those_at_T_1(name):
    """Whatever --T is: with --combine probs the teachers' own softmaxes are averaged, then raised to the power."""
    s, a = logits()
    b = logits(seed=1)[0]
    mean = (F.softmax(a, 1) + F.softmax(b, 1)) / 2
    power = mean**0.3
    r = power / power.sum(1, keepdim=True)
    kl = (r * (r / F.softmax(s, 1)).log()).sum(1)
    wanted = (power.sum(1) * kl).mean() if name == "wttm" else kl.mean()
    constant, terms = Schedule.constant, [parse_term(f"{name}:gamma=0.3")]
    objective = Objective(terms, constant(1), constant(0), constant(4), 1, combine="probs")
    (value,) = objective.soft_values({"logits": s}, {"logits": [a, b]}, torch.zeros(len(s), dtype=torch.int64), 0)
    torch.testing.assert_close(value, wanted)


def test_averaged_probabilities_of_rld_are_those_at_T():
    """Their order decides which classes are below the label; here it is neither teacher's."""
    T, label = 4.0, torch.tensor([0])
    s = logits(batch=1, classes=4)[0]
    a, b = torch.tensor([[3.0, 9.0, -9.0, 1.0], [3.0, -9.0, 4.0, 2.0]], dtype=torch.float64)[:, None]
    mean = (F.softmax(a / T, 1) + F.softmax(b / T, 1)) / 2
    assert (mean < mean[:, :1]).tolist() == [[False, False, True, True]]
    assert (a < a[:, :1]).tolist() != (b < b[:, :1]).tolist()
    m_t, m_s = mean[:, 2:] / mean[:, 2:].sum(), F.softmax(s[:, 2:] / T, 1)
    objective = Objective(
        [parse_term("rld:alpha=0,beta=1")], Schedule.constant(1), Schedule.constant(0), Schedule.constant(T), 1,
        combine="probs",
    )  # fmt: skip
    (value,) = objective.soft_values({"logits": s}, {"logits": [a, b]}, label, 0)
    torch.testing.assert_close(value, T**2 * (m_t * (m_t / m_s).log()).sum())


# rld.


def test_where_the_teacher_puts_the_label_first_rld_is_dkd():
    """Then the pairs are of the same class, and all classes but the label's are below it."""
    s, t = logits()
    (value, grad), (wanted, wanted_grad) = (
        gradient(loss, s, t, 4.0, t.argmax(1)) for loss in (RLD(alpha=0.7, beta=2.0), DKD(alpha=0.7, beta=2.0))
    )
    assert value == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(grad, wanted_grad)


def test_what_an_erring_teacher_thinks_of_the_classes_above_the_label_is_not_taught():
    """The order of the classes above the label may change, and the student's logits there have no part in m."""
    s = logits(batch=1)[0]
    label = torch.tensor([2])
    t, swapped = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [4.0, 5.0, 3.0, 2.0, 1.0]], dtype=torch.float64)[:, None]
    loss = RLD(beta=2.0)
    assert loss(s, t, 4.0, label).item() == pytest.approx(loss(s, swapped, 4.0, label).item(), rel=1e-12)
    _, grad = gradient(RLD(alpha=0.0), s, t, 4.0, label)
    assert not grad[0, :3].any()
    assert grad[0, 3:].abs().min() > 0


def test_a_class_that_ties_with_the_label_is_not_below_it():
    s = logits(batch=1)[0]
    t = torch.tensor([[3.0, 3.0, 1.0, 1.0, 2.0]], dtype=torch.float64)
    _, grad = gradient(RLD(alpha=0.0), s, t, 4.0, torch.tensor([1]))
    assert not grad[0, :2].any()
    kept = [2, 3, 4]
    m_s, m_t = F.softmax(s[:, kept] / 4, 1), F.softmax(t[:, kept] / 4, 1)
    torch.testing.assert_close(grad[:, kept], 8 * 4 * (m_s - m_t))


@pytest.mark.parametrize("below", [0, 1])
def test_with_no_class_or_one_below_the_label_the_pair_alone_remains(below):
    """A softmax over one class is 1 on both sides; over none it would be nan."""
    s, t = logits(batch=4)
    labels = t.argsort(1)[:, below]
    (value, grad), (pair_alone, pair_grad) = (
        gradient(loss, s, t, 4.0, labels) for loss in (RLD(beta=8.0), RLD(beta=0.0))
    )
    assert math.isfinite(value)
    assert value == pytest.approx(pair_alone, rel=1e-12)
    torch.testing.assert_close(grad, pair_grad)


def test_a_row_of_which_nothing_is_left_counts_in_the_mean():
    s, t = logits(batch=2)
    labels = torch.stack([t[0].argmax(), t[1].argmin()])
    both = RLD(alpha=0.0)(s, t, 4.0, labels)
    first = RLD(alpha=0.0)(s[:1], t[:1], 4.0, labels[:1])
    assert both.item() == pytest.approx(first.item() / 2, rel=1e-12)


def test_all_tied_teachers_and_unlabelled_rows_leave_no_nan():
    s = logits(batch=3)[0].float()
    t = torch.zeros(3, 5)
    for labels in (torch.tensor([0, 1, -1]), torch.tensor([-1, -1, -1])):
        with torch.autograd.set_detect_anomaly(True):  # also refuses a nan that a mask would hide from the result
            value, grad = gradient(RLD(), s, t, 4.0, labels)
        assert math.isfinite(value)
        assert torch.isfinite(grad).all()
        assert not grad[labels < 0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spec", ["ttm", "wttm", "rld", "rld:alpha_T=0.5"])
def test_half_precision_on_both_sides(spec, dtype):
    s, t = (z.to(dtype) for z in logits(scale=20.0))
    labels = torch.tensor([0, 1, 2, 3, 4, -1])
    half, full = parse_term(spec)(s, t, 4.0, labels), parse_term(spec)(s.double(), t.double(), 4.0, labels)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=1e-4)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_powers_and_temperatures_are_above_0(wrong):
    for make in (lambda: TTM(gamma=wrong), lambda: WTTM(gamma=wrong), lambda: RLD(alpha_T=wrong)):
        with pytest.raises(UsageError, match="must be above 0"):
            make()


# mlkd.


def test_levels_of_a_student_that_says_nothing_beside_a_teacher_that_is_sure():
    """p_s = 1/C and p_t one-hot, each class as often: both matrices are counted by hand."""
    samples, classes = 12, 4
    labels = torch.arange(samples) % classes
    s = torch.zeros(samples, classes, dtype=torch.float64)
    t = 1e4 * F.one_hot(labels, classes).double()
    # pairs of samples of one class have 1 - 1/C, the others -1/C
    pairs, same = samples**2, samples**2 / classes
    batch = (same * (1 - 1 / classes) ** 2 + (pairs - same) / classes**2) / samples
    # the teacher's C×C matrix has B/C on its diagonal, the student's B/C² everywhere
    on, off = samples / classes - samples / classes**2, samples / classes**2
    per_class = (classes * on**2 + classes * (classes - 1) * off**2) / classes
    for level, wanted in (("batch", batch), ("per_class", per_class)):
        loss = MLKD(**{name: float(name == level) for name in ("instance", "batch", "per_class")})
        assert loss(s, t, 4.0).item() == pytest.approx(wanted, rel=1e-9)


def test_the_mean_of_kl_at_five_temperatures_is_what_mlkd_says_of_each_sample():
    s, t = logits()
    kl = torch.stack([parse_term("kl")(s, t, float(T)) for T in (2, 3, 4, 5, 6)]).mean()
    torch.testing.assert_close(MLKD(batch=0.0, per_class=0.0)(s, t, 4.0), kl)
    assert parse_term("mlkd").weight_schedule().at(0, 1) == 5  # of the paper's sum
