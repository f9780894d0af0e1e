"""``softcache losses``"""

from __future__ import annotations

import dataclasses

import click

from softcache.cli._print import as_json, table


@click.command("losses")
@click.option("--json", "json_", is_flag=True, help="Print the losses as JSON.")
def command(json_: bool) -> None:
    """List the losses of --loss and --hint: formula, options with defaults, what they need, source."""
    from softcache.losses._describe import describe_losses

    found = describe_losses()
    if json_:
        as_json([dataclasses.asdict(row) for row in found])
        return
    header = ["option", "name", "formula", "options", "weight", "T", "needs", "source"]
    lines = [
        [f"--{r.kind}", r.name, r.formula, ",".join(r.options) or "–", r.weight, r.T or "–", r.needs, r.source]
        for r in found
    ]
    table(header, lines)
