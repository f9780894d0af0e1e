"""The teacher of a plan: its architecture without published parameters, which are never read or downloaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from softcache.config.plan import PlanConfig
from softcache.config.teachers import known_source
from softcache.datasets._samples import Samples
from softcache.dumping.forward import Forward
from softcache.dumping.shapes import Shapes, SignalShape
from softcache.dumping.signals import Signal
from softcache.models._network import Network
from softcache.models._open import named_weights, open_network
from softcache.views._open import Viewed

log = logging.getLogger(__name__)


def shapes_of(asked: PlanConfig, viewed: Viewed, signals: Sequence[Signal]) -> dict[str, SignalShape]:
    """What the teacher says of one key, by column: of a network without memory for parameters or, where it can't be run
    so (a function of arrays, code that looks at values), of one with random parameters.

    Errors: those of opening it; ``UsageError`` and ``ModelError`` for signals that it doesn't have.
    """
    columns = [signal.column for signal in signals]
    try:
        network = open_untrained(asked, viewed.samples, skeleton=True).eval()
        shapes = Shapes(Forward(network, columns, torch.device("meta")), viewed, signals)
        return {signal.column: shapes.find(signal) for signal in signals}
    except Exception as error:  # the other way says what is wrong, if it isn't this one
        log.debug(f"shapes are found with random parameters: {' '.join(str(error).split())}")
    network = open_untrained(asked, viewed.samples, skeleton=False).eval()
    shapes = Shapes(Forward(network, columns, torch.device("cpu")), viewed, signals)
    return {signal.column: shapes.find(signal) for signal in signals}


def open_untrained(asked: PlanConfig, samples: Samples, *, skeleton: bool) -> Network:
    """The teacher as ``dump`` would find it, with random parameters, but for a folder's, which are there. ``skeleton``:
    without any, as ``open_network`` has it."""
    teacher = asked.dump.teacher
    spec, weights = known_source(teacher, samples) or (teacher, None)
    known = None if weights is None else named_weights(spec, weights)
    return open_network(
        spec,
        classes=len(samples.classes) or (known.classes if known else None),
        class_names=samples.classes,
        statistics=samples.statistics,
        weights=weights if skeleton else None,  # a skeleton knows their classes and loads none
        size=asked.teacher_size or (known.size if known else None),
        seed=0,
        pictures=samples.pictures,
        skeleton=skeleton,
    )
