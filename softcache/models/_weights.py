"""Parameters: fitting them to a network, and their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from softcache import localfiles
from softcache.errors import ModelError
from softcache.models._checkpoint import load_state

__all__ = ["classes_in", "fingerprint", "fingerprint_file_cached", "fit", "known_fingerprint", "load_state"]

HASHED_BYTES = 2**26


def fit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    owner: str = "the checkpoint",
    new_classifier: int | None = None,
    base: str | None = None,
) -> tuple[str, ...]:
    """Loads parameters into a module; all of them or, after an error, none.

    owner: what the message calls the parameters.
    new_classifier: a number of classes: layers with so many outputs whose tensors have another number of rows
        in ``state``, or are missing there, keep what they have. None: everything must fit.
    base: with ``new_classifier``, the module that isn't the classifier: what lies outside of it may be missing.

    Returns the names of tensors that were left as they are. Counters of batches (``num_batches_tracked``),
    which old checkpoints lack, may be missing.

    Errors: ``ModelError`` that names missing, unexpected and differently shaped parameters.
    """
    own = module.state_dict()
    state = _without_prefix(state, own, "model.")
    fresh: list[str] = []
    if new_classifier is not None:
        heads = {name for name, rows in _outputs(module) if rows == new_classifier}
        for key, value in own.items():
            there = state.get(key)
            other_rows = there is None or (there.shape[1:] == value.shape[1:] and there.shape != value.shape)
            outside = base is not None and there is None and not key.startswith(f"{base}.")
            if outside or (key.rpartition(".")[0] in heads and other_rows):
                fresh.append(key)
    missing = [k for k in own if k not in state and k not in fresh and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in state and k not in fresh and state[k].shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        found = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in parts if keys)
        raise ModelError(f"{owner} does not fit {type(module).__name__}: {found}")
    module.load_state_dict({k: v for k, v in state.items() if k not in fresh}, strict=False)
    return tuple(fresh)


def classes_in(module: nn.Module, state: Mapping[str, Tensor], classes: int) -> int | None:
    """How many classes a checkpoint has where ``module`` has its last layer with ``classes`` outputs."""
    state = _without_prefix(state, module.state_dict(), "model.")
    heads = [name for name, rows in _outputs(module) if rows == classes]
    weight = state.get(f"{heads[-1]}.weight") if heads else None
    return None if weight is None or weight.ndim == 0 else int(weight.shape[0])


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over the names in order, and each tensor's dtype, shape and bytes."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        header = f"{len(name)}:{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} "
        total.update(header.encode())
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), HASHED_BYTES):  # one call may take long, and no signal is answered in it
            total.update(content[start : start + HASHED_BYTES])
    return total.hexdigest()


def fingerprint_file_cached(path: str | Path, compute: Callable[[], str] | None = None) -> str:
    """The fingerprint of a file's parameters, kept in the user's cache folder until the file's size, times or inode
    change.

    compute: gives the fingerprint where it isn't known yet; by default that of ``load_state(path)``, which
        for the files that softcache writes is that of the network's own state dict.

    Where that folder can't be written to it is computed each time.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(f"no file of weights at {path}")
    before = _stamp(path)
    sha256 = localfiles.known_fingerprint(path, before)
    if sha256 is not None:
        return sha256
    sha256 = compute() if compute is not None else fingerprint(load_state(path))
    localfiles.keep_fingerprint(path, before, sha256)
    return sha256


def known_fingerprint(path: str | Path) -> str | None:
    """The fingerprint that is kept of a file, where the file has still the size, times and inode it had then."""
    path = Path(path).expanduser()
    return localfiles.known_fingerprint(path, _stamp(path)) if path.is_file() else None


def _stamp(path: Path) -> dict[str, int]:
    """Changes with the content: unlike the time of modification, which tools that copy or unpack files set as they
    like, that of the inode's change can't be chosen."""
    status = path.stat()
    times = {"mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
    return {"size": status.st_size, **times, "inode": status.st_ino}


def _without_prefix(state: Mapping[str, Tensor], names: Iterable[str], prefix: str) -> Mapping[str, Tensor]:
    """The prefix taken off where all of the state and not all of the module has it."""
    if all(key.startswith(prefix) for key in state) and not all(name.startswith(prefix) for name in names):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _outputs(module: nn.Module) -> list[tuple[str, int]]:
    """Path and number of outputs of every linear and convolutional layer, in the order of definition."""
    found = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            found.append((name, layer.out_features))
        elif isinstance(layer, nn.Conv2d):
            found.append((name, layer.out_channels))
    return found


def _some(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", …" if len(keys) > count else "")
