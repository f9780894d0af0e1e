"""Numbers of 8 bits in a program of torch.export, by torchao's pt2e."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from softcache.exporting._format import Batches
from softcache.exporting._silent import silent

_SMALLEST = 2.0**-12  # step between two numbers
_LAYERS = {
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv1d.padding,
    torch.ops.aten.conv2d.padding,
    torch.ops.aten.conv3d.default,
    torch.ops.aten.linear.default,
}
_ACTIVATIONS = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=_SMALLEST),
)
_WEIGHTS = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=_SMALLEST),
)


class _Layers(Quantizer):
    """Inputs and weights of convolutions and linear layers; what is between them stays in float32.

    torchao's own for x86 looks for patterns such as convolution, addition and ReLU, and doesn't find them in networks
    that call one ReLU several times.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and node.target in _LAYERS and _is_parameter(node.args[1]):
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map={node.args[0]: _ACTIVATIONS, node.args[1]: _WEIGHTS}, _annotated=True
                )
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing has to be refused: each layer is annotated by itself."""


def _is_parameter(node: object) -> bool:
    return getattr(node, "op", None) == "get_attr"


def quantized(program: ExportedProgram, calibration: Batches) -> nn.Module:
    """The program with weights of int8, one scale a channel, and activations whose ranges are those of ``calibration``.

    Batch norms become parts of the convolutions before them.
    """
    with silent(), torch.no_grad():
        prepared = prepare_pt2e(program.module(), _Layers())
        for batch in calibration:
            prepared(*batch)
        return _without_unused(convert_pt2e(prepared))


def _without_unused(made: GraphModule) -> GraphModule:
    """Without the weights in float32 that those of int8 were made from, which would be saved too."""
    used = {node.target for node in made.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*made.named_parameters(), *made.named_buffers()) if name not in used]:
        owner, _, last = name.rpartition(".")
        delattr(made.get_submodule(owner), last)
    return made
