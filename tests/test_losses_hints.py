"""Losses on activations: against formulas written out in the test, by their invariances, and by the contract."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from softcache import registry
from softcache.errors import UsageError
from softcache.losses.hints._regressor import BatchNorm, regressor
from softcache.losses.hints._spec import parse_hint

torch.set_num_threads(1)
NAMES = registry.names("losses.hints")
ROWS, CLASSES, BATCH = 40, 4, 6
LABELS = torch.arange(ROWS) % CLASSES
INDICES = torch.tensor([3, 17, 8, 39, 0, 22])
MAPS = ((4, 6, 6), (5, 3, 3))
VECTORS = ((6,), (9,))
TOKENS = ((5, 6), (8, 7))
SHAPES = [MAPS, ((3, 5, 4), (4, 5, 4)), ((4, 3, 3), (5, 6, 6)), ((4, 5, 5), (6, 3, 3)), TOKENS]


def features(shape, seed=0, batch=BATCH, dtype=torch.float64):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def build(name, student, teacher, dtype=torch.float64, seed=0, **options):
    text = "".join(f",{key}={value}" for key, value in options.items())
    several = getattr(registry.component("losses.hints", name), "several", False)
    layers, count = ("a/b/c", 3) if several else ("a", 1)
    term = parse_hint(f"{name}:teacher={layers},student={layers}{text}")
    width = teacher[0] if len(teacher) != 2 else teacher[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        classifier = nn.Linear(width, CLASSES)
    module = term.build(
        [student] * count,
        [teacher] * count,
        rows=ROWS,
        classes=CLASSES,
        seed=seed,
        row_labels=LABELS,
        teacher_classifier=classifier,
    )
    return module.to(dtype), count


def evaluate(module, student, teacher, count=1):
    labels = LABELS[INDICES[: len(student)]]
    return module([student] * count, [teacher] * count, indices=INDICES[: len(student)], labels=labels)


def loss_of(name, student, teacher, **options):
    module, count = build(name, tuple(student.shape[1:]), tuple(teacher.shape[1:]), student.dtype, **options)
    return evaluate(module, student, teacher, count)


# Formulas, in loops and in NumPy.


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


def test_vid_is_the_negative_log_likelihood_and_starts_at_its_variance():
    s, t = features((3, 2, 2), 1), features((5, 2, 2), 2)
    module, _ = build("vid", (3, 2, 2), (5, 2, 2), initial=2.5)
    part = module.parts[0]
    variance = np.log1p(np.exp(part.scale.detach().numpy())) + 1e-5
    np.testing.assert_allclose(variance, 2.5, rtol=1e-6)
    with torch.no_grad():
        part.scale += torch.linspace(-1, 1, 5)
    variance = (np.log1p(np.exp(part.scale.detach().numpy())) + 1e-5)[:, None, None]
    w1, w2, w3 = (part.mean[i].weight[:, :, 0, 0].detach().numpy() for i in (0, 2, 4))
    places = s.numpy().transpose(0, 2, 3, 1)  # (B, H, W, C)
    mean = (np.maximum(np.maximum(places @ w1.T, 0) @ w2.T, 0) @ w3.T).transpose(0, 3, 1, 2)
    wanted = 0.5 * ((mean - t.numpy()) ** 2 / variance + np.log(variance)).mean()
    assert evaluate(module, s, t).item() == pytest.approx(wanted, rel=1e-9)
    evaluate(module, s, t).backward()
    assert part.scale.grad.abs().min() > 0  # the variance is learned


def test_fitnet_is_a_mean_square_after_projection_and_norm():
    s, t = features((6,), 1), features((9,), 2)
    module, _ = build("fitnet", (6,), (9,))
    x = s.numpy() @ module.parts[0].regressor.linear.weight.detach().numpy().T
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    assert evaluate(module, s, t).item() == pytest.approx(((x - t.numpy()) ** 2).mean(), rel=1e-9)


def test_reviewkd_pyramid_and_fusion():
    """Values of the loss's parts by hand: one layer with the fusion's convolutions set to the identity."""
    term = parse_hint("reviewkd:teacher=a/b,student=a/b")
    module = term.build([(2, 8, 8), (2,)], [(2, 8, 8), (2,)], rows=ROWS, classes=CLASSES, seed=0).double().eval()
    for fusion in module.parts[0].fusions:
        nn.init.dirac_(fusion.reduce[0].weight)
        nn.init.dirac_(fusion.expand[0].weight)
        for norm in (fusion.reduce[1], fusion.expand[1]):
            norm.eps = 0.0
    attention = module.parts[0].fusions[0].attention
    nn.init.zeros_(attention.weight)
    nn.init.constant_(attention.bias, 0.3)
    s, v = features((2, 8, 8), 1), features((2,), 2)
    t, w = features((2, 8, 8), 3), features((2,), 4)
    share = 1 / (1 + math.exp(-0.3))
    fused = share * (s + v[:, :, None, None])
    difference = (fused - t).numpy()
    total, weights = (difference**2).mean(), 1.0
    for size, weight in ((4, 0.5), (2, 0.25), (1, 0.125)):
        pooled = difference.reshape(BATCH, 2, size, 8 // size, size, 8 // size).mean((3, 5))
        total, weights = total + weight * (pooled**2).mean(), weights + weight
    wanted = total / weights + ((v - w) ** 2).mean().item()
    got = module([s, v], [t, w], indices=None, labels=None)
    assert got.item() == pytest.approx(wanted, rel=1e-9)


def test_simkd_answers_through_the_teachers_classifier():
    module, _ = build("simkd", (4, 6, 6), (5, 3, 3))
    part = module.parts[0].eval()
    s, t = features((4, 6, 6), 1), features((5, 3, 3), 2)
    x = part.projector(F.avg_pool2d(s, 2))
    assert evaluate(module, s, t).item() == pytest.approx(((x - t) ** 2).mean().item(), rel=1e-9)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        classifier = nn.Linear(5, CLASSES).double()
    torch.testing.assert_close(module.student_logits(s), classifier(part.projector(s).mean((2, 3))))
    assert "weight" not in dict(part.named_parameters())  # stays the teacher's


def test_simkd_refuses_a_classifier_that_does_not_fit():
    term = parse_hint("simkd:teacher=layer4,student=layer4")
    with pytest.raises(UsageError, match="takes 7 and gives 4, but the hint has 5 channels"):
        term.build([(4, 6, 6)], [(5, 3, 3)], rows=1, classes=4, seed=0, teacher_classifier=nn.Linear(7, 4))
    with pytest.raises(UsageError, match="needs teacher classifier, which this run has not"):
        term.build([(4, 6, 6)], [(5, 3, 3)], rows=1, classes=4, seed=0)


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
    from softcache.losses.hints import rkd

    s, t = features((6,), 1).requires_grad_(), features((9,), 2)
    whole = loss_of("rkd", s, t)
    (grad,) = torch.autograd.grad(whole, s)
    monkeypatch.setattr(rkd, "COSINES_AT_ONCE", 2 * BATCH**2 + 1)  # two corners at a time
    pieces = loss_of("rkd", s, t)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces, s)[0], grad)


# CRD's memory.


def splitmix(x):
    mask = (1 << 64) - 1
    x &= mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def crd(**options):
    module, _ = build("crd", (6,), (9,), **options)
    return module.parts[0]


def test_crd_draws_are_splitmix_of_seed_step_and_row():
    part = crd(negatives=7, seed=11)
    part.step.fill_(5)
    golden = 0x9E3779B97F4A7C15
    key = splitmix(splitmix(splitmix(11 + golden) + 5 * golden) + 17 * golden)
    others = [row for row in range(ROWS) if row % CLASSES != 17 % CLASSES]
    others.sort(key=lambda row: (row % CLASSES, row))
    wanted = [others[(splitmix(key + n * golden) >> 33) * len(others) >> 31] for n in range(1, 8)]
    assert part.draw(torch.tensor([4, 17]))[1].tolist() == wanted


def test_crd_negatives_are_of_other_classes_and_do_not_depend_on_the_batch():
    part = crd()
    assert part.negatives == 30  # of the 16384 asked for: all rows but the largest class's
    drawn = part.draw(INDICES)
    assert drawn.shape == (BATCH, 30)
    assert (LABELS[drawn] != LABELS[INDICES][:, None]).all()
    assert torch.equal(part.draw(INDICES[2:4]), drawn[2:4])
    part.step += 1
    assert not torch.equal(part.draw(INDICES), drawn)
    counts = torch.zeros(ROWS)
    for step in range(400):
        part.step.fill_(step)
        counts += torch.bincount(part.draw(INDICES[:1])[0], minlength=ROWS)
    assert counts[LABELS == 3].sum() == 0  # row 3 is of class 3
    assert (counts[LABELS != 3] - 400).abs().max() < 110  # 5.5 standard deviations of 400 expected


def test_crd_without_labels_takes_any_row_but_itself():
    term = parse_hint("crd:teacher=a,student=a,negatives=2000")
    labels = torch.full((ROWS,), -1)
    module = term.build([(6,)], [(9,)], rows=ROWS, classes=CLASSES, seed=0, row_labels=labels)
    part = module.parts[0]
    assert part.negatives == ROWS - 1
    part.negatives = 4000
    for row in (0, 17, ROWS - 1):
        assert sorted(set(part.draw(torch.tensor([row]))[0].tolist())) == [r for r in range(ROWS) if r != row]


def test_crd_refuses_one_class():
    term = parse_hint("crd:teacher=a,student=a")
    with pytest.raises(UsageError, match="contrasts classes, but all rows have one"):
        term.build([(6,)], [(9,)], rows=5, classes=1, seed=0, row_labels=torch.zeros(5, dtype=torch.int64))


def test_crd_says_its_memory():
    loss = registry.create("losses.hints", "crd")
    assert loss.bank_bytes(1_000_000) == 2 * 1_000_000 * 128 * 4
    part = crd()
    assert part.bank_s.float().nbytes + part.bank_t.float().nbytes == loss.bank_bytes(ROWS)


def formula_crd(part, s, t, chosen):
    """The loss, and the banks and Z afterwards, in NumPy."""
    banks = {"s": part.bank_s.numpy().copy(), "t": part.bank_t.numpy().copy()}
    e = {}
    for side, layer, f in (("s", part.student, s), ("t", part.teacher, t)):
        e[side] = unit(f.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    k = chosen.shape[1]
    noise, total, z = k / ROWS, 0.0, []
    for side, other in (("s", "t"), ("t", "s")):
        rows = np.concatenate([INDICES.numpy()[:, None], chosen.numpy()], axis=1)
        raw = np.exp(np.einsum("bd,bkd->bk", e[side], banks[other][rows]) / 0.07)
        z.append(raw.mean() * ROWS)
        p = raw / z[-1]
        total -= np.log(p[:, 0] / (p[:, 0] + noise)).sum() + np.log(noise / (p[:, 1:] + noise)).sum()
    for side in banks:
        banks[side][INDICES.numpy()] = unit(0.5 * banks[side][INDICES.numpy()] + 0.5 * e[side])
    return total / len(s), banks, z


def test_crd_is_the_contrastive_estimate_and_remembers():
    module, _ = build("crd", (6,), (9,), negatives=12)
    part = module.parts[0]
    s, t = features((6,), 1), features((9,), 2)
    wanted, banks, z = formula_crd(part, s, t, part.draw(INDICES))
    value = evaluate(module, s, t)
    assert value.item() == pytest.approx(wanted, rel=1e-9)
    np.testing.assert_allclose(part.bank_s.numpy(), banks["s"], rtol=1e-9)
    np.testing.assert_allclose(part.bank_t.numpy(), banks["t"], rtol=1e-9)
    np.testing.assert_allclose(part.z.numpy(), z, rtol=1e-9)
    assert part.step == 1
    module.eval()
    evaluate(module, s, t)
    assert part.step == 1  # evaluation leaves no trace


def test_crd_resumes_to_the_same_bits():
    s, t = features((6,), 1, dtype=torch.float32), features((9,), 2, dtype=torch.float32)
    whole, _ = build("crd", (6,), (9,), torch.float32, negatives=12)
    evaluate(whole, s, t)
    resumed, _ = build("crd", (6,), (9,), torch.float32, negatives=12)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(evaluate(whole, s + 1, t), evaluate(resumed, s + 1, t))
    assert torch.equal(whole.parts[0].bank_s, resumed.parts[0].bank_s)


def test_crd_by_copies_is_the_same_as_by_products(monkeypatch):
    from softcache.losses.hints import crd as module_of

    embeddings, bank = features((8,), 1), features((8,), 2, batch=50)
    chosen = torch.randint(0, 50, (BATCH, 20), generator=torch.Generator().manual_seed(0))
    weights = embeddings.sum(1, keepdim=True) * chosen  # equal where the row is the same
    products = module_of._scores(embeddings, bank, chosen), module_of._weighted_rows(weights, bank, chosen)
    monkeypatch.setattr(module_of, "_is_small", lambda bank, chosen: False)
    monkeypatch.setattr(module_of, "GATHERED_AT_ONCE", 2 * 20 * 8)  # two samples at a time
    copies = module_of._scores(embeddings, bank, chosen), module_of._weighted_rows(weights, bank, chosen)
    for got, wanted in zip(copies, products, strict=True):
        torch.testing.assert_close(got, wanted)
    rows = bank[chosen]
    torch.testing.assert_close(copies[0], torch.einsum("bkd,bd->bk", rows, embeddings))
    torch.testing.assert_close(copies[1], torch.einsum("bkd,bk->bd", rows, weights))


def test_crd_slope_is_of_the_bank_before_the_batch():
    s, t = features((6,), 1).requires_grad_(), features((9,), 2)
    training, _ = build("crd", (6,), (9,), negatives=12)
    (slope,) = torch.autograd.grad(evaluate(training, s, t), s)
    frozen, _ = build("crd", (6,), (9,), negatives=12)
    frozen.parts[0].z.copy_(training.parts[0].z)
    (wanted,) = torch.autograd.grad(evaluate(frozen.eval(), s, t), s)
    torch.testing.assert_close(slope, wanted)


# Regressors.

FORMS = [(6,), (5, 6), (16, 6), (17, 6), (4, 4, 4), (4, 8, 8), (3, 2, 2), (3, 1, 1), (4, 5, 3), (4, 6, 9)]


@pytest.mark.parametrize("student", FORMS)
@pytest.mark.parametrize("teacher", FORMS)
def test_regressors_of_every_pair(student, teacher):
    module = regressor(student, teacher)
    x = features(student, 1, dtype=torch.float32).requires_grad_()
    out = module(x)
    assert out.shape == (BATCH, *teacher)
    out.square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    module.load_state_dict(module.state_dict())


def test_regressors_are_as_the_sizes_ask():
    assert regressor((4, 8, 8), (6, 4, 4)).conv.stride == (2, 2)
    assert isinstance(regressor((4, 4, 4), (6, 8, 8)).conv, nn.ConvTranspose2d)
    assert regressor((4, 4, 4), (6, 4, 4)).conv.kernel_size == (1, 1)
    assert regressor((4, 5, 5), (6, 3, 3)).conv.kernel_size == (1, 1)


def test_resizing_is_interpolation():
    module = regressor((2, 4, 6), (2, 7, 9)).eval()
    nn.init.dirac_(module.conv.weight)
    x = features((2, 4, 6), 1, dtype=torch.float32)
    wanted = F.interpolate(x, (7, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-4)
    module = regressor((2, 7, 9), (2, 5, 4)).eval()
    nn.init.dirac_(module.conv.weight)
    x = features((2, 7, 9), 1, dtype=torch.float32)
    torch.testing.assert_close(module(x), F.adaptive_avg_pool2d(x, (5, 4)), rtol=1e-4, atol=1e-4)


def test_batch_norm_of_a_single_value_uses_what_it_knows():
    norm = BatchNorm(3)
    norm(features((3,), 1, dtype=torch.float32))
    running = norm.running_mean.clone()
    one = norm(torch.ones(1, 3))
    torch.testing.assert_close(one[0], (1 - running) / (norm.running_var + 1e-5).sqrt())
    assert torch.equal(norm.running_mean, running)


# The contract, for whatever is in the folder.


def takes_vectors(name):
    return registry.component("losses.hints", name).needs.startswith(("any", "vector"))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_declares_itself(name):
    loss = registry.create("losses.hints", name)
    assert type(loss).__dataclass_params__.frozen
    assert loss.formula
    assert loss.source
    assert loss.needs
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(loss))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_every_loss_takes_maps_and_tokens(name, shapes):
    s = features(shapes[0], 1, dtype=torch.float32).requires_grad_()
    module, count = build(name, *shapes, dtype=torch.float32)
    value = evaluate(module, s, features(shapes[1], 2, dtype=torch.float32), count)
    assert value.shape == ()
    assert torch.isfinite(value)
    value.backward()
    assert s.grad.abs().max() > 0
    assert torch.isfinite(s.grad).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_vectors(name):
    if takes_vectors(name):
        assert torch.isfinite(loss_of(name, features((6,), 1), features((9,), 2)))
    with pytest.raises(UsageError, match="name another layer"):
        build(name, (3, 4, 4, 4), (3, 4, 4, 4))


@pytest.mark.parametrize("name", ["at", "nst"])
def test_losses_on_places_refuse_vectors(name):
    with pytest.raises(UsageError, match=r"compares places of a map, found a vector \(6\): name a layer"):
        build(name, (6,), (4, 4, 4))


def test_gradcheck(name):
    s, t = features((3, 4, 4), 1, batch=4).requires_grad_(), features((4, 2, 2), 2, batch=4)
    module, count = build(name, (3, 4, 4), (4, 2, 2))
    evaluate(module, s, t, count)  # sets what a first batch sets
    module.eval()
    assert torch.autograd.gradcheck(lambda x: evaluate(module, x, t, count), s)


def test_equal_activations_are_at_0_where_the_definition_says_so(name):
    loss = registry.component("losses.hints", name)
    s = features((4, 3, 3), 1).requires_grad_()
    module, count = build(name, (4, 3, 3), (4, 3, 3))
    if getattr(loss, "zero_for_perfect", False):
        value = evaluate(module, s, s.detach(), count)
        assert value.item() == pytest.approx(0, abs=1e-12)
        value.backward()
        assert s.grad.abs().max() < 1e-6


def test_same_seed_same_module(name):
    before = torch.get_rng_state()
    one, two, other = (build(name, *MAPS, seed=seed)[0].state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], two[key]) for key in one)
    if list(build(name, *MAPS)[0].parameters()):
        assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(name, dtype):
    s, t = features(MAPS[0], 1, dtype=torch.float32), features(MAPS[1], 2, dtype=torch.float32)

    def value(student, teacher, autocast):
        module, count = build(name, *MAPS, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return evaluate(module, student, teacher, count)

    plain = value(s, t, False)
    assert torch.equal(value(s, t, True), plain)
    half = value(s.to(dtype), t, True)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(plain.item(), rel=1e-2)


def test_nothing_overflows(name):
    s, t = features(MAPS[0], 1, dtype=torch.float32) * 1e4, features(MAPS[1], 2, dtype=torch.float32) * 1e4
    s[2], t[3] = 0, 0
    s.requires_grad_()
    module, count = build(name, *MAPS, dtype=torch.float32)
    value = evaluate(module, s, t, count)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all()


def test_a_last_batch_of_one(name):
    s, t = features(MAPS[0], 1, batch=1, dtype=torch.float32), features(MAPS[1], 2, batch=1, dtype=torch.float32)
    s.requires_grad_()
    module, count = build(name, *MAPS, dtype=torch.float32)
    value = evaluate(module, s, t, count)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all()


def test_it_can_be_learned(name):
    """Thirty steps on student activations and the loss's own parameters lower it."""
    s = nn.Parameter(features(MAPS[0], 1, dtype=torch.float32))
    t = features(MAPS[1], 2, dtype=torch.float32).relu()
    module, count = build(name, *MAPS, dtype=torch.float32)
    optimizer = torch.optim.Adam([s, *module.parameters()], lr=0.03)
    values = []
    for _ in range(30):
        value = evaluate(module, s, t, count)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) / 5 < values[0]


def test_the_teacher_gets_no_gradient_and_inference_tensors_do(name):
    s = features(MAPS[0], 1, dtype=torch.float32).requires_grad_()
    t = features(MAPS[1], 2, dtype=torch.float32).requires_grad_()
    module, count = build(name, *MAPS, dtype=torch.float32)
    evaluate(module, s, t, count).backward()
    assert t.grad is None
    with torch.inference_mode():
        made = t.detach().clone()
    evaluate(module, s, made, count).backward()
