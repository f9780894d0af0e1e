"""``softcache teach``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import flag, option, section
from softcache.cli._print import as_json, percent, rows


@_options.command("teach")
@section(
    "Most used",
    option("--model", help="resnet50, cifar:resnet56, timm:NAME, hf:NAME, file.py:factory.  [default: resnet50]"),
    option("--weights", help="Start from these: DEFAULT (torchvision's), or a .safetensors, .pt, .pth file."),
    flag("--freeze", help="Train the classifier alone (with --weights)."),
    option("--out", type=click.Path(), help="The teacher's folder.  [default: teachers/MODEL-DATASET]"),
    _options.json_,
)
@section("Data", _options.data(), _options.augment, _options.normalize)
@_options.fitting
@_options.running
def command(json_: bool = False, **options: Any) -> None:
    """Train a teacher on labels, or fine-tune one from weights.

    Run again with the same options it keeps the teacher that is there, or goes on with an interrupted training.
    """
    from softcache.stages.teach import teach

    taught = teach(**options)
    top1 = taught.test.top1 if taught.test else None
    if json_:
        as_json({"teacher": str(taught.folder), "test_top1": top1, "seconds": taught.seconds, "kept": taught.kept})
        return
    done = "there already, kept" if taught.kept else f"trained in {taught.seconds:.0f} s"
    rows([("teacher", f"{taught.folder} ({done})"), ("test top-1", percent(top1))])
