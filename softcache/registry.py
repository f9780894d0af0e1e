"""From a spec to a component: ``"crop:pad=4"`` is the class in ``softcache/views/crop.py`` with ``pad=4``.

A component is the one public frozen dataclass of its file, and its fields are its options. Other packages add
components with entry points of the groups ``softcache.codecs``, ``softcache.losses``, ``softcache.losses.hints``,
``softcache.views``, ``softcache.models``, ``softcache.datasets``, ``softcache.exporting`` and ``softcache.tracking``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import decimal
import functools
import importlib
import importlib.metadata
import pathlib
import pkgutil
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from softcache.errors import UsageError, nearest
from softcache.userfile import named_object, told

NOUNS = {
    "codecs": "codec",
    "losses": "loss",
    "losses.hints": "hint loss",
    "views": "view recipe",
    "models": "model source",
    "datasets": "dataset",
    "tracking": "tracker",
    "exporting": "export format",
}
# Kinds whose components may be classes of a user's own, named ``my.py:Focal`` or ``python:package.module:Focal``. (The
# other kinds have a component called ``python``, which calls a function of the user's.)
CLASSES = ("codecs", "losses", "losses.hints")
_CODE = re.compile(r"(?:python:)?(.+?\.py:[^:,]+)(?::(.*))?|python:([^:]+:[^:,]+)(?::(.*))?", re.DOTALL)


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """Names of all components of a kind, sorted; imports none of them."""
    package = importlib.import_module(f"softcache.{kind}")
    own = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_") and not m.ispkg}
    return tuple(sorted(own | set(_plugins(kind))))


def component(kind: str, name: str) -> type:
    """The class of a component, by its name as ``split_spec`` gives it.

    Errors: ``UsageError`` with the nearest names where there is none, and for a class of a user's own that can't be
    imported or is no frozen dataclass.
    """
    return _own(kind, name) if kind in CLASSES and is_code(name) else _installed(kind, name)


def _own(kind: str, name: str) -> type:
    found, _ = named_object(name.removeprefix("python:"))
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise UsageError(f"{NOUNS[kind]} {name!r} is no dataclass: decorate a class with @dataclass(frozen=True)")
    if not found.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UsageError(f"{NOUNS[kind]} {name!r} is not frozen: decorate the class with @dataclass(frozen=True)")
    with told(f"{NOUNS[kind]} {name!r}"):
        typing.get_type_hints(found)
    return found


@functools.cache
def _installed(kind: str, name: str) -> type:
    if kind in CLASSES and name.endswith(".py"):
        raise UsageError(f"{name!r} names a file and no class in it: write {name}:NAME, or {name}:NAME:option=value")
    if name not in names(kind):
        raise UsageError(f"no {NOUNS[kind]} is called {name!r}{nearest(name, names(kind))}")
    plugins = _plugins(kind)
    if name in plugins:
        loaded = plugins[name].load()
        if not (isinstance(loaded, type) and dataclasses.is_dataclass(loaded)):
            raise UsageError(f"plugin {plugins[name].value} of {NOUNS[kind]} {name!r} is no dataclass")
        return loaded
    module = importlib.import_module(f"softcache.{kind}.{name}")
    found = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    assert len(found) == 1, f"softcache/{kind}/{name}.py must have one public dataclass, has {found}"
    return found[0]


def create(kind: str, spec: str) -> Any:
    """An instance from ``name`` or ``name:option=value,option=value``; the name may be code, as ``split_spec`` says.

    Errors: ``UsageError`` for an unknown name or option and for a value of the wrong type.
    """
    name, rest = split_component(spec) if kind in CLASSES else split_spec(spec)
    return build(kind, name, rest, spec)


def build(kind: str, name: str, rest: str, spec: str | None = None) -> Any:
    """An instance of ``name`` with the options in ``rest``.

    They are written ``"pad=4,fill=0"``. A component with a ``rest`` field takes the text as it is, a path for example,
    and its options, if it has others, follow it: ``"/data/pets,test_fraction=0.2"``.
    """
    cls, owner = component(kind, name), f"{NOUNS[kind]} {name!r}"
    whole = [f.name for f in dataclasses.fields(cls) if f.metadata.get("rest")]
    if not whole:
        return cls(**typed_options(cls, parse_options(rest, spec or name), owner))
    known = {f.name for f in dataclasses.fields(cls)} - set(whole)
    text, options = _options_at_the_end(rest, known, spec or name)
    if not text:
        raise UsageError(f"{owner} needs something after the colon: {name}:{whole[0].upper()}")
    return cls(**typed_options(cls, options, owner, **{whole[0]: text}))


def split_spec(spec: str) -> tuple[str, str]:
    """``"a:b:c"`` → ``("a", "b:c")``."""
    name, _, rest = spec.partition(":")
    return name.strip(), rest.strip()


def split_component(spec: str) -> tuple[str, str]:
    """Name and options of a component of one of the ``CLASSES``, whose name may be code.

    ``"kl:T=2"`` → ``("kl", "T=2")``; ``"my.py:Focal:gamma=2"`` → ``("python:/absolute/my.py:Focal", "gamma=2")``;
    ``"python:package.module:Focal"`` → ``("python:package.module:Focal", "")``. Nothing is imported.
    """
    found = _CODE.fullmatch(spec.strip())
    if found is None:
        return split_spec(spec)
    if found[3]:
        return f"python:{found[3].strip()}", (found[4] or "").strip()
    place, _, name = found[1].rpartition(":")
    return f"python:{pathlib.Path(place).expanduser().resolve()}:{name.strip()}", (found[2] or "").strip()


def is_code(spec: str) -> bool:
    """Whether a spec of one of the ``CLASSES`` names code of a user's own."""
    return _CODE.fullmatch(spec.strip()) is not None


