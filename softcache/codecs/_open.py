"""From the spec of a codec to the codec, and the name of a codec in a manifest."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softcache import registry
from softcache.errors import UsageError
from softcache.userfile import code_sha, told

if TYPE_CHECKING:
    import torch

ATTRIBUTES = ("arrays", "encode", "decode")
FITTED_ATTRIBUTES = ("arrays", "constants", "fit", "fitted")  # of a codec that has constants
SHAPED_ATTRIBUTES = ("arrays", "shaped")  # of one whose arrays don't say what shape a sample has
# A shard has digests and offsets of rows beside what a codec keeps.
_NAME = re.compile(r"(?!(?:digest|offset)$)[A-Za-z_][A-Za-z0-9_]*")
_HASH = " sha256="


def open_codec(spec: str) -> Any:
    """The codec of a spec: ``fp16``, ``name:option=value``, or a class of the user's own, ``my.py:Int7:bits=7``.

    Errors: ``UsageError`` for an unknown name or option and for a class that is not a codec.

    >>> open_codec("fp16").arrays((10,))
    {'values': ('<f2', (10,))}
    """
    name, _ = registry.split_component(spec)
    owner = f"codec {name!r}"
    cls = registry.component("codecs", name)
    fitted, shaped = hasattr(cls, "constants"), hasattr(cls, "shaped")
    wanted = FITTED_ATTRIBUTES if fitted else SHAPED_ATTRIBUTES if shaped else ATTRIBUTES
    registry.check_attributes(cls, wanted, owner)
    codec = registry.create("codecs", spec)
    if not registry.is_code(name):
        return codec
    return (_OwnFitted if fitted else _OwnShaped if shaped else _Own)(codec, owner)


def refuse_kind(spec: str, kind: str, option: str) -> None:
    """Errors: ``UsageError`` where a codec can't keep columns of a kind. ``option``: what asks for the column, without
    its codec, for the message.

    >>> refuse_kind("topk:k=20", "classes", "--output logits")
    """
    codec = open_codec(spec)
    if hasattr(codec, "kinds") and kind not in codec.kinds:
        raise UsageError(
            f"codec {spec!r} is for columns of kind {', '.join(sorted(codec.kinds))}, and {option} is of kind {kind}: "
            f"give it another one, {option}:codec=int:bits=8 or {option}:codec=fp16"
        )


def settled_codec(spec: str, kind: str, shape: tuple[int, ...]) -> str:
    """The name in a manifest of a codec for a new column, with the options that the user has left to it.

    A codec may have a method ``settled(kind, shape)``, which gives the codec with these options. ``kind``: of the
    column; ``shape``: of a sample, or of a place. Errors: ``UsageError`` where it isn't made for such columns.

    >>> settled_codec("fp16", "classes", (10,))
    'fp16'
    """
    name, _ = registry.split_component(spec)
    codec = open_codec(spec)
    if registry.is_code(name) or not hasattr(codec, "settled"):
        return recorded_codec(spec)
    return registry.canonical(name, codec.settled(kind, shape))


def sized_codec(recorded: str, values: torch.Tensor) -> str:
    """The name in a manifest of a codec that is to be fitted on values (K, …) float32 on the CPU.

    A codec may have a method ``sized(values)``, which gives one whose size these values have decided.

    >>> sized_codec("fp16", None)
    'fp16'
    """
    if is_own(recorded):
        return recorded
    codec, (name, _) = open_codec(recorded), registry.split_component(recorded)
    return registry.canonical(name, codec.sized(values)) if hasattr(codec, "sized") else recorded


def is_asked(spec: str, recorded: str) -> bool:
    """Whether the codec of a manifest is what a spec asks for, whose open options may have been settled in any way.

    >>> is_asked("fp16", "fp16"), is_asked("fp16", "fp32")
    (True, False)
    """
    found = recorded_codec(spec)
    if found == recorded or is_own(found) or is_own(recorded):
        return found == recorded
    ours, theirs = open_codec(spec), open_codec(recorded)
    return type(ours) is type(theirs) and all(
        getattr(ours, field.name) in (None, getattr(theirs, field.name)) for field in dataclasses.fields(ours)
    )


def rounds_each(codec: Any) -> bool:
    """Whether each number is rounded by itself, to the nearest that can be kept: codecs do so unless they have
    ``joint``, true where the numbers of a sample are coded together."""
    return not (hasattr(codec, "joint") and codec.joint)


class _Own:
    """A codec of the user's own: its errors become one line, and its results are checked."""

    def __init__(self, codec: Any, owner: str):
        self._codec, self._owner = codec, owner

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return self._announced("arrays", shape)

    def _announced(self, method: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        with told(self._owner):
            found = {
                str(name): (np.dtype(dtype).str, tuple(map(int, tail)))
                for name, (dtype, tail) in getattr(self._codec, method)(shape).items()
            }
        for name, (dtype, tail) in found.items():
            if not _NAME.fullmatch(name) or np.dtype(dtype).kind not in "iuf" or not all(n > 0 for n in tail):
                raise UsageError(f"{self._owner}: {method}() has {name!r} of {dtype} {tail}, which can't be stored")
        if not found:
            raise UsageError(f"{self._owner}: {method}() names no array")
        return found

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        with told(self._owner):
            found: dict[str, torch.Tensor] = self._codec.encode(values)
            shapes = {name: tuple(array.shape[1:]) for name, array in found.items()}
        wanted = {name: shape for name, (_, shape) in self.arrays(tuple(values.shape[1:])).items()}
        if shapes != wanted:
            raise UsageError(f"{self._owner}: encode() gave samples of {shapes}, arrays() says {wanted}")
        return found

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        with told(self._owner):
            found: torch.Tensor = self._codec.decode(arrays)
            rows, shape = len(next(iter(arrays.values()))), tuple(found.shape)
        if len(shape) < 1 or shape[0] != rows:
            raise UsageError(f"{self._owner}: decode() must give values (B, …) of {rows} samples, gave {shape}")
        return found


class _OwnFitted(_Own):
    """One that is fitted to values."""

    def constants(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        found = self._announced("constants", shape)
        if single := [name for name, (_, tail) in found.items() if not tail]:
            raise UsageError(f"{self._owner}: constants() has {single[0]!r} of shape (): make it (1,)")
        return found

    def fit(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        with told(self._owner):
            found = {str(name): _plain(array) for name, array in self._codec.fit(values).items()}
            shapes = {name: tuple(array.shape) for name, array in found.items()}
        wanted = {name: shape for name, (_, shape) in self.constants(tuple(values.shape[1:])).items()}
        if shapes != wanted:
            raise UsageError(f"{self._owner}: fit() gave {shapes}, constants() says {wanted}")
        if wrong := [name for name, array in found.items() if not bool(array.isfinite().all())]:
            raise UsageError(f"{self._owner}: fit() gave {wrong[0]!r} with numbers that are not finite")
        coder = self.fitted(found)
        coder.decode(coder.encode(values[:1]))  # fails now, and not when a cache has been made
        return found

    def fitted(self, constants: dict[str, torch.Tensor]) -> _Own:
        with told(self._owner):
            codec = self._codec.fitted(constants)
        return _Coding(codec, self, "fitted")


class _OwnShaped(_Own):
    """One that is told the shape of a sample."""

    def shaped(self, shape: tuple[int, ...]) -> _Own:
        with told(self._owner):
            codec = self._codec.shaped(shape)
        return _Coding(codec, self, "shaped")


def _plain(array: Any) -> torch.Tensor:
    """A tensor that NumPy has a dtype for."""
    import torch

    found = torch.as_tensor(array).detach().cpu()
    return found.float() if found.dtype == torch.bfloat16 else found


class _Coding(_Own):
    """What ``fitted`` or ``shaped`` gave, which encodes and decodes."""

    def __init__(self, codec: Any, whole: _Own, method: str):
        super().__init__(codec, whole._owner)
        self._whole = whole
        if not (hasattr(codec, "encode") and hasattr(codec, "decode")):
            raise UsageError(f"{self._owner}: {method}() gave {type(codec).__name__} without encode or decode")

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return self._whole.arrays(shape)


def recorded_codec(spec: str) -> str:
    """The name of a codec in a manifest: ``fp16``, or for code ``my.py:Int7:bits=7 sha256=0123456789abcdef``.

    Code is named without the folder of its file, and with a hash, because other code may decode the same bytes to other
    numbers. Errors: ``UsageError`` as ``open_codec``.

    >>> recorded_codec("fp32")
    'fp32'
    """
    name, _ = registry.split_component(spec)
    open_codec(spec)
    canonical = registry.canonical(name, registry.create("codecs", spec))
    if not registry.is_code(name):
        return canonical
    target = name.removeprefix("python:")
    place = target.rpartition(":")[0]
    if place.endswith(".py"):
        canonical = Path(place).name + canonical.removeprefix(f"python:{place}")
    return f"{canonical}{_HASH}{code_sha(target)}"


def is_own(recorded: str) -> bool:
    """Whether the codec of a manifest is code of the user's own.

    >>> is_own("fp16"), is_own("my.py:Int7 sha256=0123456789abcdef")
    (False, True)
    """
    return _HASH in recorded or registry.is_code(recorded)


def named_again(recorded: str, given: str) -> Any:
    """The codec ``given`` by the user for a cache whose codec is code.

    Errors: ``UsageError`` where it is another codec, and where its code has changed.
    """
    found = recorded_codec(given)
    if found == recorded:
        return open_codec(given)
    theirs, ours = recorded.partition(_HASH), found.partition(_HASH)
    if theirs[0] == ours[0]:
        raise UsageError(
            f"--codec {given}: the code has changed since the dump (sha256 {theirs[2]}… there, {ours[2]}… now): "
            "restore it, or dump again"
        )
    raise UsageError(f"--codec {given}: the cache was made with {theirs[0]}")


def option_of(recorded: str) -> str:
    """The value of ``--codec`` for the codec of a manifest.

    >>> option_of("my.py:Int7:bits=7 sha256=0123456789abcdef")
    'my.py:Int7:bits=7'
    """
    return recorded.partition(_HASH)[0]


def code_among(codecs: Iterable[str | None]) -> str | None:
    """The codec that is code, of those that a user named; None where none is.

    Errors: ``UsageError`` for two that are code: a cache may have one.
    """
    own = list(
        dict.fromkeys(codec for codec in codecs if codec and registry.is_code(registry.split_component(codec)[0]))
    )
    if len(own) > 1:
        raise UsageError(f"{own[0]} and {own[1]} are both code: a cache has one codec of your own")
    return own[0] if own else None
