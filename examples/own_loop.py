"""A student in a plain PyTorch loop that reads a cache: the keys, their targets, and a loss are softcache's.

softcache teach --model resnet50
softcache dump --teacher resnet50
python examples/own_loop.py                                        # from the only cache in caches/
python examples/own_loop.py --cache resnet50-pets-train --dataset folder:/data/pets
"""

from __future__ import annotations

import sys

import click
import torch
import torchvision
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import softcache
from softcache.functional import kl

MEAN, STD = [0.5] * 3, [0.25] * 3  # of three channels, so that grey pictures get three too


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--cache", help="A folder, or a name in caches/.  [default: the only one there]")
@click.option("--dataset", help="Where the data is now.  [default: where it was]")
@click.option("--epochs", default=8, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--lr", default=0.002, show_default=True)
@click.option("--T", "T", default=4.0, show_default=True, help="Temperature.")
@click.option("--workers", default=2, show_default=True)
def main(
    cache: str | None, dataset: str | None, epochs: int, batch_size: int, lr: float, T: float, workers: int
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keys = softcache.Keys(cache, dataset)
    sampler = keys.sampler(batch_size, seed=0)
    loader = DataLoader(
        keys, batch_sampler=sampler, collate_fn=keys.collate, num_workers=workers, persistent_workers=workers > 0
    )
    student = torchvision.models.resnet18(num_classes=len(keys.classes)).to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(loader))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        total = correct = 0.0
        for batch in loader:  # each key's pixels have been compared with what the teacher saw
            batch = batch.to(device)
            logits = student(softcache.to_input(batch.inputs["pixels"], MEAN, STD))
            loss = 0.9 * kl(logits, batch.targets["logits"], T) + 0.1 * cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += len(batch) * loss.item()
            correct += int((logits.argmax(1) == batch.labels).sum())
        print(f"epoch {epoch + 1}  loss {total / len(keys.viewed):.4f}  train {100 * correct / len(keys.viewed):.2f} %")
    torch.save(student.state_dict(), "student.pt")


if __name__ == "__main__":
    try:
        main()
    except softcache.SoftcacheError as error:
        sys.exit(f"error: {error}")
