"""What ``open_network`` asks of a source of architectures, and the parameters that a source can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from softcache import registry
from softcache.errors import ModelError
from softcache.models._checkpoint import load_state, looks_like_file, recorded_description
from softcache.models._preprocess import Preprocess, Statistics


@dataclass(frozen=True)
class Weights:
    """Parameters that are known by name or file, read when ``load`` is called.

    title: what messages call them.
    path: the file that ``load`` reads, where that is known; a download's place in the cache before it is
        there.
    classes, statistics, trained_size: what is known of them without loading; ``None`` where nothing is, 0 classes
        for networks whose outputs are no logits of classes.
    size: the only input size that they work for, where there is one.
    class_names: what their outputs stand for, where a file of softcache's, or a model of transformers, says it.
    base: begins the names of all parameters that are not the classifier's, where that is known (``bert``): the others
        may be missing where a new classifier is trained.
    """

    title: str
    load: Callable[[], Mapping[str, Tensor]]
    path: Path | None = None
    classes: int | None = None
    statistics: Statistics | None = None
    trained_size: int | None = None
    size: int | None = None
    class_names: tuple[str, ...] | None = None
    base: str | None = None


class NetworkSource(Protocol):
    """The one dataclass of a file in ``softcache/models``: its field names an architecture.

    any_channels: whether the first convolution of what it builds may be replaced, for pictures of other than 1 or 3
        channels. Where it is false, a network takes the channels that it was made for.
    pure: whether a forward pass of what it builds depends on nothing but its inputs, parameters, buffers and torch's
        random numbers, so that a recording of one can stand for all (``training.graph``).
    """

    any_channels: ClassVar[bool]
    pure: ClassVar[bool]

    def build(self, classes: int, size: int | None = None) -> nn.Module:
        """The architecture with random parameters and ``classes`` outputs.

        size: the side of its input, for architectures that fix it when they are built; ``None``: their usual
            one.
        """
        ...

    def input_size(self, size: int | None = None) -> tuple[int | None, int]:
        """The one side of the input of what ``build(…, size)`` gives, or None, and the smallest possible."""
        ...

    def weights(self, weights: str) -> Weights:
        """Parameters by the name under which they are published (``"DEFAULT"``), or from a file.

        Errors: ``ModelError`` where there are none of that name.
        """
        ...


def file_weights(path: str | Path) -> Weights:
    """The parameters in a file; one that softcache wrote also tells its classes and normalization."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(f"no file of weights at {path}")
    title = f"the checkpoint {path}"
    description = recorded_description(path)
    if description is None:
        return Weights(title, lambda: load_state(path), path)
    try:
        preprocess, classes = Preprocess.from_dict(description["preprocess"]), int(description["classes"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{path} has no whole description of its network ({error!r})") from None
    statistics = (preprocess.mean, preprocess.std)
    names = described_class_names(description)
    size = preprocess.size
    return Weights(title, lambda: load_state(path), path, classes, statistics, size=size, class_names=names)


def described_class_names(description: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes in a network's description, one for each; None where it has none."""
    names = description.get("class_names")
    if not isinstance(names, list) or len(names) != description.get("classes"):
        return None
    return tuple(map(str, names))


def only_files(weights: str, model: str) -> Weights:
    """For sources without published weights: the parameters in a file, else a ``ModelError``."""
    if looks_like_file(weights):
        return file_weights(weights)
    raise ModelError(f"no weights called {weights!r} are published for {model}: pass a file of weights")


def source_of(spec: str) -> tuple[NetworkSource, str]:
    """The source that a spec without a folder names, with its field filled, and the spec in its one spelling.

    Errors: ``UsageError`` for an unknown source or name.
    """
    name, rest = registry.split_spec(spec)
    if spec.rpartition(":")[0].endswith(".py") and name != "python":
        name, rest = "python", spec
    elif ":" not in spec and name not in registry.names("models"):
        name, rest = "torchvision", name
    source: NetworkSource = registry.build("models", name, rest, spec)
    canonical = registry.canonical(name, source)
    if name == "torchvision" or canonical.rpartition(":")[0].endswith(".py"):
        canonical = canonical.partition(":")[2]  # the short spelling
    return source, canonical
