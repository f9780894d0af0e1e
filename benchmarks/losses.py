"""The step of each loss over the step of `kl`: a student's forward, the loss, backward and the optimizer.

A resnet20 on 32 pixels and 100 classes, batch 64 (rkd's angles at batch 256, too); a crd bank of 50,000 rows, and with
``--full`` of a million. Hint losses are measured with the kl that they usually accompany.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Result, arguments, paired, ratio, timed
from softcache import registry
from softcache.console import size
from softcache.device import pick_device
from softcache.losses._terms import parse_term
from softcache.losses.hints._hint_loss import hint_loss_type
from softcache.losses.hints._spec import parse_hint
from softcache.models._hooks import Taps
from softcache.models._open import open_network

BATCH, CLASSES, MAP, VECTOR = 64, 100, (64, 8, 8), (64,)
STEPS = 1
REVIEWED = ["layer1", "layer2", "layer3", "fc:in"]
REVIEWED_SHAPES = [(16, 32, 32), (32, 16, 16), MAP, VECTOR]
HEAVY = {"crd": "memory banks", "reviewkd": "attention"}


class Step:
    """A student's training step with one loss; ``layers``: what is watched, empty for a loss on logits."""

    def __init__(self, name: str, kind: str, batch: int, rows: int, device: torch.device):
        student = open_network("cifar:resnet20", classes=CLASSES, statistics=((0.5,) * 3, (0.5,) * 3), seed=0)
        self.student = student.to(device).train()
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (batch, 32, 32, 3), generator=generator, dtype=torch.uint8).to(device)
        self.teacher = (3 * torch.randn(batch, CLASSES, generator=generator)).to(device)
        self.labels = torch.randint(0, CLASSES, (batch,), generator=generator).to(device)
        self.rows = torch.randperm(rows, generator=generator)[:batch].to(device)
        self.term, self.layers, self.module = parse_term(name if kind == "loss" else "kl"), [], nn.Module()
        self.note = ""
        if kind == "hint":
            self._build_hint(name, rows, generator, device)
        parameters = [*self.student.parameters(), *self.module.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
        self.T = self.term.T_schedule().at(0, 1)

    def _build_hint(self, name: str, rows: int, generator: torch.Generator, device: torch.device) -> None:
        cls = hint_loss_type(name)
        if name == "reviewkd":
            self.layers, shapes = REVIEWED, REVIEWED_SHAPES
        else:
            vector = "vectors" in cls.needs and "positions" not in cls.needs
            self.layers, shapes = ["fc:in" if vector else "layer3"], [VECTOR if vector else MAP]
        term = parse_hint(f"{name}:teacher={'/'.join(self.layers)},student={'/'.join(self.layers)}")
        bank = term.loss.bank_bytes(rows)
        if bank:
            self.note = f"{size(bank)} of banks for {rows:,} rows"
        row_labels = torch.randint(0, CLASSES, (rows,), generator=generator)
        extras: dict[str, Any] = {"row_labels": row_labels, "teacher_classifier": nn.Linear(64, CLASSES)}
        self.module = term.build(shapes, shapes, row_count=rows, classes=CLASSES, seed=0, **extras).to(device).train()
        batch = len(self.labels)
        self.hints = [torch.randn(batch, *shape, generator=generator).relu().to(device) for shape in shapes]

    def __call__(self) -> None:
        for _ in range(STEPS):
            with Taps(self.student.model, self.layers) as taps:
                logits = self.student(self.pixels)
            loss = self.term(logits, self.teacher, self.T, self.labels)
            if self.layers:
                seen = [taps[layer] for layer in self.layers]
                loss = loss + 1e-6 * self.module(seen, self.hints, positions=self.rows, labels=self.labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.pixels.is_cuda:
            torch.cuda.synchronize()


def main() -> None:
    options = arguments(__doc__)
    device = pick_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # the machine's other cores may be at work
    batch, rows = (8, 500) if options.tiny else (BATCH, 1_000_000 if options.full else 50_000)
    repetitions = 1 if options.tiny else options.repetitions
    lines = []
    jobs = [(name, "loss", batch) for name in registry.names("losses") if name != "kl"]
    jobs += [(name, "hint", batch) for name in registry.names("losses.hints")] + [("rkd", "hint", 4 * batch)]
    for name, kind, count in jobs:
        kl, other = Step("kl", "loss", count, rows, device), Step(name, kind, count, rows, device)
        sides: dict[str, Callable[[], float]] = {"kl": timed(kl), name: timed(other)}
        taken = paired(sides, repetitions)
        what = f"{'kl + ' if kind == 'hint' else ''}{name}" + (f", batch {count}" if count != batch else "")
        note = "; ".join(filter(None, [HEAVY.get(name, ""), other.note]))
        lines.append(ratio(what, taken[name], taken["kl"], "" if name in HEAVY else "≤ 1.5", note))
    where = "one thread" if device.type == "cpu" else torch.cuda.get_device_name()
    title = f"Losses: a resnet20's training step over the step of kl (batch {batch}, {where})"
    Result("losses", title, lines).show()


if __name__ == "__main__":
    main()
