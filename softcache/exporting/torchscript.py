"""``torchscript``: a ``.pt`` file that ``torch.jit.load`` reads, in Python and C++."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softcache.errors import ModelError
from softcache.exporting._archive import leave_out
from softcache.exporting._format import DOCUMENT, Batches, Format, Runner, tensors_of
from softcache.exporting._graph import Graph
from softcache.exporting._silent import silent
from softcache.userfile import is_module_of_file, one_line


@dataclass(frozen=True)
class Torchscript(Format):
    """Parameters and computation, recorded by ``torch.jit.trace``. torch calls it deprecated in favour of torch.export;
    it is for programs that load TorchScript today."""

    suffix: ClassVar[str] = ".pt"

    def write(self, graph: Graph, path: Path, document: Mapping[str, Any], calibration: Batches | None) -> None:
        """See ``Format.write``."""
        assert calibration is None, "quantizes is false"
        try:
            with silent(), _names_of_files(graph.module), torch.no_grad():
                # torch says that this is deprecated, and that each size which Python code looks at becomes a constant:
                # whether the trace computes the same is found out on samples of other sizes.
                traced = torch.jit.trace(graph.module, graph.example, check_trace=False)
        except Exception as error:  # many kinds, for all that a forward pass may do
            raise ModelError(
                f"torch.jit can't trace {graph.network.spec} ({one_line(error)[:300]}): --format safetensors needs no "
                "trace"
            ) from error
        with silent():
            torch.jit.save(traced, str(path), {DOCUMENT: json.dumps(document, ensure_ascii=False)})
        # They say in which files of this machine each operation was called, and are for messages of errors alone.
        leave_out(path, lambda record: record.endswith(".debug_pkl"))

    def load(self, path: Path, graph: Graph) -> Runner:
        """See ``Format.load``."""
        with silent():
            module = torch.jit.load(str(path))

        @torch.no_grad()
        def run(tensors: Sequence[Tensor]) -> Tensor:
            return module(*tensors)

        return run

    def usage(self, graph: Graph, file: str, *, int8: bool) -> str:
        """See ``Format.usage``."""
        return f"""import torch

model = torch.jit.load("{file}")
with torch.no_grad():
    {graph.output} = model({tensors_of(graph)})"""


@contextmanager
def _names_of_files(module: nn.Module) -> Iterator[None]:
    """Classes from users' files are of a module that has the name of the file. That of softcache has its path in it,
    which is nothing for others, and may begin with a digit, which TorchScript doesn't read."""
    before = {type(part): type(part).__module__ for part in module.modules()}
    own = {cls: name for cls, name in before.items() if is_module_of_file(name)}
    try:
        for cls, name in own.items():
            stem = Path(str(sys.modules[name].__file__)).stem
            cls.__module__ = "file_" + re.sub(r"[^0-9A-Za-z_]", "_", stem)
        yield
    finally:
        for cls, name in own.items():
            cls.__module__ = name
