"""A folder of a web server as a store that can be read. It has no listing: what is there must be known by name."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from softcache.addresses import Address, printable
from softcache.errors import IntegrityError, StoreError, UsageError
from softcache.store.retry import Patience, persistently
from softcache.store.store import PIECE, write_pieces

TIMEOUT_S = 60
BLOCK = 2**18
_REFUSED = (400, 401, 403, 405, 407, 410, 451)  # asking again gives the same answer


class Https:
    """Files below an address, with Python's own client: every byte that comes is counted before it is kept, which
    matters where the server may be anybody's. A signed address's query string goes with every file.

    ``context``: of TLS, by default the system's.
    """

    exclusive = False

    def __init__(self, address: Address, patience: Patience | None = None):
        self.where = str(address)
        self._address = address
        self._patience = patience or Patience()

    def files(self) -> dict[str, int]:
        raise StoreError(f"{self.where}: a web server doesn't list its files")

    def size(self, name: str) -> int | None:
        def asked() -> int | None:
            with self._answer(name, "HEAD", 0) as answer:
                length = answer.headers.get("Content-Length", "")
                return int(length) if length.isascii() and length.isdecimal() else 0

        with contextlib.suppress(FileNotFoundError):
            return self._persistently(asked, name)
        return None

    def read(self, name: str, most: int) -> bytes | None:
        def came() -> bytes:
            with self._answer(name, "GET", 0) as answer:
                content = b""
                while len(content) <= most and (piece := answer.read(min(BLOCK, most + 1 - len(content)))):
                    content += piece
                declared = answer.headers.get("Content-Length")
            if len(content) > most:
                raise IntegrityError(f"{self.where}/{name} has more than the {most:,} bytes that it may have")
            if declared is not None and declared != str(len(content)):
                raise EOFError(f"{len(content):,} of {declared} bytes came")
            return content

        with contextlib.suppress(FileNotFoundError):
            return self._persistently(came, name)
        return None

    def get(self, name: str, to: Path, size: int) -> str:
        return write_pieces(to, self._pieces(name, size))

    def sha256(self, name: str, size: int) -> str | None:
        digest = hashlib.sha256()
        for piece in self._pieces(name, size):
            digest.update(piece)
        return digest.hexdigest()

    def put(self, name: str, file: Path, sha256: str) -> None:
        self._refuse()

    def write(self, name: str, content: bytes) -> None:
        self._refuse()

    def create(self, name: str, content: bytes) -> bool:
        self._refuse()

    def delete(self, name: str) -> None:
        self._refuse()

    def _pieces(self, name: str, size: int) -> Iterator[bytes]:
        """A file's ``size`` bytes. Each piece begins where the last one ended, also after a connection was lost."""
        for first in range(0, size, PIECE):
            last = min(first + PIECE, size)

            def came(first: int = first, last: int = last) -> bytes:
                content = b""
                with self._answer(name, "GET", first, last) as answer:
                    skip = first if answer.status == 200 else 0  # a server that knows no ranges sends all
                    while skip and (lost := answer.read(min(BLOCK, skip))):
                        skip -= len(lost)
                    while left := last - first - len(content):
                        if not (block := answer.read(min(BLOCK, left))):
                            raise EOFError(f"{len(content):,} of {last - first:,} bytes came")
                        content += block
                return content

            try:
                yield self._persistently(came, name)
            except FileNotFoundError:
                raise IntegrityError(f"{self.where}/{name} is missing") from None

    @contextlib.contextmanager
    def _answer(self, name: str, method: str, first: int, last: int = 0) -> Iterator[http.client.HTTPResponse]:
        query = f"?{self._address.query}" if self._address.query else ""
        headers = {"User-Agent": "softcache", "Accept-Encoding": "identity"}
        if last:
            headers["Range"] = f"bytes={first}-{last - 1}"
        url = f"{self._address.folder}/{urllib.parse.quote(name)}{query}"
        request = urllib.request.Request(url, headers=headers, method=method)
        opener = urllib.request.build_opener(_HttpsAlone)
        try:
            answer = opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    raise FileNotFoundError(name) from None
                if error.code in _REFUSED:
                    raise StoreError(f"{self.where}/{name} was refused by the server: {error.code}") from None
                raise OSError(f"the server says {error.code}") from None
        with answer:
            yield answer

    def _persistently(self, do: Any, name: str) -> Any:
        return persistently(do, f"reading {self.where}/{name}", self._patience)

    def _refuse(self) -> NoReturn:
        raise UsageError(f"{self.where}: softcache writes nothing to https:// addresses, only to s3, gs, az and hf")


class _HttpsAlone(urllib.request.HTTPRedirectHandler):
    """Follows a server to another address only where that is https too."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not re.match(r"https://", newurl, re.IGNORECASE):
            raise StoreError(f"{printable(req.full_url)} leads to {printable(newurl)}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
