"""``test_fraction``, the option of a dataset's spec that holds out a share of its files as the test split.

It is part of the spec, so whatever keeps the spec (a cache, a run, a teacher) keeps the split too.
"""

from __future__ import annotations

import re

from softcache.errors import UsageError

SOURCES = ("folder", "csv", "parquet")
_OPTION = re.compile(r",\s*test_fraction\s*=([^,=]*)(?=(?:,\s*[a-z_]+\s*=[^,=]*)*$)")


def split_fraction(spec: str) -> tuple[str, float | None]:
    """``"folder:/data/pets,test_fraction=0.2"`` → ``("folder:/data/pets", 0.2)``; None where the spec has none.

    Errors: ``UsageError`` for a share that is no number from 0 to below 1.
    """
    found = _OPTION.search(spec) if spec.partition(":")[0] in SOURCES else None
    if found is None:
        return spec, None
    try:
        fraction = float(found[1])
    except ValueError:
        raise UsageError(f"{spec!r}: test_fraction={found[1]!r} is not a number") from None
    check_fraction(fraction)
    return spec[: found.start()] + spec[found.end() :], fraction


def with_fraction(spec: str, fraction: float) -> str:
    """A dataset's spec with a test fraction.

    Errors: ``UsageError`` where the spec has another one, where its source can't be divided, and for a share that
    is not from 0 to below 1.
    """
    check_fraction(fraction)
    plain, own = split_fraction(spec)
    if own not in (None, fraction):
        raise UsageError(f"--test-fraction {fraction:g}: {spec} says {own:g}; give one of the two")
    if spec.partition(":")[0] not in SOURCES:
        kinds = ", ".join(f"{source}:" for source in SOURCES)
        raise UsageError(f"--test-fraction divides the files of {kinds} datasets; {spec!r} is none of these")
    return plain + fraction_option(fraction)


def fraction_option(fraction: float | None) -> str:
    """The end of a spec: ``",test_fraction=0.2"``, or nothing."""
    if fraction is None:
        return ""
    short = f"{fraction:g}"
    return f",test_fraction={short if float(short) == fraction else repr(fraction)}"


def same_fraction(asked: str, recorded: str, owner: str) -> str:
    """``asked``, a dataset's spec, with the test fraction of ``recorded``, that of ``owner``.

    Errors: ``UsageError`` where ``asked`` has another one.
    """
    own, theirs = split_fraction(asked)[1], split_fraction(recorded)[1]
    if own == theirs or asked.partition(":")[0] not in SOURCES:
        return asked  # data of another kind is another set, which whoever compares them says
    if own is not None:
        made = "without one" if theirs is None else f"with {theirs:g}"
        advice = "leave it out" if theirs is None else f"leave it out, or pass {theirs:g}"
        raise UsageError(f"--test-fraction {own:g}: {owner} was made {made}, and its rows can't be changed: {advice}")
    assert theirs is not None
    return with_fraction(asked, theirs)


def check_fraction(fraction: float) -> None:
    """Errors: ``UsageError`` for a share that is not from 0 to below 1."""
    if not 0 <= fraction < 1:  # nan is neither
        raise UsageError(f"--test-fraction must be at least 0 and below 1, found {fraction:g}")
