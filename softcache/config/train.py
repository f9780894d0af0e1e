"""What ``softcache train`` can be asked for, and which combinations can't be."""

from __future__ import annotations

from dataclasses import dataclass

from softcache.config.fit import FitConfig
from softcache.errors import UsageError, nearest
from softcache.losses._schedule import Schedule
from softcache.losses._terms import Term, parse_terms
from softcache.losses.hints._spec import HintTerm, parse_hints
from softcache.stream.windows import SHUFFLES

TARGETS, COMBINE, INIT = ("matched", "mean"), ("logits", "probs"), ("random", "teacher")


@dataclass(frozen=True)
class TrainConfig(FitConfig):
    """What ``train`` was asked for. The defaults are for digits (benchmarks/defaults.py shows what they reach).

    ``views``: how many recorded views are visited in turn; by default all that the caches have. ``T``: None is each
    loss's own default. ``label_fraction``: the share of the labels that may be used. ``teacher_weight``: one share a
    cache, scaled to sum 1. ``hint_epochs``: epochs on the hints alone, before the others. ``val_fraction``: the share
    of rows that choose the best epoch. ``views_per_image``: views of an image that share a batch and a decode.
    ``shuffle``: of rows (full), or of blocks of them, for caches that don't fit into memory. ``view_seed``: that of
    views that no cache has recorded, by default 0. ``student_size``, ``teacher_size`` (with ``online``): sides of the
    networks' inputs, where they aren't that of the views. ``init_map``: pairs STUDENT=TEACHER of layers.
    """

    epochs: int = 6
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 1.0
    student: str = "resnet18"
    dataset: str | None = None
    data_dir: str | None = None
    download: bool = False
    cache: tuple[str, ...] = ()
    teacher_weight: tuple[float, ...] = ()
    combine: str = "logits"
    T: str | None = None
    alpha: str = "0.9"
    beta: str | None = None
    losses: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    hint_cache: tuple[str, ...] = ()
    hint_epochs: int = 0
    targets: str = "matched"
    views: int | None = None
    views_per_image: int = 1
    shuffle: str = "auto"
    view_seed: int | None = None
    augment: str | None = None
    size: int | None = None
    label_fraction: float = 1.0
    val_fraction: float = 0.0
    normalize: str | None = None
    student_size: int | None = None
    weights: str | None = None
    init: str = "random"
    init_map: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    online: bool = False
    teacher: str | None = None
    teacher_weights: str | None = None
    teacher_size: int | None = None
    dtype: str = "float32"
    pixels: str = "exact"
    verify_reads: bool = False
    log_every: int = 0

    def alpha_is_zero(self) -> bool:
        return knob("alpha", self.alpha).bounds() == (0.0, 0.0)

    @property
    def alone(self) -> bool:
        """Whether labels are all that it trains on."""
        return self.alpha_is_zero() and not self.online and not self.hints

    def terms(self) -> list[Term]:
        """The losses on logits; none where alpha is 0."""
        return [] if self.alpha_is_zero() else parse_terms(self.losses)

    def hint_terms(self) -> list[HintTerm]:
        return parse_hints(self.hints)

    def needs_teacher(self) -> str | None:
        """The option that needs the teacher itself, beside what it said."""
        if self.online:
            return "--online"
        replacing = [term.name for term in self.hint_terms() if "teacher_classifier" in term.extras]
        if replacing:
            return f"--hint {replacing[0]}"
        return "--init teacher" if self.copies else None

    @property
    def copies(self) -> bool:
        """Whether the student starts from the teacher's parameters."""
        return self.init == "teacher" or bool(self.init_map)


def knob(name: str, text: str) -> Schedule:
    """The schedule of ``--name``.

    Errors: ``UsageError`` that names the option.
    """
    try:
        return Schedule.parse(text)
    except UsageError as error:
        raise UsageError(f"--{name}: {error}") from None


