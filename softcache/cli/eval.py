"""``softcache eval``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._print import as_json, percent, rows


@click.command("eval")
@click.argument("model", metavar="RUN")
@click.option("--weights", help="Parameters for a model by name: DEFAULT (torchvision's), or a file.")
@_options.data("the model")
@click.option("--split", help="train or test.  [default: test]")
@_options.evaluating
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
def command(model: str, json_: bool, **options: Any) -> None:
    """Accuracy on clean pixels of a run, a teacher, or a model with --weights."""
    from softcache.stages.eval import evaluate

    found = evaluate(model, **_options.given(options))
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
