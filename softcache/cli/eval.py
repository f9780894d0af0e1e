"""``softcache eval``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import option, section
from softcache.cli._print import as_json, rows


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
    """Scores of a run, a teacher, or a model with --weights, on clean inputs and by the kind of their labels."""
    from softcache.stages.eval import evaluate
    from softcache.training.scores import TITLES, told

    found = evaluate(model, **options)
    if json_:
        as_json(found)
        return
    heading = {"model": found.pop("model"), "data": f"{found.pop('dataset')}/{found.pop('split')}"}
    heading["data"] += f", {found.pop('samples'):,} samples"
    rows([*heading.items(), *((TITLES[name], told(name, value)) for name, value in found.items() if value is not None)])
