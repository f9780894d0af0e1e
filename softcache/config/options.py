"""The options of a command as a typed dataclass, and a command as a function that takes them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from softcache.errors import UsageError, nearest

P = ParamSpec("P")
Config = TypeVar("Config", bound="Options")
Given = TypeVar("Given", contravariant=True)
Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a command was asked for: plain values of the types that the fields say.

    A path is taken where text is, and one value where several may be given. Errors: ``UsageError`` that names the
    option, for a value of another type.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for own in dataclasses.fields(self):
            object.__setattr__(self, own.name, _typed(hints[own.name], getattr(self, own.name), own.name))

    @classmethod
    def of(cls: type[Config], *arguments: Any, **options: Any) -> Config:
        """The options with these values; the others have their defaults.

        Errors: ``UsageError`` with the nearest names for an option that there isn't.
        """
        refuse_unknown(cls, options)
        positional = [own.name for own in dataclasses.fields(cls) if not own.kw_only]
        if len(arguments) > len(positional) or set(positional[: len(arguments)]) & set(options):
            raise UsageError(
                f"{cls.__name__} takes {' and '.join(positional)} by position and all others by name, once"
            )
        made = cls(*arguments, **options)
        object.__setattr__(made, "_given", frozenset([*positional[: len(arguments)], *options]))
        return made

    @property
    def given(self) -> frozenset[str]:
        """Names of the options that were given; where that isn't known, of those that differ from their default."""
        known: frozenset[str] | None = self.__dict__.get("_given")
        if known is not None:
            return known
        return frozenset(own.name for own in dataclasses.fields(self) if getattr(self, own.name) != own.default)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``of`` makes the same options of them."""
        values = {own.name: getattr(self, own.name) for own in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def refuse_unknown(cls: type[Options], options: Mapping[str, Any], where: str = "") -> None:
    """Errors: ``UsageError`` with the nearest names for an option that ``cls`` doesn't have. ``where``: of which file
    they are."""
    known = [own.name for own in dataclasses.fields(cls)]
    for name in options:
        if name not in known:
            raise UsageError(f"{where or cls.__name__} has no option {name!r}{nearest(name, known)}")


def refuse_seed(seed: int, option: str = "--seed", bits: int = 63) -> None:
    """Errors: ``UsageError`` for a seed that no generator takes: it must be a whole number of so many bits."""
    if not 0 <= seed < 1 << bits:
        raise UsageError(f"{option} must be from 0 to 2**{bits} - 1, is {seed}")


class Command(Protocol[P, Given, Result]):
    """A function of the Python API: it takes its options one by one, or all of them as one object."""

    @overload
    def __call__(self, config: Given, /) -> Result: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result: ...


def command(
    options: Callable[P, Config],
) -> Callable[[Callable[[Config], Result]], Command[P, Config, Result]]:
    """Makes a function of one options object a function of the options, which editors then list with their types."""

    def decorate(run: Callable[[Config], Result]) -> Command[P, Config, Result]:
        @functools.wraps(run)
        def call(*arguments: Any, **given: Any) -> Result:
            if len(arguments) == 1 and isinstance(arguments[0], Options):
                if given or type(arguments[0]) is not options:
                    kind = options.__name__
                    raise UsageError(f"got {type(arguments[0]).__name__}, must be one {kind}, or options one by one")
                return run(arguments[0])  # type: ignore[arg-type]
            return run(options.of(*arguments, **given))  # type: ignore[attr-defined]

        signature = inspect.signature(options)
        call.__signature__ = signature.replace(return_annotation=run.__annotations__.get("return"))  # type: ignore[attr-defined]
        return call

    return decorate


def _typed(hint: Any, value: Any, name: str) -> Any:
    """``value`` as the type that ``hint`` says: bool, int, float, str, a tuple of one of these, or a union."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            inner = typing.get_args(kind)
            many = value if isinstance(value, (list, tuple)) else (value,)
            fixed = len(inner) - (Ellipsis in inner)
            if Ellipsis in inner or len(many) == fixed:
                each = inner[:1] * len(many) if Ellipsis in inner else inner
                if all(_is(one, item) for one, item in zip(each, many, strict=True)):
                    return tuple(_plain(one, item) for one, item in zip(each, many, strict=True))
        elif kind is not type(None) and _is(kind, value):
            return _plain(kind, value)
    raise UsageError(f"--{name.replace('_', '-')} must be {_described(kinds)}, is {value!r}")


def _is(kind: Any, value: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    return isinstance(value, (str, os.PathLike))


def _plain(kind: Any, value: Any) -> Any:
    """Without NumPy's types and without ``Path``, so that it can be written as JSON."""
    return os.fspath(value) if kind is str else kind(value)


def _described(kinds: tuple[Any, ...]) -> str:
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "None"}
    found = []
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            inner = words[typing.get_args(kind)[0]]
            found.append(f"{inner.removeprefix('a ')} or a list of such")
        else:
            found.append(words[kind])
    return " or ".join(found)
