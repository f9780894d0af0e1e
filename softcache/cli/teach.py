"""``softcache teach``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._print import as_json, percent, rows


@click.command("teach")
@click.option(
    "--model", default="resnet50", show_default=True, help="resnet50, cifar:resnet56, timm:NAME, file.py:factory."
)
@_options.data()
@click.option("--weights", help="Start from these: DEFAULT (torchvision's), or a .safetensors, .pt, .pth file.")
@click.option("--freeze", is_flag=True, default=None, help="Train the classifier alone (with --weights).")
@click.option(
    "--normalize", help="imagenet, dataset, none, or MEANS/STDS.  [default: the weights', else the dataset's]"
)
@_options.augment
@_options.fitting(6, 32)
@_options.compute
@click.option("--out", type=click.Path(), help="Folder.  [default: teachers/MODEL-DATASET]")
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
def command(json_: bool, out: str | None, model: str, **options: Any) -> None:
    """Train a teacher on labels, or fine-tune one from weights.

    Run again with the same options it keeps the teacher that is there, or goes on with an interrupted training.
    """
    from softcache.stages.teach import teach

    taught = teach(model, out=out, **_options.given(options))
    top1 = taught.test.top1 if taught.test else None
    if json_:
        as_json({"teacher": str(taught.folder), "test_top1": top1, "seconds": taught.seconds, "kept": taught.kept})
        return
    done = "there already, kept" if taught.kept else f"trained in {taught.seconds:.0f} s"
    rows([("teacher", f"{taught.folder} ({done})"), ("test top-1", percent(top1))])
