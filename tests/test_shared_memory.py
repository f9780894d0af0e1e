"""Workers on a machine whose shared memory can't be written to, or is too small: one line, and no waiting."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ENTER = 'mount -t tmpfs -o "$1" tmpfs /dev/shm && shift && exec "$@"'


def private(size: str, *command: str) -> list[str]:
    """A command in a mount namespace of its own, whose /dev/shm is of its own too."""
    return ["unshare", "-m", "sh", "-c", ENTER, "sh", size, *command]


@pytest.fixture(autouse=True)
def _allowed() -> None:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs Linux's namespaces")
    if subprocess.run(private("size=1m", "true"), capture_output=True).returncode:
        pytest.skip("mounting isn't allowed here")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("memory", "start"),
    [
        pytest.param("ro", "fork", marks=pytest.mark.torture),
        pytest.param("size=64k", "spawn", id="too small"),
        pytest.param("ro", "spawn", marks=pytest.mark.torture),
        pytest.param("size=64k", "fork", marks=pytest.mark.torture),
    ],
)
def test_workers_without_shared_memory_end_in_one_line_that_says_what_to_do(tmp_path: Path, memory: str, start: str):
    train = [
        *("train", "--student", "cifar:resnet8", "--alpha", "0", "--dataset", "digits", "--resident", "off"),
        *("--epochs", "1", "--device", "cpu", "--start-method", start, "--out", str(tmp_path / "run")),
    ]
    softcache = [sys.executable, "-m", "softcache", *train]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        private(memory, *softcache, "--workers", "2"), capture_output=True, text=True, timeout=90, env=environment
    )
    assert ended.returncode == 1, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("softcache: ")]
    assert len(errors) == 1, ended.stderr
    assert "/dev/shm" in errors[0]
    assert "or use --workers 0" in errors[0]
    assert "Traceback" not in ended.stderr
    if start == "fork":  # as it says
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        done = subprocess.run(private(memory, *softcache, "--workers", "0"), capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
