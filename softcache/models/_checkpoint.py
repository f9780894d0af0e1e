"""Reading the files in which people have parameters."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softcache.errors import ModelError

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".tar")
METADATA_KEY = "softcache.model"  # in the header of safetensors files that softcache writes

_NESTS = (
    *(
        "state_dict",
        "model_state_dict",
        "model_state",
        "model",
        "net",
        "network",
        "module",
        "weights",
        "params",
    ),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile


def looks_like_file(weights: str) -> bool:
    """Whether ``weights`` means a file and not the name of published weights."""
    return os.sep in weights or Path(weights).suffix.lower() in SUFFIXES


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Parameters by name, on the CPU, from a ``.safetensors`` file or a ``torch.save`` checkpoint.

    A checkpoint may be the bare state dict or hold it under a usual name (``state_dict``, ``model``, ``net``,
    an exponential moving average, …); prefixes of wrappers (``module.``, ``_orig_mod.``) are taken off.
    Nothing but tensors and plain values is ever unpickled.

    Errors: ``ModelError`` for a missing, damaged or unknown file, and for a pickle that needs more than
    tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(f"no file of weights at {path}")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        with _safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if suffix not in SUFFIXES:
        raise ModelError(f"{path} is no file of weights that is known: its name should end in {', '.join(SUFFIXES)}")
    checkpoint = _unpickle(path)
    state = _unnest(checkpoint)
    if not state:
        raise ModelError(f"{path} has no state dict, neither bare nor under {', '.join(_NESTS[:5])}")
    return _unwrap(state)


def recorded_description(path: str | Path) -> dict[str, Any] | None:
    """The description of its network in a safetensors file that softcache wrote, else None."""
    if Path(path).suffix.lower() != ".safetensors":
        return None
    with _safetensors(Path(path)) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    return None if text is None else json.loads(text)


def _unpickle(path: Path) -> Any:
    damaged = f"{path} can't be read as a checkpoint: it is damaged or no torch file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle's version, in files that then turn out to be no checkpoint
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        other = re.search(r"GLOBAL (\S+)", str(error))
        if other is None:
            raise ModelError(damaged) from error
        raise ModelError(
            f"{path} holds more than tensors ({other[1]}), so that loading it could run code: "
            "in a process that trusts it, save its state dict alone, torch.save(model.state_dict(), FILE)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, OSError) as error:
        raise ModelError(damaged) from error


def _safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} can't be read as safetensors: it is damaged or no such file") from error


def _unnest(checkpoint: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which are its own values or lie under one of the usual names."""
    if not isinstance(checkpoint, Mapping):
        return {}
    for nest in _NESTS:
        if isinstance(checkpoint.get(nest), Mapping) and (inner := _unnest(checkpoint[nest])):
            return inner
    return {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def _unwrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(key.startswith(_WRAPPERS) for key in state):
        state = {key: value for key, value in state.items() if key != "n_averaged"}  # AveragedModel's counter
    while state and all(key.startswith(_WRAPPERS) for key in state):
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return {key.replace("._orig_mod.", "."): value for key, value in state.items()}
