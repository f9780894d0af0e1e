"""A server on this machine that answers as the Hugging Face hub does, for repositories that are folders here."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@contextmanager
def served(repositories: Mapping[str, tuple[Path, str]]) -> Iterator[tuple[str, list[str]]]:
    """``repositories``: ``models/OWNER/NAME`` or ``datasets/OWNER/NAME`` → its folder, and the commit that main is at.

    Gives the address and the list of what was asked for, which grows.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
            asked.append(f"{self.command} {path}")
            api = path.startswith("api/")
            plain = path.removeprefix("api/")
            if not api and not plain.startswith("datasets/"):
                plain = f"models/{plain}"
            kind, owner, name, *rest = [*plain.split("/"), "", ""]
            known = repositories.get(f"{kind}/{owner}/{name}")
            rest = [part for part in rest if part]
            if known is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            folder, commit = known
            if len(rest) > 1 and rest[1] not in ("main", commit, "refs"):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif rest[:1] == ["resolve"]:
                self._file(folder, commit, "/".join(rest[2:]))
            elif rest[:1] in (["tree"], ["paths-info"]):
                within = "/".join(rest[2:])
                wanted = None
                if rest[0] == "paths-info":
                    wanted, within = _paths(body), ""
                self._json([entry for entry in _entries(folder, within) if wanted is None or entry["path"] in wanted])
            else:
                files = [{"rfilename": entry["path"]} for entry in _entries(folder, "")]
                self._json({"id": f"{owner}/{name}", "sha": commit, "siblings": files, "tags": [], "private": False})

        def _file(self, folder: Path, commit: str, name: str) -> None:
            if not (folder / name).is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                return
            content = (folder / name).read_bytes()
            self._send(200, content, {"ETag": f'"{_blob(content)}"', "X-Repo-Commit": commit})

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, text in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entries(folder: Path, within: str) -> list[dict[str, Any]]:
    return [
        {
            "type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size,
            "oid": _blob(path.read_bytes()),
        }
        for path in sorted((folder / within).rglob("*"))
        if path.is_file()
    ]  # fmt: skip


def _paths(body: bytes) -> list[str]:
    try:
        found = json.loads(body)["paths"]
    except ValueError:
        found = urllib.parse.parse_qs(body.decode()).get("paths", [])
    return [found] if isinstance(found, str) else list(found)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
