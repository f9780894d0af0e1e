"""Where the class of an architecture comes from, for files that have its parameters alone."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from softcache.exporting._format import tensors_of
from softcache.exporting._graph import Graph
from softcache.models._channels import input_channels
from softcache.models._source import source_of
from softcache.models._through import Through
from softcache.models.hf import Hf
from softcache.models.python import Python, takes_classes
from softcache.models.timm import Timm
from softcache.models.torchvision import Torchvision
from softcache.userfile import named_object


def loading(graph: Graph, file: str) -> str:
    """Python code that makes the architecture, gives it the parameters in ``file`` and runs it."""
    network = graph.network
    source, _ = source_of(network.spec)
    size = network.preprocess.size
    fixed = source.input_size(None)[0] is not None and size is not None
    common = network.channels in (0, 3) and input_channels(network.model, None) in (1, 3)
    if isinstance(network.model, Through):
        return "# This student answers through its teacher's classifier, and softcache has the class that does so.\n"
    if isinstance(source, Hf) and transformers_class(graph) is not None:
        name = transformers_class(graph)
        named = f"pixel_values={tensors_of(graph)}" if network.channels else _arguments(graph)
        return f"""import torch
from transformers import {name}

model = {name}.from_pretrained(".").eval()  # this folder, whose config.json has the architecture
with torch.no_grad():
    {graph.output} = model({named}).{graph.output}"""
    if isinstance(source, Torchvision) and common:
        side = ""
        if fixed:
            side = f", image_size={size}" if source.name.startswith("vit") else f", input_size=({size}, {size})"
        made = f"import torchvision\n\nmodel = torchvision.models.get_model({_text(source.name)}, num_classes="
        made += f"{network.classes}{side}{_no_auxiliary(source.name)})"
    elif isinstance(source, Timm) and common:
        side = f", img_size={size}" if fixed else ""
        made = f"import timm\n\nmodel = timm.create_model({_text(source.name)}, num_classes={network.classes}{side})"
    elif isinstance(source, Python):
        place, _, name = source.factory.rpartition(":")
        module = Path(place).stem if place.endswith(".py") else place
        factory, _ = named_object(source.factory)
        classes = f"num_classes={network.classes}" if network.classes and takes_classes(factory) else ""
        made = f"\nfrom {module} import {name}  # your own code\n\nmodel = {name}({classes})"
    else:
        return f"""import softcache  # has the class of the architecture
import torch

network = softcache.open_network({_text(network.spec)}, classes={network.classes}, weights={_text(file)}).eval()
with torch.no_grad():
    {graph.output} = network.model({tensors_of(graph)}){picked(graph)}"""
    return f"""import torch
from safetensors.torch import load_file
{made}
model.load_state_dict(load_file({_text(file)}))
with torch.no_grad():
    {graph.output} = model.eval()({_arguments(graph)}){picked(graph)}"""


def picked(graph: Graph) -> str:
    """Python code that takes the output from what the architecture returns: nothing, a key, an attribute or a place."""
    returned: list[Any] = []
    handle = graph.network.model.register_forward_hook(lambda module, given, made: returned.append(made))
    try:
        with torch.no_grad():
            graph.module(*graph.example)
    finally:
        handle.remove()
    (made,) = returned
    if isinstance(made, Mapping):
        return f"[{_text(graph.output)}]"
    if hasattr(made, graph.output):
        return f".{graph.output}"
    return "[0]" if isinstance(made, (tuple, list)) else ""


def _arguments(graph: Graph) -> str:
    """Of a call of the architecture: one input alone by its place, several by the names that its parameters have."""
    if len(graph.inputs) == 1:
        return tensors_of(graph)
    return ", ".join(f"{given.name}=torch.from_numpy({given.name})" for given in graph.inputs)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _no_auxiliary(name: str) -> str:
    return ", aux_logits=False, init_weights=False" if name in ("googlenet", "inception_v3") else ""


def transformers_class(graph: Graph) -> str | None:
    """The name of a network's class, where it is one of transformers' own."""
    cls = type(graph.network.model)
    return cls.__name__ if inspect.getmodule(cls) and cls.__module__.startswith("transformers.") else None


def transformers_config(graph: Graph) -> bytes | None:
    """``config.json`` of a network of transformers, with the names of the classes; None for others."""
    if transformers_class(graph) is None:
        return None
    model: Any = graph.network.model
    config = copy.deepcopy(model.config)
    config.architectures = [transformers_class(graph)]
    if graph.network.class_names is not None:
        config.id2label = dict(enumerate(graph.network.class_names))
        config.label2id = {name: label for label, name in enumerate(graph.network.class_names)}
    return config.to_json_string().encode()
