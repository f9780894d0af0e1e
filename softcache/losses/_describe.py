"""What losses there are, for tables and pages."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable
from dataclasses import dataclass

from softcache import registry
from softcache.errors import UsageError, nearest
from softcache.losses._contract import Kind
from softcache.losses._loss import Loss, loss_type
from softcache.losses.hints._hint_loss import HintLoss, hint_loss_type


@dataclass(frozen=True)
class LossRow:
    """One loss. ``kind`` is the option that takes it, "loss" or "hint"; ``T`` is "" where it has none. ``beside``:
    alpha and beta where neither is given, "" for a hint loss. ``scope``: "samples" or "batch", see ``Scope``.

    ``command`` trains with the weights of the paper; ``description`` is the text that its class is documented with. A
    class of a user's own may leave formula, source and description empty.
    """

    kind: str
    name: str
    formula: str
    options: tuple[str, ...]
    needs: str
    scope: str
    weight: str
    beside: str
    T: str
    source: str
    command: str
    description: str


def describe_losses() -> list[LossRow]:
    """A row for each loss on outputs, then for each loss on activations, by name.

    >>> [row.T for row in describe_losses() if row.name == "kl"]
    ['4']
    """
    return [
        *(_of_loss(name, loss_type(name)) for name in registry.names("losses")),
        *(_of_hint_loss(name, hint_loss_type(name)) for name in registry.names("losses.hints")),
    ]


def describe_loss(name: str) -> list[LossRow]:
    """The rows of one name: a loss on outputs, one on activations, or both (``rkd``). ``name`` may be code of a user's
    own, such as ``my.py:Focal``.

    Errors: ``UsageError`` with the nearest names where there is none, and for a class that doesn't keep its contract.

    >>> [row.command for row in describe_loss("dkd")]
    ['softcache train --loss dkd']
    """
    if registry.is_code(name) or name.endswith(".py"):
        return [_describe_own(name)]
    rows = []
    if name in registry.names("losses"):
        rows.append(_of_loss(name, loss_type(name)))
    if name in registry.names("losses.hints"):
        rows.append(_of_hint_loss(name, hint_loss_type(name)))
    if rows:
        return rows
    known = (*registry.names("losses"), *registry.names("losses.hints"))
    raise UsageError(f"no loss or hint loss is called {name!r}{nearest(name, known)}")


def _describe_own(spec: str) -> LossRow:
    name, options = registry.split_component(spec)
    if options:
        raise UsageError(f"{spec!r} has options: leave them out, a loss is described with its defaults")
    cls = registry.component("losses", name)
    called = any("__call__" in vars(base) for base in cls.__mro__)  # as a loss on outputs is, and a hint loss isn't
    if hasattr(cls, "build") and not called:
        return _of_hint_loss(spec, hint_loss_type(name))
    return _of_loss(spec, loss_type(name))


def _of_loss(name: str, cls: type[Loss]) -> LossRow:
    T = "" if cls.default_T is None else f"{cls.default_T:g}"
    takes = " or ".join(kind for kind in typing.get_args(Kind) if kind in cls.kinds)
    beside = f"{cls.default_alpha:g}, {cls.default_beta:g}"
    return _row("loss", name, cls, takes=takes, needs=cls.needs - {"vectors"}, beside=beside, T=T)


def _of_hint_loss(name: str, cls: type[HintLoss]) -> LossRow:
    takes = next((shape for shape in ("maps", "vectors") if shape in cls.needs), "any shape")
    return _row("hint", name, cls, takes=takes, needs=cls.needs - {"maps", "vectors"})


def _row(
    kind: str,
    name: str,
    cls: type[Loss] | type[HintLoss],
    *,
    takes: str,
    needs: Iterable[str],
    beside: str = "",
    T: str = "",
) -> LossRow:
    return LossRow(
        kind=kind,
        name=name,
        formula=cls.formula,
        options=tuple(f"{f.name}={_default(f)}" for f in dataclasses.fields(cls)),
        needs=", ".join([takes, *sorted(needs)]),
        scope=cls.scope,
        weight=cls.default_weight,
        beside=beside,
        T=T,
        source=cls.source,
        command=f"softcache train {cls.example or _plain(kind, name)}",
        description=_documented(cls),
    )


def _plain(kind: str, name: str) -> str:
    return f"--{kind} {name}" + (":teacher=LAYER,student=LAYER" if kind == "hint" else "")


def _documented(cls: type) -> str:
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n>>> ")[0].strip()
    return "" if text.startswith(f"{cls.__name__}(") else text  # the signature that a dataclass without a text gets


def _default(field: dataclasses.Field[object]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "(required)"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
