"""From ``--hint`` to the modules that are trained beside the student."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from softcache.console import say, size
from softcache.errors import ModelError
from softcache.losses.hints._spec import HintModule, HintTerm
from softcache.models._hooks import classifier_path
from softcache.models._network import Network
from softcache.models._through import Through
from softcache.stages.options import TrainConfig
from softcache.stages.sources import Source
from softcache.training.guide import Guide, probe, watched

REGRESSORS_FILE = "regressors.safetensors"


def build_guide(
    network: Network,
    config: TrainConfig,
    source: Source,
    rows: np.ndarray,
    visible: np.ndarray,
    teacher: Network | None,
) -> Guide | None:
    """The hint terms with modules that fit student and teacher; a term that answers in the student's place
    (``simkd``) wraps the student's architecture.

    ``rows``: those that are trained on; ``visible`` (N,): labels that may be used, else -1. Errors: ``ModelError`` for
    a layer that the student doesn't have, ``UsageError`` for shapes that a loss can't use.
    """
    terms = config.hint_terms()
    if not terms:
        return None
    shapes, events = probe(network, watched(terms), source.viewed.clean(np.arange(2) % len(source.viewed)))
    modules: list[HintModule] = []
    for term in terms:
        extras: dict[str, Any] = {"row_labels": torch.from_numpy(visible[rows].astype(np.int64))}
        if "teacher_classifier" in term.extras:
            extras["teacher_classifier"] = _classifier(term, teacher)
        bank = getattr(term.loss, "bank_bytes", None)
        if bank is not None:
            say(f"hint loss {term.name!r} keeps {size(bank(len(rows)))} of memory banks for {len(rows):,} rows")
        module = term.build(
            [shapes[layer] for layer in term.student],
            source.hint_shapes(term.teacher),
            rows=len(rows),
            classes=source.classes(),
            seed=config.seed,
            **extras,
        )
        if term.replaces_logits:
            classifier = extras["teacher_classifier"]
            learning: Any = module.parts[-1]
            network.model = Through(network.model, term.student[0], learning.projector, classifier, size=learning.size)
        modules.append(module)
    return Guide(terms, modules, rows, len(source.viewed), events)


def _classifier(term: HintTerm, teacher: Network | None) -> nn.Linear:
    """A copy of the layer that makes the teacher's logits."""
    assert teacher is not None
    path = classifier_path(teacher.model, teacher.classes)
    found = teacher.model.get_submodule(path)
    if not isinstance(found, nn.Linear):
        raise ModelError(f"hint loss {term.name!r} needs a linear classifier, {path} of the teacher is {found}")
    copied = nn.Linear(found.in_features, found.out_features, bias=found.bias is not None)
    copied.load_state_dict(found.state_dict())
    return copied
