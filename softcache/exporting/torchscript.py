"""``torchscript``: a ``.pt`` file that ``torch.jit.load`` reads, in Python and C++."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from softcache.errors import ModelError
from softcache.exporting._format import DOCUMENT, Batches, Format, Runner, tensors_of
from softcache.exporting._graph import Graph
from softcache.userfile import one_line


@dataclass(frozen=True)
class Torchscript(Format):
    """Parameters and computation, recorded by ``torch.jit.trace``. torch calls it deprecated in favour of torch.export;
    it is for programs that load TorchScript today."""

    suffix: ClassVar[str] = ".pt"

    def write(self, graph: Graph, path: Path, document: Mapping[str, Any], calibration: Batches | None) -> None:
        """See ``Format.write``."""
        assert calibration is None, "quantizes is false"
        try:
            with _quiet(), torch.no_grad():
                # Whether the trace computes the same is found out on samples of other sizes, after it is written.
                traced = torch.jit.trace(graph.module, graph.example, check_trace=False)
        except Exception as error:  # many kinds, for all that a forward pass may do
            raise ModelError(
                f"torch.jit can't trace {graph.network.spec} ({one_line(error)[:300]}): --format safetensors needs no "
                "trace"
            ) from error
        with _quiet():
            torch.jit.save(traced, str(path), {DOCUMENT: json.dumps(document, ensure_ascii=False)})

    def load(self, path: Path, graph: Graph) -> Runner:
        """See ``Format.load``."""
        with _quiet():
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
def _quiet() -> Iterator[None]:
    """Without torch's word that TorchScript is deprecated, which the documentation says too, and without that of its
    tracer on each size that Python code looks at."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield
