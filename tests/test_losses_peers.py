"""Against torchdistill, where it is installed (the extra ``test-peers``), for the losses that both define.

Where definitions differ by a factor or a reduction, the factor is in the test and in docs/losses.md.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from softcache import registry
from softcache.losses._terms import parse_term
from softcache.losses.hints._spec import parse_hint

theirs = pytest.importorskip("torchdistill.losses.mid_level", reason="needs the extra test-peers")
torch.set_num_threads(1)
IO = ("m", "output", "m", "output")
FEATURES = {"s": {"student": {"io": "output", "path": "m"}, "teacher": {"io": "output", "path": "m"}}}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def their(loss, s, t, targets=None):
    return loss({"m": {"output": s}}, {"m": {"output": t}}, targets).item()


def ours(spec, s, t, **extras):
    name, _, rest = spec.partition(":")
    term = parse_hint(f"{name}:teacher=a,student=a,{rest}")
    module = term.build([s.shape[1:]], [t.shape[1:]], row_count=20, classes=4, seed=0, **extras).double()
    return module, module([s], [t], positions=torch.arange(len(s))).item()


LOGITS = 2 * randn(8, 6, seed=1), 2 * randn(8, 6, seed=2)
VECTORS = randn(8, 5, seed=3), randn(8, 7, seed=4)


def test_kl():
    """Without a hard term theirs has no T²."""
    s, t = LOGITS
    got = parse_term("kl")(s, t, 4.0).item()
    assert got == pytest.approx(16 * their(theirs.KDLoss(*IO, temperature=4.0, alpha=0), s, t), rel=1e-9)
    labels = torch.arange(8) % 6
    both = their(theirs.KDLoss(*IO, temperature=4.0, alpha=0.1), s, t, labels)
    assert 0.1 * nn.functional.cross_entropy(s, labels).item() + 0.9 * got == pytest.approx(both, rel=1e-9)


def test_kl_of_standardized_logits():
    s, t = LOGITS
    got = parse_term("kl:standardize=true")(s, t, 2.0).item()
    assert got == pytest.approx(4 * their(theirs.LogitStdKDLoss(*IO, temperature=2.0, alpha=0), s, t), rel=1e-9)


def test_dist():
    s, t = LOGITS
    got = registry.component("losses", "dist")(beta=2.0, gamma=0.5, eps=0.0)(s, t, 4.0).item()
    assert got == pytest.approx(their(theirs.DISTLoss(*IO, beta=2.0, gamma=0.5, tau=4.0), s, t), rel=1e-9)


def test_at():
    s, t = randn(4, 3, 5, 5), randn(4, 6, 5, 5, seed=1)
    assert ours("at", s, t)[1] == pytest.approx(their(theirs.ATLoss(FEATURES), s, t), rel=1e-9)


def test_sp():
    """Theirs normalizes rows by their L1 norm (``normalize(G, 1)``), the paper and ours by L2."""
    s, t = VECTORS
    their_loss = theirs.SPKDLoss("m", "m", "batchmean")
    their_loss.matmul_and_normalize = lambda z: nn.functional.normalize(z.flatten(1) @ z.flatten(1).T, p=2, dim=1)
    assert ours("sp", s, t)[1] == pytest.approx(their(their_loss, s, t), rel=1e-9)


def test_rkd():
    s, t = VECTORS
    peer = theirs.RKDLoss("m", "m", dist_factor=25, angle_factor=50, reduction="mean")
    assert ours("rkd", s, t)[1] == pytest.approx(their(peer, s, t), rel=1e-9)


def test_pkt():
    s, t = VECTORS
    peer = theirs.PKTLoss(*IO)
    assert ours("pkt", s, t)[1] == pytest.approx(their(peer, s.clone(), t.clone()), rel=1e-5)  # eps in its norms


def test_cc():
    """Theirs: the norm over B², of vectors that another layer has normalized; ours: its square."""
    s, t = (nn.functional.normalize(x, dim=1) for x in VECTORS)
    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    norm = their(theirs.CCKDLoss("m", "m", kernel, "batchmean"), s, t) * len(s) ** 2
    assert ours("cc", s, t)[1] == pytest.approx(norm**2 / len(s) ** 2, rel=1e-9)


def test_vid():
    s, t = randn(4, 3, 2, 2), randn(4, 5, 2, 2, seed=1)
    module, value = ours("vid", s, t)
    part = module.by_layer[0]
    variance = (nn.functional.softplus(part.scale) + 1e-5)[:, None, None]
    peer = theirs.VIDLoss({"s": FEATURES["s"]})
    assert value == pytest.approx(their(peer, (part.mean(s), variance), t), rel=1e-9)


@pytest.mark.parametrize("size", [8, 4, 1])
def test_hierarchical_context(size):
    from softcache.losses.hints.reviewkd import hierarchical

    s, t = randn(4, 3, size, size), randn(4, 3, size, size, seed=1)
    peer = theirs.HierarchicalContextLoss(*IO)
    assert hierarchical(s, t).item() == pytest.approx(their(peer, (s, None), t), rel=1e-9)


def test_crd():
    """The estimate alone: theirs can't draw (it reads an attribute it never sets), so it gets our draws."""
    s, t = VECTORS
    extras = {"row_labels": torch.arange(20) % 4}
    term = parse_hint("crd:teacher=a,student=a,negatives=6")
    module = term.build([(5,)], [(7,)], row_count=20, classes=4, seed=0, **extras).double()
    part, rows = module.by_layer[0], torch.arange(8)
    peer = theirs.CRDLoss("n", "e", "n", 128, 20, num_negative_samples=6, num_samples=20).double()
    peer.memory_v1, peer.memory_v2 = part.bank_s.clone(), part.bank_t.clone()
    chosen = torch.cat([rows[:, None], part.draw(rows)], dim=1)
    e_s, e_t = (nn.functional.normalize(f(x), dim=1).detach() for f, x in ((part.student, s), (part.teacher, t)))
    supplement = {"pos_idx": rows, "contrast_idx": chosen}
    wanted = peer({"n": {"output": e_s}, "e": {"input": supplement}}, {"n": {"output": e_t}})
    got = module([s], [t], positions=rows)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)  # its 1e-7 beside the noise
    torch.testing.assert_close(part.bank_s, peer.memory_v1)
    torch.testing.assert_close(part.bank_t, peer.memory_v2)
    assert math.isfinite(got.item())
