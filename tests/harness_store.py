"""A server that speaks S3, as a process, and a proxy before it that injects faults."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECRET_KEY = "s3cr3t-0f-the-tests"  # no file, message or record may ever hold it
KINDS = ("error", "drop", "truncate", "slow")


DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxies the environment names


@dataclass
class Server:
    """``url``: of the store itself."""

    url: str

    def bucket(self) -> str:
        """A new, empty one."""
        name = f"bucket-{random.randrange(2**40)}"
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        DIRECTLY.open(request, timeout=20).close()
        return name


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    """moto's server of S3, which keeps everything in its memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError):
                DIRECTLY.open(f"{url}/moto-api/", timeout=5).close()
                break
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield Server(url)
    finally:
        process.kill()
        process.wait()


@dataclass
class Proxy:
    """Passes requests on to a server. ``share`` of them meet a fault of one of ``kinds``: a 500 in place of an answer,
    a connection that is dropped before or (``truncate``) within the answer, one that is slow. ``gone``: none is
    answered; ``gone_for``: none with this in its path. ``stuck``: answers of more than 1,000 bytes stop in the middle
    until ``release`` is called."""

    target: str
    share: float = 0.0
    kinds: Sequence[str] = KINDS
    gone: bool = False
    gone_for: str = "\0"
    stuck: bool = False
    url: str = ""
    faults: Counter[str] = field(default_factory=Counter)
    requests: list[tuple[str, str]] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    _rng: random.Random = field(default_factory=lambda: random.Random(11))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _released: threading.Event = field(default_factory=threading.Event)

    def fault(self) -> str | None:
        with self._lock:
            if self._rng.random() >= self.share:
                return None
            kind = self._rng.choice(list(self.kinds))
            self.faults[kind] += 1
            return kind

    def note(self, method: str, path: str) -> None:
        with self._lock:
            self.requests.append((method, path))

    def gets(self, part: str) -> list[str]:
        """Paths with this part that were read, each once."""
        with self._lock:
            return sorted(
                {path.partition("?")[0] for method, path in self.requests if method == "GET" and part in path}
            )

    def count(self, method: str, part: str) -> int:
        with self._lock:
            return sum(m == method and part in path for m, path in self.requests)

    def release(self) -> None:
        self.stuck = False
        self._released.set()

    def wait(self) -> None:
        """Until ``release``."""
        self.reached.set()
        self._released.wait(60)


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    made = Proxy(target)
    handler = type("Handler", (_Handler,), {"proxy": made})
    server = _Threads(("127.0.0.1", 0), handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.release()
        server.shutdown()
        server.server_close()
        thread.join()


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # of 5, further ones are dropped on a busy machine, and tried again after up to a minute

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that were killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        proxy, self.close_connection = self.proxy, True
        body = self._body()
        proxy.note(self.command, self.path)
        if proxy.gone or proxy.gone_for in self.path:
            return
        fault = proxy.fault()
        if fault == "drop":
            return
        if fault == "error":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(proxy.target.removeprefix("http://"), timeout=10)
        headers = {
            k: v for k, v in self.headers.items() if k.lower() not in ("expect", "transfer-encoding", "connection")
        }
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        found = connection.getresponse()
        content = found.read()
        connection.close()
        self.send_response(found.status)
        for name, value in found.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server", "content-length"):
                self.send_header(name, value)
        length = found.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.send_header("Connection", "close")
        self.end_headers()
        if fault == "truncate" and content:
            self.wfile.write(content[: len(content) // 2])
            return
        if proxy.stuck and len(content) > 1000:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            proxy.wait()
            content = content[len(content) // 2 :]
        if fault == "slow":
            for at in range(0, len(content), max(1, len(content) // 3)):
                time.sleep(0.1)
                self.wfile.write(content[at : at + max(1, len(content) // 3)])
            return
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))


def environment(url: str) -> dict[str, str]:
    """What the AWS libraries read."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def same_files(one: Path, other: Path, *, but: Sequence[str] = ()) -> bool:
    """Whether two folders have the same files with the same bytes."""

    def content(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in but
        }

    return content(one) == content(other)
