"""An embedding is all that a student learns: no labels and no logits, only the vectors of a larger network.

    python examples/features.py --data-dir /data    # with /data/FashionMNIST/raw

Prints how often the nearest training picture, by the cosine of embeddings, is of a test picture's class.
docs/features.md has what comes out. Writes into teachers/, caches/ and runs/.
"""

import functools
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import softcache
from softcache.console import run_script

WIDTH = 64  # of the embedding


class Embedder(nn.Module):  # grey pictures (B, 1, H, W) → an embedding (B, 64), and logits that are linear in it
    def __init__(self, num_classes: int, width: int):
        super().__init__()
        first = nn.Conv2d(1, width, 5, stride=2, padding=2), nn.BatchNorm2d(width), nn.ReLU()
        second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()
        self.body = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, WIDTH))
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"embedding": (embedding := self.body(x)), "logits": self.head(embedding)}


large, small = functools.partial(Embedder, width=32), functools.partial(Embedder, width=4)


@torch.inference_mode()
def neighbours(folder: Any, classes: int, data: dict[str, Any]) -> float:
    """The share of test pictures whose nearest training picture has the same class."""
    network, said = softcache.open_network(str(folder), classes=classes).eval(), {}
    for split in ("train", "test"):
        samples = softcache.open_samples(data["dataset"], split, data_dir=data["data_dir"])
        views, parts = softcache.ViewedDataset(samples, "none"), np.array_split(np.arange(len(samples)), 60)
        found = [network.outputs(views.clean(rows), ["embedding"])["embedding"] for rows in parts]
        said[split] = (normalize(torch.cat(found), dim=1), samples.labels)
    (bank, labels), (asked, wanted) = said["train"], said["test"]
    nearest = torch.cat([(part @ bank.T).argmax(1) for part in asked.split(1000)])
    return float((labels[nearest.numpy()] == wanted).mean())


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--dataset", default="fashionmnist", show_default=True, help="Or mnist, kmnist, qmnist.")
@click.option("--data-dir", help="Where FashionMNIST/raw is.  [default: $SOFTCACHE_DATA or datasets/]")
@click.option("--download", is_flag=True, help="Fetch the pictures where they are missing.")
@click.option("--epochs", default=6, show_default=True, help="Of the teacher and of the students.")
@click.option("--seeds", default=3, show_default=True, help="Students of each kind.")
@click.option("--loss", default="cosine", show_default=True, help="Or mse, smooth_l1, rkd, sp, pkt, cc.")
def main(dataset: str, data_dir: str | None, download: bool, epochs: int, seeds: int, loss: str) -> None:
    data: dict[str, Any] = {"dataset": dataset, "data_dir": data_dir, "size": 28, "augment": "none"}
    fit = {"epochs": epochs, "batch_size": 128, "optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01}
    teacher = softcache.teach(f"{__file__}:large", download=download, **data, **fit).folder
    cache = softcache.dump(teacher, output="embedding", **data).folder
    table = {"teacher": [neighbours(teacher, 10, data)]}
    alone, distilled = {"alpha": 0, **data}, {"cache": cache, "loss": f"{loss}:of=embedding", "data_dir": data_dir}
    for name, how, classes in (("labels", alone, 10), (f"{loss} of the embedding", distilled, WIDTH)):
        runs = [softcache.train(f"{__file__}:small", seed=seed, **how, **fit) for seed in range(seeds)]
        table[f"student, {name} alone"] = [neighbours(run.folder, classes, data) for run in runs]
    for name, shares in table.items():
        print(f"{name:42}  {', '.join(f'{100 * share:.2f}' for share in shares)} %")


if __name__ == "__main__":
    run_script(main)
