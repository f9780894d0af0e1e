"""``resnet50``: the classification networks of torchvision, also ``torchvision:resnet50``."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision.models
from torch import Tensor, nn

from softcache.errors import ModelError, UsageError, nearest
from softcache.models import cifar
from softcache.models._checkpoint import load_state, looks_like_file
from softcache.models._preprocess import Statistics
from softcache.models._source import Weights, file_weights

_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Networks whose input size is fixed when they are built: prefix of the name, argument of torchvision's builder.
_FIXED = {"vit_": "image_size", "maxvit_": "input_size"}
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class Torchvision:
    """A classification network of torchvision by its name there.

    Input: ViT and MaxViT have one size (224 unless their weights have another); the others take any size from the
    minimum that torchvision records with their weights (1 for ResNets, 32 for VGG, 224 for Swin).
    """

    name: str = field(metadata={"rest": True})

    any_channels: ClassVar[bool] = True
    pure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        known = torchvision.models.list_models(module=torchvision.models)
        if self.name not in known:
            hint = f": did you mean cifar:{self.name}?" if self.name in cifar.NAMES else nearest(self.name, known)
            raise UsageError(f"no torchvision classification model is called {self.name!r}{hint}")

    def build(self, classes: int, size: int | None = None) -> nn.Module:
        """See ``NetworkSource.build``. GoogLeNet and Inception come without their auxiliary classifiers."""
        options: dict[str, Any] = {"weights": None, "num_classes": classes}
        if self.name in _AUXILIARY:
            options |= {"aux_logits": False, "init_weights": True}
        for prefix, argument in _FIXED.items():
            if self.name.startswith(prefix):
                side = self.input_size(size)[0]
                options[argument] = side if argument == "image_size" else (side, side)
        try:
            return torchvision.models.get_model(self.name, **options)
        except (AssertionError, ValueError, RuntimeError) as error:  # an AssertionError from torch._assert
            raise ModelError(f"{self.name} can't be built for {classes} classes, size {size}: {error}") from error

    def input_size(self, size: int | None = None) -> tuple[int | None, int]:
        """See ``NetworkSource.input_size``."""
        minimum = min(max(w.meta["min_size"]) for w in self._published().values())
        if self.name.startswith(tuple(_FIXED)):
            return size or minimum, 1
        return size, minimum

    def weights(self, weights: str) -> Weights:
        """``DEFAULT``, a torchvision name such as ``IMAGENET1K_V1``, or a file.

        A file that has the name under which torchvision publishes it (``resnet50-11ad3fa6.pth``) brings its
        normalization, as a download does.
        """
        published = self._published()
        if looks_like_file(weights):
            path = Path(weights).expanduser()
            for entry in published.values():
                if path.name == os.path.basename(entry.url) and path.is_file():
                    return self._known(entry, path, f"the checkpoint {path}")
            found = file_weights(path)
            return dataclasses.replace(found, load=lambda: self._adapt(found.load()))
        if weights == "DEFAULT":
            entry = torchvision.models.get_model_weights(self.name)["DEFAULT"]
        elif weights in published:
            entry = published[weights]
        else:
            names = nearest(weights, ["DEFAULT", *published])
            raise ModelError(f"no weights called {weights!r} are published for {self.name}{names}")
        path = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(entry.url)
        return self._known(entry, path, f"torchvision's checkpoint {entry.name} of {self.name}")

    def _published(self) -> dict[str, Any]:
        """Weights that have a classifier, by name."""
        members = torchvision.models.get_model_weights(self.name)
        return {entry.name: entry for entry in members if entry.meta["categories"]}

    def _known(self, entry: Any, path: Path, title: str) -> Weights:
        def load() -> Mapping[str, Tensor]:
            # what lies there already, given or downloaded before, is read without a network
            return self._adapt(load_state(path) if path.is_file() else self._download(entry))

        preset = entry.transforms()
        crop = int(preset.crop_size[0])
        statistics: Statistics = (tuple(preset.mean), tuple(preset.std))
        if self.name in _AUXILIARY:
            # torchvision's pretrained models turn ImageNet's normalization into this one inside the network
            statistics = ((0.5,) * 3, (0.5,) * 3)
        return Weights(
            title=title,
            load=load,
            path=path,
            classes=len(entry.meta["categories"]),
            statistics=statistics,
            trained_size=crop,
            size=max(entry.meta["min_size"]) if self.name.startswith(tuple(_FIXED)) else None,
        )

    def _download(self, entry: Any) -> Mapping[str, Tensor]:
        try:
            return entry.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
            )
        except (OSError, RuntimeError) as error:  # URLError is an OSError, a wrong hash a RuntimeError
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise ModelError(
                f"{self.name} needs {entry.url}, which can't be downloaded ({reason}): "
                "fetch that file elsewhere and pass it with --teacher-weights FILE"
            ) from error

    def _adapt(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Names as today's torchvision has them, without auxiliary classifiers."""
        dropped = _AUXILIARY.get(self.name, ())
        return {_OLD_DENSENET.sub(r"\1\2", k): v for k, v in state.items() if not k.startswith(tuple(dropped))}
