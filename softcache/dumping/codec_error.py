"""How far what a codec has kept is from what the teacher said, as a student's loss would see it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from softcache.cache.column import Column

MEASURED_KEYS = 4096
MEASURED_NUMBERS = 2**26  # of all measured keys together: of large activations fewer keys tell as much
TEMPERATURES = (1, 2, 4, 8)


class CodecError:
    """The error of a column's codec on the first ``MEASURED_KEYS`` keys or a few more, batch by batch."""

    def __init__(self, column: Column, known: float = 0, places: int = 1):
        """``known``: keys that it was measured on before; where they were enough, nothing is measured. ``places``: of a
        ragged column, those that a key has at most."""
        self._column = column
        self._wanted = max(1, min(MEASURED_KEYS, MEASURED_NUMBERS // (math.prod(column.shape) * max(1, places))))
        self._wanted = 0 if known >= self._wanted else self._wanted
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._seen = 0

    @property
    def unfinished(self) -> bool:
        """Whether some keys were measured, but fewer than wanted."""
        return 0 < self._seen < self._wanted

    @torch.inference_mode()
    def __call__(self, values: torch.Tensor, keys: int | None = None) -> bool:
        """Measures (B, …) values, of a ragged column (P, …) of so many ``keys``, if more are wanted. Returns whether
        the measurement is complete with them."""
        if self._seen >= self._wanted:
            return False
        self._seen += len(values) if keys is None else keys
        if not len(values):  # rows without places
            return self._seen >= self._wanted
        decoded = self._column.decode(self._column.encode(values))
        if values.device.type == "mps":  # which has no float64
            values, decoded = values.cpu(), decoded.cpu()
        for name, measured in _BY_KIND[self._column.kind](values.double(), decoded.double()).items():
            self._parts.setdefault(name, []).append(measured)
        return self._seen >= self._wanted

    def result(self) -> tuple[dict[str, float], int]:
        """The error by name, and the number of keys that were measured. Of a ragged column each place counts once.

        Of ``classes`` and ``binary``: mean and 99th percentile of KL(teacher‖decoded) in nats at each temperature (of
        ``binary`` for each label), and the share of keys (of labels) whose largest class (whose side of 0) stays the
        same. Of ``values``: mean and 99th percentile of the relative error, and the mean cosine.
        """
        report = {}
        for name, parts in self._parts.items():
            found = torch.cat(parts).flatten().cpu()
            if name in _SHARES:
                report[name] = float(found.mean())
            else:
                what, _, at = name.partition("_T")
                mean, p99 = (f"{what}_{part}{at and f'_T{at}'}" for part in ("mean", "p99"))
                report[mean], report[p99] = float(found.mean()), _percentile(found, 0.99)
        return report, self._seen


def _classes(values: torch.Tensor, decoded: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for T in TEMPERATURES:
        p, q = F.log_softmax(values / T, -1), F.log_softmax(decoded / T, -1)
        found[f"kl_T{T}"] = (p.exp() * (p - q)).sum(-1).clamp_min(0)
    return {**found, "top1_agreement": (values.argmax(-1) == decoded.argmax(-1)).double()}


def _binary(values: torch.Tensor, decoded: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for T in TEMPERATURES:
        p = torch.sigmoid(values / T)
        on = F.logsigmoid(values / T) - F.logsigmoid(decoded / T)
        off = F.logsigmoid(-values / T) - F.logsigmoid(-decoded / T)
        found[f"kl_T{T}"] = (p * on + (1 - p) * off).clamp_min(0)
    return {**found, "sign_agreement": ((values > 0) == (decoded > 0)).double()}


def _values(values: torch.Tensor, decoded: torch.Tensor) -> dict[str, torch.Tensor]:
    values, decoded = values.reshape(len(values), -1), decoded.reshape(len(decoded), -1)
    size = values.norm(dim=1)
    # of a key that is all zeros nothing is lost where nothing comes back
    relative = torch.where(size > 0, (decoded - values).norm(dim=1) / size, (decoded - values).norm(dim=1))
    cosine = torch.where(size > 0, F.cosine_similarity(values, decoded, dim=1), 1.0)
    return {"relative_error": relative, "cosine": cosine}


def _percentile(values: torch.Tensor, share: float) -> float:
    """``torch.quantile`` takes at most 2²⁴ numbers: of more, every so manieth."""
    return float(torch.quantile(values[:: 1 + len(values) // 2**24], share))


_SHARES = ("top1_agreement", "sign_agreement", "cosine")
_BY_KIND: dict[str, Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]] = {
    "classes": _classes,
    "binary": _binary,
    "values": _values,
}
