"""Losses on logits: against closed forms, at the edges of floating point, and by the contract that all share."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softcache import registry
from softcache.losses._standardize import standardize
from softcache.losses._terms import parse_term

torch.set_num_threads(1)
NAMES = registry.names("losses")
QUICK = settings(max_examples=25, deadline=None, database=None)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def pair(seed=0, batch=6, classes=5, scale=3.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, classes)) * scale, rng.normal(size=(batch, classes)) * scale


def labels_of(seed, batch, classes, unlabelled=0):
    y = np.random.default_rng(seed + 1).integers(0, classes, batch)
    y[:unlabelled] = -1
    return y


def value_and_grad(name, s, t, T, y=None, dtype=torch.float64, **options):
    student = torch.tensor(s, dtype=dtype, requires_grad=True)
    labels = None if y is None else torch.tensor(y)
    loss = registry.component("losses", name)(**options)(student, torch.tensor(t, dtype=dtype), T, labels)
    loss.backward()
    return loss.item(), student.grad.double().numpy()


# Closed forms. Each returns the value and the gradient with respect to the student's logits.


def closed_kl(s, t, T):
    p_s, p_t = softmax(s / T), softmax(t / T)
    return T**2 * (p_t * np.log(p_t / p_s)).sum(1).mean(), T * (p_s - p_t) / len(s)


def closed_ce(s, t, T):
    p_s, p_t = softmax(s / T), softmax(t / T)
    return -(T**2) * (p_t * np.log(p_s)).sum(1).mean(), T * (p_s - p_t) / len(s)


def closed_hard(s, t, T):
    rows, top = np.arange(len(s)), t.argmax(1)
    p = softmax(s)
    return -np.log(p[rows, top]).mean(), (p - np.eye(s.shape[1])[top]) / len(s)


def closed_mse(s, t, T):
    return ((s - t) ** 2).mean(), 2 * (s - t) / s.size


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def closed_binary_kl(s, t, T):
    p_s, p_t = sigmoid(s / T), sigmoid(t / T)
    kl = p_t * np.log(p_t / p_s) + (1 - p_t) * np.log((1 - p_t) / (1 - p_s))
    return T**2 * kl.mean(), T * (p_s - p_t) / s.size


def closed_cosine(s, t, T):
    norm_s, norm_t = (np.linalg.norm(z, axis=1, keepdims=True) for z in (s, t))
    cos = (s * t).sum(1, keepdims=True) / norm_s / norm_t
    return (1 - cos).mean(), -(t / norm_t - cos * s / norm_s) / norm_s / len(s)


def closed_smooth_l1(s, t, T):
    d = s - t
    return np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5).mean(), np.clip(d, -1, 1) / d.size


CLOSED = {
    "kl": closed_kl,
    "ctkd": closed_kl,  # at a given T; what learns T is in test_losses_ctkd.py
    "ce": closed_ce,
    "hard": closed_hard,
    "mse": closed_mse,
    "binary_kl": closed_binary_kl,
    "cosine": closed_cosine,
    "smooth_l1": closed_smooth_l1,
}
RELATIONAL = {"CC", "PKT", "RKD", "SP"}


@pytest.mark.parametrize("name", CLOSED)
@QUICK
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 17), classes=st.integers(2, 40), T=st.floats(0.5, 20.0))
def test_values_and_gradients_are_the_closed_form(name, seed, batch, classes, T):
    s, t = pair(seed, batch, classes)
    value, grad = CLOSED[name](s, t, T)
    got, got_grad = value_and_grad(name, s, t, T)
    np.testing.assert_allclose(got, value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got_grad, grad, rtol=1e-9, atol=1e-9)
    got, got_grad = value_and_grad(name, s, t, T, dtype=torch.float32)
    np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got_grad, grad, rtol=1e-4, atol=1e-4)


# The others: values in NumPy, gradients by central differences of those.


def reference_dkd(s, t, T, y, alpha=1.0, beta=8.0):
    total = []
    for z_s, z_t, label in zip(s, t, y, strict=True):
        if label < 0:
            continue
        p_s, p_t = softmax(z_s[None] / T)[0], softmax(z_t[None] / T)[0]
        others = np.arange(len(z_s)) != label
        b_s, b_t = (np.array([p[label], p[others].sum()]) for p in (p_s, p_t))
        q_s, q_t = (p[others] / p[others].sum() for p in (p_s, p_t))
        total.append(alpha * (b_t * np.log(b_t / b_s)).sum() + beta * (q_t * np.log(q_t / q_s)).sum())
    return T**2 * np.mean(total)


def reference_nkd(s, t, T, y, gamma=1.5):
    total = []
    for z_s, z_t, label in zip(s, t, y, strict=True):
        if label < 0:
            continue
        others = np.arange(len(z_s)) != label
        q_s, q_t = (softmax(z[None, others] / T)[0] for z in (z_s, z_t))
        p_s, p_t = softmax(z_s[None])[0, label], softmax(z_t[None])[0, label]
        total.append(-p_t * np.log(p_s) - gamma * T**2 * (q_t * np.log(q_s)).sum())
    return np.mean(total)


def reference_dist(s, t, T, y=None, beta=1.0, gamma=1.0, eps=1e-8):
    def similarity(a, b):
        a, b = a - a.mean(), b - b.mean()
        return (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) + eps)

    p_s, p_t = softmax(s / T), softmax(t / T)
    rows = np.mean([similarity(a, b) for a, b in zip(p_s, p_t, strict=True)])
    columns = np.mean([similarity(a, b) for a, b in zip(p_s.T, p_t.T, strict=True)])
    return T**2 * (beta * (1 - rows) + gamma * (1 - columns))


def reference_ttm(s, t, T, y=None, gamma=0.1):
    power = softmax(t) ** gamma
    r = power / power.sum(1, keepdims=True)
    return (r * np.log(r / softmax(s))).sum(1).mean()


def reference_wttm(s, t, T, y=None, gamma=0.2):
    power = softmax(t) ** gamma
    r = power / power.sum(1, keepdims=True)
    return (power.sum(1) * (r * np.log(r / softmax(s))).sum(1)).mean()


def reference_rld(s, t, T, y, alpha=1.0, beta=8.0, alpha_T=None):
    pair_T, total = alpha_T or T, []
    for z_s, z_t, label in zip(s, t, y, strict=True):
        if label < 0:
            continue
        p_s, p_t = softmax(z_s[None] / pair_T)[0, label], softmax(z_t[None] / pair_T).max()
        b_s, b_t = np.array([p_s, 1 - p_s]), np.array([p_t, 1 - p_t])
        total.append(alpha * pair_T**2 * (b_t * np.log(b_t / b_s)).sum())
        below = z_t < z_t[label]
        if below.any():
            m_s, m_t = (softmax(z[None, below] / T)[0] for z in (z_s, z_t))
            total[-1] += beta * T**2 * (m_t * np.log(m_t / m_s)).sum()
    return np.mean(total)


def wsld_weights(s, t, y):
    rows = np.arange(len(s))
    return 1 - np.exp(-np.log(softmax(s)[rows, y]) / np.log(softmax(t)[rows, y]))


def reference_wsld(s, t, T, y, weights=None):
    known = y >= 0
    s, t, y = s[known], t[known], y[known]
    weights = wsld_weights(s, t, y) if weights is None else weights
    p_s, p_t = softmax(s / T), softmax(t / T)
    return T**2 * (weights * (p_t * np.log(p_t / p_s)).sum(1)).mean()


def reference_mlkd(s, t, T, y=None, instance=1.0, batch=1.0, per_class=1.0):
    total = []
    for at in T * np.array([2, 3, 4, 5, 6]) / 4:
        p_s, p_t = softmax(s / at), softmax(t / at)
        of_samples, of_classes = p_t @ p_t.T - p_s @ p_s.T, p_t.T @ p_t - p_s.T @ p_s
        total.append(instance * at**2 * (p_t * np.log(p_t / p_s)).sum(1).mean())
        total[-1] += batch * (of_samples**2).sum() / len(s) + per_class * (of_classes**2).sum() / s.shape[1]
    return np.mean(total)


REFERENCES = {
    "mlkd": (reference_mlkd, {"instance": 0.3, "batch": 2.0, "per_class": 3.0}),
    "dkd": (reference_dkd, {"alpha": 0.7, "beta": 2.0}),
    "nkd": (reference_nkd, {"gamma": 0.8}),
    "dist": (reference_dist, {"beta": 2.0, "gamma": 0.5}),
    "wsld": (reference_wsld, {}),
    "ttm": (reference_ttm, {"gamma": 0.4}),
    "wttm": (reference_wttm, {"gamma": 0.3}),
    "rld": (reference_rld, {"alpha": 0.7, "beta": 2.0, "alpha_T": 1.5}),
}


def differences(function, z, step=1e-5):
    grad = np.zeros_like(z)
    for place in np.ndindex(*z.shape):
        up, down = z.copy(), z.copy()
        up[place] += step
        down[place] -= step
        grad[place] = (function(up) - function(down)) / (2 * step)
    return grad


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize(
    ("seed", "batch", "classes", "T"), [(0, 6, 5, 0.5), (1, 9, 3, 1.0), (2, 4, 12, 4.0), (3, 8, 7, 20.0)]
)
def test_values_and_gradients_are_the_formula(name, seed, batch, classes, T):
    reference, options = REFERENCES[name]
    s, t = pair(seed, batch, classes, scale=1.5)
    y = labels_of(seed, batch, classes, unlabelled=0 if name in ("dist", "mlkd") else 2)
    got, grad = value_and_grad(name, s, t, T, y, **options)
    assert got == pytest.approx(reference(s, t, T, y, **options), rel=1e-9, abs=1e-9)
    fixed = {"weights": wsld_weights(s[2:], t[2:], y[2:])} if name == "wsld" else {}
    wanted = differences(lambda z: reference(z, t, T, y, **options, **fixed), s)
    np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-6)
    single, single_grad = value_and_grad(name, s, t, T, y, dtype=torch.float32, **options)
    assert single == pytest.approx(got, rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(single_grad, grad, rtol=1e-4, atol=1e-4)


def test_kl_and_ce_differ_by_the_teachers_entropy_alone():
    s, t = pair(2, 7, 6)
    (kl, kl_grad), (ce, ce_grad) = value_and_grad("kl", s, t, 3.0), value_and_grad("ce", s, t, 3.0)
    p_t = softmax(t / 3.0)
    assert ce - kl == pytest.approx(-9.0 * (p_t * np.log(p_t)).sum(1).mean(), rel=1e-12)
    np.testing.assert_allclose(kl_grad, ce_grad, atol=1e-12)


def test_gradient_of_kl_tends_to_half_that_of_mse():
    s, t = pair(3, 5, 10)
    s, t = s - s.mean(1, keepdims=True), t - t.mean(1, keepdims=True)
    half = value_and_grad("mse", s, t, 1.0)[1] / 2
    errors = [np.abs(value_and_grad("kl", s, t, T)[1] - half).max() / np.abs(half).max() for T in (1e2, 1e3, 1e4)]
    assert errors[0] < 0.1
    assert errors[2] < 1e-3
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # first order in 1/T


def test_dkd_with_the_right_factors_is_kl():
    s, t = pair(4, 1, 8)
    T, y = 4.0, np.array([2])
    beta = 1 - softmax(t / T)[0, 2]
    decoupled, decoupled_grad = value_and_grad("dkd", s, t, T, y, alpha=1.0, beta=beta)
    value, grad = value_and_grad("kl", s, t, T)
    assert decoupled == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(decoupled_grad, grad, atol=1e-12)


def test_dkd_keeps_its_digits_where_the_teacher_is_sure():
    """1 - p_y of 2.3e-44 (T 1, float32) as its logarithm, -100 + log 3: the pair's term and gradient remain."""
    s, t = np.zeros((1, 4)), np.array([[100.0, 0, 0, 0]])
    value, grad = value_and_grad("dkd", s, t, 1.0, np.array([0]), dtype=torch.float32, alpha=1.0, beta=0.0)
    assert value == pytest.approx(np.log(4), rel=1e-5)
    np.testing.assert_allclose(grad, [[-0.75, 0.25, 0.25, 0.25]], rtol=1e-5)
    value, _ = value_and_grad("dkd", t, s, 1.0, np.array([0]), dtype=torch.float32, alpha=1.0, beta=0.0)
    sure = 0.25 * np.log(0.25) + 0.75 * (np.log(0.75) + 100 - np.log(3))
    assert value == pytest.approx(sure, rel=1e-5)


