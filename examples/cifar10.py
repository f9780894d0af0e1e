"""CIFAR-10: a ResNet-50 teacher, and a ResNet-18 and a MobileNetV2 that learn from it and without it.

    python examples/cifar10.py --data-dir /data          # with /data/cifar-10-batches-py
    python examples/cifar10.py --download --epochs 60    # hours without a GPU; --epochs 1 shows that it works

The networks are in `small_pictures.py`. Writes into teachers/, caches/ and runs/; a second call keeps the teacher and
the cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import softcache
from softcache.console import run_script

NETWORKS = Path(__file__).with_name("small_pictures.py")


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--data-dir", help="Where cifar-10-batches-py is, or goes.  [default: $SOFTCACHE_DATA or datasets/]")
@click.option("--download", is_flag=True, help="Download the data if they are missing.")
@click.option("--epochs", default=60, show_default=True)
@click.option("--views", default=8, show_default=True, help="Augmented views of each image that the teacher sees.")
@click.option("--student", "students", multiple=True, default=("resnet18", "mobilenet_v2"), show_default=True)
@click.option("--amp", default="auto", show_default=True, help="auto, off, bf16, fp16.")
def main(data_dir: str | None, download: bool, epochs: int, views: int, students: tuple[str, ...], amp: str) -> None:
    data: dict[str, Any] = {"dataset": "cifar10", "data_dir": data_dir, "download": download}
    fit: dict[str, Any] = {"epochs": epochs, "batch_size": 128, "amp": amp}
    fit |= {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "warmup": 1}

    teacher = softcache.teach(f"{NETWORKS}:resnet50", **data, **fit)
    cache = softcache.dump(teacher.folder, views=views, amp=amp, **data)
    table: list[tuple[str, Any]] = [("teacher resnet50", teacher)]
    for student in students:
        network = f"{NETWORKS}:{student}"
        table.append((f"{student} alone", softcache.train(network, alpha=0, **data, **fit)))
        distilled = softcache.train(network, cache=cache.folder, **data, **fit)
        table.append((f"{student} distilled", distilled))

    print(f"\n{'':24}  test top-1     training")
    for name, run in table:
        print(f"{name:24}  {100 * run.test.top1:8.2f} %  {run.seconds:9.1f} s")
    print(f"\nin the teacher, once for all students: {cache.seconds:.1f} s for {views} views of every image")


if __name__ == "__main__":
    run_script(main)
