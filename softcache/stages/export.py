"""A trained network in a file that other programs run: ``softcache export``."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from softcache.atomic import commit, dead_temporaries, temporary_path
from softcache.config.folders import make_folder
from softcache.config.given import recorded_data_dir, remember_data
from softcache.config.options import Options
from softcache.config.parsed import parse
from softcache.config.record import read_record
from softcache.config.teachers import default_data, known_folder
from softcache.config.train import TrainConfig
from softcache.datasets._labels import labelled
from softcache.errors import ModelError, SoftcacheError, UsageError
from softcache.exporting._comparison import Difference, compare, runner_of, seconds_of
from softcache.exporting._format import Batches, Format, Runner
from softcache.exporting._graph import LOGITS, Graph, graph_of
from softcache.fields import Inputs
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.stages._export_card import CARD, card_of
from softcache.stages._export_facts import document_of, leading_score
from softcache.stages._export_options import is_file, open_formats, refuse_taken
from softcache.stream.inputs import pick_inputs
from softcache.training.evaluation import evaluate_networks
from softcache.userfile import one_line
from softcache.views._open import Viewed, open_viewed

log = logging.getLogger(__name__)

STEM = "model"  # of the file in a folder
BATCHES = (1, 2, 7, 32, 86)  # samples that are compared, 128 in all
CALIBRATION, CALIBRATION_BATCH = 256, 32
MAX_DROP = 0.02


@dataclass(frozen=True)
class Exported:
    """One file. ``difference``: from the network's own outputs. ``seconds``, ``eager_seconds``: of one sample by the
    file and by PyTorch. ``before``, ``after``: scores on the test split of the network and of an int8 file."""

    format: str
    path: Path
    bytes: int
    difference: Difference
    seconds: float
    eager_seconds: float
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


@dataclass(frozen=True)
class Export:
    """``out``: the file, or the folder of all ``files`` and their card. ``document``: what the files say of
    themselves."""

    out: Path
    files: tuple[Exported, ...]
    document: dict[str, Any]
    card: Path | None

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        files = [{**asdict(one), "path": str(one.path)} for one in self.files]
        card = None if self.card is None else str(self.card)
        return {"out": str(self.out), "files": files, "card": card, "document": self.document}


def export(
    run: str | Path,
    *,
    format: str | Sequence[str] = "torch-export",
    out: str | Path | None = None,
    preprocess: bool = False,
    opset: int | None = None,
    quantize: str | None = None,
    calibrate: int | None = None,
    max_drop: float | None = None,
    output: str | None = None,
    card: bool | None = None,
    license: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    size: int | None = None,
) -> Export:
    """Writes the network of a run's or a teacher's folder as files of these formats, after each was read back and its
    outputs were compared with the network's own on samples of the test split.

    format: names of formats, as ``exporting`` has them. out: a file, of one format, or a new folder; by default
    ``exports/RUN``. preprocess: whether inputs are as the dataset gives them, and the file standardizes and resizes
    them. opset: of ONNX. quantize: ``int8``; calibrate: rows of the train split that ranges of activations are taken
    from, 0 for ranges that are measured as it runs; max_drop: what the leading score may lose by it, in 0..1.
    output: name of the output, by default ``logits``, or what was learnt in their place. card: whether a folder gets a
    ``README.md``. license: of the network, for the card and the files. The rest is as ``evaluate`` has it.

    Errors: ``UsageError`` for what can't be combined, ``ModelError`` where a format can't hold the network, or what it
    holds computes something else; nothing is left behind then.
    """
    names = (format,) if isinstance(format, str) else tuple(format)
    formats = open_formats(names, preprocess=preprocess, opset=opset, quantize=quantize, calibrate=calibrate)
    if quantize is None and max_drop is not None:
        raise UsageError("--max-drop is of --quantize int8: leave it out, or add that")
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise UsageError(f"--max-drop {max_drop:g} must be a share, from 0 to 1")
    folder = known_folder(str(run))
    if folder is None:
        raise UsageError(f"{run} is no folder of a run or a teacher: name one that softcache train or teach has made")
    record = read_record(folder)
    target = Path(out if out is not None else Path("exports") / folder.resolve().name).expanduser()
    alone = is_file(target, names, formats, card=card)
    dataset, size = default_data(str(run), dataset, size)
    data_dir = data_dir or recorded_data_dir(folder)
    opened = functools.partial(open_viewed, dataset, data_dir=data_dir, download=download, augment="none", size=size)
    viewed = _open_data(opened)
    remember_data(folder, record.options, dataset)
    chosen = output or _learnt(record.options)
    network = _open(folder, viewed, chosen)
    graph = graph_of(network, viewed.clean(_rows(viewed, 2)), viewed.inputs, prepares=preprocess, output=chosen)
    calibration = None
    if quantize is not None:
        rows = CALIBRATION if calibrate is None else calibrate
        calibration = _calibration(graph, opened("train"), rows) if rows else []
    how = None if calibration is None else "static" if calibration else "dynamic"
    document = document_of(graph, viewed, folder, record, license=license, int8=how)
    make_folder(target.parent)
    _remove_dead(target)
    part = temporary_path(target)
    part.mkdir()
    try:
        files = []
        for name, made in zip(names, formats, strict=True):
            path = part / (target.name if alone else STEM + made.suffix)
            files.append(_write(made, name, path, graph, document, calibration, viewed, max_drop))
        if not alone:
            _write_beside(formats, graph, part)
            if card is not False:
                usages = [made.usage(graph, STEM + made.suffix, int8=how is not None) for made in formats]
                (part / CARD).write_text(card_of(document, files, usages, graph, viewed), encoding="utf-8")
        _commit(part, target, alone=alone)
    except OSError as error:
        raise SoftcacheError(f"can't write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    placed = tuple(dataclasses.replace(one, path=target if alone else target / one.path.name) for one in files)
    return Export(target, placed, document, target / CARD if not alone and card is not False else None)


def _learnt(options: Options) -> str:
    """``logits``, or the output that a student has learnt in their place."""
    if not isinstance(options, TrainConfig):
        return LOGITS
    parsed = parse(options)
    labels = parsed.beta.bounds()[1] if parsed.beta is not None else 1 - parsed.alpha.bounds()[0]
    return LOGITS if not parsed.outputs or LOGITS in parsed.outputs or labels > 0 else parsed.outputs[0]


def _open_data(opened: Callable[[str], Viewed]) -> Viewed:
    """The clean test split, or the train split where there is no other. ``opened``: gives a split."""
    try:
        return opened("test")
    except SoftcacheError as error:
        viewed = opened("train")
        log.info(f"outputs are compared on samples of the train split, for there is no test split: {error}")
        return viewed


def _open(folder: Path, viewed: Viewed, output: str) -> Network:
    """As it is evaluated; of one that gives no logits of classes, the width is its own."""
    samples = viewed.samples
    spec = str(folder) if os.sep in str(folder) else f"./{folder}"
    return open_network(
        spec,
        classes=(len(samples.classes) or None) if output == LOGITS else None,
        class_names=samples.classes,
        statistics=samples.statistics,
        pictures=samples.pictures,
    )


def _rows(viewed: Viewed, count: int) -> np.ndarray:
    """So many rows, evenly over all that aren't empty: folders are sorted by class."""
    rows = np.arange(len(viewed))
    for lengths in viewed.lengths().values():
        rows = rows[lengths[rows] > 0]
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]


