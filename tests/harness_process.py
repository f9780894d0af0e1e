"""Processes of Python that don't import torch anew: forked from one that has imported everything and done nothing.

A start of Python with torch and softcache takes three seconds of a processor, and five until a first step of an
optimizer; tests start hundreds.

``Popen`` and ``run`` are called as those of ``subprocess``, with a command that begins with this interpreter and goes
on with ``-m MODULE``, ``-c CODE`` or a script. The process has arguments, environment, working folder, streams and
signals of its own, runs the command as its ``__main__``, and ends as the interpreter ends. It differs from a process
of ``subprocess`` in this:

- Modules are there before they are asked for. Tests of imports, of what a start takes, and of what is read at a start
  need ``subprocess``. A command is refused where its environment differs from this process's in a variable that Python
  or a library reads at its start, or leads to another softcache.
- Its parent is the process that forks, so ``os.waitpid`` doesn't know it; ``wait`` and ``poll`` do.
- The hashes of texts are the same in all of them.

The process that forks is started when it is first needed, and ends with this one. Where the system isn't Linux,
``Popen`` and ``run`` are those of ``subprocess``. Nothing here is a test.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np
import torch

# What commands import in their course, among it what torch leaves until the first optimizer and the first count of
# operations, which takes longer than many a command.
PRELOADED = (
    "numpy.ma", "torch._dynamo", "torch.utils.flop_counter", "torch.distributed.run", "torchvision",
    "multiprocessing.pool", "multiprocessing.spawn", "softcache.cli._main", "softcache.models.cifar",
    *(f"softcache.{place}.{name}" for place in ("cli", "stages") for name in
      ("convert", "dump", "sweep", "teach", "train", "verify")),
    "softcache.cli.info", "softcache.stages._worker",
)  # fmt: skip
READ_AT_START = ("PYTHON", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_", "TORCH_", "MALLOC_")
NOT_READ = ("PYTHONPATH", "TORCH_HOME", "TORCH_CPP_LOG_LEVEL", "TORCHELASTIC")
# scikit-learn sets these when a test first imports it; they are for the OpenMP of Intel's compilers, torch has GNU's.
NOT_READ += ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
# So that this module can stand for ``subprocess`` in another one.
PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
TimeoutExpired = subprocess.TimeoutExpired


class _Server:
    """The process that forks, from the side of the one that asks it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.environment = dict(os.environ)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            # Its streams are no terminals, so that those of what it forks are buffered as those of pipes and files.
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=DEVNULL, stdout=DEVNULL, env=self.environment
            )
        self._socket, self._lock, self._owner = ours, threading.Lock(), os.getpid()
        atexit.register(self.end)

    def end(self) -> None:
        """Also the end of all that it has forked."""
        self._socket.close()
        if os.getpid() == self._owner:
            self._process.wait(30)

    def ask(self, message: dict[str, Any], streams: Sequence[int] = ()) -> Any:
        with self._lock:
            try:
                _send(self._socket, message, streams)
                return _receive(self._socket)[0]
            except BaseException:  # a timeout of a test among them: the next answer could be that to this question
                self._socket.close()
                _servers.clear()
                raise


def _send(to: socket.socket, message: Any, streams: Sequence[int] = ()) -> None:
    content = json.dumps(message).encode()
    socket.send_fds(to, [struct.pack("<Q", len(content))], streams)
    to.sendall(content)


def _receive(whence: socket.socket) -> tuple[Any, list[int]]:
    """The message and its streams. Errors: ``EOFError`` where the other side is gone."""
    head, streams, _, _ = socket.recv_fds(whence, 8, 3)
    left, parts = struct.unpack("<Q", head)[0] if len(head) == 8 else 1, []
    while left:
        part = whence.recv(min(left, 2**20))
        if not part:
            raise EOFError("the process that forks, or the one that asks it, is gone")
        parts.append(part)
        left -= len(part)
    return json.loads(b"".join(parts)), streams


_servers: list[_Server] = []
_starting = threading.Lock()


def _server() -> _Server:
    with _starting:
        if not _servers:
            _servers.append(_Server())
        return _servers[0]


