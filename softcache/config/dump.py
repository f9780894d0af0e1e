"""What ``softcache dump`` can be asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from softcache.addresses import without_secret
from softcache.cache.reader import Cache
from softcache.cache.schema import KEPT_SAMPLES, MAX_SIDE, Numerics
from softcache.codecs._auto import asked_auto
from softcache.codecs._open import code_among
from softcache.config.given import recorded_recipe
from softcache.config.options import Options, refuse_seed
from softcache.device import DTYPES
from softcache.dumping.signals import Signal, asked_compressions, asked_signals
from softcache.errors import UsageError, nearest
from softcache.models._arithmetic import AMP
from softcache.views._recipe import Recipe

DEFAULT_VIEWS = 4


def default_views(recipe: Recipe) -> int:
    """How many views are made of every image where nobody says; of ``none`` all would be the same."""
    return 1 if recipe.spec == "none" else DEFAULT_VIEWS


DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "amp": "auto",
    "tf32": False,
    "compile": False,
    "view_seed": 0,
    "fingerprint": "quick",
}


@dataclass(frozen=True, kw_only=True)
class DumpConfig(Options):
    """What ``dump`` was asked for. ``None``: as the cache has it, or a default where there is no cache yet.

    ``batch_size`` and the numerics are part of what the numbers are (another batch gives other last bits), so they
    are recorded, and a resumed dump takes the recorded ones. ``teacher_size``: the side of the teacher's input, where
    it isn't that of the views. ``compress``: ``zstd`` for all columns, or ``logits=zstd:level=3`` and
    ``layer3=none`` for some. ``bucket``: whether rows of like length are put together. ``dataset``: by default the
    one that the teacher was trained on, if its folder says so. ``keep_samples``: of how many rows (or ``"all"``) the
    pixels of view 0 are kept, by default 64, or as the cache has. ``part``: (k, n) does the k-th of n shares of the
    work; ``on``: ``"ray"`` gives it to the actors of a Ray cluster. ``out``: the folder, by default ``caches/TEACHER-
    DATASET-SPLIT``, or an address such as ``s3://bucket/name``; ``staging``: the folder that shards are made in before
    they are stored there, by default one in the user's cache folder; ``dry_run``: only estimate space and time.
    """

    teacher: str = field(default="resnet50", kw_only=False)
    dataset: str | None = None
    split: str = "train"
    data_dir: str | None = None
    download: bool = False
    teacher_weights: str | None = None
    normalize: str | None = None
    teacher_size: int | None = None
    augment: str | None = None
    views: int | None = None
    view_seed: int | None = None
    size: int | None = None
    output: tuple[str, ...] = ()
    hint: tuple[str, ...] = ()
    codec: str | None = None
    compress: tuple[str, ...] = ()
    batch_size: int | None = None
    bucket: bool | None = None
    shard_rows: int | None = None
    dtype: str | None = None
    amp: str | None = None
    tf32: bool | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    device: str = "auto"
    workers: int = -1
    part: tuple[int, int] | None = None
    on: str | None = None
    fingerprint: str | None = None
    keep_samples: int | str | None = None
    out: str | None = None
    staging: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.view_seed is not None:
            refuse_seed(self.view_seed, "--view-seed", 64)
        if self.views is not None and self.views < 1:
            raise UsageError(f"--views must be at least 1, is {self.views}")
        if self.size is not None and self.size > MAX_SIDE:
            raise UsageError(f"--size must be at most {MAX_SIDE}, is {self.size}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, is {self.batch_size}")
        if self.shard_rows is not None and (self.shard_rows < 1 or self.shard_rows & (self.shard_rows - 1)):
            raise UsageError(f"--shard-rows must be a power of two, is {self.shard_rows}")
        if self.out is not None:
            object.__setattr__(self, "out", without_secret(self.out))
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise UsageError(f"--part {self.part[0]}/{self.part[1]}: the first number must be 1 … {self.part[1]}")
        self._check_on()
        keep = self.keep_samples
        if keep is not None and keep != "all" and not (isinstance(keep, int) and keep >= KEPT_SAMPLES):
            raise UsageError(f"--keep-samples must be all or at least {KEPT_SAMPLES}, is {keep}")
        for name, known in (
            ("dtype", tuple(DTYPES)),
            ("amp", AMP),
            ("fingerprint", ("quick", "full")),
        ):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise UsageError(f"--{name.replace('_', '-')} {value!r} is unknown{nearest(value, known)}")

        _ = self.named_codec, self.compressions  # parses all, so that a bad one is refused before anything is opened
        for codec in (self.codec, *(signal.codec for signal in self.signals)):
            asked_auto(codec)

    def _check_on(self) -> None:
        if self.on is None:
            return
        if self.on != "ray":
            raise UsageError(f"--on {self.on!r} is unknown: ray, or nothing for this process alone")
        if self.part is not None:
            raise UsageError("--part and --on ray both divide the work: use one of them")
        if self.dry_run:
            raise UsageError("--dry-run estimates what one process would take: leave --on ray out")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device {self.device}: an actor on Ray has a GPU of its own: auto, cpu or cuda")

    @property
    def signals(self) -> list[Signal]:
        """What is asked for of the teacher, without what is kept by default. Errors: ``UsageError`` for bad specs."""
        return asked_signals(self.output, self.hint)

    @property
    def named_codec(self) -> str | None:
        """The codec that the user named and that is code, if any is: what ``Cache`` must be told of.

        Errors: ``UsageError`` for two that are code: a cache may have one.
        """
        return code_among([self.codec, *(signal.codec for signal in self.signals)])

    @property
    def compressions(self) -> dict[str, str]:
        """How columns are compressed, by their names; ``""``: of those that aren't named.

        Errors: ``UsageError`` for what can't be, and for a column that is named twice or isn't asked for.
        """
        return asked_compressions(self.compress)

    def numerics(self, device: str) -> Numerics:
        """What decides the last bits, of options that are settled."""
        assert self.amp not in (None, "auto")
        assert self.dtype is not None
        return Numerics(
            dtype=self.dtype,
            amp=self.amp,
            tf32=bool(self.tf32),
            memory_format="channels_last" if self.channels_last else "contiguous",
            compile=bool(self.compile),
            device=device,
        )

    def settled(self, cache: Cache | None) -> DumpConfig:
        """With every choice made that needs neither data nor teacher: as asked, else as recorded, else the default.

        Errors: ``UsageError`` for hints of a compiled teacher.
        """
        recorded = dict(DEFAULTS) if cache is None else _recorded(cache, self.augment)
        chosen = {key: value for key, value in recorded.items() if getattr(self, key) in (None, "auto")}
        settled = dataclasses.replace(self, **chosen)
        if settled.compile and (settled.hint or (cache and cache.manifest.hints)):
            raise UsageError(
                "--compile can't be used with --hint: layers of a compiled network can't be listened to, and "
                "uncompiled its last bits would be others; leave one of the two out"
            )
        return settled


def _recorded(cache: Cache, augment: str | None) -> dict[str, Any]:
    identity = cache.manifest.identity
    numerics, made = identity.teacher.numerics, cache.manifest.state.made
    return {
        "teacher_size": identity.teacher.preprocess.get("size"),
        "dtype": numerics.dtype,
        "amp": numerics.amp,
        "tf32": numerics.tf32,
        "channels_last": numerics.memory_format == "channels_last",
        "compile": numerics.compile,
        "batch_size": identity.grid.batch,
        "bucket": identity.grid.bucket is not None,
        "shard_rows": identity.grid.block_rows,
        "augment": augment or recorded_recipe(cache),
        "view_seed": identity.recipe["seed"],
        "size": identity.recipe.get("size"),
        "fingerprint": "full" if made.get("fingerprint") == "full" else "quick",
    }