def test_dist_without_eps_is_the_correlation_of_pearson():
    s, t = pair(12, 7, 6)
    p_s, p_t = softmax(s / 4.0), softmax(t / 4.0)
    rows, columns = (
        np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)])
        for one, other in ((p_s, p_t), (p_s.T, p_t.T))
    )
    got, _ = value_and_grad("dist", s, t, 4.0, beta=2.0, gamma=0.5, eps=0.0)
    assert got == pytest.approx(16 * (2 * (1 - rows) + 0.5 * (1 - columns)), rel=1e-9)
    same, grad = value_and_grad("dist", s, s, 4.0, eps=0.0)
    assert same == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(grad, 0, atol=1e-12)


def test_dist_has_the_eps_of_the_paper():
    """Confident sides at T 1: the product of a class's norms is below 1e-8 unless a sample of the batch has its label.
    Such classes add 1, not 1 - ρ, to their mean."""
    s, t = pair(13, 8, 100, scale=1.0)
    y = np.arange(8)
    s[y, y] += 22
    t[y, y] += 28
    got, grad = value_and_grad("dist", s, t, 1.0)
    assert got == pytest.approx(reference_dist(s, t, 1.0, eps=1e-8), rel=1e-9)
    assert np.abs(grad).max() < 0.01 * np.abs(value_and_grad("dist", s, t, 1.0, eps=0.0)[1]).max()


