"""What ``softcache train`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from softcache.addresses import without_secret
from softcache.cache.agreement.labels import LABELS
from softcache.cache.listing import check_expected
from softcache.config.fit import FitConfig
from softcache.config.opening import LOCAL_SIZE, bytes_of
from softcache.config.options import refuse_seed
from softcache.errors import UsageError, nearest
from softcache.stream.windows import parse_shuffle

CHOICES = {
    "targets": ("matched", "mean", "both"),
    "combine": ("logits", "probs"),
    "init": ("random", "teacher"),
    "pixels": ("exact", "close"),
    "dtype": ("float32", "float64"),
}

# What students of a cohort may each have of their own; all other options say which inputs and targets come in which
# order, and from where.
OF_A_STUDENT = frozenset(
    {
        "student", "seed", "T", "alpha", "beta", "loss", "hint", "hint_epochs", "teacher_weight", "combine",
        "preset", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "momentum", "nesterov", "schedule",
        "warmup", "milestones", "gamma", "label_smoothing", "clip_grad", "accumulate", "amp", "channels_last",
        "compile", "cuda_graphs", "sync_bn", "normalize", "student_size", "weights", "init", "init_map", "freeze",
        "log_every", "log", "out", "resume", "order_seed",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig):
    """What ``train`` was asked for. What the defaults reach is in docs/defaults.md.

    ``T``, ``alpha``, ``beta``: numbers, or schedules such as ``"8:2:cosine"``; ``T`` None is each loss's own
    default, ``alpha`` None that of its paper, ``beta`` None likewise or, where alpha is given, ``1 - alpha``.
    ``cache``: one or several, by default the only one in ``caches/``; ``loss`` and ``hint``: specs of losses and
    hint losses; without any ``loss``, ``dist``. ``strong_cache``: of the same dataset in stronger views, so that each
    row of a batch is in a view of either cache. ``fresh_share``: with targets ``"both"``, the
    share of each batch's rows that come in a fresh view, 0..1, or a schedule of it. ``views``: how many recorded
    views are visited in turn; by default all that the caches have. ``labels``: whose labels are trained on where
    the dataset was relabelled after the dump, ``"dataset"`` or ``"cache"``; None refuses such a dataset.
    ``label_fraction``: the share of the labels that may be used. ``teacher_weight``: one share a cache, scaled to
    sum 1. ``hint_epochs``: epochs on the hints alone, before the others. ``val_fraction``: the share of rows that
    choose the best epoch. ``test``: whether the test split is looked at. ``views_per_image``: views of an image that
    share a batch and a decode. ``shuffle``: of rows (full), or of blocks of them, for caches that don't fit into
    memory, or of whole shards, ``shards:40`` at a time, for such that don't fit into ``local_size``. ``expect``: pins,
    one of which each cache must have, as ``softcache copy`` prints them. ``local_cache``: the folder for files of
    caches that are read from a store, by default one in the user's cache folder; ``local_size``: what it may
    grow to. ``view_seed``: that of views that no
    cache has recorded, by default 0. ``order_seed``: that of the order of rows and of which labels may be used, by
    default ``seed``; students of several seeds and one ``order_seed`` see the same batches. ``student_size``,
    ``teacher_size`` (with ``online``): sides of the networks'
    inputs, where they aren't that of the views. ``init_map``: pairs STUDENT=TEACHER of layers. ``codec``: that of a
    cache that was made with code of a user's own. ``sync_bn``: statistics of batch norms over all GPUs of torchrun,
    not each one's own. ``out``: the run's folder, by default ``runs/STUDENT-<n>``.
    ``resume``: a run that was interrupted, whose own options are taken.
    """

    student: str = field(default="resnet18", kw_only=False)
    dataset: str | None = None
    data_dir: str | None = None
    download: bool = False
    cache: tuple[str, ...] = ()
    teacher_weight: tuple[float, ...] = ()
    combine: str = "logits"
    T: float | str | None = None
    alpha: float | str | None = None
    beta: float | str | None = None
    loss: tuple[str, ...] = ()
    hint: tuple[str, ...] = ()
    hint_cache: tuple[str, ...] = ()
    strong_cache: str | None = None
    hint_epochs: int = 0
    targets: str = "matched"
    fresh_share: float | str = 0.5
    views: int | None = None
    views_per_image: int = 1
    shuffle: str = "auto"
    bucket: bool = False
    view_seed: int | None = None
    augment: str | None = None
    size: int | None = None
    labels: str | None = None
    label_fraction: float = 1.0
    val_fraction: float = 0.0
    test: bool = True
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
    expect: tuple[str, ...] = ()
    local_cache: str | None = None
    local_size: str = LOCAL_SIZE
    codec: str | None = None
    verify_reads: bool = False
    order_seed: int | None = None
    sync_bn: bool = False
    log_every: int = 0
    out: str | None = None
    resume: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cache", "hint_cache"):
            object.__setattr__(self, name, tuple(map(without_secret, getattr(self, name))))
        if self.strong_cache is not None:
            object.__setattr__(self, "strong_cache", without_secret(self.strong_cache))
        check_expected(self.expect)
        bytes_of(self.local_size, "--local-size")
        parse_shuffle(self.shuffle)
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"--{name} {value!r} is unknown{nearest(value, known)}")
        if self.labels is not None and self.labels not in LABELS:
            raise UsageError(f"--labels {self.labels!r} is unknown{nearest(self.labels, LABELS)}")
        if not 0 < self.label_fraction <= 1:
            raise UsageError(f"--label-fraction must be above 0 and at most 1, is {self.label_fraction:g}")
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"--val-fraction must be at least 0 and below 1, is {self.val_fraction:g}")
        if self.view_seed is not None:
            refuse_seed(self.view_seed, "--view-seed", 64)
        if self.order_seed is not None:
            refuse_seed(self.order_seed, "--order-seed")
        if self.views is not None and self.views < 1:
            raise UsageError(f"--views must be at least 1, is {self.views}")
        for name in ("hint_epochs", "log_every"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')} can't be negative, is {getattr(self, name)}")
        if self.views_per_image < 1 or (self.batch_size or self.views_per_image) % self.views_per_image:
            raise UsageError(
                f"--views-per-image {self.views_per_image} must be at least 1 and divide --batch-size {self.batch_size}"
            )

    @property
    def ordered_by(self) -> int:
        """The seed of the order of rows."""
        return self.seed if self.order_seed is None else self.order_seed

    def shared(self) -> tuple[tuple[str, object], ...]:
        """What students have in common that are trained from one stream."""
        common = [(own.name, getattr(self, own.name)) for own in fields(self) if own.name not in OF_A_STUDENT]
        return (*common, ("ordered_by", self.ordered_by))
