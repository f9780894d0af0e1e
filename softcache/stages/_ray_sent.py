"""What ``softcache dump --on ray`` sends to an actor: its class, and what it is to know of the command."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from softcache._version import __version__
from softcache.config.dump import DumpConfig
from softcache.datasets._open import DATA_VARIABLE
from softcache.dumping.ray_cluster import RayCluster, own_paths
from softcache.remembered import everything_given


def setting_of(cluster: RayCluster) -> dict[str, Any]:
    """What an actor takes over of this process before it has softcache."""
    return {"folder": os.getcwd(), "paths": own_paths(), "version": __version__, "threads": cluster.threads}


def task_of(cluster: RayCluster, asked: DumpConfig, folder: Path) -> dict[str, Any]:
    """What ``Work`` takes: plain values, since actors are sent it before they have softcache."""
    data_dir = asked.data_dir or os.environ.get(DATA_VARIABLE)
    options = replace(asked, on=None, device=cluster.device, out=str(folder.absolute()), data_dir=data_dir)
    return {
        "options": options.to_json(),
        "given": everything_given(),
        "arguments": list(sys.argv),
        "max_image_pixels": Image.MAX_IMAGE_PIXELS,
        "threads": cluster.threads,
        "cores": cluster.cores,
    }


def actor_class() -> type:
    """A class that Ray sends as code, because it is local and names nothing of its module: so a node that has no
    softcache, or another one, can say so."""

    class SoftcacheDump:
        """An actor of a dump. Its methods are called in this order, each once but ``compute``, and ``report`` beside
        them."""

        def arrive(self) -> tuple[str, str, int]:
            import os
            import socket

            import ray

            return socket.gethostname(), ray.get_runtime_context().get_node_id(), os.getpid()

        def start(self, setting: dict[str, Any], task: dict[str, Any]) -> dict[str, str]:
            """Becomes as the process of the command is: its working folder, its modules, its threads."""
            import os
            import sys

            os.environ["OMP_NUM_THREADS"] = str(setting["threads"])  # torch reads it when it is imported
            try:
                os.chdir(setting["folder"])
            except OSError as error:
                where = f"can't work in {setting['folder']} ({error.strerror})"
                return {"trouble": f"{where}: start softcache in a folder that all nodes share"}
            sys.path[:0] = [place for place in setting["paths"] if place not in sys.path]
            wanted = setting["version"]
            try:
                from softcache._version import __version__ as found
            except ImportError:
                return {"trouble": f"has no softcache: install {wanted} on every node of the cluster"}
            if found != wanted:
                return {"trouble": f"has softcache {found}, this is {wanted}: install the same on all nodes"}
            from softcache.stages._ray_actor import Work

            self._work = Work(**task)
            return {"trouble": "", "writer": self._work.writer}

        def open(self, writes: str, first: bool) -> tuple[Any, Any]:
            return self._work.open(writes, first), self._work.report()

        def compute(self, blocks: list[Any], unit: int) -> Any:
            self._work.compute(blocks, unit)
            return self._work.report()

        def report(self) -> Any:
            return self._work.report()

    return SoftcacheDump