def test_dist_sees_no_affine_change_of_probabilities():
    """ρ ignores p → a p + b with a > 0, made here by mixing with the uniform distribution."""
    s, t = pair(5, 6, 9, scale=1.0)
    mixed = np.log(0.3 * softmax(s) + 0.7 / 9)
    plain, _ = value_and_grad("dist", s, t, 1.0, eps=0.0)
    assert value_and_grad("dist", mixed, t, 1.0, eps=0.0)[0] == pytest.approx(plain, rel=1e-10)


def test_dist_leaves_out_what_is_constant():
    s, t = pair(6, 4, 3)
    assert value_and_grad("dist", s[:1], t[:1], 1.0, gamma=1.0, beta=0.0)[0] == 0  # one row: columns are constant
    flat, grad = value_and_grad("dist", np.zeros_like(s), t, 1.0)
    assert flat == 0
    assert not grad.any()


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("gap", [80.0, 88.0, 95.0, 104.0, 1e4])
def test_dist_of_classes_whose_probability_is_hardly_a_number_is_finite(eps, gap):
    """exp(-87.4) is the smallest normal float32, exp(-103.3) the smallest of all."""
    student = torch.tensor([[gap, 1.0, 0.0], [gap, 0.0, 2.0]], requires_grad=True)
    value = registry.component("losses", "dist")(eps=eps)(
        student, torch.tensor([[3.0, 1.0, 0.0], [1.0, 0.0, 2.0]]), T=1.0
    )
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_dist_of_rare_classes_is_still_a_correlation():
    s, t = pair(7, 8, 3, scale=1.0)
    s, t = (np.concatenate([z, z[:, :1] - 60], axis=1) for z in (s, t))  # p about 1e-26
    got = value_and_grad("dist", s, t, 1.0, dtype=torch.float32, eps=0.0)
    assert got[0] == pytest.approx(reference_dist(s, t, 1.0, eps=0.0), rel=1e-4)
    assert np.isfinite(got[1]).all()


