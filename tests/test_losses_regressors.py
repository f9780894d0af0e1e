"""Regressors between every pair of shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from softcache.losses.hints._regressor import BatchNorm, regressor

torch.set_num_threads(1)
BATCH = 6


def features(shape, seed):
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed))


FORMS = [(6,), (5, 6), (16, 6), (17, 6), (4, 4, 4), (4, 8, 8), (3, 2, 2), (3, 1, 1), (4, 5, 3), (4, 6, 9)]


@pytest.mark.parametrize("student", FORMS)
@pytest.mark.parametrize("teacher", FORMS)
def test_regressors_of_every_pair(student, teacher):
    module = regressor(student, teacher)
    x = features(student, 1).requires_grad_()
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
    x = features((2, 4, 6), 1)
    wanted = F.interpolate(x, (7, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-4)
    module = regressor((2, 7, 9), (2, 5, 4)).eval()
    nn.init.dirac_(module.conv.weight)
    x = features((2, 7, 9), 1)
    torch.testing.assert_close(module(x), F.adaptive_avg_pool2d(x, (5, 4)), rtol=1e-4, atol=1e-4)


def test_batch_norm_of_a_single_value_uses_what_it_knows():
    norm = BatchNorm(3)
    norm(features((3,), 1))
    running = norm.running_mean.clone()
    one = norm(torch.ones(1, 3))
    torch.testing.assert_close(one[0], (1 - running) / (norm.running_var + 1e-5).sqrt())
    assert torch.equal(norm.running_mean, running)
