"""What an exported network says of itself: what goes in and comes out, where it came from, how good it is."""

from __future__ import annotations

import datetime
import math
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from softcache._version import __version__
from softcache.addresses import is_address
from softcache.cache.reader import Cache
from softcache.config.given import FOLLOWED
from softcache.config.options import Options
from softcache.config.record import Record
from softcache.config.train import TrainConfig
from softcache.errors import SoftcacheError
from softcache.exporting._graph import Graph
from softcache.inputs import WHITE
from softcache.remembered import folder_identity, follow_all, portable, portable_recipe
from softcache.stages.compare import teacher_test
from softcache.sweeping.command import train_command
from softcache.views._open import Viewed
from softcache.views._viewed import ViewedDataset

_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# Options that change nothing of what is learnt, or are only of the machine.
_ASIDE = {"out", "download", "data_dir", "device", "workers", "profile", "log_every", "resident", "start_method"}


def document_of(
    graph: Graph, viewed: Viewed, folder: Path, record: Record[Any], *, license: str | None, int8: str | None
) -> dict[str, Any]:
    """All of it, as JSON values by name. Of paths only the last part is said.

    ``int8``: how numbers of 8 bits are made, ``static`` or ``dynamic``, None for float32. ``license``: of the network,
    as its owner says it.
    """
    network = graph.network
    found = {
        "softcache": __version__,
        "model": portable(network.spec),
        "inputs": [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in graph.inputs],
        "output": {"name": graph.output, "kind": viewed.samples.label_kind if graph.output == "logits" else "values"},
        "numbers": "float32" if int8 is None else f"int8, {int8}",
        "class_names": None if network.class_names is None else list(network.class_names),
        "preprocessing": _preprocessing(graph, viewed),
        "scores": _scores(record),
        "dataset": _dataset(record, viewed),
        "teachers": _teachers(folder, record),
        "run": folder.resolve().name,
        "seed": record.options.seed,
        "command": command_of(record.options),
        "license": license,
        "made": {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
    return _in_a_line(found)


def _in_a_line(value: Any) -> Any:
    """Without line breaks and other characters that steer what shows them: records may be anybody's, and a card is
    published."""
    if isinstance(value, dict):
        return {name: _in_a_line(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_in_a_line(one) for one in value]
    return _STEERING.sub(" ", value) if isinstance(value, str) else value


def command_of(options: Options) -> str:
    """The command that trains it again, with the last part of each path."""
    chosen: dict[str, Any] = {}
    for name, value in options.to_json().items():
        default = type(options).__dataclass_fields__[name].default
        if name in _ASIDE or value in ([], list(default) if isinstance(default, tuple) else default):
            continue
        if name == "augment":
            value = portable_recipe(value)
        elif name in FOLLOWED:
            value = [nameable(one) for one in value] if isinstance(value, list) else nameable(value)
        chosen[name] = value
    command = train_command(chosen)
    return command if isinstance(options, TrainConfig) else command.replace("softcache train", "softcache teach", 1)


def nameable(spec: str) -> str:
    """A spec without where things lie: of a folder its name."""
    told = portable(spec)
    return Path(told).name if told.startswith("/") else told


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was found among ``count`` samples.

    Source: E. B. Wilson, 1927, as in Brown, Cai and DasGupta, 2001, equation 4.

    >>> tuple(round(bound, 4) for bound in wilson(0.9, 100))
    (0.8256, 0.9448)
    """
    z = 1.959963984540054
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def _preprocessing(graph: Graph, viewed: Viewed) -> dict[str, Any]:
    preprocess = graph.network.preprocess
    found: dict[str, Any] = {
        "in_the_graph": graph.prepares,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
    if not isinstance(viewed, ViewedDataset):
        return found
    height, width = preprocess.target(viewed.size, viewed.size)
    return found | {
        "white": WHITE[viewed.samples.dtype],
        "channels": viewed.samples.channels,
        "resize": viewed.resize,
        "size": viewed.size,
        "interpolation": "bilinear, antialiased",
        "input_size": [height, width],
    }


def _scores(record: Record[Any]) -> dict[str, dict[str, float]]:
    """What was recorded when the training ended: of the test split, and of rows that were held out."""
    result = record.result or {}
    found: dict[str, dict[str, float]] = {"test": {}, "held_out": {}}
    for name, value in (result.get("test") or {}).items():
        if isinstance(value, (int, float)):
            found["test"][name] = value
    for name, value in result.items():
        for split, prefix in (("test", "test_"), ("held_out", "val_")):
            if name.startswith(prefix) and isinstance(value, (int, float)):
                found[split][name.removeprefix(prefix)] = value
    return {split: scores for split, scores in found.items() if scores}


def _dataset(record: Record[Any], viewed: Viewed) -> dict[str, Any]:
    said = record.data or {}
    spec = str(said.get("spec") or viewed.samples.spec)
    return {"spec": nameable(spec), "fingerprint": said.get("fingerprint"), "rows": said.get("rows")}


def _teachers(folder: Path, record: Record[Any]) -> list[dict[str, Any]]:
    """Of each cache that a run was trained from: its id, and where it can be opened who its teacher is."""
    options = record.options
    if not isinstance(options, TrainConfig):
        return []
    try:
        places = follow_all(folder, "cache", options.cache, folder_identity(folder), made=f"{folder} used its caches")
    except SoftcacheError:
        places = ()
    found = []
    for number, cache in enumerate(record.caches):
        place = places[number] if number < len(places) else None
        found.append({"cache_id": cache.get("cache_id"), **_teacher(place, cache.get("cache_id"))})
    if not found and options.teacher is not None:
        found.append({"teacher": nameable(options.teacher)})
    return found


def _teacher(place: str | None, cache_id: str | None) -> dict[str, Any]:
    if place is None or is_address(place):
        return {}
    try:
        cache = Cache(Path(place))
    except SoftcacheError:  # removed since, or another machine's
        return {}
    manifest = cache.manifest
    if manifest.cache_id != cache_id:
        return {}
    identity = manifest.identity
    found: dict[str, Any] = {
        "teacher": nameable(identity.teacher.spec),
        "weights_sha256": identity.teacher.weights,
        "top1_on_its_rows": manifest.state.teacher_top1,
    }
    try:
        found["test"] = teacher_test(cache)[1]
    except SoftcacheError:  # nobody named its folder here, or it is gone
        found["test"] = None
    return found


def leading_score(scores: Mapping[str, float]) -> tuple[str, float] | None:
    """The score that a network is judged by, among those that there are."""
    return next(((name, scores[name]) for name in ("top1", "map", "r2", "cosine") if name in scores), None)
