"""What the tests of reports share: a sweep's folder as if its students had been trained, and a page taken apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from softcache.config.record import Record
from softcache.config.sweep import Specification
from softcache.config.train import TrainConfig
from softcache.sweeping.folder import ManyFolder
from softcache.sweeping.grid import Run, combinations, runs

GRID: dict[str, Any] = {
    "student": ("cifar:resnet8",),
    "loss": ("kl",),
    "T": (1.0, 2.0, 4.0, 8.0),
    "alpha": (0.0, 0.3, 0.6, 0.9),
    "val_fraction": 0.1,
    "order_seed": 0,
}


def made_sweep(folder: Path, seeds: int = 2, epochs: int = 20, seed: int = 0, **changes: Any) -> list[Run]:
    """A sweep of 13 settings, one of them on labels alone, whose scores are drawn at random."""
    options = {**GRID, **changes}
    folder.mkdir(parents=True)
    Specification("sweep", {**options, "seeds": seeds}, 1, 8).save(folder)
    many, random = ManyFolder(folder), np.random.default_rng(seed)
    many.prepare()
    every = runs(combinations(options), list(range(seeds)))
    many.add_cohort(0, every)
    for run in every:
        write_run(many.run_folder(run.name), run.options, random, epochs)
    return every


def write_run(folder: Path, options: dict[str, Any], random: np.random.Generator, epochs: int, **record: Any) -> None:
    """A run's record and its lines."""
    folder.mkdir(parents=True)
    scores = np.sort(random.uniform(0.5, 0.99, epochs))
    lines = [
        {
            "epoch": epoch + 1, "loss": float(3 / (epoch + 1)), "samples": 1000, "epoch_s": 1.5, "eval_s": 0.25,
            "val_top1": float(scores[epoch]), "test_top1": None,
        }
        for epoch in range(epochs)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"test_top1": None, "val_top1": float(scores[-1]), "seconds": float(random.uniform(20, 40))}
    model = {"spec": "cifar:resnet8", "classes": 10, "weights": "student.safetensors"}
    data = {"spec": "digits", "split": "train", "rows": 1438, "fingerprint": "ab" * 32}
    taught = options.get("T") is not None  # else it learns from labels alone
    losses = [{"loss": "kl", "weight": "1", "T": str(options["T"])}] if taught else []
    kept = {"losses": losses, "data": data, "result": result}
    Record("train", TrainConfig.of(**options), model, **{**kept, **record}).save(folder)


class Parsed(HTMLParser):
    """``tags``: all elements with their attributes, in order; ``tables``: by the id of their section, rows of texts;
    ``sections``: id → text."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.sections: dict[str, str] = {}
        self._section, self._cell, self._silent = "", False, 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("section", "header"):
            self._section = dict(attrs).get("id") or tag
        if tag in ("style", "script"):
            self._silent += 1
        if tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self.tables[self._section][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("style", "script"):
            self._silent -= 1
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self._cell:
            self.tables[self._section][-1][-1] += data

    def columns(self, section: str) -> list[dict[str, str]]:
        """Rows of a section's table by the names of its columns."""
        header, *rows = self.tables[section]
        return [{name: text.strip() for name, text in zip(header, row, strict=True)} for row in rows]


def parsed(path: Path) -> Parsed:
    return Parsed(path.read_text("utf-8"))


def is_self_contained(page: Parsed) -> bool:
    """Whether nothing in it could be fetched: links lead into the page, and pictures are in it."""
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("href", "src", "action", "data", "poster", "srcset", "xlink:href", "background"):
                inside = str(value).startswith("#") or (tag == "img" and str(value).startswith("data:image/"))
                if not inside:
                    return False
    return not any(
        tag in ("link", "iframe", "object", "embed", "base", "form", "audio", "video") for tag, _ in page.tags
    )
