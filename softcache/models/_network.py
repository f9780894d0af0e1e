"""A network that takes the inputs of keys: an architecture together with its preprocessing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.parameter import UninitializedParameter

from softcache.console import counted
from softcache.errors import ModelError, UsageError, nearest
from softcache.fields import Fields, Inputs
from softcache.inputs import WHITE
from softcache.models._array_model import ArrayModel
from softcache.models._hooks import classifier_path
from softcache.models._preprocess import Preprocess
from softcache.models._sharing import Sharing
from softcache.models._through import Through

__all__ = ["Network", "Preprocess", "logits_of", "output_of"]


class Network(nn.Module):
    """An architecture and what is done to inputs before it.

    model: the bare architecture, from normalized floats (B, channels, H, W) to logits (B, classes); the names
        of its parameters are the names in saved files.
    spec: how ``open_network`` finds the architecture again.
    classes, channels: width of the logits, 0 where nobody knows it; what the architecture's first layer takes (0 where
        the inputs are no pictures).
    preprocess: size and normalization.
    fresh: names of parameters that kept their random start when weights were loaded (a new classifier).
    weights_path: the file that the parameters were read from, if any.
    class_names: what the logits stand for, in their order, where that is known.
    trained_part: path of the only module that is trained, or None for all of them; the rest then stays in
        evaluation mode, so that running means of frozen layers don't move.
    still: paths of modules that stay in evaluation mode, for the same reason.
    sharing: where other networks find what was made of the same pixels, see ``softcache.models._sharing``.
    """

    def __init__(self, model: nn.Module, *, spec: str, classes: int, channels: int, preprocess: Preprocess):
        super().__init__()
        if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
            raise ModelError(f"{spec} has lazy layers without a shape: run it once on an example inside its factory")
        self.model = model
        self.spec = spec
        self.classes = classes
        self.channels = channels
        self.preprocess = preprocess
        self.fresh: tuple[str, ...] = ()
        self.weights_path: Path | None = None
        self.class_names: tuple[str, ...] | None = None
        self.trained_part: str | None = None
        self.still: tuple[str, ...] = ()
        self.sharing: Sharing | None = None
        self._set_constants()

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits (B, classes), in the dtype that the architecture computes in, for pixels (B, H, W, C) or other
        inputs.

        Errors: ``ModelError`` where pixels or logits don't have that shape, or the architecture takes other inputs.
        """
        return self._checked(logits_of(self._run(inputs), self.spec), len(inputs))

    def refuse_untrainable(self) -> None:
        """Errors: ``UsageError`` for a network without parameters, such as a function that is a teacher."""
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UsageError(f"{self.spec} has no parameters that could be trained: it can be a teacher, no student")

    def outputs(self, inputs: Inputs, names: Sequence[str]) -> dict[str, Tensor]:
        """Several outputs (B, …) of one run, by name: ``logits`` as ``forward`` gives them, or (B, …, C) at several
        positions of a sample; others as the architecture names them, by a key or an attribute. One that returns a
        tensor alone gives it by any name but ``logits``.

        Errors: ``ModelError`` for an output that isn't there, with those that are.
        """
        made = self._run(inputs)
        return {
            name: self._checked(logits_of(made, self.spec), len(inputs), positions=True)
            if name == "logits"
            else output_of(made, name, len(inputs), self.spec)
            for name in names
        }

    def _run(self, inputs: Inputs) -> Any:
        """What the architecture returns."""
        if isinstance(inputs, Tensor):
            return self.model(self.prepare(inputs))
        if isinstance(self.model, ArrayModel):  # a function gets what the data have, and where they are
            return self.model(inputs)
        positional, named = self.arguments(self.standardized(inputs))
        return self.model(*positional, **named)

    @property
    def takes(self) -> list[str]:
        """Names of the inputs that the architecture's forward has parameters for."""
        inside = self.model.backbone if isinstance(self.model, Through) else self.model
        return _parameters(type(inside).forward)[0]

    def arguments(self, fields: Fields) -> tuple[list[Tensor], dict[str, Tensor]]:
        """How inputs that are no pictures go to the architecture: each by the parameter of its name. One input alone is
        the first argument where no parameter has its name. Masks go to parameters of their names, where there are any.

        Errors: ``ModelError`` for inputs that it has no parameters for, and for parameters without an input.
        """
        inside = self.model.backbone if isinstance(self.model, Through) else self.model
        names, required, any_name = _parameters(type(inside).forward)
        masks = {mask: fields.mask(name).long() for mask, name in fields.masks.items() if mask in names}
        unnamed = [name for name in fields.tensors if name not in names]
        positional = list(fields.tensors.values()) if len(fields.tensors) == 1 and unnamed else []
        if unnamed and not positional and not any_name:
            raise ModelError(
                f"{self.spec} takes {', '.join(names) or 'nothing'}, the data has {', '.join(fields.tensors)}: call "
                "the parameters of its forward as the inputs"
            )
        lacking = [name for name in required[len(positional) :] if name not in (*fields.tensors, *masks)]
        if lacking:
            there = ", ".join((*fields.tensors, *fields.masks))
            raise ModelError(
                f"{self.spec} needs {', '.join(lacking)} too, the data has {there}: call the parameters of its forward "
                "so, or give those a default"
            )
        return positional, masks if positional else {**fields.tensors, **masks}

    def _checked(self, logits: Tensor, rows: int, *, positions: bool = False) -> Tensor:
        """``positions``: whether each sample may have several vectors of logits, whose classes aren't the data's."""
        if positions and logits.ndim > 2 and len(logits) == rows:
            return logits
        if logits.ndim != 2 or len(logits) != rows:
            raise ModelError(
                f"{self.spec} gives logits of shape {tuple(logits.shape)} for {rows} samples: one vector a sample is "
                "learnt and evaluated"
            )
        if self.classes not in (0, logits.shape[1]):
            raise ModelError(
                f"{self.spec} gives outputs of shape {tuple(logits.shape)} for {rows} samples, "
                f"but the data has {self.classes} classes: its factory should take num_classes"
            )
        return logits

    def prepare(self, pixels: Tensor) -> Tensor:
        """The architecture's input (B, channels, H', W') for uint8 or uint16 pixels (B, H, W, C). A function of arrays
        gets the pixels as they are.

        Grey pixels are repeated where three channels are wanted. The arithmetic is float32 (float64 for a
        network in float64); the result has the dtype, device and memory format of the parameters.

        Errors: ``ModelError`` for other shapes, dtypes or numbers of channels, such as colour in a network of one.
        """
        if isinstance(self.model, ArrayModel):  # a function gets what the data have, and where they are
            return pixels
        # Tensors of inference mode don't know whether they were written into.
        if self.sharing is None or torch.is_inference_mode_enabled():
            return self._prepare(pixels)
        like, layout = self._input_like()
        wanted = self.preprocess, self.channels, self._mean.dtype, like.dtype, layout
        return self.sharing.prepared(pixels, wanted, self._prepare)

    def _input_like(self) -> tuple[Tensor, torch.memory_format]:
        """A tensor of the dtype and device of the architecture's input, and its memory format."""
        like = next((p for p in self.model.parameters() if p.is_floating_point()), self._mean)
        return like, torch.channels_last if _is_channels_last(self.model) else torch.contiguous_format

    def _prepare(self, pixels: Tensor) -> Tensor:
        dtype = str(pixels.dtype).removeprefix("torch.")
        if dtype not in WHITE or pixels.ndim != 4:
            raise ModelError(f"pixels must be uint8 or uint16 (B, H, W, C), not {dtype} {tuple(pixels.shape)}")
        if pixels.shape[3] != self.channels and (pixels.shape[3], self.channels) != (1, 3):
            theirs = counted(self.channels, "channel")
            raise ModelError(f"{self.spec} takes images of {theirs}, but the data has {pixels.shape[3]}")
        like, layout = self._input_like()
        x = pixels.to(like.device).permute(0, 3, 1, 2).to(self._mean.dtype, memory_format=layout)  # (B, C, H, W)
        target = self.preprocess.target(x.shape[2], x.shape[3])
        if tuple(x.shape[2:]) != target:
            x = interpolate(x, size=target, mode="bilinear", antialias=True, align_corners=False)
        # A GPU would multiply by the reciprocal of a number, which rounds twice; it divides by a tensor.
        white = torch.full((), WHITE[dtype], dtype=x.dtype, device=x.device)
        x = x.div(white).sub(self._mean).div(self._std)  # (B, C, H', W') with (channels, 1, 1)
        return x.to(like.dtype).contiguous(memory_format=layout)

    def standardized(self, fields: Fields) -> Fields:
        """Inputs on the device of the parameters; floats in their dtype, those of the one floating input standardized,
        but for what rows are filled up with. Whole numbers stay as they are.
        """
        like = next((p for p in self.model.parameters() if p.is_floating_point()), self._mean)
        fields = fields.to(like.device)
        mean, std = self._mean.view(-1), self._std.view(-1)
        made = dict(fields.tensors)
        for name, tensor in fields.tensors.items():
            if not tensor.is_floating_point():
                continue
            if len(mean) not in (1, tensor.shape[-1]):
                raise ModelError(f"{self.spec} is for inputs of {len(mean)} numbers, these have {tensor.shape[-1]}")
            values = tensor.to(self._mean.dtype).sub(mean).div(std).to(like.dtype)
            if name in fields.lengths:
                own = fields.mask(name).reshape(*tensor.shape[:2], *[1] * (tensor.ndim - 2))
                values = values.masked_fill(~own, 0)
            made[name] = values
        return Fields(made, fields.lengths, fields.masks, fields.pads)

    def freeze_all_but_classifier(self) -> str:
        """Lets only the layer that makes the logits learn; the others stay as in evaluation. Returns its path."""
        path = classifier_path(self.model, self.classes)
        self.model.requires_grad_(False)
        self.model.get_submodule(path).requires_grad_(True)
        self.trained_part = path
        self.train(self.training)
        return path

    def train(self, mode: bool = True) -> Network:
        """As ``nn.Module.train``; ``still`` and, where it is set, all but ``trained_part`` stay in evaluation mode."""
        super().train(mode)
        if mode and self.trained_part is not None:
            self.model.eval()
            self.model.get_submodule(self.trained_part).train()
        for path in self.still:
            self.model.get_submodule(path).eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Network:
        super()._apply(fn, recurse)
        self._set_constants()  # anew, so that float64 gets more than float32's digits
        return self

    def _set_constants(self) -> None:
        like = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        for name, values in (("_mean", self.preprocess.mean), ("_std", self.preprocess.std)):
            tensor = torch.tensor(values, dtype=dtype, device=like.device).view(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    _mean: Tensor
    _std: Tensor


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[list[str], list[str], bool]:
    """Names of what a model's forward takes, of those without a default, and whether it takes any others by name."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]  # without self
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    return [p.name for p in named], required, any(p.kind == p.VAR_KEYWORD for p in parameters)


def logits_of(output: Any, spec: str = "the model") -> Tensor:
    """The logits in what a model returned: a tensor, ``.logits``, ``["logits"]``, or the first of a tuple.

    Errors: ``ModelError`` for anything else.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ModelError(f"{spec} returns no logits that can be found: a tensor, a tuple, or .logits is expected")
    return output


def output_of(output: Any, name: str, rows: int, spec: str = "the model") -> Tensor:
    """The output ``name`` (B, …) in what a model returned for so many rows: itself where it is a tensor, else by a key
    or an attribute.

    Errors: ``ModelError`` where there is none, and where it isn't one row of floating numbers a sample.
    """
    found = output
    if not isinstance(output, Tensor):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    if found is None:
        named = [str(key) for key in output] if isinstance(output, Mapping) else list(getattr(output, "_fields", ()))
        raise ModelError(f"{spec} has no output {name!r}{nearest(name, named)}")
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim < 1 or len(found) != rows:
        shape = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"{spec}: the output {name!r} is {shape}, not floating numbers (B, …) for {rows} samples")
    return found


def _is_channels_last(model: nn.Module) -> bool:
    for parameter in model.parameters():
        # a weight of one channel or of 1x1 pixels has both formats at once and tells nothing
        if parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
            if not parameter.is_contiguous():
                return True
        elif parameter.ndim == 4:
            return False
    return False
