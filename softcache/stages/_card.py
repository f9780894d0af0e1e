"""What a published cache says of itself: a ``README.md`` for people, with the lines that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softcache.cache.listing import Listing
from softcache.cache.manifest import Manifest
from softcache.cache.schema import ColumnRecord, share_of
from softcache.console import counted, decimal_size, of_rows
from softcache.store.remote import PACKAGES

CARD = "README.md"
UNKNOWN = "not recorded; see the dataset's own page"


def card_of(manifest: Manifest, listing: Listing, address: str, license: str | None) -> str:
    """``address``: where the cache is; ``license``: the dataset's, as its owner says it."""
    identity, state = manifest.identity, manifest.state
    reached = (
        "not recorded" if state.teacher_top1 is None else f"{100 * state.teacher_top1:.2f} % on these rows, view 0"
    )
    facts = [
        ("teacher", f"`{identity.teacher.spec}`, sha256 of its parameters `{identity.teacher.weights}`"),
        ("its top-1 accuracy", reached),
        ("dataset", f"`{identity.dataset.spec}`, split `{identity.dataset.split}`, {identity.dataset.rows:,} rows"),
        ("the dataset's licence", license or UNKNOWN),
        ("views", f"{counted(state.views, 'view')} of each row by the recipe `{identity.recipe['spec']}`, "
                  f"seed {identity.recipe['seed']}"),
        ("size", f"{decimal_size(listing.size)} in {counted(len(listing.files), 'file')}"),
        ("made", f"{state.made.get('date', 'at an unknown date')}, softcache {state.made.get('softcache', '?')}"),
        ("cache id", f"`{listing.cache_id}`"),
        ("pin", f"`{listing.pin}`"),
    ]  # fmt: skip
    columns = [_column(name, state.columns[name]) for name in manifest.columns]
    dataset = "" if _is_plain(identity.dataset.spec) else f" \\\n        --dataset {identity.dataset.spec}"
    return f"""---
tags:
- softcache
- knowledge-distillation
---

# What {identity.teacher.spec} says of {identity.dataset.spec}

The raw outputs of a teacher network for {counted(identity.dataset.rows * state.views, "key")}, recorded by softcache:
students can be trained from them, at any temperature, without the teacher. The dataset itself is not in here; a
training needs it, and compares a digest of each input with that of what the teacher saw.

{markdown_table(("", ""), facts)}

## What is kept

{markdown_table(("column", "kind", "of one key", "codec", "measured error"), columns)}

## Train from it

    pip install {_package(address, manifest)}
    softcache train --student resnet18 --cache {address}{dataset} \\
        --expect {listing.pin}

The number after `--expect` stands for every byte of this cache: with it nothing else is used.

## Cite

If you use it, cite the teacher, the dataset, and this cache by its address and its pin:

    @misc{{softcache_{listing.pin[:8]},
      title = {{Outputs of {identity.teacher.spec} on {identity.dataset.spec}}},
      howpublished = {{{address}}},
      note = {{softcache, pin {listing.pin}}},
    }}
"""


def _column(name: str, record: ColumnRecord) -> tuple[str, ...]:
    share = share_of(name)
    sizes = record.shape if share is None else record.tail
    shape = "×".join("L" if size is None else str(size) for size in sizes) or "1"
    if share is not None:
        shape += f", of {of_rows(share)}"
    steps = ", ".join(f"`{step.codec}` ({_lost(step.error)})" for step in record.converted)
    lost = _lost(record.error) + (f", against its source, which was in {steps}" if steps else "")
    codec = record.codec if record.compress is None else f"{record.codec} {record.compress}"
    return f"`{name}`", record.kind, shape, f"`{codec}`", lost


def _lost(error: Mapping[str, float]) -> str:
    if {"kl_mean_T1", "kl_mean_T4"} <= error.keys():
        lost = f"mean KL {error['kl_mean_T1']:.1e} nats at T = 1, {error['kl_mean_T4']:.1e} at T = 4"
    elif "relative_error_mean" in error:
        lost = f"relative error {error['relative_error_mean']:.1e}"
    else:
        lost = "not measured"
    if "keys" in error:
        lost += f", on {error['keys']:,.0f} keys"
    return lost


def _package(address: str, manifest: Manifest) -> str:
    """What is to be installed for reading from this address what is kept there."""
    scheme = address.partition("://")[0]
    extras = ["compress"] if any(column.compress for column in manifest.state.columns.values()) else []
    extras += [PACKAGES[scheme][1]] if scheme in PACKAGES else []
    return f"'softcache[{','.join(extras)}]'" if extras else "softcache"


def markdown_table(header: tuple[str, ...], lines: Any) -> str:
    """A table in Markdown."""
    marked = [header, tuple("---" for _ in header), *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in marked)


def _is_plain(spec: str) -> bool:
    """Whether a dataset has a name that is the same everywhere."""
    return ":" not in spec
