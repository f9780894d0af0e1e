"""The layers that can be hints: ``softcache layers``."""

from __future__ import annotations

from typing import Any

import numpy as np

from softcache.config.teachers import default_data, known_folder, own_teacher
from softcache.models._hooks import classifier_path
from softcache.models._layers import list_layers
from softcache.models._open import open_network
from softcache.models._takes import refuse_other_inputs
from softcache.views._open import open_viewed

FLOAT16_BYTES = 2


def layers(
    teacher: str = "resnet50",
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    size: int | None = None,
) -> list[dict[str, Any]]:
    """Path, module, shape of one sample and bytes as float16 of every layer, and of the classifier's input.

    ``teacher``: as ``dump`` knows it, but it needs no parameters; a folder knows its dataset and size.
    """
    folder = known_folder(teacher)
    dataset, size = default_data(teacher, dataset, size)
    viewed = open_viewed(dataset, "train", data_dir=data_dir, download=download, augment="none", size=size)
    samples = viewed.samples
    spec = str(folder or own_teacher(teacher, samples) or teacher)
    network = open_network(
        spec,
        classes=len(samples.classes) or 1000,
        class_names=samples.classes,
        statistics=samples.statistics,
        pictures=samples.pictures,
        seed=0,
    )
    some = viewed.clean(np.arange(2))
    refuse_other_inputs(network, some, viewed.inputs, samples.spec, "--dataset")
    found = []
    for layer in list_layers(network, some):
        count = int(np.prod(layer.shape)) * FLOAT16_BYTES
        found.append({"layer": layer.path, "module": layer.kind, "shape": list(layer.shape), "bytes": count})
    classifier = classifier_path(network.model, network.classes)
    width = getattr(network.model.get_submodule(classifier), "in_features", None)
    if width is not None:
        count = width * FLOAT16_BYTES
        found.append({"layer": f"{classifier}:in", "module": "input", "shape": [width], "bytes": count})
    return found
