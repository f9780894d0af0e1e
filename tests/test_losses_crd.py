"""``crd``: its draws, its banks, and its loss against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softcache import registry
from softcache.errors import UsageError
from softcache.losses.hints._spec import parse_hint

torch.set_num_threads(1)
ROWS, CLASSES, BATCH = 40, 4, 6
LABELS = torch.arange(ROWS) % CLASSES
INDICES = torch.tensor([3, 17, 8, 39, 0, 22])


def features(shape, seed=0, batch=BATCH, dtype=torch.float64):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def splitmix(x):
    mask = (1 << 64) - 1
    x &= mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def build(dtype=torch.float64, seed=0, **options):
    text = "".join(f",{key}={value}" for key, value in options.items())
    term = parse_hint(f"crd:teacher=a,student=a{text}")
    return term.build([(6,)], [(9,)], row_count=ROWS, classes=CLASSES, seed=seed, row_labels=LABELS).to(dtype)


def crd(**options):
    return build(**options).by_layer[0]


def evaluate(module, student, teacher):
    return module([student], [teacher], positions=INDICES)


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
    module = term.build([(6,)], [(9,)], row_count=ROWS, classes=CLASSES, seed=0, row_labels=labels)
    part = module.by_layer[0]
    assert part.negatives == ROWS - 1
    part.negatives = 4000
    for row in (0, 17, ROWS - 1):
        assert sorted(set(part.draw(torch.tensor([row]))[0].tolist())) == [r for r in range(ROWS) if r != row]


def test_crd_refuses_one_class():
    term = parse_hint("crd:teacher=a,student=a")
    with pytest.raises(UsageError, match="contrasts classes, but all rows have the same class"):
        term.build([(6,)], [(9,)], row_count=5, classes=1, seed=0, row_labels=torch.zeros(5, dtype=torch.int64))


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
    module = build(negatives=12)
    part = module.by_layer[0]
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
    whole = build(torch.float32, negatives=12)
    evaluate(whole, s, t)
    resumed = build(torch.float32, negatives=12)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(evaluate(whole, s + 1, t), evaluate(resumed, s + 1, t))
    assert torch.equal(whole.by_layer[0].bank_s, resumed.by_layer[0].bank_s)


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
    training = build(negatives=12)
    (slope,) = torch.autograd.grad(evaluate(training, s, t), s)
    frozen = build(negatives=12)
    frozen.by_layer[0].z.copy_(training.by_layer[0].z)
    (wanted,) = torch.autograd.grad(evaluate(frozen.eval(), s, t), s)
    torch.testing.assert_close(slope, wanted)
