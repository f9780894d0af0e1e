"""A running Ray cluster and the actors on it: they die with their nodes, and new nodes get new ones."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache.console import counted
from softcache.errors import SoftcacheError, UsageError
from softcache.extras import missing_extra

ADDRESS = "RAY_ADDRESS"
REACHED_S = 10.0  # that a cluster has to answer in
LOOK_S = 0.05  # between two looks for answers
ENDING_S = 10.0  # that actors have to end in, before what they left behind is removed


@dataclass(eq=False)
class Actor:
    """One actor, as whoever asked for it sees it. ``host``, ``node``, ``pid``: where it runs, once it has said so."""

    handle: Any
    host: str = ""
    node: str = ""
    pid: int = 0
    answer: Any = None
    report: Any = None


@dataclass(frozen=True)
class Lost:
    """The answer of an actor that is no more. ``crashed``: its process ended though its node lives."""

    why: str
    crashed: bool


@dataclass(frozen=True)
class Raised:
    """The answer of an actor whose call raised ``error``."""

    error: Exception


@contextlib.contextmanager
def connected(device: str, threads: int) -> Iterator[RayCluster]:
    """The cluster that ``RAY_ADDRESS`` names, or else the one that this machine is a node of.

    A program that has called ``ray.init`` itself stays connected afterwards. ``device``, ``threads``: as ``RayCluster``
    takes them.

    Errors: ``MissingExtraError`` without Ray, ``UsageError`` for Ray Client's addresses, ``SoftcacheError`` where no
    cluster is found.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise missing_extra("--on ray needs Ray", "ray") from None
    if ray.is_initialized():
        yield RayCluster(ray, device, threads)
        return
    with _standard_output_kept():
        _connect(ray)
        try:
            yield RayCluster(ray, device, threads)
        finally:
            ray.shutdown()


