"""Losses on activations that train nothing: formulas in loops and in NumPy, and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from softcache.losses.hints._spec import parse_hint

torch.set_num_threads(1)
BATCH = 6
VECTORS = ((6,), (9,))


def features(shape, seed=0, batch=BATCH, dtype=torch.float64):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loss_of(name, student, teacher, **options):
    text = "".join(f",{key}={value}" for key, value in options.items())
    term = parse_hint(f"{name}:teacher=a,student=a{text}")
    module = term.build([student.shape[1:]], [teacher.shape[1:]], row_count=BATCH, classes=3, seed=0)
    return module.to(student.dtype)([student], [teacher])


def unit(x, axis=-1):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def formula_at(s, t):
    a_s, a_t = (unit((f**2).mean(1).reshape(len(f), -1)) for f in (s, t))
    return ((a_s - a_t) ** 2).mean()


def formula_sp(s, t):
    g_s, g_t = (unit(f.reshape(len(f), -1) @ f.reshape(len(f), -1).T) for f in (s, t))
    return np.linalg.norm(g_s - g_t) ** 2 / len(s) ** 2


def formula_cc(s, t, gamma=0.4, order=2):
    total = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            kernel = []
            for f in (s, t):
                dot = unit(f)[i] @ unit(f)[j]
                series = sum((2 * gamma * dot) ** p / math.factorial(p) for p in range(order + 1))
                kernel.append(math.exp(-2 * gamma) * series)
            total += (kernel[0] - kernel[1]) ** 2
    return total / len(s) ** 2


def smooth_l1(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def formula_rkd(s, t, distance=25.0, angle=50.0):
    pairs, triples = [], []
    for f in (s, t):
        d = np.array([[np.linalg.norm(a - b) for b in f] for a in f])
        pairs.append(d / d[d > 0].mean())
        cosines = np.zeros((len(f),) * 3)
        for i, j, k in np.ndindex(*cosines.shape):
            if i not in (j, k):
                cosines[i, j, k] = unit(f[j] - f[i]) @ unit(f[k] - f[i])
        triples.append(cosines)
    pair_loss = smooth_l1(pairs[0] - pairs[1]).mean()
    return distance * pair_loss + angle * smooth_l1(triples[0] - triples[1]).mean()


def formula_pkt(s, t, eps=1e-7):
    p = []
    for f in (s, t):
        kernel = (unit(f) @ unit(f).T + 1) / 2
        p.append(kernel / kernel.sum(1, keepdims=True))
    return (p[1] * np.log((p[1] + eps) / (p[0] + eps))).mean()


def formula_nst(s, t):
    total = 0.0
    for a, b in zip(s, t, strict=True):
        x, y = unit(a.reshape(len(a), -1)), unit(b.reshape(len(b), -1))
        total += ((y @ y.T) ** 2).mean() + ((x @ x.T) ** 2).mean() - 2 * ((x @ y.T) ** 2).mean()
    return total / len(s)


@pytest.mark.parametrize(
    ("name", "formula", "shapes"),
    [
        ("at", formula_at, ((3, 4, 5), (6, 4, 5))),
        ("sp", formula_sp, ((3, 4, 4), (6, 2, 2))),
        ("sp", formula_sp, VECTORS),
        ("cc", formula_cc, VECTORS),
        ("rkd", formula_rkd, VECTORS),
        ("pkt", formula_pkt, VECTORS),
        ("nst", formula_nst, ((3, 4, 4), (5, 4, 4))),  # few channels
        ("nst", formula_nst, ((7, 2, 2), (8, 2, 2))),  # few places
    ],
)
def test_values_are_the_formula(name, formula, shapes):
    s, t = features(shapes[0], 1), features(shapes[1], 2)
    wanted = formula(s.numpy(), t.numpy())
    assert loss_of(name, s, t).item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert loss_of(name, s.float(), t.float()).item() == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_options_are_the_formula():
    s, t = features((6,), 1), features((9,), 2)
    wanted = formula_cc(s.numpy(), t.numpy(), gamma=0.7, order=4)
    assert loss_of("cc", s, t, gamma=0.7, order=4).item() == pytest.approx(wanted, rel=1e-9)
    wanted = formula_rkd(s.numpy(), t.numpy(), distance=1.0, angle=2.0)
    assert loss_of("rkd", s, t, distance=1, angle=2).item() == pytest.approx(wanted, rel=1e-9)
    assert loss_of("rkd", s, t, distance=1, angle=0).item() == pytest.approx(
        formula_rkd(s.numpy(), t.numpy(), 1.0, 0.0), rel=1e-9
    )


def test_at_pools_the_larger_map():
    s, t = features((3, 6, 6), 1), features((4, 3, 3), 2)
    small = s.reshape(BATCH, 3, 3, 2, 3, 2).mean((3, 5))
    assert loss_of("at", s, t).item() == pytest.approx(formula_at(small.numpy(), t.numpy()), rel=1e-9)
    assert loss_of("at", t, s).item() == pytest.approx(formula_at(small.numpy(), t.numpy()), rel=1e-9)


# Invariances.


def rotation(size, seed=0):
    return torch.linalg.qr(features((size,), seed, batch=size))[0]


@pytest.mark.parametrize("name", ["sp", "cc", "rkd", "pkt"])
def test_rotations_of_a_sides_vectors_do_not_matter(name):
    s, t = features((6,), 1), features((9,), 2)
    torch.testing.assert_close(loss_of(name, s @ rotation(6), t @ rotation(9)), loss_of(name, s, t))


@pytest.mark.parametrize("name", ["sp", "cc", "rkd", "pkt", "at", "nst"])
def test_scale_does_not_matter(name):
    shape = (4, 3, 3) if name in ("at", "nst") else (6,)
    s, t = features(shape, 1), features(shape, 2)
    torch.testing.assert_close(loss_of(name, 3.7 * s, 0.2 * t), loss_of(name, s, t))


def test_rkd_does_not_see_shifts():
    s, t = features((6,), 1), features((9,), 2)
    torch.testing.assert_close(loss_of("rkd", s + 5.0, t - 3.0), loss_of("rkd", s, t))


def test_rkd_with_samples_that_coincide():
    """The same image twice in a batch, as mixing and small sets give: no infinite slope."""
    for dtype in (torch.float32, torch.float64):
        s, t = features((6,), 1, dtype=dtype), features((9,), 2, dtype=dtype)
        s[1], t[1] = s[0], t[0]
        s.requires_grad_()
        value = loss_of("rkd", s, t)
        value.backward()
        assert value.item() == pytest.approx(formula_rkd_twins(s, t), rel=1e-3)
        assert torch.isfinite(s.grad).all()
        assert s.grad.abs().max() < 1e3
    same = torch.ones(4, 6, requires_grad=True)
    loss_of("rkd", same, features((9,), 2, batch=4, dtype=torch.float32)).backward()
    assert torch.isfinite(same.grad).all()


def formula_rkd_twins(s, t):
    """``formula_rkd`` with the cosines along a direction of length 0 set to 0, as normalizing 0 gives."""
    with np.errstate(invalid="ignore"):
        pairs, triples = [], []
        for f in (s.detach().double().numpy(), t.double().numpy()):
            d = np.array([[np.linalg.norm(a - b) for b in f] for a in f])
            pairs.append(d / d[d > 0].mean())
            directions = np.nan_to_num(unit(f[None, :, :] - f[:, None, :]))
            triples.append(np.einsum("ijd,ikd->ijk", directions, directions))
    return 25 * smooth_l1(pairs[0] - pairs[1]).mean() + 50 * smooth_l1(triples[0] - triples[1]).mean()


def test_rkd_in_pieces_is_the_same(monkeypatch):
    from softcache.losses import rkd

    s, t = features((6,), 1).requires_grad_(), features((9,), 2)
    whole = loss_of("rkd", s, t)
    (grad,) = torch.autograd.grad(whole, s)
    monkeypatch.setattr(rkd, "COSINES_AT_ONCE", 2 * BATCH**2 + 1)  # two corners at a time
    pieces = loss_of("rkd", s, t)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces, s)[0], grad)
