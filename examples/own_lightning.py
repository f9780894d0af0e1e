"""A student in Lightning that reads a cache. Needs: pip install -e '.[loops]'

softcache teach --model resnet50
softcache dump --teacher resnet50
python examples/own_lightning.py                                   # from the only cache in caches/
"""

from __future__ import annotations

import sys

import click
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader

import softcache
from softcache.functional import dist

try:
    import lightning
except ModuleNotFoundError:
    sys.exit("error: lightning is not installed: pip install -e '.[loops]'")

MEAN, STD = [0.5] * 3, [0.25] * 3  # of three channels, so that grey pictures get three too


class Student(lightning.LightningModule):
    def __init__(self, keys: softcache.Keys, batch_size: int, lr: float, workers: int):
        super().__init__()
        self.network = torchvision.models.resnet18(num_classes=len(keys.classes))
        self.keys, self.batch_size, self.lr, self.workers = keys, batch_size, lr, workers

    def train_dataloader(self) -> DataLoader:
        self.key_sampler = self.keys.sampler(
            self.batch_size, seed=0, rank=self.global_rank, ranks=self.trainer.world_size
        )
        return DataLoader(
            self.keys, batch_sampler=self.key_sampler, collate_fn=self.keys.collate, num_workers=self.workers
        )

    def on_train_epoch_start(self) -> None:
        self.key_sampler.set_epoch(self.current_epoch)

    def training_step(self, batch: softcache.KeyBatch, _: int) -> Tensor:
        logits = self.network(softcache.to_input(batch.inputs["pixels"], MEAN, STD))
        loss = 2 * dist(logits, batch.targets["logits"]) + torch.nn.functional.cross_entropy(logits, batch.labels)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--cache", help="A folder, or a name in caches/.  [default: the only one there]")
@click.option("--epochs", default=8, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--lr", default=0.002, show_default=True)
@click.option("--workers", default=2, show_default=True)
def main(cache: str | None, epochs: int, batch_size: int, lr: float, workers: int) -> None:
    student = Student(softcache.Keys(cache), batch_size, lr, workers)
    trainer = lightning.Trainer(
        max_epochs=epochs, default_root_dir="lightning-output", logger=False, use_distributed_sampler=False
    )
    trainer.fit(student)
    print(f"loss {trainer.callback_metrics['loss']:.4f}")


if __name__ == "__main__":
    try:
        main()
    except softcache.SoftcacheError as error:
        sys.exit(f"error: {error}")
