"""Losses on activations that train something of their own, by formula, and the contract that all share."""

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
    several = registry.component("losses.hints", name).several
    layers, count = ("a/b/c", 3) if several else ("a", 1)
    term = parse_hint(f"{name}:teacher={layers},student={layers}{text}")
    width = teacher[0] if len(teacher) != 2 else teacher[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        classifier = nn.Linear(width, CLASSES)
    module = term.build(
        [student] * count,
        [teacher] * count,
        row_count=ROWS,
        classes=CLASSES,
        seed=seed,
        row_labels=LABELS,
        teacher_classifier=classifier,
    )
    return module.to(dtype), count


def evaluate(module, student, teacher, count=1):
    labels = LABELS[INDICES[: len(student)]]
    return module([student] * count, [teacher] * count, positions=INDICES[: len(student)], labels=labels)


def loss_of(name, student, teacher, **options):
    module, count = build(name, tuple(student.shape[1:]), tuple(teacher.shape[1:]), student.dtype, **options)
    return evaluate(module, student, teacher, count)


@pytest.mark.parametrize("initial", [1e-4, 1.0, 30.0, 1000.0])
def test_vid_starts_at_any_variance(initial):
    part = build("vid", (3, 2, 2), (5, 2, 2), initial=initial)[0].by_layer[0]
    scale = part.scale.detach().double()
    np.testing.assert_allclose(torch.nn.functional.softplus(scale) + 1e-5, initial, rtol=1e-5)


def test_vid_is_the_negative_log_likelihood_and_starts_at_its_variance():
    s, t = features((3, 2, 2), 1), features((5, 2, 2), 2)
    module, _ = build("vid", (3, 2, 2), (5, 2, 2), initial=2.5)
    part = module.by_layer[0]
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
    x = s.numpy() @ module.by_layer[0].regressor.linear.weight.detach().numpy().T
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    assert evaluate(module, s, t).item() == pytest.approx(((x - t.numpy()) ** 2).mean(), rel=1e-9)


def test_reviewkd_pyramid_and_fusion():
    """Values of the loss's parts by hand: one layer with the fusion's convolutions set to the identity."""
    term = parse_hint("reviewkd:teacher=a/b,student=a/b")
    module = term.build([(2, 8, 8), (2,)], [(2, 8, 8), (2,)], row_count=ROWS, classes=CLASSES, seed=0).double().eval()
    for fusion in module.by_layer[0].fusions:
        nn.init.dirac_(fusion.reduce[0].weight)
        nn.init.dirac_(fusion.expand[0].weight)
        for norm in (fusion.reduce[1], fusion.expand[1]):
            norm.eps = 1e-300  # no more than nothing beside a variance, and some versions of torch refuse 0
    attention = module.by_layer[0].fusions[0].attention
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
    got = module([s, v], [t, w], positions=None, labels=None)
    assert got.item() == pytest.approx(wanted, rel=1e-9)


def test_simkd_learns_maps_at_the_hints_size():
    module, _ = build("simkd", (4, 6, 6), (5, 3, 3))
    part = module.by_layer[0].eval()
    s, t = features((4, 6, 6), 1), features((5, 3, 3), 2)
    x = part.projector(F.avg_pool2d(s, 2))
    assert evaluate(module, s, t).item() == pytest.approx(((x - t) ** 2).mean().item(), rel=1e-9)
    assert part.size == (3, 3)


def test_simkd_refuses_a_classifier_that_does_not_fit():
    term = parse_hint("simkd:teacher=layer4,student=layer4")
    with pytest.raises(UsageError, match="takes 7 and gives 4, but the hint has 5 channels"):
        term.build([(4, 6, 6)], [(5, 3, 3)], row_count=1, classes=4, seed=0, teacher_classifier=nn.Linear(7, 4))
    with pytest.raises(UsageError, match="needs the teacher classifier, which this training doesn't have"):
        term.build([(4, 6, 6)], [(5, 3, 3)], row_count=1, classes=4, seed=0)


# The contract, for whatever is in the folder.


def takes_vectors(name):
    return "maps" not in registry.component("losses.hints", name).needs


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_declares_itself(name):
    loss = registry.create("losses.hints", name)
    assert type(loss).__dataclass_params__.frozen
    assert loss.formula
    assert loss.source
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
    with pytest.raises(UsageError, match=r"compares positions of a map, found a vector \(6\): name a layer"):
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
    if loss.zero_for_perfect:
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