def check_options(config: TrainConfig) -> None:
    """Errors: ``UsageError`` for combinations that can't be, before anything is opened."""
    _check_weights(config)
    _check_teacher(config)
    _check_hints(config)
    for name, known in (("pixels", ("exact", "close")), ("targets", TARGETS), ("combine", COMBINE), ("init", INIT)):
        value = getattr(config, name)
        if value not in known:
            raise UsageError(f"--{name} {value!r} is unknown{nearest(value, known)}")
    if not 0 < config.label_fraction <= 1:
        raise UsageError(f"--label-fraction must be above 0 and at most 1, is {config.label_fraction:g}")
    if not 0 <= config.val_fraction < 1:
        raise UsageError(f"--val-fraction must be at least 0 and below 1, is {config.val_fraction:g}")
    if config.views is not None and config.views < 1:
        raise UsageError(f"--views must be at least 1, is {config.views}")
    if config.views_per_image < 1 or config.batch_size % config.views_per_image:
        raise UsageError(
            f"--views-per-image {config.views_per_image} must be at least 1 and divide --batch-size {config.batch_size}"
        )
    if config.shuffle not in SHUFFLES:
        raise UsageError(f"--shuffle {config.shuffle!r} is unknown{nearest(config.shuffle, SHUFFLES)}")
    if config.targets == "mean":
        if config.alone or config.online:
            raise UsageError("--targets mean averages what a cache recorded: it needs a cache, and --alpha above 0")
        if config.hints:
            raise UsageError("--targets mean has other pixels than the teacher saw, so there are no hints for them")
    if config.init_map and any("=" not in pair for pair in config.init_map):
        raise UsageError(f"--init-map {','.join(config.init_map)} is not STUDENT=TEACHER,STUDENT=TEACHER of layers")
    if config.init == "teacher" and config.weights is not None:
        raise UsageError("--init teacher and --weights exclude each other: both say where the student starts")


def _check_weights(config: TrainConfig) -> None:
    alpha = knob("alpha", config.alpha)
    if alpha.bounds()[0] < 0:
        raise UsageError(f"--alpha can't be negative, is {config.alpha}")
    if config.beta is None and alpha.bounds()[1] > 1:
        raise UsageError(f"--alpha {config.alpha} is above 1, where beta = 1 - alpha is negative: give --beta")
    if config.beta is not None and knob("beta", config.beta).bounds()[0] < 0:
        raise UsageError(f"--beta can't be negative, is {config.beta}")
    if config.T is not None and knob("T", config.T).bounds()[0] <= 0:
        raise UsageError(f"--T must be above 0, is {config.T}")
    refused = [str(term) for term in parse_terms(config.losses) if not term.through_softmax]
    if config.combine == "probs" and refused:
        raise UsageError(
            f"--combine probs averages soft targets, but loss {refused[0]!r} needs logits: use --combine logits"
        )
    if any(not share > 0 for share in config.teacher_weight):
        raise UsageError(f"--teacher-weight must be above 0, is {_shares(config.teacher_weight)}: leave a cache out")
    if config.teacher_weight and len(config.teacher_weight) != max(1, len(config.cache)):
        raise UsageError(
            f"--teacher-weight {_shares(config.teacher_weight)} has {len(config.teacher_weight)} numbers for "
            f"{len(config.cache)} caches: give one for each --cache"
        )


def _check_teacher(config: TrainConfig) -> None:
    if config.online and config.teacher is None:
        raise UsageError("--online runs a teacher live: name it with --teacher")
    if config.online and (config.cache or config.hint_cache):
        raise UsageError("--online and --cache exclude each other: targets come live or from a cache")
    if config.teacher_size is not None and not config.online:
        raise UsageError("--teacher-size goes with --online: what a cache holds was computed at its own size")
    if config.dtype != "float32" and not config.online:
        raise UsageError(f"--dtype {config.dtype} goes with --online: what a cache holds was computed in its own")
    if config.teacher_weights is not None and config.needs_teacher() is None:
        raise UsageError("--teacher-weights goes with --online or --init teacher; a cache knows its teacher")
    if config.teacher is not None and config.needs_teacher() is None:
        raise UsageError("--teacher goes with --online or --init teacher; a cache knows its teacher")
    if config.alone and config.cache:
        raise UsageError("--alpha 0 trains on labels alone: leave out --cache, or raise --alpha, or give a --hint")
    if config.alone and config.needs_teacher() and config.teacher is None:
        raise UsageError("--init teacher without a cache: name the teacher with --teacher")


def _check_hints(config: TrainConfig) -> None:
    config.hint_terms()
    if config.hint_epochs < 0:
        raise UsageError(f"--hint-epochs can't be negative, is {config.hint_epochs}")
    if config.hint_epochs and not config.hints:
        raise UsageError("--hint-epochs trains on hints first: name one with --hint")
    if config.hint_cache and not config.hints:
        raise UsageError("--hint-cache is where hints are read from: name one with --hint")
    if config.compile and config.hints:
        raise UsageError("--compile can't be had with --hint: activations are caught by hooks")


def _shares(shares: tuple[float, ...]) -> str:
    return ",".join(f"{share:g}" for share in shares)
