"""What ``softcache plan`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from softcache.config.dump import DumpConfig
from softcache.config.options import Options
from softcache.dumping.signals import Signal, asked_signals
from softcache.errors import UsageError

SIDE = 224  # pixels of a view where neither --size nor data say it
POSITIVE = ("rows", "classes", "gpus", "rate", "student_rate", "disk_rate", "readers", "epochs", "price", "probe_gib")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Options):
    """What ``plan`` was asked for.

    ``rows`` and ``classes``: of data that aren't at hand, in place of ``dataset``; ``teacher``: then only needed for
    shapes that ``output`` and ``hint`` don't say (``layer3:shape=1024x14x14``), and by default none. ``gpus``: that
    share the dump, None for the one device of this process. ``rate``: inputs a second of the teacher on each;
    ``student_rate``: samples a second that a student trains on; ``disk_rate``: MB/s that the disk takes. ``readers``:
    students; ``epochs``: of each; ``price``: of a GPU for an hour. ``probe``: measure those rates that aren't given,
    the student's of the network ``student``, the disk's by at most ``probe_gib`` GiB. All else is as ``dump`` has it.
    """

    teacher: str | None = field(default=None, kw_only=False)
    dataset: str | None = None
    split: str = "train"
    data_dir: str | None = None
    download: bool = False
    rows: int | None = None
    classes: int | None = None
    augment: str | None = None
    views: int | None = None
    size: int | None = None
    teacher_size: int | None = None
    output: tuple[str, ...] = ()
    hint: tuple[str, ...] = ()
    codec: str | None = None
    compress: tuple[str, ...] = ()
    shard_rows: int | None = None
    keep_samples: int | str | None = None
    out: str | None = None
    gpus: int | None = None
    rate: float | None = None
    disk_rate: float | None = None
    student: str | None = None
    student_rate: float | None = None
    readers: int | None = None
    epochs: int | None = None
    price: float | None = None
    probe: bool = False
    probe_gib: float = 8.0
    device: str = "auto"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:  # nan is neither above nor below
                raise UsageError(f"--{name.replace('_', '-')} must be above 0, is {value}")
        if self.rows is not None and self.dataset is not None:
            raise UsageError("--rows stands for data that aren't at hand, and --dataset opens some: leave one out")
        if self.rows is None and self.classes is not None:
            raise UsageError("--classes goes with --rows: a dataset knows its own")
        if self.gpus is not None and not self.device.startswith(("auto", "cuda")):
            raise UsageError(f"--gpus {self.gpus} is a dump on GPUs, and --device {self.device} is none: leave one out")
        if self.student is not None and not self.probe:
            raise UsageError("--student is a network whose rate --probe measures: add that, or give --student-rate")
        if self.readers is not None and self.student_rate is None and self.student is None:
            raise UsageError("--readers needs how much a student reads: --student-rate, or --student and --probe")
        if self.price is not None and self.rate is None and not self.probe:
            raise UsageError("--price needs how long the dump takes: --rate, or --probe")
        _ = self.dump, self.shapes  # parses every spec, so that a bad one is refused before anything is opened

    @property
    def dump(self) -> DumpConfig:
        """The dump that is planned. Errors: ``UsageError`` as it has them."""
        return DumpConfig(
            self.teacher or "resnet50",
            dataset=self.dataset,
            split=self.split,
            data_dir=self.data_dir,
            download=self.download,
            teacher_size=self.teacher_size,
            augment=self.augment,
            views=self.views,
            size=self.size,
            output=tuple(_split(spec, "--output")[0] for spec in self.output),
            hint=tuple(_split(spec, "--hint")[0] for spec in self.hint),
            codec=self.codec,
            compress=self.compress,
            shard_rows=self.shard_rows,
            keep_samples=self.keep_samples,
            batch_size=self.batch_size,
            device=self.device,
            out=self.out,
        )

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of one key, by the name of a column, as far as they were given."""
        found: dict[str, list[int]] = {}
        for option, specs in (("--output", self.output), ("--hint", self.hint)):
            for spec in specs:
                plain, shape = _split(spec, option)
                if shape is not None:
                    found[_signal(plain, option).column] = shape
        return found


def _signal(spec: str, option: str) -> Signal:
    return asked_signals([spec], [])[0] if option == "--output" else asked_signals([], [spec])[0]


def _split(spec: str, option: str) -> tuple[str, list[int] | None]:
    """``layer3:shape=1024x14x14:codec=fp16`` → ``("layer3:codec=fp16", [1024, 14, 14])``."""
    rest, codec, of_codec = spec.partition(":codec=")
    parts = rest.split(":shape=")
    if len(parts) == 1:
        return spec, None
    sizes, kind, of_kind = parts[-1].partition(":kind=")
    numbers = sizes.split("x")
    if len(parts) > 2 or not all(number.isascii() and number.isdigit() and int(number) for number in numbers):
        raise UsageError(f"{option} {spec}: a shape is written as shape=1024x14x14")
    return parts[0] + kind + of_kind + codec + of_codec, [int(number) for number in numbers]
