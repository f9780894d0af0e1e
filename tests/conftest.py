"""What all tests share: an empty working folder, one thread, and small teachers."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import harness_process
import numpy as np
import pytest
import torch
from harness_dump import Setting, Warm, make_setting
from harness_store import Proxy, Server, environment, proxy, s3_server

from softcache.config.record import TEACHER_FILE, Record
from softcache.config.teach import TeachConfig
from softcache.console import show_messages
from softcache.models._folder import describe, save_network
from softcache.models._open import open_network
from softcache.stages import _crew
from softcache.threads import NUMBER
from softcache.views._open import open_viewed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """`make docs-commands` ends with what it didn't run, and why, and with what stood for what."""
    if any("test_pages_followed" in argument for argument in config.args):
        import harness_places  # reads all pages

        for line in harness_places.set_aside():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Here and in the processes that tests start: several at a time run tests on as many processors."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        for name in NUMBER:
            patched.setenv(name, "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """State and cache folders that begin empty, in place of the user's; processes that tests start have them too."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SOFTCACHE_STATE", str(folder / "state"))
        patched.setenv("SOFTCACHE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own, so that nothing is remembered yet."""
    monkeypatch.setenv("SOFTCACHE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def _messages() -> None:
    """As the command line shows them."""
    show_messages()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A teacher and data of a dump, small enough for many dumps."""
    return make_setting(tmp_path_factory.mktemp("setting"))


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Runs commands in processes that don't import torch anew."""
    with Warm(tmp_path_factory.mktemp("warm")) as warm:
        yield warm


@pytest.fixture(scope="module")
def forked_crew() -> Iterator[None]:
    """The processes of sweeps don't import torch anew."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_crew, "subprocess", harness_process)
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A process that speaks S3."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3_server(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def faults(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before that server, without faults at first; the environment leads to it."""
    with proxy(server.url) as made:
        for name, value in environment(made.url).items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture(scope="session")
def small_teacher() -> Callable[..., str]:
    """Writes a folder with a random teacher whose logits are as wide as a trained one's; returns its path."""

    def make(folder: str | Path, *, dataset: str = "digits", model: str = "cifar:resnet8", seed: int = 7) -> str:
        samples = open_viewed(dataset, "train").samples
        network = open_network(model, classes=len(samples.classes), statistics=samples.statistics, seed=seed)
        with torch.no_grad():
            for parameter in list(network.model.parameters())[-2:]:
                parameter.mul_(20)
        path = Path(folder)
        path.mkdir(parents=True)
        save_network(network, path, TEACHER_FILE)
        Record("teach", TeachConfig(network.spec), {**describe(network), "weights": TEACHER_FILE}).save(path)
        return str(path)

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[..., None]]]:
    """A tmpfs of its own; ``resize(bytes)`` gives it another size."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs Linux and its administrator")
    libc = ctypes.CDLL(None, use_errno=True)

    def resize(count: int, flags: int = 32) -> None:  # MS_REMOUNT
        done = libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, f"size={count}".encode())
        if done != 0:
            pytest.skip(f"mounting isn't allowed here: {os.strerror(ctypes.get_errno())}")

    resize(64 * 2**20, flags=0)
    yield place, resize
    libc.umount2(os.fsencode(place), 2)


@pytest.fixture
def colour_arrays(tmp_path: Path) -> str:
    """``arrays:`` set of 150 + 40 colour images of 12×12 pixels in 5 classes that can be told apart by their colour."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "colours"
    folder.mkdir()
    for split, rows in (("train", 150), ("test", 40)):
        labels = np.arange(rows) % 5
        images = rng.integers(0, 80, (rows, 12, 12, 3)) + 30 * labels[:, None, None, None]
        np.save(folder / f"{split}_images.npy", images.astype(np.uint8))
        np.save(folder / f"{split}_labels.npy", labels)
    return f"arrays:{folder}"
