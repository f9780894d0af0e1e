"""A network that is evaluated, as it was trained, with the clean inputs that it is evaluated on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softcache.cache.schema import LOGITS
from softcache.config.eval import EvalConfig
from softcache.config.fit import FitConfig
from softcache.config.given import recorded_data_dir, remember_data
from softcache.config.parsed import parse
from softcache.config.record import CONFIG, Record, read_record
from softcache.config.teachers import default_data, known_folder, teacher_source
from softcache.config.train import TrainConfig
from softcache.errors import UsageError
from softcache.evaluating.cost import Latency, flops, latency, parameters
from softcache.evaluating.predictions import Predictions, predictions
from softcache.models._arithmetic import Arithmetic
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.stream.inputs import InputSource, pick_inputs
from softcache.views._open import Viewed, open_viewed

log = logging.getLogger(__name__)

AT_ONCE = 8  # networks that are held and see a batch of inputs together
BATCHES = (1, 32)  # whose latency is measured


@dataclass(frozen=True, eq=False)
class Split:
    """``dataset``, and its rows as clean inputs; what they become on the device is made once."""

    dataset: str
    viewed: Viewed
    device: torch.device
    workers: int

    @functools.cached_property
    def inputs(self) -> InputSource:
        return pick_inputs(self.viewed, self.device, workers=self.workers)


@dataclass(frozen=True, eq=False)
class Subject:
    """``model``: as the user named it. ``folder``, ``record``: of a run or a teacher, None of a spec with weights."""

    model: str
    network: Network
    arithmetic: Arithmetic
    split: Split
    folder: Path | None = None
    record: Record[Any] | None = None

    @property
    def options(self) -> TrainConfig | None:
        """Those of a run; None of a teacher."""
        options = self.record.options if self.record is not None else None
        return options if isinstance(options, TrainConfig) else None


@dataclass(frozen=True)
class Cost:
    """``parameters`` and ``flops`` of one sample, None of a function that is no network; ``latency``: for each size of
    a batch, where it was measured."""

    parameters: int | None
    flops: int | None
    latency: tuple[Latency, ...] = ()

    def to_json(self) -> dict[str, Any]:
        times = [{**vars(one)} for one in self.latency]
        return {"parameters": self.parameters, "flops": self.flops, **({"latency": times} if times else {})}


class Opener:
    """Opens what is evaluated on ``device``; data that several share is opened once."""

    def __init__(self, asked: EvalConfig, device: torch.device):
        self.asked, self.device = asked, device
        self._splits: dict[tuple[Any, ...], Split] = {}

    def subject(self, model: str) -> Subject:
        """Errors: ``ModelError`` where there are no parameters for it, ``DatasetError`` where its data can't be had,
        ``UsageError`` for a run that has learnt no logits."""
        return self.on(self.data(model)[2], model, self.asked.weights, normalize=self.asked.normalize)

    def data(self, model: str) -> tuple[Path | None, Record[Any] | None, Split]:
        """The folder and the record of a run or a teacher, None of a spec; and the inputs that it is evaluated on.

        Errors: as ``subject``, but for those of parameters, which aren't opened.
        """
        asked, folder = self.asked, known_folder(model)
        record = read_record(folder) if folder is not None and (folder / CONFIG).exists() else None
        if record is not None and isinstance(record.options, TrainConfig):
            _refuse_other_outputs(model, record.options)
        data_dir = asked.data_dir or (recorded_data_dir(folder) if folder is not None else None)
        dataset, size = default_data(model, asked.dataset, asked.size)
        split = self.split(dataset, size, data_dir)
        if folder is not None and record is not None:
            remember_data(folder, record.options, dataset)
        return folder, record, split

    def split(self, dataset: str, size: int | None, data_dir: str | None) -> Split:
        """The clean inputs of the split that is asked for."""
        key = dataset, size, data_dir
        if key not in self._splits:
            asked = self.asked
            viewed = open_viewed(
                dataset, asked.split, data_dir=data_dir, download=asked.download, augment="none", size=size
            )
            self._splits[key] = Split(dataset, viewed, self.device, asked.workers)
        return self._splits[key]

    def on(
        self,
        split: Split,
        model: str,
        weights: str | None = None,
        *,
        option: str = "--weights",
        normalize: str | None = None,
    ) -> Subject:
        """A run, a teacher or a model by its spec on these inputs. ``option``: what ``weights`` are given with."""
        samples, folder = split.viewed.samples, known_folder(model)
        spec, found = teacher_source(model, samples, weights, option=option)
        network = open_network(
            spec,
            classes=len(samples.classes) or None,
            class_names=samples.classes,
            statistics=samples.statistics,
            weights=found,
            normalize=normalize,
            pictures=samples.pictures,
        )
        if folder is None and Path(spec).is_dir():  # a teacher that was found by its model's name
            folder = Path(spec)
        record = read_record(folder) if folder is not None and (folder / CONFIG).exists() else None
        # As it was trained, so that its folder's own figure comes out again.
        options = record.options if record is not None and isinstance(record.options, FitConfig) else None
        trained = options.amp if options is not None and options.amp != "auto" else "off"
        amp = self.asked.amp if self.asked.amp not in (None, "auto") else trained
        arithmetic = Arithmetic(str(amp), options is not None and bool(options.channels_last))
        return Subject(model, arithmetic.apply(network.to(self.device)), arithmetic, split, folder, record)

    def say(self, subjects: Sequence[Subject]) -> list[Predictions]:
        """What networks say of the inputs of their splits, which are made once for all that share them."""
        found: dict[int, Predictions] = {}
        for split in {id(one.split): one.split for one in subjects}.values():
            own = [number for number, one in enumerate(subjects) if one.split is split]
            judged = [(subjects[number].network, subjects[number].arithmetic.amp) for number in own]
            found |= dict(zip(own, predictions(judged, split.viewed, split.inputs, self.device), strict=True))
        return [found[number] for number in range(len(subjects))]

    def cost(self, subject: Subject) -> Cost:
        """Of one sample; where rows have lengths of their own, of one of median length."""
        viewed, network = subject.split.viewed, subject.network
        row, times = _median_row(viewed), []
        for batch in BATCHES if self.asked.latency else ():
            inputs = viewed.clean(np.arange(batch) % len(viewed) if batch > 1 else row).to(self.device)
            times.append(latency(network, inputs, self.device, subject.arithmetic.amp))
        return Cost(parameters(network), flops(network, viewed.clean(row).to(self.device)), tuple(times))


def _median_row(viewed: Viewed) -> np.ndarray:
    """(1,) the row of median length; the first where all are alike."""
    lengths = list(viewed.lengths().values())
    if not lengths:
        return np.zeros(1, np.int64)
    return np.argsort(lengths[0], kind="stable")[len(lengths[0]) // 2 :][:1]


def _refuse_other_outputs(run: str, options: TrainConfig) -> None:
    """Errors: ``UsageError`` for a run whose student has learnt other outputs than logits, and no labels."""
    parsed = parse(options)
    if parsed.outputs and LOGITS not in parsed.outputs and parsed.beta is not None and parsed.beta.bounds()[1] == 0:
        raise UsageError(
            f"{run} has learnt {', '.join(parsed.outputs)} and no logits that could be compared with labels: its "
            "metrics.jsonl has what --val-fraction found, docs/features.md shows how to use it"
        )
