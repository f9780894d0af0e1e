"""MNIST, as in the first paper on distillation: a small perceptron learns from a large one with dropout.

    python examples/mnist.py --data-dir /data    # with /data/MNIST/raw, or elsewhere with --download

As in Hinton, Vinyals and Dean (arXiv 1503.02531) the teacher has two hidden layers of 1,200 units and learns from
pictures that are moved by up to two pixels; the students see the pictures as they are, so that what moved ones are like
reaches the student by soft targets alone. It has one hidden layer of 128 units. For small students the paper found
temperatures of 2.5 to 4 better than higher ones. Writes into teachers/, caches/ and runs/; a second call keeps the
teacher and the cache.
"""

from __future__ import annotations

from typing import Any

import click
from torch import Tensor, nn

import softcache
from softcache.console import run_script


class FirstChannel(nn.Module):
    """(B, 3, 28, 28) → (B, 784). Grey pixels are repeated for a network that has no convolution of one channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].flatten(1)


def large(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(
        FirstChannel(),
        *(nn.Linear(784, 1200), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(1200, 1200), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(1200, num_classes),
    )


def small(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(FirstChannel(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, num_classes))


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--dataset", default="mnist", show_default=True, help="Or fashionmnist, kmnist, qmnist.")
@click.option("--data-dir", help="Where MNIST/raw is, or goes.  [default: $SOFTCACHE_DATA or datasets/]")
@click.option("--download", is_flag=True, help="Download the data if they are missing.")
@click.option("--teacher-epochs", default=20, show_default=True)
@click.option("--epochs", default=60, show_default=True, help="Of the students.")
@click.option(
    "--shift", default=2, show_default=True, help="Pixels by which the teacher's pictures are moved; 0: none."
)
@click.option("--T", "T", default=2.5, show_default=True, help="Temperature.")
def main(
    dataset: str, data_dir: str | None, download: bool, teacher_epochs: int, epochs: int, shift: int, T: float
) -> None:
    data: dict[str, Any] = {"dataset": dataset, "data_dir": data_dir, "download": download, "size": 28}
    moved = f"crop:pad={shift}" if shift else "none"
    slow: dict[str, Any] = {"epochs": teacher_epochs, "batch_size": 128, "lr": 1e-3}
    fit: dict[str, Any] = {"epochs": epochs, "batch_size": 128, "lr": 3e-3}

    teacher = softcache.teach(f"{__file__}:large", augment=moved, **data, **slow)
    cache = softcache.dump(teacher.folder, augment="none", **data)
    alone = softcache.train(f"{__file__}:small", alpha=0, augment="none", **data, **fit)
    distilled = softcache.train(f"{__file__}:small", cache=cache.folder, loss="kl", T=T, **data, **fit)

    print(f"\n{'':24}  test top-1     training")
    for name, run in (
        ("teacher 1200-1200", teacher),
        ("student 128 alone", alone),
        ("student 128 distilled", distilled),
    ):
        print(f"{name:24}  {100 * run.test.top1:8.2f} %  {run.seconds:9.1f} s")
    print(f"\nin the teacher, once for all students: {cache.seconds:.1f} s for {cache.keys:,} pictures")


if __name__ == "__main__":
    run_script(main)