def test_wsld_weight_has_no_gradient_and_is_0_to_1():
    s, t = pair(8, 5, 4)
    y = labels_of(8, 5, 4)
    weights = wsld_weights(s, t, y)
    assert ((weights > 0) & (weights <= 1)).all()
    same, grad = value_and_grad("wsld", t, t, 2.0, y)
    assert same == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(grad, 0, atol=1e-12)


def test_standardize_is_the_formula_and_ignores_scale_and_shift():
    z = torch.tensor(pair(9)[0])
    wanted = (z.numpy() - z.numpy().mean(1, keepdims=True)) / (z.numpy().std(1, ddof=1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(standardize(z).numpy(), wanted, rtol=1e-12)
    scale, shift = torch.rand(6, 1, dtype=torch.float64) + 0.5, torch.randn(6, 1, dtype=torch.float64)
    np.testing.assert_allclose(standardize(z * scale + shift), standardize(z), atol=1e-6)


# The contract, for whatever is in the folder.


def inputs(dtype=torch.float64, batch=6, classes=5, unlabelled=2, scale=3.0):
    s, t = pair(11, batch, classes, scale)
    y = labels_of(11, batch, classes, unlabelled)
    return torch.tensor(s, dtype=dtype), torch.tensor(t, dtype=dtype), torch.tensor(y)


def temperature(loss):
    return loss.default_T or 1.0


@pytest.fixture(params=NAMES)
def loss(request):
    return registry.create("losses", request.param)


def test_declares_itself(loss):
    assert dataclasses.is_dataclass(loss)
    assert type(loss).__dataclass_params__.frozen
    assert loss.formula
    assert loss.source
    assert loss.needs <= {"labels", "vectors"}
    assert loss.kinds
    assert loss.kinds <= {"classes", "binary", "values"}
    assert isinstance(loss.through_softmax, bool)
    assert loss.default_T is None or loss.default_T > 0
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(loss))


def test_gradcheck(loss):
    s, t, y = inputs(batch=4)
    T = temperature(loss)
    if type(loss).__name__ == "WSLD":  # its weight is detached, so compare where it doesn't move: see its own test
        loss = dataclasses.replace(loss, eps=1e-12)
        t = t + 1e3 * torch.nn.functional.one_hot(y.clamp_min(0), 5)
    assert torch.autograd.gradcheck(lambda z: loss(z, t, T, y), s.requires_grad_())


def test_perfect_student_is_at_0_where_the_definition_says_so(loss):
    s, _, y = inputs()
    s.requires_grad_()
    value = loss(s, s.detach(), temperature(loss), y)
    if loss.zero_for_perfect:
        assert value.item() == pytest.approx(0, abs=1e-12)
        value.backward()
        assert s.grad.abs().max() < 1e-6


def test_is_a_mean_over_the_batch(loss):
    s, t, y = inputs(unlabelled=0)
    T = temperature(loss)
    if type(loss).__name__ in RELATIONAL:
        pytest.skip("it relates the samples of a batch")
    if type(loss).__name__ == "DIST":  # its columns are relations within the batch
        loss = dataclasses.replace(loss, gamma=0.0)
    if type(loss).__name__ == "MLKD":  # so are its matrices
        loss = dataclasses.replace(loss, batch=0.0, per_class=0.0)
    rows = [loss(s[i : i + 1], t[i : i + 1], T, y[i : i + 1]) for i in range(len(s))]
    torch.testing.assert_close(loss(s, t, T, y), torch.stack(rows).mean())


def test_order_of_the_batch_does_not_matter(loss):
    s, t, y = inputs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    T = temperature(loss)
    torch.testing.assert_close(loss(s[order], t[order], T, y[order]), loss(s, t, T, y))


def test_unlabelled_rows(loss):
    s, t, y = inputs(unlabelled=2)
    T = temperature(loss)
    if "labels" in loss.needs:
        torch.testing.assert_close(loss(s, t, T, y), loss(s[2:], t[2:], T, y[2:]))
        s.requires_grad_()
        none = loss(s, t, T, torch.full_like(y, -1))
        none.backward()
        assert none.item() == 0
        assert not s.grad.any()
    else:
        torch.testing.assert_close(loss(s, t, T, y), loss(s, t, T, None))


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("standardized", [False, True])
def test_nothing_overflows(loss, T, standardized):
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.rand(2, 16, 10, generator=generator) * 2e4 - 1e4).unbind()
    t[3], s[4] = t[3] * 0, s[4] * 0
    s[5, 0], t[5, 1] = 1e4, 1e4
    s[6], t[6] = 1e4, -1e4
    s.requires_grad_()
    y = torch.arange(16) % 11 - 1
    if standardized:
        value = loss(standardize(s), standardize(t), T, y)
    else:
        value = loss(s, t, T, y)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(loss, dtype):
    s, t, y = inputs(torch.float32, batch=32, scale=2.0)
    T = temperature(loss)
    plain = loss(s, t, T, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(s, t, T, y), plain)
        half = loss(s.to(dtype), t, T, y)
    assert half.dtype == torch.float32
    assert torch.equal(half, loss(s.to(dtype).float(), t, T, y))
    assert half.item() == pytest.approx(plain.item(), rel=1e-2)
    assert loss(s.double(), t.double(), T, y).dtype == torch.float64


def test_takes_what_inference_mode_made(loss):
    s, t, y = inputs(torch.float32)
    with torch.inference_mode():
        made = t.clone()
    s.requires_grad_()
    loss(s, made, temperature(loss), y).backward()
    assert torch.isfinite(s.grad).all()


def test_averaged_probabilities_stand_in_exactly_where_declared(loss):
    """Logits that differ by a constant a row have the same softmax: what a softmax can't see, the loss mustn't."""
    if not loss.through_softmax or "classes" not in loss.kinds:
        return
    s, t, y = inputs()
    T = temperature(loss)
    shifted = T * torch.log_softmax(t / T, dim=1)
    torch.testing.assert_close(loss(s, shifted, T, y), loss(s, t, T, y))


def test_a_term_gives_the_teacher_no_gradient_and_warns_of_nothing(loss):
    name = next(n for n in NAMES if registry.component("losses", n) is type(loss))
    s, t, y = inputs(torch.float32)
    s.requires_grad_()
    t.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_term(name)(s, t, temperature(loss), y).backward()
    assert t.grad is None
    assert s.grad.abs().max() > 0
