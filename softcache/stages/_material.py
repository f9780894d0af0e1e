"""What students have in common that are trained from one stream: data, test split, inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from softcache.config.data import TrainingData, open_data
from softcache.config.parsed import Parsed
from softcache.config.train import TrainConfig
from softcache.device import pick_device
from softcache.errors import UsageError
from softcache.stream.inputs import InputSource, ResidentInputs, pick_inputs
from softcache.stream.paired import PairedInputs
from softcache.training.evaluation import Evaluate, evaluator, held_out_evaluator, open_test, output_evaluator
from softcache.training.ranks import ALONE, Ranks
from softcache.training.rows import TrainingRows
from softcache.views._open import Viewed


class Material:
    """``data``: with all outputs and layers of the teacher that any of the students reads. The rest is opened when it
    is first asked for, once for all of them. ``ranks``: which train them together."""

    def __init__(self, data: TrainingData, options: TrainConfig, device: torch.device, ranks: Ranks = ALONE):
        self.data, self.device, self.ranks = data, device, ranks
        self._options = options
        self._validators: dict[object, Evaluate] = {}

    @classmethod
    def of(
        cls, students: Sequence[Parsed], view_numbers: Sequence[int] | None = None, ranks: Ranks = ALONE
    ) -> Material:
        """For students whose shared options are the same. ``view_numbers``: the recorded views that resumed runs began
        with."""
        first = students[0]
        losses = dict.fromkeys(term for parsed in students for term in parsed.losses)
        hints = dict.fromkeys(term for parsed in students for term in parsed.hints)
        every = dataclasses.replace(
            first,
            losses=tuple(losses),
            hints=tuple(hints),
            labels_alone=all(parsed.labels_alone for parsed in students),
        )
        return cls(open_data(every, view_numbers), first.options, pick_device(first.options.device), ranks)

    @cached_property
    def test(self) -> Viewed | None:
        options = self._options
        return open_test(self.data.dataset, self.data.viewed.size, data_dir=options.data_dir, download=options.download)

    @cached_property
    def inputs(self) -> InputSource:
        """In the views of the data's recipe, which is the weak one of two."""
        return self._inputs_of(self.data.viewed)

    @cached_property
    def trained_inputs(self) -> InputSource:
        """What students are trained on: ``inputs``, with those in strong views beside them where there are some."""
        if self.data.strong is None:
            return self.inputs
        viewed, weak = self.data.strong.viewed, self.inputs
        if isinstance(weak, ResidentInputs) and viewed.resident:
            return PairedInputs(weak, weak.seen_in(viewed))
        return PairedInputs(weak, self._inputs_of(viewed))

    def _inputs_of(self, viewed: Viewed) -> InputSource:
        options = self._options
        return pick_inputs(
            viewed,
            self.device,
            resident=options.resident,
            workers=options.workers,
            start=options.start_method,
        )

    def evaluate(self, *, logits: bool) -> Evaluate:
        """Scores on the test split, of students that learn logits; of others there are none."""
        return self._test_evaluator if logits else evaluator(None, self.device, **self._making)

    @cached_property
    def _test_evaluator(self) -> Evaluate:
        return evaluator(self.test, self.device, **self._making)

    def validate(self, rows: TrainingRows, output: str | None, shares: Sequence[float]) -> Evaluate:
        """Scores on the held-out rows: by their labels on clean inputs or, of a student that learns other outputs than
        logits alone, by the first of these (``output``) in a recorded view. ``shares``: a weight for each teacher.

        Errors: ``UsageError`` where no cache holds that output.
        """
        key = rows.held.tobytes(), output, tuple(shares)
        if key not in self._validators:
            self._validators[key] = self._validator(rows, output, shares)
        return self._validators[key]

    def _validator(self, rows: TrainingRows, output: str | None, shares: Sequence[float]) -> Evaluate:
        data = self.data
        if output is None:
            return held_out_evaluator(data.viewed, self.inputs, rows.held, self.device, **self._making)
        caches, views = data.outputs.get(output), data.recorded_views
        if not caches or not views:
            raise UsageError(
                f"--val-fraction would compare the student's {output!r} with the teacher's, which only a cache holds: "
                "leave it out, or train from a cache"
            )
        columns = [cache.column(output) for cache in caches]
        return output_evaluator(
            data.viewed, self.inputs, rows.held, columns, shares, views[0], self.device, **self._making
        )

    @property
    def _making(self) -> dict[str, Any]:
        options = self._options
        return {
            "resident": options.resident,
            "workers": options.workers,
            "start_method": options.start_method,
            "ranks": self.ranks,
        }