class _Forked:
    """As ``subprocess.Popen`` for what tests ask of it."""

    def __init__(
        self, args: Sequence[str | os.PathLike[str]], *, stdin: Any = None, stdout: Any = None, stderr: Any = None,
        cwd: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None, text: bool = False,
    ) -> None:  # fmt: skip
        self.args, self.returncode = [os.fspath(argument) for argument in args], cast("int | None", None)
        assert self.args[0] == sys.executable, f"{self.args[0]} is not this Python: start it with subprocess"
        environment, self._server = dict(os.environ if env is None else env), _server()
        _refuse_what_was_read(environment, self._server.environment)
        given, streams, theirs, opened = (stdin, stdout, stderr), [], [], cast("list[Any]", [None, None, None])
        for number, wanted in enumerate(given):
            if wanted is None:
                theirs.append(number)
            elif wanted == STDOUT and number == 2:
                theirs.append(theirs[1])
            elif wanted == PIPE:
                reading, writing = os.pipe()
                own, other = (writing, reading) if number == 0 else (reading, writing)
                mode = ("w" if number == 0 else "r") + ("" if text else "b")
                opened[number] = open(own, mode)  # noqa: SIM115 (closed by ``communicate`` or the end of a ``with``)
                theirs.append(other)
                streams.append(other)
            elif wanted == DEVNULL:
                streams.append(os.open(os.devnull, os.O_RDWR))
                theirs.append(streams[-1])
            else:
                theirs.append(wanted if isinstance(wanted, int) else wanted.fileno())
        self.stdin, self.stdout, self.stderr = cast("tuple[IO[Any] | None, ...]", tuple(opened))
        self._text = text
        job = {"args": self.args, "cwd": os.fspath(cwd or os.getcwd()), "env": environment}
        try:
            self.pid: int = self._server.ask({"start": job}, theirs)
        finally:
            for stream in streams:
                os.close(stream)

    def __enter__(self) -> _Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr, self.stdin):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.wait()

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self._server.ask({"poll": self.pid})
            except (EOFError, OSError):  # the process that forks was given up, and has killed all that it forked
                self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end, pause = None if timeout is None else time.monotonic() + timeout, 0.001
        while (status := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """What it wrote to the streams that are pipes, until it closes them, and its end."""
        found: dict[str, Any] = {}

        def read(name: str, stream: IO[Any]) -> None:
            found[name] = stream.read()

        readers = [
            threading.Thread(target=read, args=(name, stream), daemon=True)
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr))
            if stream is not None
        ]
        for reader in readers:
            reader.start()
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                if input is not None:
                    self.stdin.write(input)
                self.stdin.close()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise TimeoutExpired(self.args, timeout or 0.0)
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        return found.get("stdout"), found.get("stderr")


def _refuse_what_was_read(environment: Mapping[str, str], known: Mapping[str, str]) -> None:
    for name in {*environment, *known}:
        if name.startswith(READ_AT_START) and not name.startswith(NOT_READ):
            asked, found = environment.get(name), known.get(name)
            assert asked == found, (
                f"{name} is {asked}, and was {found} when torch was imported: use subprocess for this"
            )


def _run(
    args: Sequence[str | os.PathLike[str]], *, capture_output: bool = False, check: bool = False,
    timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    if capture_output:
        options |= {"stdout": PIPE, "stderr": PIPE}
    with _Forked(args, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.wait(), out, err)
    if check:
        done.check_returncode()
    return done


Popen: Any = _Forked if sys.platform == "linux" else subprocess.Popen
run: Any = _run if sys.platform == "linux" else subprocess.run


# The process that forks.


def _serve(asking: socket.socket) -> dict[str, Any]:
    """Returns in what it forks, with the job of that; never in the process that forks."""
    children: set[int] = set()
    while True:
        try:
            message, streams = _receive(asking)
        except (EOFError, OSError):
            break
        if "start" in message:
            pid = os.fork()
            if pid == 0:
                asking.close()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                for stream in streams:
                    os.close(stream)
                return message["start"]
            for stream in streams:
                os.close(stream)
            children.add(pid)
            reply: int | None = pid
        else:
            found, status = os.waitpid(message["poll"], os.WNOHANG)
            reply = os.waitstatus_to_exitcode(status) if found else None
            children.discard(found)
        _send(asking, reply)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _become(job: dict[str, Any], places: list[str]) -> None:
    """Runs the job's command in this process. ``places``: where modules are found, but for what a command adds."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where pytest itself ignores it, in the background
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    _, *rest = job["args"]
    kind = rest[0] if rest[0] in ("-m", "-c") else ""
    what, *arguments = rest[1:] if kind else rest
    first = {"-m": job["cwd"], "-c": "", "": str(Path(what).resolve().parent)}[kind]
    sys.path[:] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *places]
    importlib.invalidate_caches()
    here = importlib.machinery.PathFinder.find_spec("softcache")
    loaded = sys.modules["softcache"].__file__
    for generator in (torch.default_generator, np.random):  # ``random`` sees to it itself
        generator.seed()
    assert here is None or os.path.samefile(str(here.origin), str(loaded)), f"{here} is another softcache than {loaded}"
    sys.orig_argv, sys.argv = list(job["args"]), [kind or what, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        main, name, code = types.ModuleType("__main__"), "<string>", what.encode()
        if not kind:
            name = main.__file__ = os.path.abspath(what)
            code = Path(name).read_bytes()
        sys.modules["__main__"] = main
        exec(compile(code, name, "exec"), main.__dict__)


def _lived(run: Callable[[], None]) -> int:
    """The exit status of a process that ran this, as the interpreter gives it; minus a signal that it dies of."""
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(status: int) -> NoReturn:
    """As the interpreter ends, but for the modules: to take them apart costs more than many a command."""
    threading._shutdown()  # type: ignore[attr-defined]  # tells pools of threads to end, and waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    added = {str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    found = [place for place in sys.path if place not in added]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for what it has forked, and for the one that asks it
    for name in PRELOADED:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):  # of an extra
        importlib.import_module("s3fs")
    gc.collect()
    gc.freeze()  # or each collection in what it forks would copy the memory that both share
    job = _serve(socket.socket(fileno=int(sys.argv[1])))
    _end(_lived(lambda: _become(job, found)))
