"""The options of a training, each parsed once and all of them checked against each other, before anything is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from softcache.config.train import TrainConfig
from softcache.errors import UsageError
from softcache.losses._schedule import Schedule
from softcache.losses._terms import Term, parse_terms
from softcache.losses.hints._spec import HintTerm, parse_hints
from softcache.training.loss_modules import LossModules
from softcache.training.objective import Objective

# The gradient of kl depends on the scale of the teacher's logits: a temperature that is right for one teacher keeps a
# student of another from learning. Correlations have no scale (docs/defaults.md, docs/real.md).
DEFAULT_LOSS = "dist"
LOSS_OF_TWO = "kl"  # two probabilities that sum to 1 correlate by 1 or by -1, whatever they are
# Values that stand where logits do are a regression's, whose scale matters; an embedding has to be named with of=.
LOSS_OF = {"binary": "binary_kl", "values": "mse"}


@dataclass(frozen=True)
class Parsed:
    """``losses``: those on outputs, none where alpha is 0. ``hints``: the hint losses. ``labels_alone``: whether labels
    are all that it trains on. ``needs_teacher``: the option that needs the teacher itself, beside what a cache holds of
    it. ``fresh_share``: that of each batch with ``--targets both``, else None. ``copied``: pairs of layers of student
    and teacher whose parameters are copied, empty for the whole network; None where nothing is copied."""

    options: TrainConfig
    losses: tuple[Term, ...]
    hints: tuple[HintTerm, ...]
    alpha: Schedule
    beta: Schedule | None
    T: Schedule | None
    fresh_share: Schedule | None
    labels_alone: bool
    needs_teacher: str | None
    copied: dict[str, str] | None

    @property
    def teacher_layers(self) -> list[str]:
        """Layers of the teacher that hint losses look at."""
        return sorted({layer for term in self.hints for layer in term.teacher})

    @property
    def outputs(self) -> list[str]:
        """Outputs of the teacher that are learnt."""
        return list(dict.fromkeys(term.of for term in self.losses))

    def for_data(self, kind: str, classes: int) -> Parsed:
        """With the loss that logits of this kind, and so many of them, get where none was asked for; with every choice
        in ``options``.

        Between two classes ``dist`` sees which one is larger and no more.
        """
        parsed = self
        loss = LOSS_OF.get(kind, LOSS_OF_TWO if classes < 3 else DEFAULT_LOSS)
        if not self.options.loss and self.losses and loss != DEFAULT_LOSS:
            parsed = parse(dataclasses.replace(self.options, loss=(loss,)))
        # A schedule of beta that is 1 - alpha has no text of its own.
        settled: dict[str, Any] = {"alpha": str(parsed.alpha), "beta": parsed.beta and str(parsed.beta)}
        if parsed.losses:
            settled["loss"] = tuple(str(term) for term in parsed.losses)
        return dataclasses.replace(parsed, options=dataclasses.replace(parsed.options, **settled))

    def objective(
        self,
        epochs: int,
        *,
        hints: bool,
        label_smoothing: float,
        binary: Iterable[str] = (),
        labels: bool = True,
        modules: LossModules | None = None,
    ) -> Objective:
        """What is minimized in a stage of ``epochs``, with the hint losses or without. ``binary``: the outputs of that
        kind; ``labels``: whether the labels are looked at; ``modules``: those of losses that have parameters."""
        options = self.options
        return Objective(
            self.losses,
            self.alpha,
            self.beta,
            self.T,
            epochs,
            label_smoothing,
            self.hints if hints else (),
            options.teacher_weight,
            options.combine,
            frozenset(binary),
            labels,
            modules,
        )


def parse(options: TrainConfig) -> Parsed:
    """Errors: ``UsageError`` for values and combinations that can't be."""
    losses, hints = parse_terms(options.loss or [DEFAULT_LOSS]), parse_hints(options.hint)
    alpha, beta, T = _weights(options, losses)
    if T is not None and all(term.loss.default_T is None or term.T is not None for term in losses):
        why = [f"{term.name} has {'no temperature' if term.T is None else 'a T of its own'}" for term in losses]
        raise UsageError(f"--T {options.T} has no effect: {', '.join(dict.fromkeys(why))}")
    if alpha.bounds() == (0.0, 0.0):
        losses = []
    labels_alone = not losses and not options.online and not hints
    pairs = dict(_pair(text, options.init_map) for text in options.init_map)
    copies = options.init == "teacher" or bool(pairs)
    replacing = [term.name for term in hints if "teacher classifier" in term.needs]
    needs = (
        "--online" if options.online
        else f"--hint {replacing[0]}" if replacing
        else "--init teacher" if copies
        else None
    )  # fmt: skip
    parsed = Parsed(
        options,
        tuple(losses),
        tuple(hints),
        alpha,
        beta,
        T,
        _fresh_share(options),
        labels_alone,
        needs,
        pairs if copies else None,
    )
    _check_shares(options, losses)
    _check_teacher(parsed)
    _check_targets(parsed)
    _check_hints(parsed)
    _check_strong(parsed)
    return parsed


