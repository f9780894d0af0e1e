"""``softcache teach``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import flag, option, section
from softcache.cli._print import as_json, rows


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
@section("Trackers", _options.log_)
def command(json_: bool = False, **options: Any) -> None:
    """Train a teacher on labels, or fine-tune one from weights.

    Run again with the same options it keeps the teacher that is there, or goes on with an interrupted training.
    """
    from softcache.stages.teach import teach
    from softcache.training.scores import TITLES, recorded_numbers, told

    taught = teach(**options)
    tested = recorded_numbers(taught.test, taught.leading)
    if json_:
        scores = {f"test_{name}": value for name, value in tested.items()}
        as_json({"teacher": str(taught.folder), **scores, "seconds": taught.seconds, "kept": taught.kept})
        return
    done = "there already, kept" if taught.kept else f"trained in {taught.seconds:.0f} s"
    rows(
        [
            ("teacher", f"{taught.folder} ({done})"),
            *((f"test {TITLES[n]}", told(n, value)) for n, value in tested.items()),
        ]
    )
