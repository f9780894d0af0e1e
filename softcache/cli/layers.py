"""``softcache layers``"""

from __future__ import annotations

from typing import Any

from softcache.cli import _options
from softcache.cli._options import option, section
from softcache.cli._print import as_json, table


@_options.command("layers")
@section(
    "Options",
    option("--teacher", "--model", help="A model, a teacher's or a run's folder.  [default: resnet50]"),
    _options.data("the teacher"),
    _options.json_,
)
def command(json_: bool = False, **options: Any) -> None:
    """List the layers that can be hints, with shape and bytes per sample as float16."""
    from softcache.stages.layers import layers

    found = layers(**options)
    if json_:
        as_json(found)
        return
    table(
        ["layer", "module", "shape", "bytes"],
        [[f["layer"], f["module"], "×".join(map(str, f["shape"])), f"{f['bytes']:,}"] for f in found],
    )