def _weights(options: TrainConfig, losses: Sequence[Term]) -> tuple[Schedule, Schedule | None, Schedule | None]:
    """alpha, beta and T: as given, else those of the losses' papers; of several losses the largest."""
    alpha, beta, T = (_schedule(name, getattr(options, name)) for name in ("alpha", "beta", "T"))
    if alpha is None:
        alpha = Schedule.constant(max(term.default_alpha for term in losses))
        if beta is None:
            beta = Schedule.constant(max(term.default_beta for term in losses))
    if alpha.bounds()[0] < 0:
        raise UsageError(f"--alpha can't be negative, is {options.alpha}")
    if beta is None and alpha.bounds()[1] > 1:
        raise UsageError(f"--alpha {options.alpha} is above 1, where beta = 1 - alpha is negative: give --beta")
    if beta is not None and beta.bounds()[0] < 0:
        raise UsageError(f"--beta can't be negative, is {options.beta}")
    if T is not None and T.bounds()[0] <= 0:
        raise UsageError(f"--T must be above 0, is {options.T}")
    return alpha, beta, T


def _fresh_share(options: TrainConfig) -> Schedule | None:
    if options.targets != "both":
        if options.fresh_share != TrainConfig.fresh_share:
            raise UsageError(f"--fresh-share {options.fresh_share} goes with --targets both, is {options.targets}")
        return None
    share = _schedule("fresh-share", options.fresh_share)
    assert share is not None
    if share.bounds()[0] < 0 or share.bounds()[1] > 1:
        raise UsageError(f"--fresh-share must be from 0 to 1, is {options.fresh_share}")
    return share


def _schedule(name: str, value: float | str | None) -> Schedule | None:
    """Errors: ``UsageError`` that names the option."""
    if value is None:
        return None
    try:
        return Schedule.parse(str(value))
    except UsageError as error:
        raise UsageError(f"--{name}: {error}") from None


def _pair(text: str, pairs: Sequence[str]) -> tuple[str, str]:
    student, equals, teacher = text.partition("=")
    if not equals:
        raise UsageError(f"--init-map {','.join(pairs)} is not STUDENT=TEACHER,STUDENT=TEACHER of layers")
    return student.strip(), teacher.strip()


def _check_shares(options: TrainConfig, losses: Sequence[Term]) -> None:
    refused = [str(term) for term in losses if not term.through_softmax]
    if options.combine == "probs" and refused:
        raise UsageError(
            f"--combine probs averages soft targets, but loss {refused[0]!r} needs logits or values: "
            "use --combine logits"
        )
    shares = ",".join(f"{share:g}" for share in options.teacher_weight)
    if any(not share > 0 for share in options.teacher_weight):
        raise UsageError(f"--teacher-weight must be above 0, is {shares}: leave a cache out")
    if options.teacher_weight and len(options.teacher_weight) != max(1, len(options.cache)):
        raise UsageError(
            f"--teacher-weight {shares} has {len(options.teacher_weight)} numbers for "
            f"{len(options.cache)} caches: give one for each --cache"
        )


