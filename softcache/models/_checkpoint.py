"""Reading the files in which people have parameters."""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from softcache import strictjson
from softcache.errors import ModelError

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".tar")
_ALLOCATES = b"bytearray"  # the one function that torch lets a pickle call and that fills memory by a number
SLACK = 64 * 2**20  # bytes that the contents of a small file may take
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
        raise ModelError(
            f"{path} has no state dict, neither bare nor under {', '.join(_NESTS[:5])}: it holds {_found(checkpoint)}"
        )
    return _unwrap(_bounded(state, path))


def recorded_description(path: str | Path) -> dict[str, Any] | None:
    """The description of its network in a safetensors file that softcache wrote, else None."""
    if Path(path).suffix.lower() != ".safetensors":
        return None
    with _safetensors(Path(path)) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        description = strictjson.loads(text)
    except ValueError as error:
        raise ModelError(f"{path}: the description of its network can't be read: {error}") from None
    if not isinstance(description, dict):
        raise ModelError(f"{path}: the description of its network is {_found(description)}, not an object")
    return description


def _unpickle(path: Path) -> Any:
    _refuse_hostile(path)
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
    except Exception as error:  # a pickle of somebody's making may raise anything where its values are put together
        raise ModelError(damaged) from error


def _refuse_hostile(path: Path) -> None:
    """Looks at what torch would allocate because a file says so.

    Errors: ``ModelError`` for what no checkpoint has. A file that is just damaged is left to torch.
    """
    try:
        if not zipfile.is_zipfile(path):  # the format before torch 1.6, or no torch file
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                unsafe = content.find(_ALLOCATES) >= 0
        else:
            with zipfile.ZipFile(path) as archive:
                _refuse_archive(path, archive.infolist())
                pickles = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
                unsafe = any(_ALLOCATES in archive.read(info) for info in pickles)
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, EOFError):
        return  # it is damaged, or compressed in a way that zipfile doesn't know, which torch can't read either
    if unsafe:
        raise ModelError(f"{path} holds a bytearray, not only tensors and plain values: it is not loaded")


def _refuse_archive(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """torch stores the members of its archives as they are, so they are no larger than the file."""
    total, names = sum(member.file_size for member in members), [Path(member.filename).name for member in members]
    if total > _limit(path):
        raise ModelError(
            f"{path} is an archive of {path.stat().st_size:,} bytes that unpacks to {total:,}, which no file saved by "
            "torch does: it is not loaded"
        )
    if "data.pkl" not in names:
        shown = ", ".join(names[:3])[:120] or "nothing"
        raise ModelError(f"{path} is an archive, but not a state dict of tensors that torch saved: it holds {shown}")
    if "constants.pkl" in names:
        raise ModelError(f"{path} is a TorchScript program: save its state dict, torch.save(model.state_dict(), FILE)")


def _bounded(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors that have all their elements in the file. A tensor may say that it repeats one element a million times.

    Errors: ``ModelError``.
    """
    odd = [name for name, tensor in state.items() if tensor.layout != torch.strided or tensor.is_meta]
    if odd:
        raise ModelError(f"{path}: {odd[0]} is not a dense tensor with values")
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if total > _limit(path):
        raise ModelError(f"{path} has {path.stat().st_size:,} bytes, and tensors of {total:,}: it is not loaded")
    return state


def _limit(path: Path) -> int:
    """Bytes that the contents of a file may take: parameters hardly shrink in compression, and few are shared."""
    return 4 * path.stat().st_size + SLACK


def _safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except Exception as error:  # of its parser, or of the dtypes and shapes that a header names
        raise ModelError(f"{path} can't be read as safetensors: it is damaged or no such file") from error


def _unnest(checkpoint: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which are its own values or lie under one of the usual names."""
    if not isinstance(checkpoint, Mapping):
        return {}
    # No recursion: a file may nest as deeply as it likes, and a checkpoint may hold itself.
    entered, seen = [(checkpoint, _inner(checkpoint))], {id(checkpoint)}
    while entered:
        level, inner = entered[-1]
        below = next((one for one in inner if id(one) not in seen), None)
        if below is not None:
            seen.add(id(below))
            entered.append((below, _inner(below)))
            continue
        tensors = {str(key): value for key, value in level.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        entered.pop()
    return {}


def _inner(checkpoint: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    return (checkpoint[nest] for nest in _NESTS if isinstance(checkpoint.get(nest), Mapping))


def _found(value: Any) -> str:
    """What a file holds, in a few words."""
    if not isinstance(value, Mapping):
        return f"one {type(value).__name__}"
    keys = [repr(key)[:30] if isinstance(key, (str, int)) else type(key).__name__ for key in itertools.islice(value, 4)]
    return f"the keys {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}" if keys else "an empty dictionary"


def _unwrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(key.startswith(_WRAPPERS) for key in state):
        state = {key: value for key, value in state.items() if key != "n_averaged"}  # AveragedModel's counter
    while state and all(key.startswith(_WRAPPERS) for key in state):
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return {key.replace("._orig_mod.", "."): value for key, value in state.items()}
