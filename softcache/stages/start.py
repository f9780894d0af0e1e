"""Where the student starts: from the teacher's parameters, as far as they fit, and with which of them frozen."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from softcache.cache.reader import Cache
from softcache.console import say
from softcache.errors import ModelError, UsageError, nearest
from softcache.models._hooks import find_module
from softcache.models._network import Network
from softcache.models._weights import fingerprint
from softcache.stages.options import TrainConfig
from softcache.stages.places import find_teacher
from softcache.stages.sources import Source
from softcache.stages.trust import recorded_teacher

SHOWN = 4


@dataclass(frozen=True)
class Copied:
    """Names of the student's tensors that were copied, and the others, each with why it wasn't."""

    names: list[str]
    left: dict[str, str]


def prepare_student(
    network: Network, config: TrainConfig, teacher: Network | None, begun: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Copies and freezes what was asked for; returns what a run's ``config.json`` records of the start.

    ``begun``: that record, of a run that goes on from a checkpoint and has its start behind it.
    """
    if begun is not None:
        freeze(network, config.freeze)
        return begun
    record: dict[str, Any] = {"seed": config.seed, "weights": config.weights}
    if config.copies:
        assert teacher is not None
        pairs = dict(_pair(text) for text in config.init_map)
        copied = copy_parameters(network.model, teacher.model, pairs)
        shown = [f"{name} ({why})" for name, why in list(copied.left.items())[:SHOWN]]
        rest = f"; not: {', '.join(shown)}{', …' if len(copied.left) > SHOWN else ''}" if shown else ""
        say(f"start from {teacher.spec}: {len(copied.names)} of {len(network.model.state_dict())} tensors copied{rest}")
        record |= {
            "teacher": teacher.spec,
            "teacher_sha256": fingerprint(teacher.model.state_dict()),
            "map": pairs,
            "copied": copied.names,
            "left": copied.left,
        }
    frozen = freeze(network, config.freeze)
    if frozen:
        say(f"frozen: {len(frozen)} parameters")
        record["frozen"] = frozen
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


def open_teacher(config: TrainConfig, source: Source, *, begun: bool = False) -> Network | None:
    """The teacher's network, where an option needs it: the live one, the one that is named, or the cache's own.

    ``begun``: whether the student has its start behind it, so that there is nothing to copy.
    Errors: ``ModelError`` where it can't be found any more, or isn't what the cache was made with.
    """
    needed = config.needs_teacher()
    if needed is None or (begun and needed == "--init teacher"):
        return None
    if source.live is not None:
        return source.live
    samples = source.viewed.samples
    caches = source.all_caches
    if config.teacher is not None:
        network = find_teacher(config.teacher, samples, weights=config.teacher_weights)
        if needed.startswith("--hint"):
            _check_own(network, caches, config.teacher)
        return network
    spec = recorded_teacher(caches[0])
    try:
        network = find_teacher(spec, samples, weights=config.teacher_weights)
    except (ModelError, UsageError) as error:
        raise ModelError(
            f"{needed} needs the parameters of {spec}, the teacher of {caches[0].folder}: name it with --teacher, or "
            f"its file with --teacher-weights ({error})"
        ) from None
    _check_own(network, caches, spec)
    return network


def _check_own(network: Network, caches: Sequence[Cache], spec: str) -> None:
    found = fingerprint(network.model.state_dict())
    if all(cache.manifest.identity.teacher.weights != found for cache in caches):
        raise ModelError(
            f"{spec} has parameters {found[:12]}…, {caches[0].folder} was made with "
            f"{caches[0].manifest.identity.teacher.weights[:12]}…: give those with --teacher or --teacher-weights"
        )


def _pair(text: str) -> tuple[str, str]:
    student, _, teacher = text.partition("=")
    return student.strip(), teacher.strip()


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
