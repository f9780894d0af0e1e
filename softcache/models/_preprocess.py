"""What a network does to pixels before its first layer: its own size, mean and standard deviation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from softcache.console import counted
from softcache.errors import ModelError, UsageError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel, pixels in 0..1

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Preprocess:
    """How pixels become a network's input: ``(pixel / white - mean) / std`` at the network's size; white is 255, or
    65535 of 16 bits.

    mean, std: one number a channel of the network, for pixels in 0..1. Of inputs that are no pictures one for
        each number of the last axis, or one for all: ``(value - mean) / std``.
    size: the one input size that the network takes, in pixels; ``None`` where it takes what it is given.
    minimum: smallest side that a network without a size of its own can take.
    trained_size: the size that the weights were made for; recorded for people, used by nothing.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    minimum: int = 1
    trained_size: int | None = None

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for pixels of this height and width.

        A network with a size of its own always gets that; any other gets the pixels as they are, scaled up
        (both sides by the same factor) where the shorter side is below the minimum.
        """
        if self.size is not None:
            return self.size, self.size
        shorter = min(height, width)
        if shorter >= self.minimum:
            return height, width
        return round(height * self.minimum / shorter), round(width * self.minimum / shorter)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; ``from_dict`` is the inverse."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocess:
        """From what ``to_dict`` gave, or the same read back from JSON.

        Errors: ``ModelError`` where a field is missing or unknown.
        """
        try:
            return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        except (KeyError, TypeError) as error:
            raise ModelError(f"the recorded preprocessing can't be read ({error})") from None


def choose_statistics(
    normalize: str | None, *, dataset: Statistics | None, weights: Statistics | None, channels: int | None
) -> Statistics:
    """Mean and standard deviation for a network with this number of input channels; None: for inputs that are no
    pictures, as they come.

    normalize: ``"imagenet"``, ``"dataset"``, ``"none"`` (pixels in 0..1 as they are),
        ``"0.5,0.5,0.5/0.2,0.2,0.2"`` (means/standard deviations), or ``None``: the statistics of the weights,
        else those of the data set.
    dataset: the data set's statistics, a number for each channel; weights: those that come with the weights.

    Grey statistics are repeated for a network of three channels, and those of ``"none"`` for any.

    Errors: ``UsageError`` for anything else as ``normalize``; ``ModelError`` for colour statistics and a
    network of one channel, or where statistics are needed that nobody gave.
    """
    if normalize is None:
        found = weights or dataset
    elif normalize == "dataset":
        found = dataset
    elif normalize == "imagenet":
        found = IMAGENET
    elif normalize == "none":
        found = ((0.0,), (1.0,))
    else:
        found = _parse(normalize)
    if found is None:
        raise ModelError("no mean and standard deviation are known here: pass --normalize imagenet, none or MEANS/STDS")
    mean, std = tuple(map(float, found[0])), tuple(map(float, found[1]))
    if len(mean) == 1 and channels is not None and (channels == 3 or normalize == "none"):
        return mean * channels, std * channels
    if channels is not None and len(mean) != channels:
        if normalize is None:
            raise ModelError(f"the network takes {counted(channels, 'channel')}, and the data has {len(mean)}")
        raise ModelError(
            f"the network takes {counted(channels, 'channel')}, but the normalization is for {len(mean)}: is it for "
            "these data?"
        )
    return mean, std


def _parse(text: str) -> Statistics:
    problem = f"--normalize takes imagenet, dataset, none or MEANS/STDS such as 0.5,0.5,0.5/0.2,0.2,0.2, not {text!r}"
    try:
        mean, std = (tuple(float(part) for part in half.split(",")) for half in text.split("/"))
    except ValueError:
        raise UsageError(problem) from None
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise UsageError(problem)
    return mean, std