def _check_teacher(parsed: Parsed) -> None:
    options = parsed.options
    if options.online and options.teacher is None:
        raise UsageError("--online runs a teacher live: name it with --teacher")
    if options.online and (options.cache or options.hint_cache):
        raise UsageError("--online and --cache exclude each other: targets come live or from a cache")
    if options.teacher_size is not None and not options.online:
        raise UsageError("--teacher-size goes with --online: what a cache holds was computed at its own size")
    if options.dtype != "float32" and not options.online:
        raise UsageError(f"--dtype {options.dtype} goes with --online: what a cache holds was computed in its own")
    if options.teacher_weights is not None and parsed.needs_teacher is None:
        raise UsageError("--teacher-weights goes with --online or --init teacher; a cache knows its teacher")
    if options.teacher is not None and parsed.needs_teacher is None:
        raise UsageError("--teacher goes with --online or --init teacher; a cache knows its teacher")
    if parsed.labels_alone and parsed.needs_teacher and options.teacher is None and not options.cache:
        raise UsageError("--init teacher without a cache: name the teacher with --teacher")
    if options.init == "teacher" and options.weights is not None:
        raise UsageError("--init teacher and --weights exclude each other: both say where the student starts")
    if options.labels is not None and (options.online or (parsed.labels_alone and not options.cache)):
        raise UsageError("--labels says which labels are taken where a cache has recorded others: it needs a cache")


def _check_targets(parsed: Parsed) -> None:
    """Those that are means over the recorded views, for pixels that the teacher never saw."""
    options = parsed.options
    asked = f"--targets {options.targets}"
    if options.targets == "matched":
        return
    if parsed.labels_alone or options.online:
        raise UsageError(f"{asked} averages what a cache recorded: it needs a cache, and --alpha above 0")
    if parsed.hints:
        raise UsageError(f"{asked} has other pixels than the teacher saw, so there are no hints for them")
    if parsed.fresh_share is not None and options.views_per_image > 1:
        raise UsageError(
            f"{asked} with --views-per-image {options.views_per_image}: an image is in one view of an epoch, a fresh "
            "or a recorded one: leave out --views-per-image"
        )


def _check_strong(parsed: Parsed) -> None:
    """Batches of a weak and a strong view of each row, each with the targets that its own cache has."""
    options = parsed.options
    if options.strong_cache is None:
        return
    if options.online or parsed.labels_alone:
        raise UsageError("--strong-cache goes beside the --cache of weak views: it needs one, and --alpha above 0")
    refused = (
        ("--hint", bool(parsed.hints), "hints are read from one cache"),
        (f"--targets {options.targets}", options.targets != "matched", "each view has the targets of its own"),
        ("several --cache", len(options.cache) > 1, "it pairs the views of two caches"),
        (f"--views-per-image {options.views_per_image}", options.views_per_image > 1, "a row is in two views already"),
        ("--pixels close", options.pixels == "close", "close pixels are shown for one recipe"),
    )
    for name, given, why in refused:
        if given:
            raise UsageError(f"--strong-cache with {name}: {why}: leave one of them out")
    if options.batch_size is not None and options.batch_size % 2:
        raise UsageError(
            f"--strong-cache has two views of each row in a batch: --batch-size {options.batch_size} is odd"
        )


def _check_hints(parsed: Parsed) -> None:
    options = parsed.options
    if options.hint_epochs and not parsed.hints:
        raise UsageError("--hint-epochs trains on hints first: name one with --hint")
    if options.hint_cache and not parsed.hints:
        raise UsageError("--hint-cache is where hints are read from: name one with --hint")
    if options.compile and parsed.hints:
        raise UsageError("--compile can't be used with --hint: activations are caught by hooks")
