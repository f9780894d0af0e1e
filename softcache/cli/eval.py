"""``softcache eval``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import option, section
from softcache.cli._print import as_json, percent, rows


@_options.command("eval")
@click.argument("model", metavar="RUN")
@section(
    "Most used",
    option("--weights", help="Parameters for a model by name: DEFAULT (torchvision's), or a file."),
    _options.data("the model"),
    option("--split", help="train or test.  [default: test]"),
    _options.normalize,
    _options.json_,
)
@section("Device and speed", _options.device, _options.amp, _options.tf32, _options.workers)
def command(model: str, json_: bool = False, **options: Any) -> None:
    """Accuracy on clean pixels of a run, a teacher, or a model with --weights."""
    from softcache.stages.eval import evaluate

    found = evaluate(model, **options)
    if json_:
        as_json(found)
        return
    rows(
        [
            ("model", found["model"]),
            ("data", f"{found['dataset']}/{found['split']}, {found['samples']:,} samples"),
            ("top-1", percent(found["top1"])),
            ("top-5", percent(found["top5"])),
            ("cross-entropy", f"{found['loss']:.4f}"),
        ]
    )
