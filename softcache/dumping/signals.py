"""What of a teacher's answer is kept: ``--output`` and ``--hint`` of ``softcache dump``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from softcache.cache.compression import parse_compression
from softcache.cache.manifest import is_column
from softcache.cache.schema import KINDS, LOGITS, hint_column, is_hint
from softcache.errors import UsageError, nearest

NO_OUTPUT = "none"
UNCOMPRESSED = "none"
_OF_LAYER = re.compile(r"(?::(?:pool|rows)=[^:=]*)+$")  # which belongs to its name


@dataclass(frozen=True)
class Signal:
    """``column``: its name in the cache. ``kind``: of its last axis, ``codec``: its spec; None where nobody says."""

    column: str
    kind: str | None
    codec: str | None = None

    @property
    def option(self) -> str:
        """What asks for it on the command line, without its codec."""
        if is_hint(self.column):
            return f"--hint {self.column.removeprefix('hint.')}"
        return f"--output {self.column}" + (f":kind={self.kind}" if self.kind not in (None, "classes") else "")


def parse_output(spec: str) -> Signal:
    """``NAME``, ``NAME:kind=values``, ``NAME:kind=binary:codec=fp32``; a codec comes last, as it may have options.

    ``logits`` are of the kind of the dataset's labels where nobody says, others ``values``. Errors: ``UsageError`` for
    what can't be a name, and for an unknown kind or option.

    >>> parse_output("embedding:kind=values:codec=bf16")
    Signal(column='embedding', kind='values', codec='bf16')
    """
    name, kind, codec = _split(spec, "--output")
    kind = kind or (None if name == LOGITS else "values")
    if is_hint(name) or not is_column(name) or name == NO_OUTPUT:
        raise UsageError(f"--output {spec}: {name!r} can't be the name of an output: letters, digits and _")
    if kind not in (None, *KINDS):
        raise UsageError(f"--output {spec}: kind {kind!r} is unknown{nearest(str(kind), KINDS)}")
    return Signal(name, kind, codec)


def parse_hint(spec: str) -> Signal:
    """``layer3``, ``fc:in``, ``layer3:codec=bf16``; ``layer3:pool=7`` and ``layer3:rows=0.25`` are other signals than
    ``layer3``.

    Errors: ``UsageError`` for what can't be a module's path.

    >>> parse_hint("fc:in:codec=fp32")
    Signal(column='hint.fc:in', kind='values', codec='fp32')
    >>> parse_hint("layer3:pool=7:rows=0.25:codec=int8").column
    'hint.layer3:pool=7:rows=0.25'
    """
    layer, kind, codec = _split(spec, "--hint")
    if kind is not None:
        raise UsageError(f"--hint {spec}: activations are values, they have no other kind")
    column = hint_column(layer)
    if not is_column(column):
        raise UsageError(f"--hint {spec}: the path is too long to name files by it")
    return Signal(column, "values", codec)


def asked_signals(output: Sequence[str], hint: Sequence[str]) -> list[Signal]:
    """Errors: ``UsageError`` as the functions above; for one that is asked for twice in different ways, and for
    ``none`` beside other outputs."""
    if NO_OUTPUT in output and len(output) > 1:
        raise UsageError(f"--output {NO_OUTPUT} keeps no output, and others are asked for beside it")
    found: dict[str, Signal] = {}
    for signal in [*map(parse_output, (o for o in output if o != NO_OUTPUT)), *map(parse_hint, hint)]:
        if found.setdefault(signal.column, signal) != signal:
            raise UsageError(f"{signal.option} is asked for twice, in different ways")
    return list(found.values())


def asked_compressions(specs: Sequence[str]) -> dict[str, str]:
    """``zstd`` for all columns, ``NAME=zstd:level=3`` for one output or hint, ``NAME=none`` to leave it as it is → by
    the column's name, and by ``""`` for all that have none of their own.

    Errors: ``UsageError`` for what is no compression, and for two of one column.

    >>> asked_compressions(["zstd", "hint.layer3=none"])
    {'': 'zstd', 'hint.layer3': 'none'}
    """
    found: dict[str, str] = {}
    for spec in specs:
        column, asked = _of_column(spec)
        if asked != UNCOMPRESSED:
            parse_compression(asked)
        if found.setdefault(column, asked) != asked:
            raise UsageError(f"--compress says twice how {column or 'columns'} are kept: {found[column]} and {asked}")
    return found


def _of_column(spec: str) -> tuple[str, str]:
    """``hint.layer3:pool=7=zstd:level=3`` → the column's name and what is asked for it; ``zstd:level=3``, which begins
    with no column's name, → ``""`` and all of it."""
    places = [place for place, sign in enumerate(spec) if sign == "="]
    for place in reversed(places):  # a layer's name has equals signs too, and the longest name is meant
        if is_column(spec[:place].strip()):
            return spec[:place].strip(), spec[place + 1 :].strip()
    return "", spec.strip()


def _split(spec: str, option: str) -> tuple[str, str | None, str | None]:
    """Name, kind and codec."""
    rest, _, codec = spec.partition(":codec=")
    name, _, kind = rest.partition(":kind=")
    if "=" in (_OF_LAYER.sub("", name) if option == "--hint" else name):
        known = "pool=7, rows=0.25 and codec=, in this order" if option == "--hint" else "kind= and codec=, this last"
        raise UsageError(f"{option} {spec}: the options are {known}")
    if not name or (":codec=" in spec and not codec) or (":kind=" in spec and not kind):
        raise UsageError(f"{option} {spec}: a name or a value is missing")
    return name, kind or None, codec or None
