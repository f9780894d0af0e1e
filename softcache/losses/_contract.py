"""The words that say what a loss needs, and the check that a class declares what its contract asks for."""

from __future__ import annotations

import inspect
import typing
from typing import Literal

from softcache.errors import UsageError, nearest

Need = Literal["labels", "positions", "row labels", "teacher classifier", "maps", "vectors"]
"""What a loss needs beside the logits or activations of both sides.

- ``labels``: the labels of the batch, (B,) int64, -1 for a sample without a label that may be used.
- ``positions``: the positions of the batch's samples among the rows that are trained on, (B,) int64, from 0 to
  ``row_count - 1``. A position is not a row of the dataset: rows that are held out are not counted.
- ``row labels``: the labels of all rows that are trained on, (row_count,) int64, given when the loss is built.
- ``teacher classifier``: the ``nn.Linear`` that makes the teacher's logits, given when the loss is built.
- ``maps``: activations are compared as maps (C, H, W). Tokens (L, D) are a map of one column, a vector is a map of
  one pixel.
- ``vectors``: activations or outputs are compared as vectors (D), one a sample. Those with positions are averaged over
  them.
"""


Kind = Literal["classes", "binary", "values"]
"""What the last axis of an output is: ``classes`` (logits of one softmax), ``binary`` (logits of a sigmoid each) or
``values`` (neither: embeddings, regressions)."""


Scope = Literal["samples", "batch"]
"""What the value of a loss depends on.

- ``samples``: it is a mean of something that each sample has alone, of a loss that needs ``labels`` over the labelled
  samples. Means of the parts of a batch, weighted by their counts, are then that of the whole batch.
- ``batch``: it relates the samples of a batch. Several ranks give it the whole batch; with ``--accumulate`` it sees one
  batch at a time.
"""


def check_contract(cls: type, contract: type, method: str, owner: str) -> None:
    """Compares a component's class with the protocol of its kind; ``method`` is what the class must define itself.

    Errors: ``UsageError`` that names what the class doesn't declare, or a need that no training can meet.
    """
    declared = {name: base for base in reversed(cls.__mro__) if base is not object for name in vars(base)}
    functions = [name for name, value in vars(contract).items() if inspect.isfunction(value)]
    public = [name for name in (*typing.get_type_hints(contract), *functions) if not name.startswith("_")]
    missing = [name for name in public if name not in declared]
    if method not in missing and declared.get(method, contract) is contract:
        missing.append(method)
    if missing:
        home = contract.__module__.rpartition(".")[0]
        raise UsageError(
            f"{owner} lacks {', '.join(missing)}: add what is missing, or inherit the defaults of "
            f"{home}.{contract.__name__}"
        )
    needs = _words(declared, "needs", typing.get_args(Need), owner)
    for need in needs - set(typing.get_args(Need)):
        raise UsageError(f"{owner} needs {need!r}, which no training has{nearest(need, typing.get_args(Need))}")
    scope = vars(declared["scope"])["scope"]
    if scope not in typing.get_args(Scope):
        raise UsageError(f"{owner}: scope must be one of {', '.join(typing.get_args(Scope))}, found {scope!r:.60}")
    if "kinds" in public:
        kinds, known = _words(declared, "kinds", typing.get_args(Kind), owner), typing.get_args(Kind)
        for kind in kinds - set(known):
            raise UsageError(f"{owner} takes outputs of kind {kind!r}, which there is not{nearest(kind, known)}")
        if not kinds:
            raise UsageError(f"{owner} takes outputs of no kind: kinds must have some of {', '.join(known)}")


def _words(declared: dict[str, type], name: str, known: tuple[str, ...], owner: str) -> frozenset[str]:
    found = vars(declared[name])[name]
    if not isinstance(found, frozenset):
        raise UsageError(f"{owner}: {name} must be a frozenset of {', '.join(known)}, found {found!r:.60}")
    return found
