"""Trainings in float64, without batch norm, on one rank or on several, as torchrun starts them.

``harness_ranks.py FOLDER`` trains every case of ``FOLDER/cases.json`` and keeps what this rank ended with.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import harness_process
import torch
from torch import nn

from softcache.config.parsed import parse
from softcache.config.train import TrainConfig
from softcache.losses.hints._regressor import BatchNorm
from softcache.stages._running import order_of, run_all
from softcache.stages._training import prepare
from softcache.training.ranks import joined

PLAIN = f"{Path(__file__)}:plain"


class Plain(nn.Module):
    """Grey images of 8 pixels → ``layer1`` (4, 4, 4) → ``layer2`` (8, 2, 2) → ``fc``, without batch norm."""

    def __init__(self, classes: int):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Tanh())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.Tanh())
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def plain(num_classes: int) -> nn.Module:
    return Plain(num_classes)


def trained(options: dict[str, Any], out: Path) -> dict[str, Any]:
    """What this rank ends with: ``parameters`` by name, ``lines`` of the metrics without times, ``rank``."""
    settings: dict[str, Any] = {
        "student": PLAIN, "epochs": 2, "batch_size": 129, "optimizer": "sgd", "lr": 0.02, "schedule": "constant",
        "warmup": 0.0, "seed": 3, "workers": 0, "amp": "off", "channels_last": False, "device": "cpu", **options,
    }  # fmt: skip
    with joined() as ranks:
        prepared = prepare(parse(TrainConfig.of(**settings)), ranks=ranks)
        modules = [prepared.network] + ([prepared.hint_losses] if prepared.hint_losses is not None else [])
        for module in modules:
            module.double()
            for owner in list(module.modules()):
                for name, child in list(owner.named_children()):
                    if isinstance(child, BatchNorm):
                        setattr(owner, name, nn.Identity())
                    if isinstance(child, nn.Linear):  # crd's of hints, which are float32
                        child.register_forward_pre_hook(lambda _, given: (given[0].double(),))
        out.mkdir(parents=True, exist_ok=True)
        (fitted,) = run_all([prepared], [out], order_of(prepared), resume=False)
        named = {name: value for module in modules for name, value in module.state_dict().items()}
        lines = [{key: value for key, value in line.items() if not key.endswith("_s")} for line in fitted.lines]
        return {"parameters": named, "lines": lines, "rank": ranks.index}


def torchrun(*arguments: str | Path | int, ranks: int = 2, restarts: int = 0) -> list[str]:
    """The command that starts ``arguments`` on several ranks of this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [sys.executable, *launcher, "--max-restarts", str(restarts), *map(str, arguments)]


def on_ranks(cases: dict[str, dict[str, Any]], folder: Path, ranks: int = 2) -> dict[str, list[dict[str, Any]]]:
    """What each rank ends with in each case."""
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    of_all = meeting | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
    started, command = [], [sys.executable, __file__, str(folder)]
    for rank in range(ranks):
        of_one = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
        with open(folder / f"said-{rank}.txt", "wb") as said:
            environment = {**os.environ, **of_all, **of_one}
            started.append(harness_process.Popen(command, env=environment, stdout=said, stderr=said))
    ended = [process.wait() for process in started]
    assert ended == [0] * ranks, "\n".join((folder / f"said-{rank}.txt").read_text() for rank in range(ranks))
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(ranks)] for name in cases
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, options in json.loads((folder / "cases.json").read_text()).items():
        listed = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        found = trained(listed, folder / name)
        torch.save(found, folder / f"{name}-{found['rank']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
