"""``torch-export``: a ``.pt2`` file of torch.export, which ``torch.export.load`` reads and ``torch.compile`` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from softcache.exporting._format import DOCUMENT, Batches, Format, Runner, tensors_of
from softcache.exporting._graph import Graph
from softcache.exporting._program import record, without_origin
from softcache.exporting._silent import silent


@dataclass(frozen=True)
class TorchExport(Format):
    """Parameters and computation, without the Python classes of the network.

    With int8 the operations are those of torchao's pt2e; whoever loads such a file imports torchao first.
    """

    suffix: ClassVar[str] = ".pt2"
    quantizes: ClassVar[bool] = True
    int8_needs: ClassVar[Mapping[str, str]] = {"torchao": "export"}

    def write(self, graph: Graph, path: Path, document: Mapping[str, Any], calibration: Batches | None) -> None:
        """See ``Format.write``."""
        program = record(graph)
        if calibration is not None:
            with silent():
                from softcache.exporting._torch_int8 import quantized  # torchao is an extra
            program = record(graph, quantized(program, calibration))
        extra = {DOCUMENT: json.dumps(document, ensure_ascii=False)}
        torch.export.save(without_origin(program), path, extra_files=extra)

    def load(self, path: Path, graph: Graph) -> Runner:
        """See ``Format.load``."""
        module = torch.export.load(path).module()

        @torch.no_grad()
        def run(tensors: Sequence[Tensor]) -> Tensor:
            return module(*tensors)

        return run

    def usage(self, graph: Graph, file: str, *, int8: bool) -> str:
        """See ``Format.usage``."""
        operations = "import torchao  # has the operations of int8\n" if int8 else ""
        return f"""import torch
{operations}
model = torch.export.load("{file}").module()
with torch.no_grad():
    {graph.output} = model({tensors_of(graph)})"""
