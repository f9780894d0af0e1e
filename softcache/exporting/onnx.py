"""``onnx``: a file of ONNX, for ONNX Runtime and what else reads it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from softcache.atomic import replace_file
from softcache.errors import ModelError, UsageError
from softcache.exporting._format import Batches, Format, Runner, texts
from softcache.exporting._graph import Graph
from softcache.exporting._program import record
from softcache.userfile import one_line

LEAST = 18  # the opset that torch's operations are written in; for smaller ones each would have to be rewritten
_MAX_BYTES = 2**31 - 2**20  # of one protobuf message, with room for what isn't parameters


@dataclass(frozen=True)
class Onnx(Format):
    """opset: the version of ONNX's operators, which what reads the file must know."""

    suffix: ClassVar[str] = ".onnx"
    quantizes: ClassVar[bool] = True
    dynamic: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {"onnx": "export", "onnxscript": "export", "onnxruntime": "export"}

    opset: int = 20

    def __post_init__(self) -> None:
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if not LEAST <= self.opset <= newest:
            raise UsageError(
                f"--opset {self.opset}: it must be from {LEAST} to {newest}, which the installed onnx knows"
            )

    def write(self, graph: Graph, path: Path, document: Mapping[str, Any], calibration: Batches | None) -> None:
        """See ``Format.write``."""
        import onnx

        held = sum(tensor.nbytes for tensor in graph.network.model.state_dict().values())
        if held > _MAX_BYTES:
            raise ModelError(
                f"{graph.network.spec} has {held:,} bytes of parameters, and one file of ONNX takes 2 GiB: take "
                "--format torch-export"
            )
        model = self._model(graph)
        if calibration is not None:
            from softcache.exporting._onnx_int8 import quantized

            with tempfile.TemporaryDirectory(prefix="softcache-export-") as folder:
                model = quantized(model, graph, calibration, Path(folder))
        onnx.helper.set_model_props(model, texts(document))
        onnx.checker.check_model(model)
        replace_file(path, model.SerializeToString())

    def _model(self, graph: Graph) -> Any:
        program = record(graph)
        names = [given.name for given in graph.inputs]
        try:
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=names,
                output_names=[graph.output],
                opset_version=self.opset,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # many kinds, for operations that it doesn't know
            raise ModelError(
                f"ONNX has no form of what {graph.network.spec} computes ({one_line(error)[:300]}): take --format "
                "torch-export"
            ) from error
        assert made is not None
        model = made.model_proto
        _name_axes(model, graph)
        _forget_origin(model.graph)
        return model

    def load(self, path: Path, graph: Graph) -> Runner:
        """See ``Format.load``: ONNX Runtime on the CPU."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])
        names = {given.name for given in session.get_inputs()}

        def run(tensors: Sequence[Tensor]) -> Tensor:
            # An input that the computation doesn't depend on isn't in the file.
            given = {own.name: t.numpy() for own, t in zip(graph.inputs, tensors, strict=True) if own.name in names}
            return torch.from_numpy(session.run([graph.output], given)[0])

        return run

    def usage(self, graph: Graph, file: str, *, int8: bool) -> str:
        """See ``Format.usage``."""
        given = ", ".join(f'"{one.name}": {one.name}' for one in graph.inputs)
        return f"""import onnxruntime

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
({graph.output},) = session.run(None, {{{given}}})"""


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    return options


def _name_axes(model: Any, graph: Graph) -> None:
    """Open axes by their names in place of torch's symbols, ``s67``; sizes between layers are left to the reader."""
    named: dict[str, str] = {}
    own = {given.name: given.open_axes for given in graph.inputs}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param and axis in own[value.name]:
                named[dim.dim_param] = own[value.name][axis]
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in named:
                dim.dim_param = named[dim.dim_param]
    del model.graph.value_info[:]


def _forget_origin(part: Any) -> None:
    """Without where on this machine each operation was called."""
    for value in (*part.node, *part.input, *part.output, *part.initializer):
        del value.metadata_props[:]
    del part.metadata_props[:]
    for node in part.node:
        node.doc_string = ""
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget_origin(attribute.g)
