"""What ``softcache convert`` can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from softcache.cache.manifest import Manifest
from softcache.cache.schema import hint_column, is_hint, layer_of
from softcache.codecs._auto import asked_auto
from softcache.codecs._open import code_among
from softcache.config.options import Options
from softcache.dumping.signals import NO_OUTPUT, Signal, asked_compressions, asked_signals, parse_output
from softcache.errors import UsageError, nearest


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Options):
    """What ``convert`` was asked for. ``source``: the cache that is read; ``out``: the folder of the one that is made.

    ``output``, ``hint``: columns and the codecs that they are to have, as ``dump`` takes them; ``codec``: the codec of
    all others, by default the one that each has. ``drop_output``, ``drop_hint``: columns that are left out. ``views``:
    how many stay, by default all; ``compress``: how columns are compressed, as ``dump`` takes it; ``shard_rows``: most
    rows of a shard. ``device``: where values are coded anew.
    """

    source: str = field(kw_only=False)
    out: str = field(kw_only=False)
    output: tuple[str, ...] = ()
    hint: tuple[str, ...] = ()
    codec: str | None = None
    drop_output: tuple[str, ...] = ()
    drop_hint: tuple[str, ...] = ()
    views: int | None = None
    compress: tuple[str, ...] = ()
    shard_rows: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views is not None and self.views < 1:
            raise UsageError(f"--views must be at least 1, is {self.views}")
        if self.shard_rows is not None and (self.shard_rows < 1 or self.shard_rows & (self.shard_rows - 1)):
            raise UsageError(f"--shard-rows must be a power of two, is {self.shard_rows}")
        if NO_OUTPUT in self.output:
            raise UsageError(f"--output {NO_OUTPUT}: leave outputs out one by one, with --drop-output NAME")
        for signal in self.signals:
            if signal.codec is None:
                raise UsageError(
                    f"{signal.option}: say in which codec, {signal.option}:codec=fp16; what isn't named stays as it is"
                )
        _ = self.named_codec, self.compressions  # parses all, so that a bad one is refused before anything is opened
        if any(asked_auto(codec) for codec in (self.codec, *(signal.codec for signal in self.signals))):
            raise UsageError(
                "--codec auto chooses while the teacher runs, and convert runs none: name a codec, such as "
                "basis:max_kl=1e-3 or int:bits=5"
            )

    @property
    def signals(self) -> list[Signal]:
        """Columns that have a codec of their own. Errors: ``UsageError`` for bad specs."""
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

        Errors: ``UsageError`` for bad specs."""
        return asked_compressions(self.compress)

    def kept(self, manifest: Manifest, folder: str) -> list[str]:
        """The columns of a cache in ``folder`` that stay.

        Errors: ``UsageError`` where a column or view that is named isn't there, and where nothing would be left.
        """
        dropped = [*self.drop_output, *map(hint_column, self.drop_hint)]
        for name in [*dropped, *(signal.column for signal in self.signals)]:
            if name not in manifest.columns:
                what = f"hint {layer_of(name)!r}" if is_hint(name) else f"output {name!r}"
                raise UsageError(f"{folder} has no {what}{nearest(name, manifest.columns)}")
        for signal in self.signals:
            if signal.column in dropped:
                raise UsageError(f"{signal.option} is given a codec and left out: do one of the two")
        for spec in self.output:
            asked, there = parse_output(spec), manifest.state.columns[parse_output(spec).column].kind
            if ":kind=" in spec and asked.kind != there:
                raise UsageError(f"--output {spec}: {folder} has it as {there}, which a conversion doesn't change")
        if self.views is not None and self.views > manifest.state.views:
            raise UsageError(
                f"--views {self.views}: {folder} has {manifest.state.views}, and only a dump can add views to it"
            )
        stay = [name for name in manifest.columns if name not in dropped]
        if not stay:
            raise UsageError(f"nothing would be left of {folder}: keep one of {', '.join(manifest.columns)}")
        return stay

    @property
    def codecs(self) -> Mapping[str, str]:
        """By column, the codecs of those that have one of their own."""
        return {signal.column: signal.codec for signal in self.signals if signal.codec is not None}
