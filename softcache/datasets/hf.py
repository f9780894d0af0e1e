"""``hf:NAME_OR_PATH``: datasets of the Hugging Face hub, where ``datasets`` is installed (the extra ``hf``)."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softcache import hub, registry
from softcache.datasets._columns import (
    is_of_lists,
    is_of_numbers,
    labels_of_columns,
    texts_of_column,
    unpadded,
    values_of_column,
)
from softcache.datasets._files import TEST_NAMES, say_test_split
from softcache.datasets._outputs import asked_outputs
from softcache.datasets._samples import Samples
from softcache.datasets._tokenizer import open_tokenizer, tokenized
from softcache.datasets._values import Values
from softcache.datasets.python import LABELS, samples_of_fields, samples_of_items
from softcache.errors import DatasetError, UsageError
from softcache.inputs import MASK

TRAIN = "train"
SAVED = ("dataset_dict.json", "state.json")  # in folders that save_to_disk made
_CARD = ("README.md",)


@dataclass(frozen=True)
class Hf:
    """A dataset by its name on the Hugging Face hub, or a folder: one that ``save_to_disk`` made, or one of CSV, JSON
    or Parquet files.

    config: the configuration, where a dataset has several (``sst2``). revision: a branch, a tag or a commit on the hub;
    it becomes the commit that it is now. test: the name of the test split, by default the first of ``test``, ``val``,
    ``valid`` and ``validation`` that has labels.

    tokenizer: a model on the hub (``NAME@REVISION`` for another revision) or a folder; what it makes of the texts are
    the inputs, ``input_ids`` and what else its model takes. text: the column of the texts, or two, ``a+b``, which go to
    the tokenizer as pairs; may be left out where only one column is of text. max_length: in tokens; longer rows are cut
    off there, or else at the length that the tokenizer was made for.

    Without a tokenizer inputs are the columns of lists of numbers, or if there are none those of single numbers, or
    those in columns (``a+b``). pad: what shorter rows of input_ids are filled up with, where no tokenizer says it. A
    column of images makes the samples pictures, which are decoded when they are needed. label: the column of the
    labels, by default ``label`` or ``labels``: whole numbers or names of classes; floating numbers are values. binary,
    values: several columns of labels (``a+b``), each 0 or 1, or each a number to be predicted.

    Scripts of datasets are never run: the datasets library knows none.
    """

    name: str = field(metadata={"rest": True})
    config: str | None = None
    revision: str | None = None
    test: str | None = None
    tokenizer: str | None = None
    text: str | None = None
    max_length: int | None = None
    columns: str | None = None
    pad: int | None = None
    label: str | None = None
    binary: str | None = None
    values: str | None = None

    def __post_init__(self) -> None:
        if asked_outputs(self.binary, self.values, "hf:") is not None and self.label is not None:
            raise UsageError("hf: label, binary and values all name labels: give one of them")
        hub.require("a dataset hf:…", "datasets", *(["transformers"] if self.tokenizer else []))
        if self.tokenizer is None and (self.text or self.max_length):
            raise UsageError("hf: text and max_length are for a tokenizer: add tokenizer=NAME_OR_PATH")
        if self.tokenizer is not None and (self.columns or self.pad is not None):
            raise UsageError("hf: columns and pad are for datasets that are tokenized already: leave out tokenizer")
        if self.max_length is not None and self.max_length < 1:
            raise UsageError(f"hf: max_length must be at least 1, is {self.max_length}")
        folder = hub.local_folder(self.name, self.revision)
        if folder is not None:
            object.__setattr__(self, "name", str(folder))
        else:
            object.__setattr__(self, "revision", hub.snapshot(self.name, "dataset", self.revision, _CARD).name)

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """A split.

        Errors: ``DatasetError`` of one line for what isn't there, can't be read, or has no inputs.
        """
        tokenizer = open_tokenizer(self.tokenizer) if self.tokenizer is not None else None
        settled = self if tokenizer is None else dataclasses.replace(self, tokenizer=tokenizer.place)
        spec = registry.canonical("hf", settled)
        splits = self._splits(spec)
        outputs = asked_outputs(self.binary, self.values, "hf:")
        label = self._label(splits, spec) if outputs is None else None
        taken = {label} if outputs is None else {*outputs.names}
        name = TRAIN if split == TRAIN else self._test(splits, label, spec)
        if name not in splits:
            raise DatasetError(f"{spec} has no {split} split: it has {', '.join(splits)}")
        chosen = splits[name]
        train = splits.get(TRAIN, chosen)
        labels: dict[str, Any] = {}
        if label is not None:
            columns = [_column(one, label) for one in (train, chosen)]
            numbers, classes = labels_of_columns(columns, _class_names(train.features[label]), f"{spec}: {label}")
            labels = {"labels": numbers[1], "classes": classes}
        elif outputs is not None:
            outputs.refuse_lacking(chosen.column_names, spec)
            columns = [_column(chosen, name) for name in outputs.names]
            labels = {"labels": outputs.of_columns(columns, spec), "classes": outputs.names}
        images = [name for name, kind in chosen.features.items() if type(kind).__name__ == "Image"]
        if images and tokenizer is None and self.columns is None:
            return samples_of_items(_Pictures(chosen, images[0], **labels), split=split, spec=spec)
        names = self._inputs(chosen, taken, spec) if tokenizer is None else self._texts(chosen, taken, spec)

        def inputs(dataset: Any) -> Mapping[str, Values]:
            if tokenizer is not None:
                texts = [texts_of_column(_column(dataset, name), f"{spec}: {name}") for name in names]
                return tokenized(tokenizer, texts, self.max_length)
            return self._values(dataset, names, spec)

        made = inputs(chosen)
        floats = chosen is not train and any(held.values.dtype.kind == "f" for held in made.values())
        same = {**made, **labels}
        return samples_of_fields(same, {**inputs(train)} if floats else same, split=split, spec=spec)

    def _splits(self, spec: str) -> dict[str, Any]:
        """Name of a split → the dataset."""
        import datasets

        folder = hub.local_folder(self.name)
        with hub.told_in_a_line(spec, "dataset"), _quiet():
            if folder is not None and any((folder / name).is_file() for name in SAVED):
                if self.config is not None:
                    raise UsageError(f"hf:{folder} was saved without configurations: leave out config={self.config}")
                found = datasets.load_from_disk(str(folder))
            elif folder is not None:
                found = datasets.load_dataset(str(folder), self.config)
            elif datasets.config.HF_HUB_OFFLINE:  # what of this commit is in the hub's cache on this machine
                found = datasets.load_dataset(
                    str(hub.snapshot(self.name, "dataset", self.revision, _CARD)), self.config
                )
            else:
                found = datasets.load_dataset(self.name, self.config, revision=self.revision)
            return {TRAIN: found} if isinstance(found, datasets.Dataset) else dict(found)

    def _label(self, splits: dict[str, Any], spec: str) -> str | None:
        there = next(iter(splits.values())).column_names
        if self.label is not None and self.label not in there:
            raise DatasetError(f"{spec}: there is no column {self.label!r}: there are {', '.join(there)}")
        return self.label or next((name for name in LABELS if name in there), None)

    def _test(self, splits: dict[str, Any], label: str | None, spec: str) -> str | None:
        """The name of the test split. Those without labels, as competitions publish them, are passed over."""
        if self.test is not None:
            if self.test not in splits:
                raise DatasetError(f"{spec} has no split {self.test!r}: it has {', '.join(splits)}")
            return self.test
        there = [name for name in TEST_NAMES if name in splits]
        labelled = [name for name in there if label is None or _has_labels(splits[name], label)]
        if labelled:
            say_test_split(spec, labelled)
        return next(iter([*labelled, *there]), None)

    def _inputs(self, dataset: Any, taken: Collection[str | None], spec: str) -> list[str]:
        """The columns that are inputs. ``taken``: those of labels."""
        kinds = {field.name: field.type for field in dataset.features.arrow_schema}
        if self.columns is not None:
            names = [name.strip() for name in self.columns.split("+")]
            if absent := [name for name in names if name not in kinds]:
                raise DatasetError(f"{spec}: there is no column {absent[0]!r}: there are {', '.join(kinds)}")
            return names
        known = [name for name, kind in kinds.items() if name not in (*taken, MASK) and is_of_numbers(kind)]
        names = [name for name in known if is_of_lists(kinds[name])] or known
        if not names:
            raise DatasetError(
                f"{spec} has no columns of numbers or images, only {', '.join(kinds)}: of texts tokenizer=NAME_OR_PATH "
                "makes numbers"
            )
        return names

    def _texts(self, dataset: Any, taken: Collection[str | None], spec: str) -> list[str]:
        """The one or two columns that are tokenized. ``taken``: those of labels."""
        kinds = {field.name: str(field.type) for field in dataset.features.arrow_schema}
        if self.text is not None:
            names = [name.strip() for name in self.text.split("+")]
            if len(names) > 2 or any(name not in kinds for name in names):
                raise DatasetError(f"{spec}: text is one column or two, a+b, of {', '.join(kinds)}")
            return names
        names = [name for name, kind in kinds.items() if kind in ("string", "large_string") and name not in taken]
        if len(names) != 1:
            raise DatasetError(
                f"{spec} has {len(names)} columns of text ({', '.join(names)}): say which, text=COLUMN or a+b"
            )
        return names

    def _values(self, dataset: Any, names: list[str], spec: str) -> dict[str, Values]:
        found = {name: values_of_column(_column(dataset, name), f"{spec}: {name}") for name in names if name != MASK}
        if MASK in dataset.column_names:  # softcache makes the mask itself
            found = unpadded(found, values_of_column(_column(dataset, MASK), f"{spec}: {MASK}"), spec)
        if self.pad is not None:
            if "input_ids" not in found:
                raise UsageError(f"{spec}: pad is for input_ids, and there are {', '.join(found)}")
            found["input_ids"].pad = self.pad
        return found


@dataclass(frozen=True)
class _Pictures:
    """The column of images of a dataset as a map-style one of pairs, with its labels."""

    dataset: Any
    column: str
    labels: Any = None
    classes: tuple[str, ...] | None = None

    @property
    def targets(self) -> Any:
        return np.full(len(self), -1) if self.labels is None else self.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, None]:
        return self.dataset[row][self.column], None


def _column(dataset: Any, name: str) -> Any:
    """All rows of a column as they are stored, also of a dataset that was filtered or shuffled."""
    return dataset.select_columns([name]).with_format("arrow")[:].column(name)


def _class_names(kind: Any) -> list[str] | None:
    names = getattr(kind, "names", None)  # of a ClassLabel
    return None if names is None else [str(name) for name in names]


def _has_labels(dataset: Any, label: str) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _column(dataset, label)
    if column.null_count == len(column):
        return False
    return column.type not in (pa.int8(), pa.int16(), pa.int32(), pa.int64()) or bool(pc.max(column).as_py() >= 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of ``datasets`` where nobody sees them."""
    import datasets

    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
