"""``hf:NAME_OR_PATH``: the networks of transformers, where it is installed (the extra ``hf``)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softcache import hub, strictjson
from softcache.errors import ModelError, UsageError, nearest
from softcache.models._checkpoint import looks_like_file
from softcache.models._preprocess import Statistics
from softcache.models._source import Weights, file_weights

log = logging.getLogger(__name__)

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
# Auto classes that are taken where nobody names one: the first that knows the model's configuration.
DEFAULTS = {
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "AutoModelForAudioClassification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING",
}
_MINIMUM = 32  # of convolutional networks, whose smallest input nobody records; 32 passes five halvings


@dataclass(frozen=True)
class Hf:
    """A model by its name on the Hugging Face hub, or a folder that ``save_pretrained`` made.

    revision: a branch, a tag or a commit on the hub; it becomes the commit that it is now. auto: the class of
    transformers that makes the network; by default that of AutoModelForSequenceClassification,
    AutoModelForImageClassification and AutoModelForAudioClassification which first knows the model.
    trust_remote_code: whether the Python files beside the model may be run; of a model on the hub only those of a
    commit that is named in full.

    Input: models of images whose configuration has an ``image_size`` take that size, others any from 32 pixels.

    Errors: ``MissingExtraError`` without transformers, ``UsageError`` for options that can't be, ``ModelError`` of one
    line for what isn't there or is no model.
    """

    name: str = field(metadata={"rest": True})

    any_channels: ClassVar[bool] = False
    pure: ClassVar[bool] = False
    revision: str | None = None
    auto: str | None = None
    trust_remote_code: bool | None = None

    def __post_init__(self) -> None:
        transformers = _transformers()
        folder = hub.local_folder(self.name, self.revision)
        if folder is not None:
            object.__setattr__(self, "name", str(folder))
        else:
            commit = self._snapshot(CONFIG, PREPROCESSOR).name
            if self.trust_remote_code and self.revision != commit:
                raise UsageError(
                    f"hf:{self.name} may change: name the commit whose code you trust, revision={commit} as it is now"
                )
            object.__setattr__(self, "revision", commit)
        object.__setattr__(self, "trust_remote_code", self.trust_remote_code or None)
        config = self._config()
        default = _default_auto(config)
        name = self.auto or default
        if name is None:
            raise UsageError(
                f"hf:{self.name}: transformers has no classifier of {config.model_type}: say auto=AutoModel…"
            )
        if not name.startswith("AutoModel") or not hasattr(transformers, name):
            known = [one for one in dir(transformers) if one.startswith("AutoModel")]
            raise UsageError(f"transformers has no auto class {name!r}{nearest(name, known)}")
        object.__setattr__(self, "auto", None if name == default else name)

    def build(self, classes: int, size: int | None = None) -> nn.Module:
        """See ``NetworkSource.build``. The configuration's own number of labels is replaced by ``classes``."""
        config = copy.deepcopy(self._config())
        if classes:
            config.num_labels = classes
        if size is not None and _image_size(config) is not None:
            config.image_size = size
        with hub.told_in_a_line(f"hf:{self.name}", "model"), hub.quiet():
            return self._auto().from_config(config, dtype=torch.float32, **self._trusted).train()

    def input_size(self, size: int | None = None) -> tuple[int | None, int]:
        """See ``NetworkSource.input_size``."""
        config = self._config()
        if not _is_of_images(config):
            return size, 1
        fixed = _image_size(config)
        return (size or fixed, 1) if fixed is not None else (size, _MINIMUM)

    def weights(self, weights: str) -> Weights:
        """``DEFAULT``, the model's own parameters, or a file. Only safetensors are read, never a pickle."""
        if looks_like_file(weights):
            return file_weights(weights)
        if weights != "DEFAULT":
            raise ModelError(f"hf:{self.name} has no weights called {weights!r}: pass DEFAULT, its own, or a file")
        config = self._config()
        of_images, fixed = _is_of_images(config), _image_size(config)
        preprocessor = self._preprocessor() if of_images else None
        if of_images and preprocessor is None:
            log.warning(
                f"hf:{self.name} has no {PREPROCESSOR} that says how pixels were normalized: the data's own mean and "
                "deviation are taken, unless you pass --normalize"
            )
        classifies = (self.auto or "").endswith("Classification") or self.auto is None
        names = _label_names(config) if classifies else None
        base = _base_prefix(config)
        return Weights(
            title=f"the checkpoint of hf:{self.name}",
            load=self._load,
            classes=int(config.num_labels) if classifies else 0,
            statistics=_statistics(preprocessor, self.name) if preprocessor is not None else None,
            trained_size=fixed if of_images else None,
            size=fixed if of_images else None,
            class_names=names,
            base=base if classifies else None,
        )

    def _load(self) -> Mapping[str, Tensor]:
        """The parameters that the checkpoint has, by the names that the network has for them."""
        folder = self._checkpoint_folder()
        with hub.told_in_a_line(f"hf:{self.name}", "model"), hub.quiet():
            model, info = self._auto().from_pretrained(
                folder,
                config=copy.deepcopy(self._config()),
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
                **self._trusted,
            )
        missing = set(info["missing_keys"])
        return {name: tensor for name, tensor in model.state_dict().items() if name not in missing}

    def _checkpoint_folder(self) -> Path:
        """Where the parameters are, fetched from the hub if need be.

        Errors: ``ModelError`` where there are none in safetensors.
        """
        folder = self._snapshot(CONFIG, SINGLE, INDEX, ADAPTER)
        if (folder / ADAPTER).exists():
            raise ModelError(
                f"hf:{self.name} is an adapter to another model: merge them (peft: merge_and_unload) and save"
            )
        if (folder / SINGLE).is_file():
            return folder
        if not (folder / INDEX).is_file():
            raise ModelError(
                f"hf:{self.name} has no {SINGLE}, and other formats could run code when they are read: load it in a "
                "process that trusts it, and save it again with save_pretrained, which writes safetensors"
            )
        parts = _parts(folder / INDEX)
        folder = self._snapshot(CONFIG, INDEX, *parts)
        if missing := [part for part in parts if not (folder / part).is_file()]:
            raise ModelError(f"hf:{self.name} lacks {missing[0]}, which its {INDEX} names")
        return folder

    def _snapshot(self, *files: str) -> Path:
        """The folder of the model, with these of its files where it has them."""
        folder = hub.local_folder(self.name)
        if folder is not None:
            return folder
        return hub.snapshot(self.name, "model", self.revision, files + (("*.py",) if self.trust_remote_code else ()))

    def _config(self) -> Any:
        folder = self._snapshot(CONFIG, PREPROCESSOR)
        if not (folder / CONFIG).is_file():
            raise ModelError(f"hf:{self.name} is no model of transformers: it has no {CONFIG}")
        try:
            said = strictjson.loads((folder / CONFIG).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{folder / CONFIG} can't be read: {hub.short(error)}") from None
        if not isinstance(said, dict) or not isinstance(said.get("model_type"), str):
            raise ModelError(f"hf:{self.name} is no model of transformers: its {CONFIG} has no model_type")
        for key, what in (
            ("quantization_config", "is quantized: name the model that it was made from"),
            ("transformers_weights", "names a file of weights of its own: save it again with save_pretrained"),
        ):
            if said.get(key) is not None:
                raise ModelError(f"hf:{self.name} {what}")
        code = said.get("auto_map") or {}
        if code and not self.trust_remote_code and said["model_type"] not in _transformers().CONFIG_MAPPING:
            raise ModelError(
                f"hf:{self.name} needs Python files of its own, which run only if you say so: read them, and add "
                ",trust_remote_code=true"
            )
        if code and self.trust_remote_code and any("--" in str(place) for place in dict(code).values()):
            raise ModelError(f"hf:{self.name} runs code of another repository: copy that code beside the model")
        with hub.told_in_a_line(f"hf:{self.name}", "model"), hub.quiet():
            return _transformers().AutoConfig.from_pretrained(folder, local_files_only=True, **self._trusted)

    def _preprocessor(self) -> dict[str, Any] | None:
        path = self._snapshot(CONFIG, PREPROCESSOR) / PREPROCESSOR
        if not path.is_file():
            return None
        try:
            found = strictjson.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} can't be read: {hub.short(error)}") from None
        if not isinstance(found, dict):
            raise ModelError(f"{path} is {type(found).__name__}, not an object")
        return found

    def _auto(self) -> Any:
        return getattr(_transformers(), self.auto or str(_default_auto(self._config())))

    @property
    def _trusted(self) -> dict[str, bool]:
        return {"trust_remote_code": bool(self.trust_remote_code)}


