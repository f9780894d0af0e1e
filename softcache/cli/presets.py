"""``softcache presets``"""

from __future__ import annotations

import click

from softcache.cli._print import as_json, rows


@click.command("presets")
@click.argument("name", required=False)
@click.option("--json", "json_", is_flag=True, help="Print the presets as JSON.")
def command(name: str | None, json_: bool) -> None:
    """List the presets of --preset, or show the options of the one called NAME (or of a JSON file).

    A preset says how a network is optimized: epochs, batch size, optimizer, learning rate and its schedule. Options
    that are given replace its own.
    """
    from softcache.config.presets import names, open_preset

    if name is None:
        found = [open_preset(known).describe() for known in names()]
        if json_:
            as_json(found)
            return
        rows([(entry["name"], entry["about"]) for entry in found])
        return
    entry = open_preset(name).describe()
    if json_:
        as_json(entry)
        return
    rows([("for", entry["about"]), ("source", entry["source"]), *entry["options"].items()])
