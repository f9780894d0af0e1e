"""What an exported network says to people: the ``README.md`` of its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softcache.console import decimal_size
from softcache.datasets._labels import labelled
from softcache.exporting._graph import Graph
from softcache.stages._card import CARD as CARD
from softcache.stages._card import markdown_table
from softcache.stages._export_facts import leading_score, wilson
from softcache.training.scores import TITLES, told
from softcache.views._open import Viewed

if TYPE_CHECKING:
    from softcache.stages.export import Exported

SHOWN = 50  # names of classes
LENGTH = 8  # of the example's rows, where they have lengths of their own
UNKNOWN = "not recorded"
_PLAIN = re.compile(r"[A-Za-z][\w.+-]*")


def card_of(
    document: Mapping[str, Any], files: Sequence[Exported], usages: Sequence[str], graph: Graph, viewed: Viewed
) -> str:
    """``document``: what the files say of themselves. ``usages``: code that loads each."""
    front = ["tags:", "- softcache", "- knowledge-distillation"]
    if document["license"] is not None:
        front.insert(0, f"license: {_in_yaml(document['license'])}")
    loading = "\n\n".join(
        f"### {one.path.name}\n\n```python\n{example(document, graph)}\n{usage}\n```"
        for one, usage in zip(files, usages, strict=True)
    )
    return _without_markup(f"""---
{chr(10).join(front)}
---

# {document["model"]}, trained on {document["dataset"]["spec"]}

{_what(document)}

{markdown_table(("", ""), _facts(document, viewed))}

## What goes in

{_inputs(document)}

## What comes out

{_output(document)}

## Files

{_files(files)}

What is said here, the names of the classes and the preprocessing are in each file too, as metadata. softcache has
compared the outputs of each file with those of the network that it was made from, on {files[0].difference.samples}
samples in batches of {_listed(files[0].difference.batches)}.

## Load it

The variable `{document["output"]["name"]}` is the result. The inputs are made up: put yours in their place.

{loading}

## Train it again

    {document["command"]}

