"""Photographs in class folders: a new last layer on a ResNet-50 of ImageNet, and a ResNet-18 that learns from it.

    python examples/last_layer.py --download                         # imagenette, ten classes of ImageNet
    python examples/last_layer.py --dataset folder:/data/pets        # train/CLASS/*.jpg and val/CLASS/*.jpg

The teacher's other layers stay as they were trained on ImageNet, so it is taught in a few epochs. The student starts
from random parameters. The same as commands, for a folder:

    softcache teach --model resnet50 --weights DEFAULT --freeze --dataset folder:/data/pets
    softcache dump  --teacher resnet50 --dataset folder:/data/pets --views 4
    softcache train --student resnet18 --dataset folder:/data/pets --alpha 0
    softcache train --student resnet18 --dataset folder:/data/pets

Writes into teachers/, caches/ and runs/; a second call keeps the teacher and the cache.
"""

from __future__ import annotations

from typing import Any

import click

import softcache
from softcache.console import run_script


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--dataset", default="imagenette", show_default=True, help="Or folder:PATH, food101, …")
@click.option("--data-dir", help="Where torchvision's datasets are, or go.  [default: $SOFTCACHE_DATA or datasets/]")
@click.option("--download", is_flag=True, help="Download the dataset if it is missing.")
@click.option("--teacher", "teacher_name", default="resnet50", show_default=True)
@click.option("--weights", default="DEFAULT", show_default=True, help="The teacher's: torchvision's name, or a file.")
@click.option("--student", default="resnet18", show_default=True)
@click.option("--teacher-epochs", default=3, show_default=True)
@click.option("--epochs", default=30, show_default=True, help="Of the students.")
@click.option("--views", default=4, show_default=True, help="Augmented views of each image that the teacher sees.")
@click.option("--size", type=int, help="Side of a view in pixels.  [default: 224]")
def main(
    dataset: str,
    data_dir: str | None,
    download: bool,
    teacher_name: str,
    weights: str,
    student: str,
    teacher_epochs: int,
    epochs: int,
    views: int,
    size: int | None,
) -> None:
    data: dict[str, Any] = {"dataset": dataset, "data_dir": data_dir, "download": download, "size": size}

    teacher = softcache.teach(teacher_name, weights=weights, freeze=True, epochs=teacher_epochs, **data)
    cache = softcache.dump(teacher.folder, views=views, **data)
    alone = softcache.train(student, alpha=0, epochs=epochs, **data)
    distilled = softcache.train(student, cache=cache.folder, epochs=epochs, **data)

    print(f"\n{'':24}  test top-1     training")
    for name, run in (
        (f"teacher {teacher_name}", teacher),
        (f"{student} alone", alone),
        (f"{student} distilled", distilled),
    ):
        print(f"{name:24}  {100 * run.test.top1:8.2f} %  {run.seconds:9.1f} s")
    print(f"\nin the teacher, once for all students: {cache.seconds:.1f} s for {views} views of every image")


if __name__ == "__main__":
    run_script(main)
