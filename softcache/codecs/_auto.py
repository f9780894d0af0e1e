"""``--codec auto``: no codec, but the bound of an error, below which the smallest codec is to be chosen."""

from __future__ import annotations

from dataclasses import dataclass

from softcache import registry
from softcache.codecs._open import open_codec, refuse_kind, settled_codec
from softcache.errors import UsageError

NAME = "auto"
_EACH = (
    "int:bits=4", "int:bits=5", "int:bits=6", "int:bits=7", "int:bits=8", "int8", "factored", "fp16", "bf16", "fp32",
)  # fmt: skip
_LARGEST_BASIS, _SMALLEST_BASIS = 2, 40  # as parts of what fp16 takes: beyond half of it int:bits=8 loses less
_FINER = 2**0.5  # from one size of ``basis`` to the next


@dataclass(frozen=True)
class Auto:
    """``max_kl``: of columns of classes, the mean divergence in nats that a codec may have at each of T = 1, 2, 4 and
    8; of binary ones the same for each label. ``max_error``: of columns of values, the mean relative error.

    >>> asked_auto("auto:max_kl=1e-2"), asked_auto("fp16")
    (Auto(max_kl=0.01, max_error=0.01), None)
    """

    max_kl: float = 1e-3
    max_error: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("max_kl", "max_error"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"codec {NAME!r}: {name}={getattr(self, name):g} must be above 0, as a mean error is")

    def bound(self, kind: str) -> tuple[str, float]:
        """The option that columns of a kind go by, and its value.

        >>> Auto().bound("values")
        ('max_error', 0.01)
        """
        name = "max_error" if kind == "values" else "max_kl"
        return name, getattr(self, name)


def asked_auto(spec: str | None) -> Auto | None:
    """What a spec asks for, if it is ``auto`` or ``auto:option=value``. Errors: ``UsageError`` for bad options."""
    if spec is None:
        return None
    name, rest = registry.split_component(spec)
    if name != NAME:
        return None
    return Auto(**registry.typed_options(Auto, registry.parse_options(rest, spec), f"codec {NAME!r}"))


def refuse_other_bound(spec: str, kind: str, option: str) -> None:
    """Errors: ``UsageError`` where all that a spec of ``auto`` bounds is of other kinds. ``option``: what asks for the
    column, without its codec."""
    given = registry.parse_options(registry.split_component(spec)[1], spec)
    wanted, _ = Auto().bound(kind)
    if given and wanted not in given:
        raise UsageError(
            f"{option}:codec={spec}: a column of kind {kind} is bounded by {wanted}, not by {next(iter(given))}"
        )


def candidates(kind: str, shape: tuple[int, ...]) -> list[str]:
    """The codecs that are compared for a column, by their names in a manifest; the size of some is decided by values.
    The last one loses nothing.

    ``topk`` isn't among them: it keeps another kind of target, which losses of every logit, mixtures of views and means
    don't take, and one who wants that trade says so.

    >>> candidates("values", ())
    ['int:bits=4', 'int:bits=5', 'int:bits=6', 'int:bits=7', 'int:bits=8', 'int8', 'fp16', 'bf16', 'fp32']
    """
    found = []
    for spec in (*(f"basis:bytes={size}" for size in _basis_sizes(kind, shape)), *_EACH):
        try:
            refuse_kind(spec, kind, kind)
            name = settled_codec(spec, kind, shape)
            open_codec(name).arrays(shape)
        except UsageError:  # it isn't for such a column
            continue
        found.append(name)
    return list(dict.fromkeys(found))


def _basis_sizes(kind: str, shape: tuple[int, ...]) -> list[int]:
    """Bytes of a vector, from few to many: of the channels of maps, else of the last axis."""
    length = 0 if not shape else shape[0] if kind == "values" and len(shape) == 3 else shape[-1]
    half_floats = 2 * length
    sizes, size = [], half_floats / _SMALLEST_BASIS
    while size <= half_floats / _LARGEST_BASIS and half_floats:
        sizes.append(max(1, round(size)))
        size *= _FINER
    return list(dict.fromkeys(sizes))
