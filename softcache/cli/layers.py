"""``softcache layers``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._print import as_json, table


@click.command("layers")
@click.option(
    "--teacher", "--model", default="resnet50", show_default=True, help="A model, a teacher's or a run's folder."
)
@_options.data("the teacher")
@click.option("--json", "json_", is_flag=True, help="Print the layers as JSON.")
def command(teacher: str, json_: bool, **options: Any) -> None:
    """List the layers that can be hints, with shape and bytes per sample as float16."""
    from softcache.stages.layers import layers

    found = layers(teacher, **_options.given(options))
    if json_:
        as_json(found)
        return
    table(
        ["layer", "module", "shape", "bytes"],
        [[f["layer"], f["module"], "×".join(map(str, f["shape"])), f"{f['bytes']:,}"] for f in found],
    )