def _transformers() -> ModuleType:
    hub.require("a network hf:…", "transformers")
    import transformers

    return transformers


def _default_auto(config: Any) -> str | None:
    transformers = _transformers()
    known = (auto for auto, mapping in DEFAULTS.items() if type(config) in getattr(transformers, mapping))
    own = (auto for auto in DEFAULTS if auto in (getattr(config, "auto_map", None) or {}))
    return next(known, next(own, None))


def _is_of_images(config: Any) -> bool:
    transformers = _transformers()
    mappings = (transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, transformers.MODEL_FOR_IMAGE_MAPPING)
    return any(type(config) in mapping for mapping in mappings)


def _base_prefix(config: Any) -> str | None:
    """Begins the names of all parameters that are not the classifier's, such as ``bert``."""
    mappings = (getattr(_transformers(), mapping) for mapping in DEFAULTS.values())
    classes = (mapping[type(config)] for mapping in mappings if type(config) in mapping)
    return getattr(next(classes, None), "base_model_prefix", None) or None


def _image_size(config: Any) -> int | None:
    """The side of the input, for networks that have one size."""
    found = getattr(config, "image_size", None)
    if isinstance(found, (list, tuple)) and len(set(found)) == 1:
        found = found[0]
    if found is not None and not isinstance(found, int):
        raise ModelError(f"a network of {config.model_type} for images of {found} pixels: only square ones can be used")
    return found


