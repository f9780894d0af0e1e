"""What losses there are, for tables and pages."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass

from softcache import registry
from softcache.errors import UsageError, nearest
from softcache.losses._loss import Loss, loss_type
from softcache.losses.hints._hint_loss import HintLoss, hint_loss_type


@dataclass(frozen=True)
class LossRow:
    """One loss. ``kind`` is the option that takes it, "loss" or "hint"; ``T`` is "" where it has none. ``beside``:
    alpha and beta where neither is given, "" for a hint loss.

    ``command`` trains with the weights of the paper; ``description`` is the text that its class is documented with. A
    class of a user's own may leave formula, source and description empty.
    """

    kind: str
    name: str
    formula: str
    options: tuple[str, ...]
    needs: str
    weight: str
    beside: str
    T: str
    source: str
    command: str
    description: str


def describe_losses() -> list[LossRow]:
    """A row for each loss on logits, then for each loss on activations, by name.

    >>> [row.T for row in describe_losses() if row.name == "kl"]
    ['4']
    """
    return [describe_loss(name) for name in (*registry.names("losses"), *registry.names("losses.hints"))]


def describe_loss(name: str) -> LossRow:
    """The row of one loss of either kind; ``name`` may be code of a user's own, such as ``my.py:Focal``.

    Errors: ``UsageError`` with the nearest names where there is none, and for a class that doesn't keep its contract.

    >>> describe_loss("dkd").command
    'softcache train --loss dkd'
    """
    if registry.is_code(name) or name.endswith(".py"):
        return _describe_own(name)
    if name in registry.names("losses"):
        return _of_loss(name, loss_type(name))
    if name in registry.names("losses.hints"):
        return _row("hint", name, hint_loss_type(name))
    known = (*registry.names("losses"), *registry.names("losses.hints"))
    raise UsageError(f"no loss or hint loss is called {name!r}{nearest(name, known)}")


def _describe_own(spec: str) -> LossRow:
    name, options = registry.split_component(spec)
    if options:
        raise UsageError(f"{spec!r} has options: leave them out, a loss is described with its defaults")
    if hasattr(registry.component("losses", name), "build"):  # what the contract of hint losses asks for
        return _row("hint", spec, hint_loss_type(name))
    return _of_loss(spec, loss_type(name))


def _of_loss(name: str, cls: type[Loss]) -> LossRow:
    T = "" if cls.default_T is None else f"{cls.default_T:g}"
    return _row("loss", name, cls, beside=f"{cls.default_alpha:g}, {cls.default_beta:g}", T=T)


def _row(kind: str, name: str, cls: type[Loss] | type[HintLoss], *, beside: str = "", T: str = "") -> LossRow:
    return LossRow(
        kind=kind,
        name=name,
        formula=cls.formula,
        options=tuple(f"{f.name}={_default(f)}" for f in dataclasses.fields(cls)),
        needs=_needs(kind, cls.needs),
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


def _needs(kind: str, needs: frozenset[str]) -> str:
    shapes = {"maps", "vectors"}
    first = ["logits"] if kind == "loss" else sorted(needs & shapes) or ["any shape"]
    return ", ".join([*first, *sorted(needs - shapes)])


def _default(field: dataclasses.Field[object]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "(required)"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
