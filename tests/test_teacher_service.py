"""A teacher that is a service somewhere else, which costs something for every row and may fail on the way."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from harness_train import command

from softcache.cache.reader import Cache
from softcache.stages.verify import verify

ROWS, FEATURES, BLOCK = 700, 5, 64
TEACHER = """
import io
import urllib.request

import numpy as np


# urllib keeps the proxies of its first call in a process, which may have been another test's.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))


def make():
    def answer(features):
        body = io.BytesIO()
        np.save(body, features)
        with opener.open("http://127.0.0.1:{port}", body.getvalue(), timeout=10) as reply:
            return np.load(io.BytesIO(reply.read()))

    answer.fingerprint = "three centres, version {version}"
    return answer
"""


class Service(ThreadingHTTPServer):
    """Answers with the first three features, twice; counts the rows, and fails once ``left`` requests are answered."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked, self.left = 0, 10**6


class Answer(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        given = np.load(io.BytesIO(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.left -= 1
        if self.server.left < 0:
            self.send_error(503, "come back later")
            return
        self.server.asked += len(given)
        body = io.BytesIO()
        np.save(body, 2 * given[:, :3])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body.getvalue())))
        self.end_headers()
        self.wfile.write(body.getvalue())

    def log_message(self, format: str, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def service(here: Path) -> Iterator[Service]:
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        (here / "teacher.py").write_text(TEACHER.format(port=running.server_port, version=1))
        yield running
        running.shutdown()
        thread.join()


def test_a_service_that_fails_is_asked_again_only_for_what_is_missing(
    service: Service, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    features = np.random.default_rng(2).normal(size=(ROWS, FEATURES)).astype(np.float32)
    (here / "table").mkdir()
    np.save("table/train_features.npy", features)
    asked = ["dump", "--teacher", "teacher.py:make", "--dataset", f"arrays:{here}/table", "--out", "cache"]
    asked += ["--output", "logits:codec=fp32", "--batch-size", "32", "--shard-rows", str(BLOCK), "--device", "cpu"]
    service.left = 15
    assert command(*asked) == 1
    assert "the teacher raised HTTPError: HTTP Error 503: come back later" in capfd.readouterr().err
    missing = len(Cache("cache").missing(["logits"], 1))
    assert 0 < missing < ROWS // BLOCK
    service.left, service.asked = 10**6, 0
    assert command(*asked) == 0
    # beside the rows of missing shards a batch that says whether the teacher is still the same, and one for its shapes
    assert service.asked <= missing * BLOCK + 2 * 32
    cache = Cache("cache")
    assert np.array_equal(cache.column("logits").gather(0, np.arange(ROWS))["values"], 2 * features[:, :3])
    service.asked = 0
    assert command(*asked) == 0
    assert service.asked == 0  # a cache that is whole costs nothing
    assert verify("cache").ok
    assert service.asked == 0
    (here / "teacher.py").write_text(TEACHER.format(port=service.server_port, version=2))
    assert command(*asked) == 1
    assert "cache of something else" in capfd.readouterr().err
