"""How good a run or a teacher is: ``softcache eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softcache.errors import DatasetError
from softcache.models._open import open_network
from softcache.stages.places import open_viewed, read_config
from softcache.training.config import pick_device
from softcache.training.evaluation import evaluate_network
from softcache.training.pixels import pick_pixels


def evaluate(
    model: str,
    *,
    dataset: str | None = None,
    split: str = "test",
    data_dir: str | None = None,
    download: bool = False,
    size: int | None = None,
    device: str = "auto",
    workers: int = -1,
    amp: str = "off",
    channels_last: bool = False,
    compile: bool = False,
) -> dict[str, Any]:
    """Top-1, top-5 (shares in 0..1), mean cross-entropy and samples, on the clean pixels of a split.

    ``model``: a run's or a teacher's folder, which knows its dataset; or a spec, on ``dataset``.
    """
    recorded: dict[str, Any] = {}
    if Path(model).is_dir():
        config = read_config(Path(model))
        recorded = config.get("train") or config.get("teach") or {}
    dataset = dataset or recorded.get("dataset") or "digits"
    data_dir = data_dir or recorded.get("data_dir")
    viewed = open_viewed(
        dataset, split, data_dir=data_dir, download=download, augment="none", size=size or recorded.get("size")
    )
    if not (viewed.samples.labels >= 0).any():
        raise DatasetError(f"{dataset}/{split} has no labels to compare with")
    chosen = pick_device(device)
    network = open_network(model, classes=len(viewed.samples.classes), statistics=viewed.samples.statistics).to(chosen)
    pixels = pick_pixels(viewed, chosen, workers=workers)
    found = evaluate_network(network, pixels, viewed.samples.labels, chosen, amp=amp)
    return {
        "model": model,
        "dataset": dataset,
        "split": split,
        "top1": found.top1,
        "top5": found.top5,
        "loss": found.loss,
        "samples": found.samples,
    }
