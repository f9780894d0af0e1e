"""A user's ``.py`` file as a module of its own, which replaces no other one and which other processes find too.

A module of this name stands for a file: ``softcache.userfile.<sha256 of the content>_<path in hexadecimal>``. So files
of one name don't meet, an edited file is another module, and a worker that was spawned can import what it unpickles.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

__path__: list[str] = []  # modules that have this can have others below them


def load_file(path: Path) -> ModuleType:
    """The module of a file, run once for each content.

    Errors: ``FileNotFoundError``, and whatever the file raises; it is run anew then when it is asked for again.
    """
    path = path.resolve()
    return importlib.import_module(f"{__name__}.{_sha(path)}_{os.fsencode(path).hex()}")


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