def parse_options(rest: str, spec: str) -> dict[str, str]:
    """``"a=1,b=2"`` → ``{"a": "1", "b": "2"}``."""
    options: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise UsageError(f"{spec!r}: {item!r} is not option=value")
        if key in options:
            raise UsageError(f"{spec!r} gives {key!r} twice")
        options[key] = value
    return options


def _options_at_the_end(text: str, known: set[str], spec: str) -> tuple[str, dict[str, str]]:
    """``"/a,b,fraction=1"`` → ``("/a,b", {"fraction": "1"})``: only a known option's name ends a path."""
    options: dict[str, str] = {}
    while True:
        head, comma, tail = text.rpartition(",")
        key, equals, value = (part.strip() for part in tail.partition("="))
        if not comma or not equals or key not in known:
            return text.strip(), options
        if key in options:
            raise UsageError(f"{spec!r} gives {key!r} twice")
        text, options[key] = head, value


def typed_options(cls: type, options: dict[str, str], owner: str, **others: Any) -> dict[str, Any]:
    """Option strings turned into the types of a dataclass's fields; ``others``: fields that have their value."""
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    typed = dict(others)
    for key, text in options.items():
        if key not in fields:
            known = nearest(key, fields) if fields else ": it has none"
            raise UsageError(f"{owner} has no option {key!r}{known}")
        try:
            typed[key] = _value(hints[key], text)
        except ValueError:
            raise UsageError(f"{owner}: {key}={text!r} is not {_describe(hints[key])}") from None
    try:
        with told(owner):
            cls(**typed)
    except UsageError as error:
        if isinstance(error.__cause__, TypeError):  # a field without a default was not given
            raise UsageError(f"{owner}: {error.__cause__}") from None
        raise
    return typed


def guarded(name: str, owner: str) -> contextlib.AbstractContextManager[None]:
    """Within it, what a component of a user's own raises becomes a ``UsageError`` of one line."""
    return told(owner) if is_code(name) else contextlib.nullcontext()


def check_attributes(cls: type, names: Iterable[str], owner: str) -> None:
    """Errors: ``UsageError`` that names the attributes and methods which a class of a user's own lacks."""
    own = {name for base in cls.__mro__ if base is not object for name in vars(base)}
    if missing := [name for name in names if name not in own]:
        raise UsageError(f"{owner} lacks {', '.join(missing)}: docs/losses.md says what a class of your own must have")


def canonical(name: str, instance: Any) -> str:
    """The spec that gives this instance again, with every option spelled out, for manifests."""
    parts: list[str] = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if field.metadata.get("rest"):
            parts.insert(0, str(value))
        elif value is not None:
            parts.append(f"{field.name}={_text(value)}")
    return name + (":" + ",".join(parts) if parts else "")


@functools.cache
def _plugins(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=f"softcache.{kind}")}


def _value(hint: Any, text: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return None if text.lower() == "none" else _value(inner[0], text)
    if typing.get_origin(hint) is tuple:  # a range, "0.08-1"
        kinds = typing.get_args(hint)
        parts = text.split("-")
        if len(parts) != len(kinds):
            raise ValueError(text)
        return tuple(_value(kind, part) for kind, part in zip(kinds, parts, strict=True))
    if hint is bool:
        if text.lower() in ("true", "yes", "1"):
            return True
        if text.lower() in ("false", "no", "0"):
            return False
        raise ValueError(text)
    return hint(text)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _describe(typing.get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        return "a range such as 0.08-1"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "valid")


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        # positional, because 5e-05-1 would be three parts
        return "-".join(format(decimal.Decimal(_text(part)), "f") for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