def _label_names(config: Any) -> tuple[str, ...] | None:
    """What the outputs stand for; None where the configuration has the names that every model begins with."""
    names = [str(config.id2label.get(label)) for label in range(int(config.num_labels))]
    if any(name == f"LABEL_{label}" for label, name in enumerate(names)) or len(set(names)) != len(names):
        return None
    return tuple(names)


def _parts(index: Path) -> tuple[str, ...]:
    """The files of a checkpoint of several.

    Errors: ``ModelError`` for names that are no safetensors files beside the index.
    """
    try:
        parts = tuple(sorted({str(part) for part in strictjson.loads(index.read_bytes())["weight_map"].values()}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} can't be read as the list of a checkpoint's files ({error!r})") from None
    for part in parts:
        if Path(part).name != part or not part.endswith(".safetensors"):
            raise ModelError(f"{index} names {part!r}, which is no safetensors file beside it")
    return parts


def _statistics(said: dict[str, Any], name: str) -> Statistics:
    """Mean and deviation of pixels in 0..1, from how an image processor makes its input out of pixels in 0..255:
    ``(pixel · factor - offset - mean) / std``."""
    try:
        factor = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
        offset = 1.0 if said.get("rescale_offset", False) else 0.0
        mean, std = [0.0], [1.0]
        if said.get("do_normalize", True):
            mean, std = [float(v) for v in said["image_mean"]], [float(v) for v in said["image_std"]]
        if len(mean) != len(std) or len(mean) not in (1, 3) or not all(v > 0 for v in std) or factor <= 0:
            raise ValueError(f"mean {mean}, deviation {std}, factor {factor}")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"hf:{name}: {PREPROCESSOR} doesn't say how pixels are normalized ({error!r})") from None
    if abs(factor - 1) < 1e-6:
        factor = 1.0  # 1/255 as it is often written, 0.00392156862745098, and so exactly the usual arithmetic
    return tuple((m + offset) / factor for m in mean), tuple(s / factor for s in std)
