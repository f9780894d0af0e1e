"""Texts as rows of tokens, by a tokenizer of transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softcache import hub
from softcache.datasets._values import Values
from softcache.errors import DatasetError
from softcache.inputs import MASK
from softcache.ragged import offsets_of

FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model",
)  # fmt: skip
BATCH = 1024  # texts at a time
_NO_LIMIT = 10**9  # a model_max_length above it means that the tokenizer knows none


@dataclass(frozen=True)
class Tokenizer:
    """``place``: the folder, or ``NAME@COMMIT`` on the hub. ``encode``: transformers' tokenizer."""

    place: str
    encode: Any


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer in a folder, or of a model on the hub, ``NAME`` or ``NAME@REVISION``. Its code is never run.

    Errors: ``DatasetError`` of one line where there is none.
    """
    plain, _, revision = name.partition("@")
    folder = hub.local_folder(name if os.path.isdir(os.path.expanduser(name)) else plain)
    place = str(folder)
    if folder is None:
        folder = hub.snapshot(plain, "model", revision or None, FILES)
        place = f"{plain}@{folder.name}"
    with hub.told_in_a_line(f"the tokenizer {name}", "dataset"), hub.quiet():
        from transformers import AutoTokenizer

        return Tokenizer(place, AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True))


def tokenized(tokenizer: Tokenizer, texts: Sequence[Sequence[str]], max_length: int | None) -> dict[str, Values]:
    """What the tokenizer makes of texts, one column of N texts or two, of which the pairs belong together: ragged int64
    inputs, ``input_ids`` and what else its model takes, but for the mask.

    max_length: in tokens; None: the tokenizer's own, if it has one. Errors: ``DatasetError`` for a text that gives no
    tokens at all in a set of them.
    """
    # Without it, a fork after this warns: workers that load rows never tokenize.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    encode = tokenizer.encode
    limit = max_length or (encode.model_max_length if encode.model_max_length < _NO_LIMIT else None)
    names = [name for name in encode.model_input_names if name != MASK]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    lengths: dict[str, list[int]] = {name: [] for name in names}
    for first in range(0, len(texts[0]), BATCH):
        columns = [list(column[first : first + BATCH]) for column in texts]
        with hub.told_in_a_line(f"the texts of rows {first} …", "dataset"), hub.quiet():
            made = encode(*columns, truncation=limit is not None, max_length=limit, return_attention_mask=False)
        for name in names:
            rows = made.get(name)
            if rows is None:
                continue
            parts[name].append(np.concatenate([np.asarray(row, np.int64) for row in rows]))
            lengths[name] += [len(row) for row in rows]
    found = {}
    for name in names:
        if not lengths[name]:
            continue
        offsets = offsets_of(np.array(lengths[name], np.int64))
        found[name] = Values(np.concatenate(parts[name]), offsets, _pad(encode, name))
    if "input_ids" not in found:
        raise DatasetError(f"the tokenizer {tokenizer.place} makes no input_ids but {', '.join(found) or 'nothing'}")
    return found


def _pad(encode: Any, name: str) -> int:
    if name == "token_type_ids":
        return int(encode.pad_token_type_id)
    return int(encode.pad_token_id) if name == "input_ids" and encode.pad_token_id is not None else 0
