"""Options that several commands share, each written once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda f, option: option(f), reversed(options), function)

    return decorate


def option(name: str, help: str, **settings: Any) -> Decorator:
    """``--name`` whose default is the configuration's: the parameter is only passed on when it is given."""
    return click.option(name, help=help, **settings)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Without those that weren't given, so that every default stands in one place, the configuration."""
    return {key: value for key, value in options.items() if value is not None and value != ()}


def data(owner: str = "") -> Decorator:
    """Which samples. ``owner``: who knows its own dataset and size, where nobody says."""
    known = f"{owner}'s own, else " if owner else ""
    size = f"{known}32 for small sets, 224 for folders, ImageNet"
    return together(
        option(
            "--dataset",
            f"digits, cifar10, …, folder:PATH, arrays:PATH, python:module:factory.  [default: {known}digits]",
        ),
        option("--data-dir", "Where torchvision's datasets are, or go.  [default: $SOFTCACHE_DATA or datasets/]"),
        option("--download", "Download the dataset if it is missing.", is_flag=True, default=None),
        option("--size", f"Side of a view in pixels.  [default: {size}]", type=int),
    )


augment = option(
    "--augment",
    "View recipe: none, flip, crop:pad=4+flip, rrc+flip, randaugment, mixup:alpha=0.2, …  [default: by dataset: "
    "crop for digits, crop+flip for CIFAR, rrc+flip for folders]",
)

evaluating = together(
    option("--device", "auto, cpu, cuda, cuda:1, mps.  [default: auto]"),
    option("--workers", "Processes that make pixels.  [default: one a core, none where indexing does]", type=int),
    option("--amp", "Autocast: off, bf16, fp16.  [default: off]"),
)

compute = together(
    evaluating,
    option("--channels-last", "Use the channels_last memory format.", is_flag=True, default=None),
    option("--compile", "Compile the network with torch.compile.", is_flag=True, default=None),
)


def fitting(epochs: int, batch_size: int) -> Decorator:
    """How a network is trained, with the defaults of the command."""
    return together(
        option("--epochs", f"Passes over the rows.  [default: {epochs}]", type=int),
        option("--batch-size", f"Samples per step.  [default: {batch_size}]", type=int),
        option("--optimizer", "sgd, adam, adamw.  [default: adamw]"),
        option("--lr", "Peak learning rate.  [default: 0.002]", type=float),
        option("--weight-decay", "Decay of the weights.  [default: 0.01]", type=float),
        option("--momentum", "Of SGD (Nesterov).  [default: 0.9]", type=float),
        option("--schedule", "cosine, step, constant.  [default: cosine]"),
        option("--warmup", "Epochs of linear rise of the learning rate.  [default: 1]", type=float),
        option("--milestones", "Epochs of the step schedule, 150,180,210.  [default: 5/8, 3/4, 7/8]", callback=_epochs),
        option("--gamma", "Factor at each milestone.  [default: 0.1]", type=float),
        option("--label-smoothing", "Of the hard labels.  [default: 0]", type=float),
        option("--clip-grad", "Bound on the gradient's norm, 0 for none.  [default: 0]", type=float),
        option("--accumulate", "Batches per optimizer step.  [default: 1]", type=int),
        option("--seed", "Of weights, order and dropout.  [default: 0]", type=int),
        option("--start-method", "How workers start: fork, spawn, forkserver.  [default: auto]"),
        option("--profile", "Trace an epoch and say where its time went.", is_flag=True, default=None),
        option("--resident", "Keep pixels and targets in memory: auto, device, host, off.  [default: auto]"),
    )


def _epochs(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of epochs such as 150,180,210") from None