def _batches(viewed: Viewed) -> Iterator[Inputs]:
    rows, at = _rows(viewed, sum(BATCHES)), 0
    for count in BATCHES:
        if at < len(rows):
            yield viewed.clean(rows[at : at + count])
        at += count


def _calibration(graph: Graph, train: Viewed, count: int) -> Batches:
    rows = _rows(train, count)
    starts = range(0, len(rows), CALIBRATION_BATCH)
    return [graph.arrange(train.clean(rows[k : k + CALIBRATION_BATCH])) for k in starts]


def _write(
    made: Format,
    name: str,
    path: Path,
    graph: Graph,
    document: dict[str, Any],
    calibration: Batches | None,
    viewed: Viewed,
    max_drop: float | None,
) -> Exported:
    """One file, compared. Errors: ``ModelError`` where it computes something else."""
    try:
        made.write(graph, path, document, calibration)
        _flush(path)
        run = made.load(path, graph)
    except (SoftcacheError, OSError):
        raise
    except Exception as error:  # of a library, of whatever kind
        raise ModelError(
            f"{name} can't be made of {graph.network.spec}: {one_line(error)[:300]}; nothing was written"
        ) from error
    difference = compare(graph, run, _batches(viewed))
    before = after = None
    if calibration is None:
        if difference.largest > difference.allowed:
            raise ModelError(
                f"{name} computes something else than {graph.network.spec}: outputs differ by up to "
                f"{difference.largest:.2g}, and {difference.allowed:.2g} is allowed; nothing was written"
            )
    else:
        before, after = _scores(graph, run, viewed)
        _refuse_drop(name, before, after, difference, MAX_DROP if max_drop is None else max_drop)
    one = graph.arrange(viewed.clean(_rows(viewed, 1)))
    eager = runner_of(graph)
    return Exported(
        name,
        path,
        path.stat().st_size,
        difference,
        seconds_of(lambda: run(one)),
        seconds_of(lambda: eager(one)),
        before,
        after,
    )


