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
- ``vectors``: activations are compared as vectors (D). Maps and tokens are averaged over their positions.
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
    known = typing.get_args(Need)
    needs = vars(declared["needs"])["needs"]
    if not isinstance(needs, frozenset):
        raise UsageError(f"{owner}: needs must be a frozenset of {', '.join(known)}, found {needs!r:.60}")
    for need in needs:
        if need not in known:
            raise UsageError(f"{owner} needs {need!r}, which no training has{nearest(need, known)}")