class RayCluster:
    """The nodes of a cluster and the actors that were asked of it.

    ``device``: ``cpu`` or ``cuda``; ``auto`` is ``cuda`` where a node has a GPU. An actor takes a GPU, or on CPUs as
    many of them as it has ``threads``.
    """

    def __init__(self, ray: Any, device: str, threads: int):
        self._ray = ray
        if device == "auto":
            device = "cuda" if any(node.get("GPU", 0) >= 1 for node in self._nodes().values()) else "cpu"
        self.device = device
        self.threads = 1 if device == "cuda" else threads
        self._needs = {"GPU": 1, "CPU": 1} if device == "cuda" else {"CPU": threads}
        self.actors: list[Actor] = []

    @property
    def room(self) -> int:
        """How many actors the nodes can hold, if nothing else runs on them."""
        return sum(self._fit(node) for node in self._nodes().values())

    @property
    def cores(self) -> int:
        """CPUs of an actor's node that are its share, on the node that has the fewest for each."""
        shares = [int(node["CPU"]) // self._fit(node) for node in self._nodes().values() if self._fit(node)]
        return max(self._needs["CPU"], min(shares, default=1))

    def describe(self) -> str:
        """What the cluster has room for, for people."""
        return f"{counted(len(self._nodes()), 'node')} with room for {counted(self.room, 'actor')}, {self._takes()}"

    def free(self) -> str:
        """What an actor takes and what is free, for people."""
        nodes, free = self._nodes().values(), self._ray.available_resources()
        has = [f"{free.get(kind, 0):g} of {sum(node.get(kind, 0) for node in nodes):g} {kind}s" for kind in self._needs]
        return f"{self._takes()}, and on the cluster's {counted(len(nodes), 'node')} {' and '.join(has)} are free"

    def hire(self, actor_class: type) -> Actor:
        """Asks for one more actor, which comes into being as soon as a node has room for it."""
        gpus = self._needs.get("GPU", 0)
        # Two calls at a time: one that works, one that tells how far it has got.
        options = {"num_cpus": self._needs["CPU"], "num_gpus": gpus, "max_restarts": 0, "max_concurrency": 2}
        actor = Actor(self._ray.remote(actor_class).options(**options).remote())
        self.actors.append(actor)
        return actor

    def ask(self, actor: Actor, method: str, *arguments: Any) -> None:
        """Calls a method of an actor that has answered all others; ``answers`` has what it returns."""
        assert actor.answer is None, method
        actor.answer = getattr(actor.handle, method).remote(*arguments)

    def answers(self, seconds: float) -> list[tuple[Actor, Any]]:
        """Actors that have returned from a call within so many seconds, and what they returned; ``Raised`` or ``Lost``
        where there is no such thing."""
        asked = {actor.answer: actor for actor in self.actors if actor.answer is not None}
        found = []
        for reference in self._wait(list(asked), 1, seconds):
            actor = asked[reference]
            actor.answer = None
            found.append((actor, self._got(actor, reference)))
        return found

    def report(self, actor: Actor, seconds: float = 0) -> Any:
        """What an actor's ``report`` returns within so many seconds, or has since this was called last; None where it
        hasn't answered yet."""
        if actor.report is None:
            actor.report = actor.handle.report.remote()
        if not self._wait([actor.report], 1, seconds):
            return None
        reference, actor.report = actor.report, None
        found = self._got(actor, reference)
        return None if isinstance(found, (Lost, Raised)) else found  # its call that works tells

    def dismiss(self, actor: Actor) -> None:
        """Ends an actor at once, whatever it does."""
        self.actors.remove(actor)
        self._ray.kill(actor.handle)

    def dismiss_all(self) -> None:
        """Ends all actors, and waits until those that were at work are gone, or cut off."""
        working = [actor.answer for actor in self.actors if actor.answer is not None and actor.host]
        for actor in list(self.actors):
            self.dismiss(actor)
        if working:
            self._wait(working, len(working), ENDING_S)

    def _wait(self, references: list[Any], count: int, seconds: float) -> list[Any]:
        """Those that are ready, once ``count`` of them are or so many seconds are over.

        It sleeps in Python: within Ray's own waiting the exception of a signal's handler becomes a ``SystemError``.
        """
        end = time.monotonic() + seconds
        while True:
            ready: list[Any] = []
            if references:
                with _signals_through():
                    ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
            if (references and len(ready) >= count) or time.monotonic() >= end:
                return ready
            time.sleep(LOOK_S)

    def _got(self, actor: Actor, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            return Raised(error.cause if isinstance(error.cause, Exception) else error)
        except errors.RayError as error:
            # Of a node that dies Ray first says that the actor can't be reached, and that it is dead only later.
            crashed = isinstance(error, errors.ActorDiedError) and actor.node in self._nodes()
            return Lost("its process ended" if crashed else "its node can't be reached", crashed)

    def _nodes(self) -> dict[str, dict[str, float]]:
        """The resources of the nodes that are alive, by their ids."""
        return {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}

    def _takes(self) -> str:
        if "GPU" in self._needs:
            return "each takes a GPU and a CPU"
        return f"each takes {counted(self.threads, 'CPU')}, as many as its --threads"

    def _fit(self, node: dict[str, float]) -> int:
        return min(math.floor(node.get(kind, 0) / needed) for kind, needed in self._needs.items())


def own_paths() -> list[str]:
    """Where this process finds modules beside those that are installed: its folder, ``PYTHONPATH`` and the like."""
    places = sysconfig.get_paths()
    standard = [os.path.realpath(places[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found = [os.path.abspath(place) for place in sys.path]
    return [place for place in found if os.path.isdir(place) and not _installed(os.path.realpath(place), standard)]


def _connect(ray: Any) -> None:
    address = os.environ.get(ADDRESS) or "auto"
    if "://" in address:
        raise UsageError(
            f"{ADDRESS} is {address}, an address of Ray Client: run the dump on a machine of the cluster, as `ray job "
            "submit` does, with the address of its head (HOST:6379)"
        )
    nowhere = (
        "no Ray cluster runs on this machine: start one with `ray start --head`, or make this machine part of one with "
        "`ray start --address HOST:6379`"
    )
    # Where nothing answers Ray itself tries for minutes, and says so in many lines.
    if address == "auto" and _unreachable(_last_here()):
        raise SoftcacheError(nowhere)
    if address != "auto" and (why := _unreachable(address)):
        raise SoftcacheError(
            f"no Ray cluster answers at {address}, as {ADDRESS} says ({why}): start one with `ray start --head`, or "
            f"set {ADDRESS} to its head (HOST:6379)"
        )
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            raise SoftcacheError(nowhere) from error
        said = " ".join(str(error).split())
        raise SoftcacheError(f"can't connect to the Ray cluster ({ADDRESS} is {address}): {said}") from error
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray puts one of its own in its place


def _last_here() -> str:
    """The address of the cluster that a node was started for on this machine last, alive or not; nothing where none
    was."""
    note = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    try:
        return note.read_text().strip()
    except (OSError, ValueError):
        return ""


def _unreachable(address: str) -> str:
    """Why nothing answers at ``HOST:PORT``; nothing where something does, and of what isn't such an address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextlib.contextmanager
def _signals_through() -> Iterator[None]:
    """What a signal's handler raises comes out as it is, and not as the ``SystemError`` that Python makes of it where
    it is raised within Ray's compiled code."""
    try:
        yield
    except SystemError as error:
        if error.__cause__ is None or isinstance(error.__cause__, Exception):
            raise
        raise error.__cause__ from None


@contextlib.contextmanager
def _standard_output_kept() -> Iterator[None]:
    """For the result alone: Ray would print the last words of a node's process there when the node dies."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _installed(place: str, standard: list[str]) -> bool:
    parts = place.split(os.sep)
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    return any(place == root or place.startswith(root + os.sep) for root in standard)
