"""``dump --on ray``: on a cluster of three nodes of this machine, which are killed, added and killed again."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness_dump import Ended, Warm, make_words_setting, shards, temporaries
from harness_ray import NODES, Controlled, Nodes, alive, controlled, pictures, until

import softcache
from softcache.atomic import remove_temporaries_of, temporary_path, writer_name
from softcache.cache.locks import FITTING_LOCK, MANIFEST_LOCK, is_lock, remove_locks_of
from softcache.cache.reader import Cache
from softcache.cache.writer import Block
from softcache.dumping.units import Units
from softcache.errors import MissingExtraError, SoftcacheError, UsageError
from softcache.extras import install_command
from softcache.stages.dump import dump

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
TEN = 10


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Controlled:
    return controlled(tmp_path_factory.mktemp("setting"))


@pytest.fixture(autouse=True)
def _working(setting: Controlled) -> Iterator[None]:
    setting.tell("works")
    setting.forget()
    yield
    setting.tell("works")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    pytest.importorskip("ray")
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    cluster.fill()
    return cluster


@pytest.fixture(scope="module")
def undisturbed(setting: Controlled, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process writes."""
    setting.tell("works")
    folder = tmp_path_factory.mktemp("undisturbed") / "cache"
    assert warm.run(setting.command(folder)).status == 0
    return shards(folder)


def on_ray(setting: Controlled, folder: Path, *more: str) -> list[str]:
    return setting.command(folder, "--on", "ray", *more)


def check(folder: Path, expected: dict[str, str]) -> None:
    assert shards(folder) == expected
    assert temporaries(folder) == []
    assert not [path.name for path in folder.iterdir() if is_lock(path.name)]
    cache = Cache(folder)
    assert cache.manifest.state.teacher_top1 is not None
    assert all(column.error for column in cache.manifest.state.columns.values())


def lost(ended: Ended) -> int:
    """How many actors were lost, as the command says."""
    assert ended.status == 0, ended.output
    said = [line for line in ended.output.splitlines() if line.startswith("computed by ")]
    assert len(said) == 1, ended.output
    words = said[0].split(", ")
    return int(words[1].split()[0]) if len(words) > 1 else 0


def committed(folder: Path) -> int:
    return len(list(folder.glob("view-*/[!.]*.h5")))


@needs_ray
def test_actors_keep_the_codecs_that_one_process_chooses(setting, nodes, warm, tmp_path):
    auto = ("--codec", "auto:max_kl=1e-4,max_error=0.02")
    alone = warm.run(setting.command(tmp_path / "alone", *auto))
    ended = warm.run(on_ray(setting, tmp_path / "cache", *auto), env=nodes.environment)
    assert alone.status == ended.status == 0, ended.output
    assert ended.output.count("logits: the smallest codec") == 1
    assert shards(tmp_path / "cache") == shards(tmp_path / "alone")
    less = on_ray(setting, tmp_path / "cache", "--codec", "auto:max_kl=1e-12,max_error=1e-9")
    too_little = warm.run(less, env=nodes.environment)
    assert too_little.status == 1
    assert "more than max_" in too_little.output


