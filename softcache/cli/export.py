"""``softcache export``"""

from __future__ import annotations

from typing import Any

import click

from softcache.cli import _options
from softcache.cli._options import flag, option, section, words
from softcache.cli._print import as_json, percent, rows
from softcache.console import decimal_size


@_options.command("export")
@click.argument("run", metavar="RUN")
@section(
    "Most used",
    option(
        "--format",
        callback=words,
        help="torch-export, onnx, safetensors, torchscript, or several of them with commas.  [default: torch-export]",
    ),
    option("-o", "--out", metavar="FILE|FOLDER", help="A file of one format, or a new folder.  [default: exports/RUN]"),
    flag(
        "--preprocess", help="Take inputs as the dataset gives them, uint8 pictures: resize and normalize in the file."
    ),
    option("--card/--no-card", default=None, help="Write a README.md into the folder.  [default: card]"),
    option("--license", help="The network's licence, for the card and the files."),
    _options.json_,
)
@section(
    "Formats",
    option("--opset", type=int, help="Version of ONNX's operators.  [default: 20]"),
    option("--output", help="Name of the network's output.  [default: logits, or what was learnt in their place]"),
)
@section(
    "Numbers of 8 bits (onnx, torch-export)",
    option("--quantize", metavar="int8", help="Make weights, and the inputs of layers, int8."),
    option(
        "--calibrate",
        type=int,
        metavar="N",
        help="Rows of the train split that ranges of inputs are taken from; 0: measure them as it runs, of linear "
        "layers alone (onnx).  [default: 256]",
    ),
    option(
        "--max-drop",
        type=float,
        metavar="SHARE",
        help="Fail where the accuracy on the test split drops by more.  [default: 0.02]",
    ),
)
@section("Samples to compare on", _options.data("the run"))
def command(run: str, json_: bool = False, **options: Any) -> None:
    """Write a run's or a teacher's network as files that other programs run, compared with the network itself."""
    from softcache.stages.export import export

    found = export(run, **options)
    if json_:
        as_json(found.to_json())
        return
    document = found.document
    lines: list[tuple[str, object]] = [("export", f"{document['model']} → {found.out}")]
    for one in document["inputs"]:
        lines.append(("input", f"{one['name']}: {one['dtype']} ({', '.join(map(str, one['shape']))})"))
    lines.append(("prepared", _prepared(document["preprocessing"])))
    for file in found.files:
        same = f"top-1 equal on {percent(file.difference.same)} of {file.difference.samples} samples"
        lines += [
            (file.format, f"{file.path} ({decimal_size(file.bytes)}, {document['numbers']})"),
            ("  outputs", f"differ by at most {file.difference.largest:.2g} of {file.difference.scale:.3g}; {same}"),
            ("  a sample", f"{1000 * file.seconds:.2f} ms, PyTorch as it is {1000 * file.eager_seconds:.2f} ms"),
        ]
        if file.before is not None and file.after is not None:
            lines.append(("  test split", _drop(file.before, file.after)))
    if found.card is not None:
        lines.append(("card", found.card))
    rows(lines)


def _prepared(steps: dict[str, Any]) -> str:
    if steps["in_the_graph"]:
        return "in the file"
    if "white" not in steps:
        return "by you: (value - mean) / std, which the metadata has" if any(steps["mean"]) else "nothing is to be done"
    side = "×".join(map(str, steps["input_size"]))
    return f"by you: {side} pixels, (pixel / {steps['white']} - mean) / std, which the metadata has (or --preprocess)"


def _drop(before: dict[str, Any], after: dict[str, Any]) -> str:
    from softcache.training.scores import TITLES, told

    shared = [name for name, value in before.items() if name in TITLES and value is not None]
    return "; ".join(f"{TITLES[name]} {told(name, before[name])} → {told(name, after[name])}" for name in shared)
