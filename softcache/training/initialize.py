"""Where the student starts: from the teacher's parameters, as far as they fit, and with which of them frozen."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from softcache.errors import ModelError, UsageError, nearest
from softcache.models._hooks import find_module
from softcache.models._network import Network
from softcache.models._weights import fingerprint

log = logging.getLogger(__name__)

SHOWN = 4


@dataclass(frozen=True)
class Copied:
    """Names of the student's tensors that were copied, and the others, each with why it wasn't."""

    names: list[str]
    left: dict[str, str]


def initialize_student(
    network: Network,
    *,
    seed: int,
    weights: str | None,
    teacher: Network | None,
    pairs: Mapping[str, str],
    frozen: Sequence[str],
    begun: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Copies and freezes what was asked for; returns what a run's ``config.json`` records of the start.

    ``seed``, ``weights``: what the network's parameters came from. ``teacher``: whose parameters are copied, by
    ``pairs`` as ``copy_parameters`` takes them; None for none. ``frozen``: patterns of parameters' names that don't
    learn. ``begun``: that record, of a run that goes on from a checkpoint and has its start behind it.
    """
    if begun is not None:
        freeze(network, frozen)
        return begun
    record: dict[str, Any] = {"seed": seed, "weights": weights}
    if teacher is not None:
        copied = copy_parameters(network.model, teacher.model, pairs)
        shown = [f"{name} ({why})" for name, why in list(copied.left.items())[:SHOWN]]
        rest = f"; not: {', '.join(shown)}{', …' if len(copied.left) > SHOWN else ''}" if shown else ""
        log.info(
            f"start from {teacher.spec}: {len(copied.names)} of {len(network.model.state_dict())} tensors copied{rest}"
        )
        record |= {
            "teacher": teacher.spec,
            "teacher_sha256": fingerprint(teacher.model.state_dict()),
            "map": dict(pairs),
            "copied": copied.names,
            "left": copied.left,
        }
    still = freeze(network, frozen)
    if still:
        log.info(f"frozen: {len(still)} parameters")
        record["frozen"] = still
    return record


def copy_parameters(student: nn.Module, teacher: nn.Module, pairs: Mapping[str, str]) -> Copied:
    """Copies tensors of the teacher into the student wherever name and shape agree.

    ``pairs``: the student's layer → the teacher's whose tensors it gets; empty compares the whole networks.
    Errors: ``ModelError`` for layers that there aren't (with the nearest), and where nothing fits.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    names: list[str] = []
    left: dict[str, str] = {}
    prefixes = {"": ""}
    if pairs:
        for layer, source in pairs.items():
            find_module(student, layer)
            find_module(teacher, source)
        prefixes = {f"{layer}.": f"{source}." for layer, source in pairs.items()}
    for prefix, source in prefixes.items():
        for name, tensor in own.items():
            if not name.startswith(prefix):
                continue
            found = theirs.get(source + name.removeprefix(prefix))
            if found is None:
                left[name] = "not there"
            elif found.shape != tensor.shape:
                left[name] = f"{_shape(found)} for {_shape(tensor)}"
            else:
                tensor.copy_(found.to(tensor))
                names.append(name)
    if not names:
        shown = "; ".join(f"{name}: {why}" for name, why in list(left.items())[:SHOWN])
        raise ModelError(f"--init teacher: nothing of the teacher fits the student ({shown}): see --init-map")
    return Copied(names, left)


def freeze(network: Network, patterns: Sequence[str]) -> list[str]:
    """Stops parameters whose names match from learning; modules that are frozen whole stay in evaluation mode.

    Errors: ``UsageError`` for a pattern that nothing matches, and where nothing is left to learn.
    """
    parameters = dict(network.model.named_parameters())
    frozen: dict[str, None] = {}
    for pattern in patterns:
        matching = [name for name in parameters if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(f"--freeze {pattern!r} matches no parameter{nearest(pattern, parameters)}")
        frozen |= dict.fromkeys(matching)
    for name in frozen:
        parameters[name].requires_grad_(False)
    if len(frozen) == len(parameters) and frozen:
        raise UsageError("--freeze matches every parameter of the student: nothing is left to train")
    return list(frozen)


def keep_frozen_still(network: Network) -> None:
    """Modules without a parameter that learns stay in evaluation mode, so that their running means don't move."""
    still = []
    for path, module in network.model.named_modules():
        parameters = list(module.parameters())
        if path and parameters and not any(p.requires_grad for p in parameters):
            still.append(path)
    network.still = tuple(still)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
