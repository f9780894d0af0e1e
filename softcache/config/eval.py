"""What ``softcache eval`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from softcache.config.opening import LOCAL_SIZE
from softcache.config.options import Options
from softcache.datasets._samples import SPLITS
from softcache.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Options):
    """``models``: folders of runs and teachers, which know their datasets; folders of sweeps and comparisons, for all
    of their finished runs; or a spec, on ``dataset``, with the parameters of the teacher that ``teach`` made of it,
    with ``weights``, or with torchvision's where the classes are ImageNet's.

    ``normalize``: what pixels are normalized with (``choose_statistics``), by default as the parameters were trained.
    ``amp``: ``off``, ``bf16`` or ``fp16``; by default, and with ``auto``, as the run or the teacher was trained, else
    ``off``. ``tf32``:
    whether a GPU may use TF32. ``cache``: of what the teacher said of the clean inputs of ``split``; ``teacher``,
    ``teacher_weights``: a teacher that is run now; by default what a run's record leads to. ``compare``: whether
    a run is compared with its teacher. ``T``: the second temperature of the divergence, by default each run's own.
    ``latency``: whether times are measured; ``per_class``: whether each class is looked at. ``expect``,
    ``local_cache``, ``local_size``: as in ``TrainConfig``.
    """

    models: tuple[str, ...] | str = field(default=(), kw_only=False)  # one alone becomes a tuple, as in all options
    weights: str | None = None
    dataset: str | None = None
    split: str = "test"
    data_dir: str | None = None
    download: bool = False
    size: int | None = None
    normalize: str | None = None
    device: str = "auto"
    workers: int = -1
    amp: str | None = None
    tf32: bool = False
    cache: str | None = None
    teacher: str | None = None
    teacher_weights: str | None = None
    compare: bool = True
    T: float | None = None
    latency: bool = False
    per_class: bool = False
    expect: tuple[str, ...] = ()
    local_cache: str | None = None
    local_size: str = LOCAL_SIZE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in SPLITS:
            raise UsageError(f"--split must be {' or '.join(SPLITS)}, is {self.split!r}")
        if self.amp not in (None, "auto", "off", "bf16", "fp16"):
            raise UsageError(f"--amp must be auto, off, bf16 or fp16, is {self.amp!r}")
        if self.T is not None and not 0 < self.T < float("inf"):
            raise UsageError(f"--T must be above 0 and finite, is {self.T:g}")
        if self.cache is not None and self.teacher is not None:
            raise UsageError("--cache and --teacher exclude each other: the teacher's outputs are read or computed")
        for name in ("cache", "teacher", "T"):
            if not self.compare and getattr(self, name) is not None:
                raise UsageError(f"--{name} is of the comparison with the teacher, which --no-compare leaves out")
        if self.teacher_weights is not None and self.teacher is None:
            raise UsageError("--teacher-weights are the parameters of --teacher: name the network too")
        if self.weights is not None and len(self.models) != 1:
            raise UsageError("--weights are the parameters of one model: name one")
        if not self.models:
            raise UsageError("name a run, a sweep, a teacher, or a model with --weights")
