"""``python:package.module:factory`` or ``path/to/file.py:factory``: a user's own network."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from torch import nn

from softcache.errors import ModelError, UsageError, nearest
from softcache.models._array_model import ArrayModel
from softcache.models._source import Weights, only_files
from softcache.userfile import load_file


@dataclass(frozen=True)
class Python:
    """A callable in an importable module or in a file, which returns the network (a ``torch.nn.Module``), or a
    function of NumPy arrays that answers as a teacher (``ArrayModel``).

    It is called as ``factory(num_classes=classes)`` where it takes such an argument and their number is known, else
    without any, and should then return a network for that many classes. A file is imported under a name of its own;
    ``sys.path`` stays as it is, so that the file can import installed packages but not its neighbours. Paths
    are made absolute.
    """

    factory: str = field(metadata={"rest": True})

    any_channels: ClassVar[bool] = False
    pure: ClassVar[bool] = False

    def __post_init__(self) -> None:
        place, colon, name = self.factory.rpartition(":")
        if not colon or not place or not name:
            raise UsageError(f"{self.factory!r} is not package.module:factory or path/to/file.py:factory")
        if place.endswith(".py"):
            object.__setattr__(self, "factory", f"{Path(place).expanduser().resolve()}:{name}")

    def build(self, classes: int, size: int | None = None) -> nn.Module:
        """See ``NetworkSource.build``; the size changes nothing.

        Errors: ``ModelError`` where the factory can't be imported, fails, or returns something else.
        """
        place, _, name = self.factory.rpartition(":")
        module = _file(Path(place)) if place.endswith(".py") else _module(place)
        factory = getattr(module, name, None)
        if not callable(factory):
            public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise ModelError(f"{place} has no function {name!r}{nearest(name, public)}")
        try:
            network = factory(num_classes=classes) if classes and takes_classes(factory) else factory()
        except Exception as error:
            raise ModelError(f"{self.factory} raised {type(error).__name__}: {_line(error)}") from error
        if isinstance(network, nn.Module):
            return network
        if callable(network):
            return ArrayModel(network, self.factory)
        raise ModelError(f"{self.factory} returned {type(network).__name__}, neither a torch.nn.Module nor a function")

    def input_size(self, size: int | None = None) -> tuple[int | None, int]:
        """See ``NetworkSource.input_size``."""
        return size, 1

    def weights(self, weights: str) -> Weights:
        """See ``NetworkSource.weights``; only files."""
        return only_files(weights, self.factory)


def takes_classes(factory: Callable[..., Any]) -> bool:
    """Whether a factory is called with ``num_classes``."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature
        return False
    return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ModelError(
            f"{name} can't be imported ({type(error).__name__}: {_line(error)}): is it installed here? "
            "For a file give path/to/file.py:factory"
        ) from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"no file {path}")
    try:
        return load_file(path)
    except Exception as error:
        raise ModelError(f"{path} can't be imported: {type(error).__name__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
