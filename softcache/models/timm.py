"""``timm:NAME``: the networks of timm, where it is installed (the extra ``timm``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

from torch import Tensor, nn

from softcache.errors import ModelError, UsageError, nearest
from softcache.extras import missing_extra
from softcache.models._checkpoint import looks_like_file
from softcache.models._source import Weights, file_weights

_MINIMUM = 32  # timm records no smallest size for most networks; 32 passes five halvings


@dataclass(frozen=True)
class Timm:
    """A network by its name in timm, with or without the tag of its weights (``resnet50.a1_in1k``).

    Input: the size that timm records, for networks that it records as fixed (ViTs); any size from timm's
    recorded minimum, or else 32, for the others.
    """

    name: str = field(metadata={"rest": True})

    any_channels: ClassVar[bool] = True
    pure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        timm = _timm()
        if not timm.is_model(self.name):
            raise UsageError(f"timm has no model called {self.name!r}{nearest(self.name, timm.list_models())}")

    def build(self, classes: int, size: int | None = None) -> nn.Module:
        """See ``NetworkSource.build``."""
        try:
            return _timm().create_model(self.name, num_classes=classes, in_chans=3, **self._options(size))
        except (AssertionError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"timm:{self.name} can't be built for size {size}: {error}") from error

    def input_size(self, size: int | None = None) -> tuple[int | None, int]:
        """See ``NetworkSource.input_size``."""
        config = self._config()
        if config["fixed_input_size"]:
            return size or config["input_size"][1], 1
        return size, (config["min_input_size"] or (3, _MINIMUM, _MINIMUM))[1]

    def weights(self, weights: str) -> Weights:
        """``DEFAULT``, the pretrained weights that timm has for this name, or a file."""
        if looks_like_file(weights):
            return file_weights(weights)
        config = self._config()
        if weights != "DEFAULT" or not (config["hf_hub_id"] or config["url"] or config["file"]):
            raise ModelError(
                f"timm publishes no weights {weights!r} for {self.name}: pass DEFAULT or a file of weights"
            )
        return Weights(
            title=f"timm's checkpoint of {self.name}",
            load=self._download,
            classes=config["num_classes"],
            statistics=(tuple(config["mean"]), tuple(config["std"])),
            trained_size=config["input_size"][1],
            size=config["input_size"][1] if config["fixed_input_size"] else None,
        )

    def _config(self) -> dict[str, Any]:
        return vars(_timm().get_pretrained_cfg(self.name))

    def _options(self, size: int | None) -> dict[str, Any]:
        return {"img_size": size} if size is not None and self._config()["fixed_input_size"] else {}

    def _download(self) -> Mapping[str, Tensor]:
        try:
            return _timm().create_model(self.name, pretrained=True, in_chans=3).state_dict()
        except Exception as error:  # the hub's client raises many kinds, its own and its transport's
            config = self._config()
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"timm:{self.name} needs {config['hf_hub_id'] or config['url']}, "
                f"which can't be downloaded ({reason}): "
                "fetch its file elsewhere and pass it with --teacher-weights FILE"
            ) from error


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise missing_extra("timm: networks need timm", "timm") from error
    return timm
