"""A student in a transformers Trainer that reads a cache. Needs: pip install -e '.[loops]'

softcache teach --model resnet50
softcache dump --teacher resnet50
python examples/own_trainer.py                                     # from the only cache in caches/
"""

from __future__ import annotations

import sys
from typing import Any

import click
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader

import softcache
from softcache.functional import dist

try:
    from transformers import Trainer, TrainerCallback, TrainingArguments
except ModuleNotFoundError:
    sys.exit("error: transformers is not installed: pip install -e '.[loops]'")

MEAN, STD = [0.5] * 3, [0.25] * 3  # of three channels, so that grey pictures get three too


class Student(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.network = torchvision.models.resnet18(num_classes=classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, H, W, C) uint8 → logits (B, classes)."""
        return self.network(softcache.to_input(pixels, MEAN, STD))


class Distilling(Trainer):
    """``keys``: what it trains on; Trainer itself has no dataset."""

    def __init__(self, keys: softcache.Keys, model: nn.Module, args: TrainingArguments):
        super().__init__(model, args)
        size, ranks = args.per_device_train_batch_size, args.world_size
        self.keys, self.sampler = keys, keys.sampler(size, seed=args.seed, rank=args.process_index, ranks=ranks)
        self.add_callback(EachEpoch(self.sampler))

    def get_train_dataloader(self) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return DataLoader(self.keys, batch_sampler=self.sampler, collate_fn=as_mapping, num_workers=workers)

    def compute_loss(self, model: nn.Module, inputs: dict[str, softcache.KeyBatch], *_: Any, **__: Any) -> Tensor:
        batch = inputs["batch"].to(self.args.device)
        logits = model(batch.inputs["pixels"])
        return 2 * dist(logits, batch.targets["logits"]) + nn.functional.cross_entropy(logits, batch.labels)


def as_mapping(batch: softcache.KeyBatch) -> dict[str, softcache.KeyBatch]:
    """Trainer looks for fields by name in what a loader gives."""
    return {"batch": batch}


class EachEpoch(TrainerCallback):
    def __init__(self, sampler: softcache.KeySampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self.sampler.set_epoch(int(state.epoch))


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--cache", help="A folder, or a name in caches/.  [default: the only one there]")
@click.option("--epochs", default=8, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--lr", default=0.002, show_default=True)
@click.option("--workers", default=2, show_default=True)
def main(cache: str | None, epochs: int, batch_size: int, lr: float, workers: int) -> None:
    keys = softcache.Keys(cache)
    options = TrainingArguments(
        "trainer-output",
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        seed=0,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        logging_strategy="epoch",
        save_strategy="epoch",
        dataloader_num_workers=workers,
        remove_unused_columns=False,
        report_to=[],
    )
    trainer = Distilling(keys, Student(len(keys.classes)), options)
    trainer.train()
    trainer.save_model("trainer-output/student")


if __name__ == "__main__":
    try:
        main()
    except softcache.SoftcacheError as error:
        sys.exit(f"error: {error}")
