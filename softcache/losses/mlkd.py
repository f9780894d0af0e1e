"""``mlkd``: multi-level logit distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._contract import Scope
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision

AROUND = (0.5, 0.75, 1.0, 1.25, 1.5)  # 2, 3, 4, 5 and 6 around T 4


@dataclass(frozen=True)
class MLKD(Loss):
    """``mean over T' of instance T'² KL(p_t ‖ p_s) + batch ‖G_t - G_s‖² / B + per_class ‖M_t - M_s‖² / C``.

    G: ``p pᵀ`` (B, B), M: ``pᵀ p`` (C, C), p: the softmax at T', (B, C). So G says which samples are alike, and M which
    classes; the norms are Frobenius'. T' takes five values, 0.5, 0.75, 1, 1.25 and 1.5 times T: the paper's 2, 3, 4, 5
    and 6 at T 4. The paper has their sum, which is what the default weight of 5 makes of the mean. Its
    code trains on a weak and a strong view of each row in one batch, as ``--strong-cache`` does, with weights 0.9 and
    0.1 as ``kl``.

    The term of classes grows about as (B / C)², so where there are fewer classes than samples ``per_class`` has to be
    lower.

    In the released code the masks of confident samples and classes multiply scalars, so that they are factors of about
    a half and choose nothing; the matrices are those of weak views alone; and two of the five temperatures of strong
    views are those of weak ones again. Here all samples of a batch, whatever their views, are treated alike.
    Source: Multi-level Logit Distillation, CVPR 2023.

    >>> student, teacher = torch.zeros(1, 2), torch.tensor([[1e4, -1e4]])  # p_s = (1/2, 1/2), p_t = (1, 0)
    >>> MLKD(instance=0, per_class=0)(student, teacher, T=4.0)  # (1 - 1/2)²
    tensor(0.2500)
    >>> MLKD(instance=0, batch=0)(student, teacher, T=4.0)  # ((3/4)² + 3 · (1/4)²) / 2
    tensor(0.3750)
    """

    formula: ClassVar[str] = "mean_T instance T² KL + batch ‖ΔG‖²/B + per_class ‖ΔM‖²/C, G = p pᵀ, M = pᵀ p"
    source: ClassVar[str] = "Multi-level Logit Distillation, CVPR 2023"
    example: ClassVar[str] = "--loss mlkd --views-per-image 2"
    scope: ClassVar[Scope] = "batch"
    default_alpha: ClassVar[float] = 0.9
    default_beta: ClassVar[float] = 0.1
    zero_for_perfect: ClassVar[bool] = True
    default_T: ClassVar[float | None] = 4.0
    default_weight: ClassVar[str] = "5"

    instance: float = 1.0
    batch: float = 1.0
    per_class: float = 1.0

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher → a scalar. ``labels`` are ignored."""
        at = [self._at(student / (T * factor), teacher / (T * factor), T * factor) for factor in AROUND]
        return torch.stack(at).mean()

    def _at(self, student: torch.Tensor, teacher: torch.Tensor, T: float) -> torch.Tensor:
        """The three levels at one temperature, by which the logits (B, C) are divided already."""
        log_s, log_t = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
        kl = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
        p_s, p_t = log_s.exp(), log_t.exp()
        samples = (p_t @ p_t.T - p_s @ p_s.T).square().sum() / p_s.shape[0]  # of (B, B)
        classes = (p_t.T @ p_t - p_s.T @ p_s).square().sum() / p_s.shape[1]  # of (C, C)
        return self.instance * T * T * kl + self.batch * samples + self.per_class * classes