Paths are left out of this command: a name in it may be that of a file or a folder.
""")


def example(document: Mapping[str, Any], graph: Graph) -> str:
    """Python code that makes the inputs of a network."""
    sizes = {"batch": 1}
    lines = ["import numpy as np", ""]
    steps = document["preprocessing"]
    if graph.network.channels and not graph.prepares:
        side, white = steps["size"], steps["white"]
        dtype = "uint8" if white == 255 else "uint16"
        whole = (1, side, side, steps["channels"])
        lines += [f"pixels = np.zeros({whole}, np.{dtype})  # pictures (batch, height, width, channels)"]
        values = "pixels"
        if steps["input_size"] != [side, side]:
            lines += [
                "import torch.nn.functional as F",
                "from torch import from_numpy",
                "",
                "moved = from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)",
                f'resized = F.interpolate(moved, size={tuple(steps["input_size"])}, mode="bilinear", antialias=True)',
                "pixels = resized.permute(0, 2, 3, 1).numpy()",
            ]
        lines += [
            f"mean, std = np.array({steps['mean']}), np.array({steps['std']})",
            f'input = (({values} / {white} - mean) / std).transpose(0, 3, 1, 2).astype(np.float32, order="C")',
        ]
        return "\n".join([*lines, ""])
    for one in graph.inputs:
        shape = tuple(sizes.get(size, LENGTH) if isinstance(size, str) else size for size in one.shape)
        mask = one.name.endswith("mask") and one.dtype == "int64"
        lines += [f"{one.name} = np.{'ones' if mask else 'zeros'}({shape}, np.{one.dtype})"]
        if one.dtype.startswith("float") and not graph.prepares and set(zip(steps["mean"], steps["std"])) != {(0, 1)}:
            lines += [
                f"mean, std = np.array({steps['mean']}), np.array({steps['std']})",
                f"{one.name} = (({one.name} - mean) / std).astype(np.{one.dtype})",
            ]
    return "\n".join([*lines, ""])


def _what(document: Mapping[str, Any]) -> str:
    teachers = [one["teacher"] for one in document["teachers"] if one.get("teacher")]
    if teachers:
        return (
            "A student of knowledge distillation: softcache has trained it from what "
            f"{' and '.join(sorted(set(teachers)))} said of the same inputs."
        )
    if document["teachers"]:
        return "A network that softcache has trained from the recorded outputs of a teacher."
    return "A network that softcache has trained on labels."


def _facts(document: Mapping[str, Any], viewed: Viewed) -> list[tuple[str, str]]:
    found = [("network", f"`{document['model']}`, {document['numbers']}")]
    for split, title in (("test", "the test split"), ("held_out", "rows of the train split that were held out")):
        scores = document["scores"].get(split, {})
        leading = leading_score(scores)
        if leading is not None:
            found.append((f"{TITLES[leading[0]]} on {title}", _score(leading, split, document, viewed)))
    if not document["scores"]:
        found.append(("scores", f"{UNKNOWN}; `softcache eval` measures them"))
    for one in document["teachers"]:
        if one.get("teacher"):
            sha256 = f", sha256 of its parameters `{one['weights_sha256']}`" if one.get("weights_sha256") else ""
            found.append(("teacher", f"`{one['teacher']}`{sha256}"))
            found.append(("its accuracy", _teacher_score(one)))
        if one.get("cache_id"):
            found.append(("cache id", f"`{one['cache_id']}`"))
    data = document["dataset"]
    rows = f", {data['rows']:,} rows" if data["rows"] else ""
    sha256 = f", sha256 of its inputs `{data['fingerprint']}`" if data["fingerprint"] else ""
    found.append(("dataset", f"`{data['spec']}`{rows}{sha256}"))
    found.append(("licence", document["license"] or f"{UNKNOWN}; ask whoever trained it"))
    made = document["made"]
    found.append(("made", f"{made['date']}, softcache {document['softcache']}, torch {made['torch']}"))
    return found


def _score(leading: tuple[str, float], split: str, document: Mapping[str, Any], viewed: Viewed) -> str:
    name, value = leading
    text = told(name, value)
    count = int(labelled(viewed.samples.labels).sum())
    if split == "test" and name == "top1" and viewed.samples.split == "test" and count:
        low, high = wilson(value, count)
        text += f" (95 % interval {100 * low:.2f} to {100 * high:.2f} % by {count:,} samples)"
    return f"{text}, of one training with seed {document['seed']}"


def _teacher_score(teacher: Mapping[str, Any]) -> str:
    said = []
    if teacher.get("test") is not None:
        said.append(f"{100 * teacher['test']:.2f} % on the test split")
    if teacher.get("top1_on_its_rows") is not None:
        said.append(f"{100 * teacher['top1_on_its_rows']:.2f} % on the rows of the cache")
    return ", ".join(said) or UNKNOWN


def _inputs(document: Mapping[str, Any]) -> str:
    rows = [(f"`{one['name']}`", one["dtype"], f"({', '.join(map(str, one['shape']))})") for one in document["inputs"]]
    return "\n\n".join([markdown_table(("input", "dtype", "shape"), rows), *_preparation(document["preprocessing"])])


def _preparation(steps: Mapping[str, Any]) -> list[str]:
    where = "The network does so itself" if steps["in_the_graph"] else "Whoever runs the network does so"
    if "white" not in steps:
        if all(m == 0 and s == 1 for m, s in zip(steps["mean"], steps["std"])):
            return ["Inputs go in as they are."]
        return [
            f"Floating numbers are standardized, `(value - mean) / std`, with the mean {_numbers(steps['mean'])} and "
            f"the deviation {_numbers(steps['std'])}. {where}. Places beyond a row's own length are 0 after that."
        ]
    height, width = steps["input_size"]
    kind = {1: "grey", 3: "RGB"}.get(steps["channels"], f"{steps['channels']} channels")
    lines = [
        f"The shorter side of a picture ({kind}) is resized to {steps['resize']} pixels ({steps['interpolation']}), "
        f"and its central {steps['size']} × {steps['size']} pixels are taken."
    ]
    if [height, width] != [steps["size"], steps["size"]]:
        lines[0] += (
            f" The network works on {height} × {width} pixels, to which these are resized ({steps['interpolation']})."
        )
    lines.append(
        f"Pixels are then normalized, `(pixel / {steps['white']} - mean) / std`, with the mean "
        f"{_numbers(steps['mean'])} and the deviation {_numbers(steps['std'])} of the channels. {where}."
    )
    return lines


def _output(document: Mapping[str, Any]) -> str:
    output, names = document["output"], document["class_names"]
    said = {
        "classes": f"`{output['name']}`: one number a class, before the softmax.",
        "binary": f"`{output['name']}`: one number a question, before the sigmoid; above 0 is a yes.",
        "values": f"`{output['name']}`: numbers.",
    }[output["kind"]]
    if not names:
        return said
    shown = ", ".join(names[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")
    return f"{said} In their order: {shown}."


def _files(files: Sequence[Exported]) -> str:
    header = ["file", "format", "size", "largest difference", "equal top-1", "a sample", "PyTorch"]
    lines = [
        [
            f"`{one.path.name}`",
            one.format,
            decimal_size(one.bytes),
            f"{one.difference.largest:.1e} of {one.difference.scale:.1f}",
            f"{100 * one.difference.same:.2f} %",
            f"{1000 * one.seconds:.2f} ms",
            f"{1000 * one.eager_seconds:.2f} ms",
        ]
        for one in files
    ]
    for one, line in zip(files, lines, strict=True):
        if one.before is not None and one.after is not None:
            leading = leading_score(one.before)
            assert leading is not None
            line.append(f"{told(*leading)} → {told(leading[0], one.after[leading[0]])}")
    if any(len(line) > len(header) for line in lines):
        header.append("by int8")
    return markdown_table(tuple(header), lines)


def _numbers(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:SHOWN])
    return shown + (", …" if len(values) > SHOWN else "")


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes[:-1])) + (f" and {sizes[-1]}" if len(sizes) > 1 else str(sizes[-1]))


def _in_yaml(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _without_markup(text: str) -> str:
    """Names of classes and the like may be anybody's: outside of code a ``<`` begins no element."""
    found, coded = [], False
    for line in text.split("\n"):
        coded = coded != line.startswith("```")
        found.append(line if coded or line.startswith("    ") else line.replace("<", "&lt;"))
    return "\n".join(found)
