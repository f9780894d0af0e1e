"""From a model spec to a network: ``open_network("resnet50", classes=10, statistics=…)``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from softcache.console import counted
from softcache.datasets._labels import numbered
from softcache.errors import ModelError, UsageError
from softcache.models._channels import input_channels, take_channels
from softcache.models._folder import is_folder_spec, read_folder
from softcache.models._network import Network
from softcache.models._preprocess import Preprocess, Statistics, choose_statistics
from softcache.models._source import Weights, source_of
from softcache.models._weights import classes_in, fit
from softcache.models.python import Python


def open_network(
    spec: str,
    *,
    classes: int | None,
    class_names: Sequence[str] | None = None,
    statistics: Statistics | None = None,
    weights: str | Path | None = None,
    normalize: str | None = None,
    size: int | None = None,
    seed: int | None = None,
    pictures: bool = True,
    new_classifier: bool = False,
    skeleton: bool = False,
) -> Network:
    """The network that a spec names, in training mode, on the CPU, in float32.

    spec: ``resnet50`` (torchvision), ``cifar:resnet56``, ``timm:NAME``, ``hf:NAME_OR_PATH``,
        ``python:package.module:factory``, ``path/to/file.py:factory``, or the folder of a teacher or run, which brings
        its parameters.
    classes: width of the logits; None for folders and published weights: theirs.
    class_names: of the data, in the order of its labels; parameters that are known to be of other classes, or of these
        in another order, are refused. None or empty: the names that the parameters come with.
    statistics: the data set's mean and standard deviation, used where neither weights nor ``normalize`` say
        others.
    weights: None (random, but for folders), ``"DEFAULT"`` or another name of published weights, or a file.
    normalize: see ``choose_statistics``.
    size: the side in pixels of the input, where it should be another than the pixels' (or the model's fixed
        one).
    seed: of the random parameters; the caller's generator is left alone. None: drawn from the caller's
        generator.
    pictures: whether the inputs are pixels. Others are standardized by the data set's statistics, and go to a network
        as they are where ``normalize`` is ``"none"`` or they are whole numbers.
    new_classifier: for fine-tuning: weights of another number of classes are taken but for the classifier,
        whose random tensors ``network.fresh`` names. False: they are an error.
    skeleton: only layers and shapes, without memory for parameters (on torch's ``meta`` device) and without
        reading any: to know what a network is, not to run it.

    Errors: ``UsageError`` for a name, option or combination that can't be, ``ModelError`` for weights that
    are missing or don't fit, ``MissingExtraError`` where a package isn't installed.
    """
    if size is not None and size < 1:
        raise UsageError(f"a model's input size must be at least 1 pixel, not {size}")
    recorded = read_folder(spec) if is_folder_spec(spec) else None
    source, spec = source_of(recorded.spec if recorded else spec)
    found = source.weights(str(weights)) if weights is not None else recorded.weights if recorded else None
    if classes is None:
        classes = found.classes if found else None
        if classes is None and isinstance(source, Python):
            classes = 0  # the factory knows what it answers with
        if classes is None:
            raise ModelError(f"how many classes {spec} should have is not known: there are no weights that say it")
    if found is not None and not new_classifier:
        _refuse_other_classes(found, found.classes, classes)
        _refuse_other_names(found, tuple(class_names or ()), classes)
    normalized_by = recorded.preprocess.mean if recorded else statistics[0] if statistics else ()
    given = len(normalized_by) if pictures and normalized_by else None
    if found is not None and found.statistics and given is not None:
        theirs = len(found.statistics[0])
        if theirs != given and not {theirs, given} <= {1, 3}:
            raise ModelError(
                f"{found.title} is for {counted(theirs, 'channel')}, and the data has {given}: begin without weights"
            )
    size = size or (recorded.preprocess.size if recorded else None) or (found.size if found else None)
    with _seeded(seed), _without_memory() if skeleton else contextlib.nullcontext():
        model = source.build(classes, size)
        if given not in (None, 1, 3) and source.any_channels:
            take_channels(model, given, spec)
        if recorded is not None:
            model = recorded.wrap(model, classes)
    fresh: tuple[str, ...] = ()
    if found is not None and not skeleton:
        state = found.load()
        if not new_classifier:
            _refuse_other_classes(found, classes_in(model, state, classes), classes)
        new = classes if new_classifier else None
        fresh = fit(model, state, owner=found.title, new_classifier=new, base=found.base)
    fixed, minimum = source.input_size(size)
    channels = input_channels(model, given) if pictures else 0
    known = recorded.weights.statistics if recorded else found.statistics if found else None
    mean, std = choose_statistics(normalize, dataset=statistics, weights=known, channels=channels or None)
    if recorded:
        preprocess = dataclasses.replace(recorded.preprocess, mean=mean, std=std, size=fixed)
    else:
        preprocess = Preprocess(mean, std, fixed, minimum, found.trained_size if found else None)
    network = Network(model, spec=spec, classes=classes, channels=channels, preprocess=preprocess)
    network.fresh = fresh
    network.weights_path = found.path if found else None
    names = tuple(class_names or (found.class_names if found and not fresh else None) or ())
    network.class_names = names if len(names) == classes else None
    return network


def weights_file(spec: str, weights: str | Path | None = None) -> Path | None:
    """The file that ``open_network`` would read parameters from, or None where that isn't known.

    For a download it is the place in torch's cache, whether it is there yet or not.
    """
    recorded = read_folder(spec) if is_folder_spec(spec) else None
    if weights is None:
        return recorded.weights.path if recorded else None
    return source_of(recorded.spec if recorded else spec)[0].weights(str(weights)).path


def named_weights(spec: str, weights: str | Path) -> Weights:
    """What is known of weights by their name or file; they are not loaded. Errors: as ``NetworkSource.weights``."""
    return source_of(spec)[0].weights(str(weights))


def _refuse_other_classes(weights: Weights, found: int | None, classes: int) -> None:
    if found and found != classes:
        raise ModelError(
            f"{weights.title} has {found} classes and the data has {classes}: "
            "fine-tune it first (softcache teach --weights …), or give weights for these classes"
        )


def _refuse_other_names(weights: Weights, ours: tuple[str, ...], classes: int) -> None:
    theirs = weights.class_names
    if theirs is None or not len(theirs) == len(ours) == classes:
        return
    if theirs == ours or numbered(classes) in (ours, theirs):
        return  # data without names for its classes has numbers for them
    folded, own = ([name.casefold() for name in names] for names in (theirs, ours))
    if folded == own and len(set(own)) == classes:
        return  # published models and datasets of the same classes differ in capitals, POSITIVE and positive
    place = next(n for n, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    kind = "the classes of the data in another order" if set(folded) == set(own) else "other classes than the data"
    raise ModelError(
        f"{weights.title} has {kind}: its output {place} is {theirs[place]!r}, label {place} of the data is "
        f"{ours[place]!r}; name the dataset that it was trained on, or fine-tune it (softcache teach --weights …)"
    )


class _NotDrawn(TorchFunctionMode):
    """Random numbers are not drawn: on the ``meta`` device there is nothing to fill, and torch would import its
    compiler for it (2 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_"):
            return args[0] if args else given["tensor"]  # torch.nn.init passes it by name
        return func(*args, **given)


def pure(spec: str) -> bool:
    """Whether a forward pass of what this spec names can be recorded, as ``NetworkSource.pure`` says."""
    return source_of(read_folder(spec).spec if is_folder_spec(spec) else spec)[0].pure


@contextlib.contextmanager
def _without_memory() -> Iterator[None]:
    with torch.device("meta"), _NotDrawn():
        yield


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
