"""What losses there are, for a table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from softcache import registry


@dataclass(frozen=True)
class LossRow:
    """One loss: ``kind`` is the option that takes it, "loss" or "hint"; ``T`` is "" where it has none."""

    kind: str
    name: str
    formula: str
    options: tuple[str, ...]
    needs: str
    weight: str
    T: str
    source: str


def describe_losses() -> list[LossRow]:
    """A row for each loss on logits, then for each on activations, by name."""
    rows = []
    for name in registry.names("losses"):
        cls = registry.component("losses", name)
        needs = "logits, labels" if cls.needs_labels else "logits"  # type: ignore[attr-defined]
        rows.append(_row("loss", name, cls, needs))
    for name in registry.names("losses.hints"):
        cls = registry.component("losses.hints", name)
        rows.append(_row("hint", name, cls, cls.needs))  # type: ignore[attr-defined]
    return rows


def _row(kind: str, name: str, cls: type, needs: str) -> LossRow:
    temperature = getattr(cls, "default_T", None)
    return LossRow(
        kind=kind,
        name=name,
        formula=cls.formula,  # type: ignore[attr-defined]
        options=tuple(f"{f.name}={_default(f)}" for f in dataclasses.fields(cls)),
        needs=needs,
        weight=str(cls.default_weight),  # type: ignore[attr-defined]
        T="" if temperature is None else f"{temperature:g}",
        source=cls.source,  # type: ignore[attr-defined]
    )


def _default(field: dataclasses.Field[object]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "(required)"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
