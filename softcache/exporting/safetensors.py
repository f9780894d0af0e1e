"""``safetensors``: parameters alone, by the names that the architecture has for them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from softcache.errors import UsageError
from softcache.exporting._architecture import loading, transformers_config
from softcache.exporting._format import Batches, Format, Runner, texts
from softcache.exporting._graph import Graph
from softcache.models._checkpoint import METADATA_KEY, load_state
from softcache.models._folder import describe, save_tensors
from softcache.remembered import portable


@dataclass(frozen=True)
class Safetensors(Format):
    """Parameters alone. Who loads them needs the architecture: from torchvision, timm, transformers or one's own code.

    softcache itself takes such a file as ``--weights``.
    """

    suffix: ClassVar[str] = ".safetensors"
    computes: ClassVar[bool] = False

    def write(self, graph: Graph, path: Path, document: Mapping[str, Any], calibration: Batches | None) -> None:
        """See ``Format.write``."""
        assert calibration is None, "quantizes is false"
        if graph.prepares:
            raise UsageError(
                "--preprocess: safetensors has parameters and no computation, so that preprocessing can't be in it: "
                "leave it out, or take torch-export or onnx"
            )
        description = {**describe(graph.network), "spec": portable(graph.network.spec)}
        header = {METADATA_KEY: json.dumps(description, sort_keys=True), "format": "pt"}
        header |= texts(document)
        save_tensors(graph.network.model.state_dict(), path.parent, path.name, header)

    def load(self, path: Path, graph: Graph) -> Runner:
        """See ``Format.load``. The parameters in a copy of the network, all of whose own are overwritten before."""
        module = copy.deepcopy(graph.module)
        network: Any = module.get_submodule("network")
        with torch.no_grad():
            for tensor in network.model.state_dict().values():
                tensor.zero_()
        network.model.load_state_dict(load_state(path), strict=True)

        @torch.no_grad()
        def run(tensors: Sequence[Tensor]) -> Tensor:
            return module(*tensors)

        return run

    def usage(self, graph: Graph, file: str, *, int8: bool) -> str:
        """See ``Format.usage``."""
        return loading(graph, file)

    def beside(self, graph: Graph) -> Mapping[str, bytes]:
        """``config.json`` of a network of transformers, so that ``from_pretrained`` takes the folder."""
        config = transformers_config(graph)
        return {} if config is None else {"config.json": config}
