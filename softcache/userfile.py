"""A user's ``.py`` file as a module of its own, which replaces no other one and which other processes find too.

A module of this name stands for a file: ``softcache.userfile.<sha256 of the content>_<path in hexadecimal>``. So files
of one name don't meet, an edited file is another module, and a worker that was spawned can import what it unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from softcache.errors import SoftcacheError, UsageError, nearest

__path__: list[str] = []  # modules that have this can have others below them


def load_file(path: Path) -> ModuleType:
    """The module of a file, run once for each content.

    Errors: ``FileNotFoundError``, and whatever the file raises; it is run anew then when it is asked for again.
    """
    path = path.resolve()
    return importlib.import_module(f"{__name__}.{_sha(path)}_{os.fsencode(path).hex()}")


def is_module_of_file(name: str) -> bool:
    """Whether a module of this name stands for a user's file.

    >>> is_module_of_file("softcache.userfile.0123456789abcdef_2f78"), is_module_of_file("softcache.userfile")
    (True, False)
    """
    return name.startswith(f"{__name__}.")


def named_object(target: str) -> tuple[Any, str]:
    """What ``package.module:NAME`` or ``path/to/file.py:NAME`` names, and the same with the file's path made absolute.

    A file can import its neighbours, but none of them in place of a module that can be had without them. Errors:
    ``UsageError`` for a file, module or name that is not there, and for a file or module that fails.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{target!r} is not package.module:NAME or path/to/file.py:NAME")
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise UsageError(f"no file at {path}")
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        place = str(path)
    elif "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script doesn't look into the current folder by itself
    try:
        module = load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
        if isinstance(error, ModuleNotFoundError) and not place.endswith(".py"):
            raise UsageError(f"python:{target}: no module is called {error.name!r}") from None
        raise UsageError(f"{place} can't be imported: {one_line(error)}") from error
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{place} has no {name!r}{nearest(name, public)}")
    return getattr(module, name), f"{place}:{name}"


def code_sha(target: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the file or module that ``named_object`` finds."""
    place = target.rpartition(":")[0]
    if place.endswith(".py"):
        return _sha(Path(place).expanduser().resolve())
    found = importlib.util.find_spec(place)
    if found is None or found.origin is None or not os.path.isfile(found.origin):
        raise UsageError(f"python:{target}: the module has no file")
    return _sha(Path(found.origin))


def one_line(error: BaseException) -> str:
    """``"ValueError: what it says"``, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


@contextlib.contextmanager
def told(owner: str) -> Iterator[None]:
    """What a user's code raises becomes a ``UsageError`` of one line that begins with ``owner``."""
    try:
        yield
    except SoftcacheError:
        raise
    except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
        raise UsageError(f"{owner} failed: {one_line(error)}") from error


class _Finder:
    """From a module's name to its file, for the import system."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent != __name__:
            return None
        sha, _, place = name.partition("_")
        file = Path(os.fsdecode(bytes.fromhex(place)))
        if _sha(file) != sha:
            raise ImportError(f"{file} was changed since it was first read: start again")
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, str(file)))


class _Loader(SourceFileLoader):
    """Compiles what is there: compiled files are told apart by whole seconds, which an edit may not take."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


sys.meta_path.append(_Finder)
