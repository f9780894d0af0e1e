"""A graph as torch.export records it."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from softcache.errors import ModelError
from softcache.exporting._graph import Graph
from softcache.userfile import one_line

# What is known of each operation beside what it computes: where in which file of this machine it was called.
_ORIGIN = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


def record(graph: Graph, module: nn.Module | None = None) -> ExportedProgram:
    """The computation of a graph, or of ``module`` in its place, whose open axes may have any size.

    Errors: ``ModelError`` where torch.export can't follow it.
    """
    shapes = ShapesCollection()
    for given, tensor in zip(graph.inputs, graph.example, strict=True):
        shapes[tensor] = dict.fromkeys(given.open_axes, Dim.DYNAMIC)
    try:
        with torch.no_grad():
            return torch.export.export(module or graph.module, graph.example, dynamic_shapes=shapes)
    except Exception as error:  # many kinds, for all that a forward pass may do
        raise ModelError(
            f"torch.export can't record {graph.network.spec} ({one_line(error)[:300]}): --format torchscript may, and "
            "safetensors needs no record"
        ) from error


def without_origin(program: ExportedProgram) -> ExportedProgram:
    """The same program, which no longer says in which files of this machine its operations were called."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for key in _ORIGIN:
                node.meta.pop(key, None)
    return program
