"""How far logits that a codec has kept are from the teacher's, as a student's loss would see it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

MEASURED_KEYS = 4096
TEMPERATURES = (1, 2, 4, 8)


class CodecError:
    """The codec's error on the first ``MEASURED_KEYS`` keys or a few more, batch by batch."""

    def __init__(self, codec: Any):
        self._codec = codec
        self._divergences: dict[int, list[torch.Tensor]] = {T: [] for T in TEMPERATURES}
        self._agree: list[torch.Tensor] = []
        self._seen = 0

    @property
    def unfinished(self) -> bool:
        """Whether some keys were measured, but fewer than wanted."""
        return 0 < self._seen < MEASURED_KEYS

    @torch.inference_mode()
    def __call__(self, logits: torch.Tensor) -> bool:
        """Measures (B, C) logits, if more are wanted. Returns whether the measurement is complete with them."""
        if self._seen >= MEASURED_KEYS:
            return False
        self._seen += len(logits)
        decoded = self._codec.decode(self._codec.encode(logits))
        if logits.device.type == "mps":  # which has no float64
            logits, decoded = logits.cpu(), decoded.cpu()
        for T, divergences in self._divergences.items():
            p, q = F.log_softmax(logits.double() / T, 1), F.log_softmax(decoded.double() / T, 1)
            divergences.append((p.exp() * (p - q)).sum(1))
        self._agree.append((logits.argmax(1) == decoded.argmax(1)).double())
        return self._seen >= MEASURED_KEYS

    def result(self) -> tuple[dict[str, float], int]:
        """Mean and 99th percentile of KL(teacher‖decoded) in nats at each temperature, the share of keys whose largest
        logit stays the same, and the number of keys that were measured."""
        report = {}
        for T, divergences in self._divergences.items():
            values = torch.cat(divergences).clamp_min(0).cpu()
            report[f"kl_mean_T{T}"] = float(values.mean())
            report[f"kl_p99_T{T}"] = float(torch.quantile(values, 0.99))
        report["top1_agreement"] = float(torch.cat(self._agree).mean())
        return report, self._seen
