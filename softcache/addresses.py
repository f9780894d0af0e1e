"""Addresses of object stores, ``s3://bucket/name``, and how they are printed without what is secret in them.

The query string of an address may be a signature: whoever has it may read the files. It is kept in this process alone,
beside the address without it, which is what options, records and messages hold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from softcache.errors import UsageError, nearest

# pathlib makes one slash of two.
_ADDRESS = re.compile(r"((?:s3|gs|az|https?)(?=:/)|[A-Za-z][A-Za-z0-9+.\-]+(?=://)):/+(.*)", re.DOTALL)
# Anywhere in a text: what lies before an @ in the first part of an address, and what follows a question mark.
_USER = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.\-]+://)[^/?#\s]*@")
_QUERY = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.\-]+://[^\s?#'\"<>]*)[?#][^\s'\"<>]+")
# Control characters move the cursor, set a terminal's title or can't be in a page, halves of characters can't be
# written, and marks of direction would show a text in another order than it has.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
SIGNED = "?…"  # stands for a query string
SCHEMES = ("s3", "gs", "az", "hf", "https")
DUMPED = ("s3", "gs", "az")  # what a dump can be written to: on the hub each file would be a commit
COPIED = (*DUMPED, "hf")  # and a copy, which is one commit

_queries: dict[str, str] = {}  # of signed addresses, by the address without it


@dataclass(frozen=True)
class Address:
    """A folder of an object store. ``path``: what follows ``scheme://``, without a slash at its end; ``query``: that of
    a signed address, never printed."""

    scheme: str
    path: str
    query: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}{SIGNED if self.query else ''}"

    @property
    def folder(self) -> str:
        """The address without a query string."""
        return f"{self.scheme}://{self.path}"


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether this is an address and no path of this machine."""
    return _ADDRESS.match(os.fspath(path)) is not None


def printable(text: object) -> str:
    """A text that may hold addresses, without what is secret in them: users, passwords and query strings. Whatever is
    printed, logged or written of an address goes through this function.

    >>> printable("https://me:word@host/cache?sig=abc is an address")
    'https://host/cache?… is an address'
    """
    shown = str(text)
    for query in _queries.values():
        shown = shown.replace(query, "…")
    return _QUERY.sub(rf"\1{SIGNED}", _USER.sub(r"\1", shown))


def visible(text: object) -> str:
    """A text from anywhere as people may be shown it, on a terminal or a page: ``printable``, and a mark in place of
    each character that isn't one to look at.

    >>> visible("a\\x1b[31mb")
    'a�[31mb'
    """
    return _HIDDEN.sub("\ufffd", printable(text))


def without_secret(path: str | os.PathLike[str]) -> str:
    """A path as it is; an address as it may be printed. A signature is kept for this process, which finds it again by
    that text.

    Errors: ``UsageError`` for an address with a user or a password.
    """
    match = _ADDRESS.match(os.fspath(path))
    if match is None:
        return os.fspath(path)
    scheme, rest = match[1].lower(), match[2]
    shown = printable(f"{scheme}://{rest}")
    if "@" in re.split(r"[/?#]", rest)[0]:
        raise UsageError(
            f"{shown} was given with a user or password: leave them out of the address, and set them as the store's "
            "own tools take them, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    place, mark, query = rest.partition("?")
    if mark and query and query != SIGNED[1:]:
        _queries[f"{scheme}://{place.rstrip('/')}"] = query.partition("#")[0]
    return f"{scheme}://{place.rstrip('/')}{SIGNED if mark else ''}"


def refuse_unwritable(text: str | os.PathLike[str], option: str, schemes: Sequence[str]) -> None:
    """Errors: ``UsageError`` for an address whose scheme is none of ``schemes``, with what can be written to."""
    match = _ADDRESS.match(os.fspath(text))
    if match is None or match[1].lower() in schemes:
        return
    scheme, shown = match[1].lower(), printable(text)
    if scheme not in (*SCHEMES, "http"):
        raise UsageError(f"{option} {shown}: softcache knows no {scheme}://{nearest(scheme, schemes)}")
    *most, last = (f"{one}://" for one in schemes)
    raise UsageError(
        f"{option} {shown}: softcache writes nothing to {scheme}:// addresses, only into folders and to "
        f"{', '.join(most)} and {last}"
    )


def adding_to(where: str) -> tuple[str, str]:
    """What a command line that adds to a cache begins with, and the ``--out`` of its dump: a cache at an address that a
    dump can't write to has to be copied first.

    >>> adding_to("caches/one"), adding_to("https://host/one")
    (('', 'caches/one'), ('softcache copy https://host/one FOLDER && ', 'FOLDER'))
    """
    match = _ADDRESS.match(where)
    if match is None or match[1].lower() in DUMPED:
        return "", where
    return f"softcache copy {where} FOLDER && ", "FOLDER"


def parse_address(text: str | os.PathLike[str], option: str = "the address") -> Address:
    """An address in its parts. ``option``: what it was given with, for messages.

    Errors: ``UsageError`` for plain http, for schemes that there aren't, for an address without a place, for secrets
    where there can't be any, and for a signed address whose signature this process was never given.
    """
    shown = without_secret(text)
    match = _ADDRESS.match(shown)
    assert match is not None, shown
    scheme, place = match[1], match[2].removesuffix(SIGNED).rstrip("/")
    if scheme == "http":
        raise UsageError(
            f"{option} {shown}: what comes over plain http may have been read and changed on its way: use https://"
        )
    if scheme not in SCHEMES:
        raise UsageError(f"{option} {shown}: softcache knows no {scheme}://{nearest(scheme, SCHEMES)}")
    if not place or ".." in place.split("/") or re.search(r"[\x00-\x1f#]", place):
        raise UsageError(f"{option} {shown} names no folder: write it as {scheme}://BUCKET/FOLDER")
    query = _queries.get(f"{scheme}://{place}", "")
    if shown.endswith(SIGNED):
        if scheme != "https":
            raise UsageError(f"{option} {shown}: only https:// addresses may have a query string: leave it out")
        if not query:
            raise UsageError(
                f"{option} {shown} is a signed address, and its signature is never written down: give it in full again"
            )
        return Address(scheme, place, query)
    return Address(scheme, place)
