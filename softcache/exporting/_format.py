"""What ``softcache export`` asks of a format, and formats by their names."""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from softcache import registry
from softcache.errors import UsageError, nearest
from softcache.exporting._graph import Graph
from softcache.extras import missing_extra

# From the tensors of a graph's inputs, in their order, to its output, on the CPU.
Runner = Callable[[Sequence[Tensor]], Tensor]
Batches = Sequence[Sequence[Tensor]]  # each as a Runner takes it
DOCUMENT = "softcache.json"  # where a format keeps files beside the network, the name of what is said of it


class Format(abc.ABC):
    """What the one dataclass of a file in ``softcache/exporting`` is; its fields are the options that it has.

    suffix: of its files. computes: whether the file has the computation too; else it has parameters alone, and who
    loads it needs the class of the architecture. quantizes: whether it can have int8 numbers, and dynamic: also
    without calibration. needs: packages beside torch → the extra of softcache that has them; ``int8_needs`` for int8.
    """

    suffix: ClassVar[str]
    computes: ClassVar[bool] = True
    quantizes: ClassVar[bool] = False
    dynamic: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, str]] = {}
    int8_needs: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def write(self, graph: Graph, path: Path, document: Mapping[str, Any], calibration: Batches | None) -> None:
        """Writes the network and what is said of it, JSON values by name.

        calibration: None for a network as it is; else for one of int8 numbers, whose ranges of activations are those
        of these inputs, or are measured anew at each run where there are none.

        Errors: ``ModelError`` of one line where the format can't hold this network.
        """

    @abc.abstractmethod
    def load(self, path: Path, graph: Graph) -> Runner:
        """What the file computes, for comparison. It must be a file that this process has just written."""

    @abc.abstractmethod
    def usage(self, graph: Graph, file: str, *, int8: bool) -> str:
        """Python code that loads ``file`` and computes ``logits``, or the output's name, from variables that have the
        names of the graph's inputs: NumPy arrays. It doesn't import softcache where the file computes."""

    def beside(self, graph: Graph) -> Mapping[str, bytes]:
        """Other files of a folder that has this one, by name."""
        return {}


def format_names() -> tuple[str, ...]:
    """Names of all formats as commands take them: the names of their files, with dashes."""
    return tuple(name.replace("_", "-") for name in registry.names("exporting"))


def open_format(name: str, options: Mapping[str, Any], *, int8: bool) -> Format:
    """A format by its name. ``options``: those that were given, of which it takes what it has.

    Errors: ``UsageError`` for an unknown name, ``MissingExtraError`` where a package isn't installed.
    """
    found = format_class(name)
    for package, extra in {**found.needs, **(found.int8_needs if int8 else {})}.items():
        if importlib.util.find_spec(package) is None:
            what = f"--format {name}" + (" with --quantize int8" if package in found.int8_needs else "")
            raise missing_extra(f"{what} needs {package}", extra)
    known = {own.name for own in dataclasses.fields(cast(Any, found))}
    return found(**{key: value for key, value in options.items() if key in known})


def format_class(name: str) -> type[Format]:
    """Errors: ``UsageError`` with the nearest names for one that there isn't."""
    if name not in format_names():
        raise UsageError(f"no {registry.NOUNS['exporting']} is called {name!r}{nearest(name, format_names())}")
    return registry.component("exporting", name.replace("-", "_"))


def tensors_of(graph: Graph) -> str:
    """Python code of a call's arguments: torch tensors of the NumPy arrays that have the inputs' names."""
    return ", ".join(f"torch.from_numpy({given.name})" for given in graph.inputs)


def texts(document: Mapping[str, Any]) -> dict[str, str]:
    """What is said of a network for formats that keep texts by name: JSON, but for what is text already."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in document.items()
        if value is not None
    }
