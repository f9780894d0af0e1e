"""Networks in folders: what a teacher's or a run's folder says of its network, and its parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from softcache import strictjson
from softcache.atomic import replace_file
from softcache.errors import ModelError
from softcache.models._checkpoint import METADATA_KEY, load_state
from softcache.models._network import Network
from softcache.models._preprocess import Preprocess
from softcache.models._source import Weights, described_class_names
from softcache.models._through import Through, build_through
from softcache.remembered import folder_identity, follow

CONFIG = "config.json"
MAX_NAME_BYTES = 255


def describe(network: Network) -> dict[str, Any]:
    """What is needed to build the network again, but for its parameters, as JSON values."""
    found: dict[str, Any] = {
        "spec": network.spec,
        "classes": network.classes,
        "class_names": None if network.class_names is None else list(network.class_names),
        "preprocess": network.preprocess.to_dict(),
    }
    return found | ({"through": network.model.describe()} if isinstance(network.model, Through) else {})


def save_network(network: Network, folder: str | Path, filename: str) -> Path:
    """Writes the parameters as safetensors into a folder: the whole file or, when interrupted, nothing.

    Names are those of the bare architecture; the header carries ``describe(network)``.

    Errors: ``ModelError`` where the folder can't be written to.
    """
    metadata = {METADATA_KEY: json.dumps(describe(network), sort_keys=True)}
    return save_tensors(network.model.state_dict(), folder, filename, metadata)


def save_tensors(
    tensors: Mapping[str, Tensor], folder: str | Path, filename: str, metadata: dict[str, str] | None = None
) -> Path:
    """Writes tensors as safetensors into a folder: the whole file or, when interrupted, nothing.

    Errors: ``ModelError`` where the folder can't be written to.
    """
    path = Path(folder) / filename
    # cloned, because safetensors refuses tensors that share memory, contiguous, because it knows no strides
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # not safetensors' save_file, whose files only their owner may read
    content = save(state, metadata=metadata)
    try:
        replace_file(path, content)
    except OSError as error:
        raise ModelError(f"can't write {path}: {error.strerror or error}") from error
    return path


@dataclass(frozen=True)
class Described:
    """A network as a folder has it: the spec of its architecture, its preprocessing and its parameters.

    ``through``: what the architecture is wrapped in, where it answers through its teacher's classifier.
    """

    spec: str
    preprocess: Preprocess
    weights: Weights
    through: dict[str, Any] | None = None

    def wrap(self, model: nn.Module, classes: int) -> nn.Module:
        """The architecture as it was trained."""
        return model if self.through is None else build_through(model, self.through, classes)


def described(description: dict[str, Any], weights_path: Path, *, owner: str | None = None) -> Described:
    """A description as in ``config.json``, checked, with its parameters ready to be loaded."""
    try:
        spec, classes = str(description["spec"]), int(description["classes"])
        preprocess = Preprocess.from_dict(description["preprocess"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{owner or weights_path} has no whole description of its model ({error!r})") from error
    weights = Weights(
        title=f"the checkpoint {weights_path}",
        load=lambda: load_state(weights_path),
        path=weights_path,
        classes=classes,
        statistics=(preprocess.mean, preprocess.std),
        trained_size=preprocess.trained_size,
        size=preprocess.size,
        class_names=described_class_names(description),
    )
    return Described(spec, preprocess, weights, description.get("through"))


def read_folder(folder: str | Path) -> Described:
    """The network of a teacher's or a run's folder. Its architecture is the one that ``config.json`` names, where that
    is a plain name, and else the code that the user gave for this folder (``softcache.remembered``).

    Errors: ``ModelError`` where there is no such folder, no ``config.json`` of softcache's in it, or no
    parameters; ``NotNamedError`` where it names code that the user never gave.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}: a model is a name, a file.py:factory, or a teacher's or run's folder")
    path = folder / CONFIG
    try:
        document = strictjson.loads(path.read_bytes())
        if "model" not in document and "model_type" in document:
            raise ModelError(f"{folder} is a model of transformers, no teacher and no run: write hf:{folder}")
        description = document["model"]
        spec, filename = str(description["spec"]), str(description["weights"])
    except FileNotFoundError:
        raise ModelError(f"{folder} is no teacher and no run: it has no {CONFIG}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} can't be read as the configuration of a teacher or run ({error!r})") from error
    # No file system has longer names than this, and asking for one is an error of its own.
    if (
        Path(filename).name != filename
        or filename == ".."
        or len(filename.encode(errors="surrogatepass")) > MAX_NAME_BYTES
    ):
        raise ModelError(f"{path} names {filename[:300]!r} as its file of weights, which is not a file of this folder")
    weights = folder / filename
    if not weights.is_file():
        raise ModelError(f"{folder} has no {weights.name}: its training has not finished, run it again to continue it")
    known = follow(folder, "model", spec, folder_identity(folder), made=f"the network in {folder} is {spec}")
    return described({**description, "spec": known}, weights, owner=str(path))


def is_folder_spec(spec: str) -> bool:
    """Whether a model spec means a folder: it has a path separator, or is a folder with a ``config.json``."""
    if spec.startswith("hf:"):
        return False
    return (os.sep in spec and not _is_file_spec(spec)) or (Path(spec) / CONFIG).is_file()


def _is_file_spec(spec: str) -> bool:
    return spec.rpartition(":")[0].endswith(".py")
