"""Teachers that are no networks: any function of NumPy arrays, such as a forest's ``predict_log_proba``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softcache.errors import ModelError
from softcache.fields import Fields, Inputs
from softcache.userfile import code_sha


class ArrayModel(nn.Module):
    """A function of arrays of inputs, as they are, to outputs: an array (B, …), or several by name.

    ``function``: gets pixels (B, H, W, C) of pictures, uint8 or uint16, and the values of other inputs, not
    standardized: one array (B, …), or of several inputs a dictionary of them. Where rows have lengths of their own, a
    list of B arrays stands for an array. It has no parameters that softcache could hash, so what it is known by comes
    from itself: its attribute ``fingerprint``, any text; or ``files``, paths whose bytes are hashed; or else the code
    of ``factory``, which made it. It is not trained.
    """

    def __init__(self, function: Callable[[Any], Any], factory: str):
        super().__init__()
        self._function = function
        self.fingerprint: Tensor
        self.register_buffer(
            "fingerprint", torch.frombuffer(bytearray(_identify(function, factory)), dtype=torch.uint8)
        )

    def forward(self, inputs: Inputs) -> Tensor | dict[str, Tensor]:
        """Outputs as float32 tensors on the device of ``inputs``.

        Errors: ``ModelError`` for what the function raises, and for what is no array of numbers.
        """
        given: Any = inputs.arrays() if isinstance(inputs, Fields) else inputs.detach().cpu().numpy()
        if isinstance(given, dict) and len(given) == 1:
            (given,) = given.values()
        try:
            made = self._function(given)
        except Exception as error:
            raise ModelError(f"the teacher raised {type(error).__name__}: {' '.join(str(error).split())}") from error
        if isinstance(made, Mapping):
            return {str(name): _tensor(array, inputs.device) for name, array in made.items()}
        return _tensor(made, inputs.device)


def _tensor(array: Any, device: torch.device) -> Tensor:
    found = np.asarray(array)
    if found.dtype.kind not in "iuf":
        raise ModelError(f"the teacher answered with {type(array).__name__} of {found.dtype}, not an array of numbers")
    return torch.from_numpy(np.ascontiguousarray(found, np.float32)).to(device)


def _identify(function: Any, factory: str) -> bytes:
    """32 bytes that differ where the function may."""
    said, files = getattr(function, "fingerprint", None), getattr(function, "files", None)
    digest = hashlib.sha256(f"{factory.rpartition(':')[2]}\0".encode())
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    if said is not None:
        if not isinstance(said, str) or not said:
            raise ModelError(f"{factory}: fingerprint must be text that isn't empty, is {type(said).__name__}")
        digest.update(f"said\0{said}".encode())
    elif files is not None:
        if not isinstance(files, Sequence) or not files or not all(isinstance(f, (str, os.PathLike)) for f in files):
            raise ModelError(f"{factory}: files must be one path or several, is {type(files).__name__}")
        for path in files:
            try:
                content = hashlib.sha256(Path(path).read_bytes()).digest()
            except OSError as error:
                raise ModelError(f"{path}, a file of {factory}, can't be read: {error.strerror or error}") from None
            digest.update(b"file\0" + content)
    else:
        digest.update(f"code\0{code_sha(factory)}".encode())
    return digest.digest()
