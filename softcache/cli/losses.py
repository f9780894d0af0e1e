"""``softcache losses``"""

from __future__ import annotations

import dataclasses

import click

from softcache.cli._print import as_json, rows, table

SCOPES = {"samples": "a mean over samples", "batch": "relates the samples of a batch"}


@click.command("losses")
@click.argument("name", required=False)
@click.option("--json", "json_", is_flag=True, help="Print the losses as JSON.")
def command(name: str | None, json_: bool) -> None:
    """List the losses of --loss and --hint, or describe the one called NAME.

    NAME may be a class of your own, as --loss and --hint take it: my.py:Focal.

    The list has each loss's formula, its options with their defaults, what it needs, and its source. The description
    of one loss adds the command that trains with the weights of its paper.
    """
    from softcache.losses._describe import describe_loss, describe_losses

    if name is None:
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
        return
    pages = describe_loss(name)
    if json_:
        as_json([dataclasses.asdict(row) for row in pages])
        return
    for number, row in enumerate(pages):
        if number:
            click.echo()
        rows(
            [
                ("option", f"--{row.kind} {row.name}"),
                *([("formula", row.formula)] if row.formula else []),
                ("options", ", ".join(row.options) or "none beside those of every loss"),
                ("needs", row.needs),
                ("scope", f"{row.scope} ({SCOPES[row.scope]})"),
                ("default weight", row.weight),
                *([("alpha, beta", row.beside)] if row.beside else []),
                *([("default T", row.T)] if row.T else []),
                *([("source", row.source)] if row.source else []),
                ("command", row.command),
            ]
        )
        if row.description:
            click.echo(f"\n{row.description}")
