"""``softcache eval``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._print import as_json, percent, rows


@click.command("eval")
@click.argument("model", metavar="RUN")
@_options.data
@click.option("--split", help="train or test.  [default: test]")
@_options.compute
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
def command(model: str, json_: bool, **options: Any) -> None:
    """Accuracy of a run or a teacher on clean pixels."""
    from softcache.stages.evaluate import evaluate

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