@needs_ray
def test_three_nodes_write_what_one_process_does(setting, nodes, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    setting.tell("sleeps 0.05")
    ended = warm.run(on_ray(setting, folder), env=nodes.environment)
    assert lost(ended) == 0
    assert f"computed by    {NODES} actors on Ray" in ended.output
    assert len(setting.processes()) == NODES
    assert f"room for {NODES} actors, each takes 1 CPU" in ended.output
    check(folder, undisturbed)


@needs_ray
def test_a_node_that_is_killed_costs_its_shards_in_flight_alone(setting, nodes, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    setting.tell("sleeps 0.1")
    pid = warm.start(on_ray(setting, folder, "--json"), env=nodes.environment)
    until(lambda: committed(folder) >= 9 and len(setting.processes()) == NODES)
    before = {path: path.stat().st_ino for path in folder.glob("view-*/[!.]*.h5")}
    nodes.kill(random.randrange(NODES))
    setting.tell("sleeps 0.02")
    ended = warm.wait(pid)
    assert ended.status == 0, ended.output
    assert "warning: an actor on " in ended.output
    assert json.loads(ended.output[ended.output.index("\n{") :])["lost_actors"] == 1
    assert {path: path.stat().st_ino for path in before} == before, "a finished shard was written again"
    check(folder, undisturbed)


@needs_ray
def test_a_node_that_joins_takes_part(setting, nodes, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    while len(nodes.all) > 1:
        nodes.leave(0)
    setting.tell("sleeps 0.3")
    pid = warm.start(on_ray(setting, folder), env=nodes.environment)
    until(lambda: committed(folder) >= 3)
    assert len(setting.processes()) == 1
    nodes.fill(2)
    until(lambda: len(setting.processes()) == 2)
    setting.tell("works")
    ended = warm.wait(pid)
    assert lost(ended) == 0
    assert "computed by    2 actors on Ray" in ended.output
    check(folder, undisturbed)


@needs_ray
@pytest.mark.torture
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_dump_that_is_ended_goes_on_with_the_same_command(setting, nodes, warm, undisturbed, tmp_path, number):
    folder = tmp_path / "cache"
    setting.tell("sleeps 0.1")
    pid = warm.start(on_ray(setting, folder), env=nodes.environment)
    until(lambda: committed(folder) >= 3)
    os.kill(pid, number)
    ended = warm.wait(pid)
    actors = setting.processes()
    until(lambda: not any(map(alive, actors)))
    if number != signal.SIGKILL:
        assert ended.status == 128 + number, ended.output
        assert "stopped: " in ended.output
        assert f"keys are in {folder} and stay valid: run the same command again to go on" in ended.output
        assert temporaries(folder) == []
    setting.tell("works")
    assert lost(warm.run(on_ray(setting, folder), env=nodes.environment)) == 0
    check(folder, undisturbed)


@needs_ray
@pytest.mark.torture
def test_an_actor_whose_process_ends_is_replaced(setting, nodes, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    setting.tell("sleeps 0.1")
    pid = warm.start(on_ray(setting, folder), env=nodes.environment)
    until(lambda: committed(folder) >= 3)
    os.kill(setting.processes()[0], signal.SIGKILL)
    setting.tell("sleeps 0.02")
    ended = warm.wait(pid)
    assert lost(ended) == 1
    assert "is lost, its process ended" in ended.output
    check(folder, undisturbed)


@needs_ray
@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("nan", "not finite as "),
        pytest.param("fails", "softcache: OSError: stale file handle", marks=pytest.mark.torture),
        pytest.param(
            "dies",
            "softcache: 3 actors have ended in opening data and teacher, the last one on ",
            marks=pytest.mark.torture,
        ),
    ],
)
def test_what_every_actor_runs_into_ends_the_dump_in_one_line(setting, nodes, warm, tmp_path, does, says):
    folder = tmp_path / "cache"
    setting.tell(does)
    ended = warm.run(on_ray(setting, folder), env=nodes.environment)
    assert ended.status == 1, ended.output
    assert says in ended.output.splitlines()[-1]
    assert ended.output.count("is lost") == (0 if does == "nan" else 3)
    if does != "nan":
        assert not folder.exists(), "nothing was written"
    assert temporaries(folder) == []


@needs_ray
@pytest.mark.torture
def test_one_of_three_nodes_is_killed_in_each_of_ten_dumps(setting, nodes, warm, undisturbed, tmp_path):
    """At a random moment, from the beginning of the command on."""
    setting.tell("sleeps 0.02")
    began = time.monotonic()
    assert lost(warm.run(on_ray(setting, tmp_path / "whole"), env=nodes.environment)) == 0
    whole, rng, survived = time.monotonic() - began, random.Random(), 0
    for turn in range(TEN):
        nodes.fill()
        folder = tmp_path / str(turn)
        pid = warm.start(on_ray(setting, folder), env=nodes.environment)
        time.sleep(rng.uniform(0, whole))
        nodes.kill(rng.randrange(NODES))
        survived += lost(warm.wait(pid))
        check(folder, undisturbed)
    assert survived > 0


@needs_ray
@pytest.mark.torture
def test_ten_nodes_are_killed_in_one_dump(setting, nodes, warm, tmp_path):
    """And each is replaced by another one."""
    folder, rng, many = tmp_path / "cache", random.Random(), ["--views", "30"]  # so many that it outlasts the kills
    assert warm.run(setting.command(tmp_path / "alone", *many)).status == 0
    setting.tell("sleeps 0.3")
    pid = warm.start(on_ray(setting, folder, *many), env=nodes.environment)
    for _ in range(TEN):
        setting.forget()
        at_work = rng.randrange(1, NODES + 1)
        until(lambda at_work=at_work: len(setting.processes()) >= at_work)
        time.sleep(rng.uniform(0, 2))
        nodes.kill(rng.randrange(NODES))
        nodes.fill()
    setting.tell("works")
    ended = warm.wait(pid)
    assert lost(ended) >= TEN // 2
    check(folder, shards(tmp_path / "alone"))


@needs_ray
@pytest.mark.torture
def test_actors_follow_what_the_user_gave_here(setting, nodes, warm, tmp_path):
    """Modules beside the command's working folder, relative paths, and a codec of one's own that was named once."""
    (tmp_path / "net.py").write_text((setting.root / "teacher.py").read_text())
    (tmp_path / "own.py").write_text(CODEC)
    for name in ("data.npz", "weights.pt", "does"):
        (tmp_path / name).write_bytes((setting.root / name).read_bytes())
    command = [
        *("dump", "--teacher", "python:net:make", "--teacher-weights", "weights.pt", "--dataset", "arrays:data.npz"),
        *("--size", "8", "--batch-size", "8", "--shard-rows", "64", "--augment", "crop:pad=1+python:own.py:darker"),
    ]
    state = {"SOFTCACHE_STATE": str(tmp_path / "state")}
    env, prepare = {**nodes.environment, **state}, f"import os; os.chdir({str(tmp_path)!r})"
    for folder, more in (("alone", ["--views", "2"]), ("shared", ["--views", "1"])):
        given = [*command, "--codec", "own.py:Rounded", "--out", folder, *more]
        done = warm.run(given, env=state, prepare=prepare)
        assert done.status == 0, done.output
    bare = [*command[: command.index("--size")], "--out", "shared", "--views", "2", "--on", "ray"]
    assert lost(warm.run(bare, env=env, prepare=prepare)) == 0
    assert shards(tmp_path / "shared") == shards(tmp_path / "alone")


CODEC = """
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Rounded:
    step: float = 0.01

    def arrays(self, shape):
        return {"steps": ("<i2", shape)}

    def encode(self, values):
        return {"steps": (values / self.step).round().clamp(-32768, 32767).to(torch.int16)}

    def decode(self, arrays):
        return arrays["steps"].float() * self.step


def darker():
    return lambda picture: picture.point(lambda value: value // int(np.random.randint(1, 4)))
"""


@needs_ray
@pytest.mark.torture
@pytest.mark.parametrize(
    "kind", ["a codec with constants", "rows of many lengths", "a share of the rows", "files and worker processes"]
)
def test_other_data_and_codecs_come_out_the_same(setting, nodes, warm, tmp_path, kind):
    command, more = setting.command, ["--codec", "int8"]
    if kind == "a share of the rows":
        more += ["--hint", "body.2:rows=0.1"]
    if kind == "rows of many lengths":
        command, more = make_words_setting(tmp_path / "words").command, ["--bucket"]
    if kind == "files and worker processes":
        command = pictures(tmp_path / "pictures").command
        more = ["--dataset", f"folder:{tmp_path / 'pictures'}", "--workers", "2", "--shard-rows", "16"]
    for folder, where in (("alone", []), ("shared", ["--on", "ray"])):
        done = warm.run(command(tmp_path / folder, *more, *where), env=nodes.environment)
        assert done.status == 0, done.output
    assert shards(tmp_path / "shared") == shards(tmp_path / "alone")
    constants = {path.name: path.read_bytes() for path in (tmp_path / "alone").glob("column-*.h5")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "shared").glob("column-*.h5")} == constants
    assert bool(constants) == (kind in ("a codec with constants", "a share of the rows"))


@needs_ray
@pytest.mark.torture
def test_where_a_node_has_a_gpu_an_actor_takes_one(setting, nodes, warm, tmp_path):
    """This machine has none that torch could use, which the actor there says."""
    nodes.add_gpu()
    ended = warm.run(setting.command(tmp_path / "cache", "--on", "ray", "--device", "auto"), env=nodes.environment)
    assert ended.status == 2, ended.output
    assert "--device cuda: this machine has no CUDA device, or torch can't see it (on node " in ended.output
    assert not (tmp_path / "cache").exists()


@needs_ray
@pytest.mark.torture
def test_nodes_of_another_version_are_refused(setting, nodes, warm, tmp_path):
    other = "import softcache.stages._ray_sent as it; it.__version__ = '99.9'"
    ended = warm.run(on_ray(setting, tmp_path / "cache"), env=nodes.environment, prepare=other)
    assert ended.status == 1, ended.output
    last = ended.output.splitlines()[-1]
    assert last.startswith("softcache: node ")
    assert last.endswith(f"has softcache {softcache.__version__}, this is 99.9: install the same on all nodes")
    assert not (tmp_path / "cache").exists()


@needs_ray
@pytest.mark.torture
def test_a_dump_without_room_for_an_actor_waits_and_says_what_it_lacks(setting, nodes, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    while nodes.all:
        nodes.leave(0)
    soon = "import softcache.stages._on_ray as it; it.NOBODY_S = 3.0"
    pid = warm.start(on_ray(setting, folder), env=nodes.environment, prepare=soon)
    time.sleep(12)
    nodes.fill()
    ended = warm.wait(pid)
    assert lost(ended) == 0
    assert re.search(
        r"warning: no actor for [\d.]+ s: each takes 1 CPU, as many as its --threads, and on the cluster's ",
        ended.output,
    )
    check(folder, undisturbed)


@needs_ray
def test_what_a_node_without_softcache_is_sent_can_say_so(tmp_path):
    """Its class comes as code: nothing of softcache is imported to make it."""
    import ray.cloudpickle

    from softcache.stages._ray_sent import actor_class

    (tmp_path / "class").write_bytes(ray.cloudpickle.dumps(actor_class()))
    code = """
import pickle, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "softcache":
            raise ImportError(name)
sys.meta_path.insert(0, Without())
made = pickle.loads(open("class", "rb").read())()
print(made.start({"threads": 1, "folder": ".", "paths": [], "version": "1.2"}, {})["trouble"])
print(made.start({"threads": 1, "folder": "nowhere", "paths": [], "version": "1.2"}, {})["trouble"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "has no softcache: install 1.2 on every node of the cluster",
        "can't work in nowhere (No such file or directory): start softcache in a folder that all nodes share",
    ]


def test_an_actor_that_sees_another_folder_of_that_name_writes_nothing(tmp_path):
    code = """
import softcache.stages._ray_actor as actor
actor.SEEN_S = 0.5
options = {"teacher": "resnet50", "out": "cache", "device": "cpu"}
work = actor.Work(options, {"allowed": [], "given": []}, ["softcache"], None, 1, 1)
work.open("what the lock says elsewhere", True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("softcache.errors.CacheError: cache isn't the folder that the dump writes to: "), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_lost_actor_of_another_host_has_left_is_removed(tmp_path):
    for name, text in ((MANIFEST_LOCK, "77\nelsewhere\n"), (FITTING_LOCK, "78\nelsewhere\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "view-0000").mkdir()
    theirs = tmp_path / "view-0000" / ".logits-00000.h5~elsewhere~boot.1~77~0123456789abcdef.part"
    ours = temporary_path(tmp_path / "view-0000" / "logits-00001.h5")
    for path in (theirs, ours):
        path.touch()
    remove_locks_of(tmp_path, 77, "elsewhere")
    remove_temporaries_of(tmp_path, "elsewhere~boot.1~77~01234567")
    assert sorted(path.name for path in tmp_path.iterdir()) == [FITTING_LOCK, "view-0000"]
    assert list((tmp_path / "view-0000").iterdir()) == [ours]
    remove_temporaries_of(tmp_path, writer_name())
    assert list((tmp_path / "view-0000").iterdir()) == []


@pytest.mark.parametrize(
    (
        "takers",
        "one_decode",
        "largest",
    ),  # of 60 blocks a fourth of each taker's share; of 20 ranges of rows, whole ones
    [(1, False, 15), (3, False, 5), (50, False, 1), (1, True, 15), (3, True, 3), (50, True, 1)],
)
def test_every_block_is_handed_out_once_and_again_where_it_comes_back(takers, one_decode, largest):
    blocks = [Block(view, first, 8, ()) for first in range(0, 160, 8) for view in range(3)]
    units, rng, done = Units(blocks, one_decode=one_decode), random.Random(3), []
    sizes = []
    while units:
        unit = units.take(takers)
        sizes.append(len(unit))
        kept = unit if rng.random() < 0.7 else unit[: len(unit) // 2]  # else its taker dies halfway
        units.give_back(unit[len(kept) :])
        done += kept
    assert sorted(done, key=blocks.index) == blocks
    assert sizes[0] == max(sizes) == largest
    assert sizes[-1] <= 3


def test_combinations_with_a_cluster_that_make_no_sense_are_refused(monkeypatch):
    for options, said in (
        ({"on": "dask"}, "--on 'dask' is unknown: ray"),
        ({"on": "ray", "part": (1, 2)}, "--part and --on ray both divide the work"),
        ({"on": "ray", "dry_run": True}, "--dry-run estimates what one process would take"),
        ({"on": "ray", "device": "cuda:1"}, "an actor on Ray has a GPU of its own"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            dump(**options)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--on ray and torchrun both divide the work"):
        dump(on="ray")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("ray"))):
        dump(on="ray")


@needs_ray
def test_addresses_that_lead_to_no_cluster_are_refused_at_once(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for address, said in (
            ("ray://head:10001", "an address of Ray Client"),
            (f"127.0.0.1:{free.getsockname()[1]}", "no Ray cluster answers at 127.0.0.1:.* `ray start --head`"),
        ):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(SoftcacheError, match=said):
                dump(on="ray")
