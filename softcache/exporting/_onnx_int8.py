"""Numbers of 8 bits in a file of ONNX, by ONNX Runtime's own quantization."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from softcache.exporting._format import Batches
from softcache.exporting._graph import Graph
from softcache.exporting._silent import silent

_LAYERS = ["Conv", "Gemm", "MatMul"]  # all else stays in float32, preprocessing too
_LINEAR = ["Gemm", "MatMul"]  # ONNX Runtime has no convolution of signed weights whose inputs are measured as it runs


class _Rows(CalibrationDataReader):
    def __init__(self, graph: Graph, batches: Batches, names: Sequence[str]):
        self._rows = iter(batches)
        self._graph, self._names = graph, set(names)

    def get_next(self) -> dict[str, np.ndarray] | None:
        tensors: Sequence[Tensor] | None = next(self._rows, None)
        if tensors is None:
            return None
        given = zip(self._graph.inputs, tensors, strict=True)
        return {own.name: tensor.numpy() for own, tensor in given if own.name in self._names}


def quantized(model: Any, graph: Graph, calibration: Batches, folder: Path) -> Any:
    """The model with weights of int8, one scale a channel, of which 7 bits are used.

    With rows of ``calibration``, inputs of convolutions and linear layers have 8 bits too, in the ranges that they have
    there; without, those of linear layers do, in ranges that are measured at each run. folder: an empty one, for
    files in between.
    """
    whole, prepared, made = folder / "whole.onnx", folder / "prepared.onnx", folder / "made.onnx"
    onnx.save(model, whole)
    with silent():
        quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        if calibration:
            quantize_static(
                str(prepared),
                str(made),
                _Rows(graph, calibration, [value.name for value in model.graph.input]),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_LAYERS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # On x86 without VNNI sums of two products of 8 bits don't fit into the 16 bits that they are added in.
                reduce_range=True,
                # Logits beyond those of the calibration would be cut off, and such layers give floats as quickly.
                extra_options={"OpTypesToExcludeOutputQuantization": _LINEAR},
            )
        else:
            quantize_dynamic(
                str(prepared),
                str(made),
                op_types_to_quantize=_LINEAR,
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
    found = onnx.load(str(made))
    del found.graph.value_info[:]
    return found
