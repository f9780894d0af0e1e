"""The forked processes of ``harness_process`` do what processes of ``subprocess`` do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness_process
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are processes of subprocess")
PYTHON = sys.executable


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "module.py").write_text("import sys\nprint(__name__, sys.argv[1:], sys.path[0])\n")
    (tmp_path / "script.py").write_text("import sys, module\nprint(__name__, __file__, sys.argv, sys.path[0])\n")
    (tmp_path / "failing.py").write_text("import module\nassert False, module\n")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import sys; print(sys.argv, sys.orig_argv[1:], __name__, sys.path[0])", "a", ""],
        ["-c", "import os; print(sorted(os.environ.items()), os.getcwd(), os.getpgid(0), os.getsid(0))"],
        ["-c", "import sys; print(sys.stdin.read()); print('no', file=sys.stderr)"],
        ["-c", "import sys; print(sys.stdout.isatty(), sys.stdout.line_buffering, sys.stderr.line_buffering)"],
        ["-c", "import os; print(sorted(int(name) for name in os.listdir('/proc/self/fd')))"],
        ["-c", "import signal; print(*map(signal.getsignal, (1, 13, 15)))"],
        ["-c", "import torch; print(torch.get_num_threads(), torch.is_grad_enabled())"],
        ["-c", "import threading; print(threading.active_count())"],
        ["-c", "import sys; sys.exit(3)"],
        ["-c", "import sys; sys.exit('no')"],
        ["-c", "import sys; sys.exit()"],
        ["-c", "import sys; sys.exit(-1)"],
        ["-c", "def f():\n  1 / 0\nf()"],
        ["-c", "raise KeyboardInterrupt"],
        ["-c", "import os; os.kill(os.getpid(), 9)"],
        ["-c", "import os; os._exit(7)"],
        ["-c", "import atexit; atexit.register(print, 'last'); print('first')"],
        ["-c", "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('later'))).start()"],
        ["-c", "import threading, time; threading.Thread(target=time.sleep, args=[60], daemon=True).start()"],
        ["-c", "from concurrent.futures import ThreadPoolExecutor as P; pool = P(); print(pool.submit(int).result())"],
        ["-m", "module", "a"],
        ["script.py", "a"],
        ["failing.py"],
        ["-m", "softcache", "--version"],
        ["-m", "softcache", "no-such-command"],
    ],
)
def test_a_process_says_and_ends_as_one_of_subprocess(place: Path, command: list[str]) -> None:
    found = []
    for module in (subprocess, harness_process):
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**os.environ, "OWN": "é", "COLUMNS": "60"}
        with module.Popen([PYTHON, *command], cwd=place, env=environment, text=True, **options) as process:
            out, err = process.communicate(timeout=60)
        found.append((process.returncode, out, err))
    assert found[0] == found[1]


def test_each_has_random_numbers_of_its_own() -> None:
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.initial_seed(), sep=chr(10))"
    one, other = (
        harness_process.run([PYTHON, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(2)
    )
    assert len({*one, *other}) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(number: int) -> None:
    code = "import sys, time; print('begun', flush=True); time.sleep(60)"
    with harness_process.Popen([PYTHON, "-c", code], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        process.send_signal(number)
        assert process.wait(60) == -number
        process.send_signal(number)  # to nobody
        assert process.stderr.read().endswith("KeyboardInterrupt\n" if number == signal.SIGINT else "")


def test_what_is_written_to_it_comes_in(tmp_path: Path) -> None:
    code = "import sys; print(sys.stdin.readline().upper(), end=''); sys.stdin.read(); print('end', file=sys.stderr)"
    with open(tmp_path / "both", "wb") as both:
        process = harness_process.Popen([PYTHON, "-c", code], stdin=-1, stdout=both, stderr=-2, text=True)
        process.stdin.write("first\n")
        process.stdin.flush()
        time.sleep(0.05)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(60) == 0
    assert (tmp_path / "both").read_text() == "FIRST\nend\n"


def test_more_than_a_pipe_holds_comes_out() -> None:
    code = "import sys; sys.stderr.write('e' * 300_000); sys.stdout.write('o' * 300_000)"
    done = harness_process.run([PYTHON, "-c", code], capture_output=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (b"o" * 300_000, b"e" * 300_000)
    with pytest.raises(subprocess.CalledProcessError, match="status 4"):
        harness_process.run([PYTHON, "-c", "raise SystemExit(4)"], check=True)


def test_what_is_read_at_a_start_is_refused(tmp_path: Path) -> None:
    for name in ("OMP_NUM_THREADS", "PYTHONHASHSEED"):
        with pytest.raises(AssertionError, match=f"{name} is 7, and was .*: use subprocess"):
            harness_process.run([PYTHON, "-c", ""], env={**os.environ, name: "7"})
    (tmp_path / "softcache").mkdir()
    (tmp_path / "softcache" / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = harness_process.run([PYTHON, "-c", ""], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is another softcache" in done.stderr