def _scores(graph: Graph, run: Runner, viewed: Viewed) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Of the network and of a file on all labelled rows; None where there are no labels, or other outputs."""
    labels = viewed.samples.labels
    if graph.output != LOGITS or not labelled(labels).any():
        return None, None
    device = torch.device("cpu")
    judged = [(graph.network, "off"), (cast(Network, _Answering(graph, run)), "off")]
    found = evaluate_networks(judged, pick_inputs(viewed, device), labels, device)
    before, after = (asdict(scores) for scores in found)
    return before, after


def _refuse_drop(
    name: str, before: dict[str, Any] | None, after: dict[str, Any] | None, difference: Difference, allowed: float
) -> None:
    """Errors: ``ModelError`` where int8 loses more than is allowed: of the leading score, or without labels of the
    samples that are still answered alike."""
    if before is None or after is None:
        lost, what = 1 - difference.same, "the share of equal top-1"
    else:
        leading = leading_score(before)
        assert leading is not None, before
        lost, what = leading[1] - after[leading[0]], f"the {leading[0]} on the test split"
    if not lost <= allowed:
        raise ModelError(
            f"{name} in int8 loses {100 * lost:.2f} points of {what}, and --max-drop allows {100 * allowed:.2f}: "
            "calibrate with more rows (--calibrate), or allow more; nothing was written"
        )


class _Answering(torch.nn.Module):
    """A file in the place of a network, for evaluation."""

    def __init__(self, graph: Graph, run: Runner):
        super().__init__()
        self._graph, self._run = graph, run

    def outputs(self, inputs: Inputs, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """As ``Network.outputs``."""
        return dict.fromkeys(names, self._run(self._graph.arrange(inputs)))


def _write_beside(formats: Sequence[Format], graph: Graph, part: Path) -> None:
    for made in formats:
        for name, content in made.beside(graph).items():
            (part / name).write_bytes(content)


def _remove_dead(target: Path) -> None:
    """What an export to the same place has left behind that was killed on this machine."""
    for path in dead_temporaries(target.parent, deep=False):
        if path.name.startswith(f".{target.name}~") and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _commit(part: Path, target: Path, *, alone: bool) -> None:
    for path in part.iterdir():
        _flush(path)
    refuse_taken(target)  # again: it may have taken minutes
    commit(part / target.name if alone else part, target)


def _flush(path: Path) -> None:
    """Makes a file durable that a library has written."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
