"""Activations as whole numbers of 8 bits, evenly spaced in the range of each channel."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

STEPS = 255
# Of a channel's range, added on either side, where values of other keys may lie. Measured on maps and logits of a
# CIFAR-100 network, on 1,000 keys that it was not fitted on: with 1/64 the mean error is 3 to 8 % smaller, the largest
# 1.1 to 1.8 times as large, and the 99th percentile of logits' 2.0 times as large.
MARGIN = 1 / 16


@dataclass(frozen=True)
class Int8:
    """A byte for each number: step 0 … 255 between the smallest and the largest value of its channel, as they were in
    4,096 keys drawn over all rows and views, with a margin of 1/16 of that range on either side that isn't 0. Within it
    the error is at most half a step, 1/453 of the range; what lies outside is cut off.

    The channel is the first of three axes of a sample, as in the maps of convolutions, and else the last one.

    >>> codec = Int8()
    >>> values = torch.tensor([[0.0, -1.0], [2.0, 1.0]])
    >>> fitted = codec.fitted(codec.fit(values))
    >>> bool(((fitted.decode(fitted.encode(values)) - values).abs() <= 1.13 * 2 / 510).all())
    True
    """

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype on disk and shape of one sample, for values of this shape a sample."""
        return {"values": ("|u1", shape)}

    def constants(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype and shape of what ``fit`` finds."""
        channels = (shape[_channel_axis(len(shape))],) if shape else (1,)
        return {"low": ("<f4", channels), "step": ("<f4", channels)}

    def fit(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (K, …) on the CPU → the smallest value and the distance of two steps in each channel, (C,) float32."""
        channels = _by_channel(values.double())
        low, high = channels.amin(1), channels.amax(1)
        margin = (high - low) * MARGIN
        # what a ReLU gives is never below 0, and 0 is the most frequent value there: it stays exact
        low = torch.where(low == 0, low, low - margin)
        high = torch.where(high == 0, high, high + margin)
        return {"low": low.float(), "step": ((high - low) / STEPS).float()}

    def fitted(self, constants: dict[str, torch.Tensor]) -> _Fitted:
        """The codec with these constants."""
        return _Fitted(constants["low"], constants["step"])


@dataclass
class _Fitted:
    """``low``, ``step``: (C,) float32."""

    low: torch.Tensor
    step: torch.Tensor
    _placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → bytes of the same shape. What isn't finite is refused before it is kept."""
        low, step = self._on(values)
        steps = ((values.float() - low) / step.clamp_min(torch.finfo(torch.float32).tiny)).round()
        return {"values": steps.clamp(0, STEPS).nan_to_num(0).to(torch.uint8)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Bytes with one row for each sample → values (B, …) float32."""
        low, step = self._on(arrays["values"])
        return low + step * arrays["values"].to(torch.float32)

    def _on(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``low`` and ``step`` on the device of values (B, …), with as many axes as a sample has."""
        if values.device not in self._placed:
            self._placed[values.device] = self.low.to(values.device), self.step.to(values.device)
        axes = values.ndim - 1
        shape = [1] * axes
        if axes:
            shape[_channel_axis(axes)] = len(self.low)
        low, step = self._placed[values.device]
        return low.view(shape), step.view(shape)


def _channel_axis(axes: int) -> int:
    """Of a sample's axes, the one of channels."""
    return 0 if axes == 3 else axes - 1


def _by_channel(values: torch.Tensor) -> torch.Tensor:
    """(K, …) → (C, everything else)."""
    axes = values.ndim - 1
    return values.movedim(1 + _channel_axis(axes), 0).flatten(1) if axes else values.view(1, -1)
