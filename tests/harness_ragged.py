"""What the tests of rows that have lengths of their own share: models that say something of each word, and rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROWS, WORDS, CLASSES, WIDTH = 70, 50, 3, 8
MODELS = """
import torch
from torch import nn


class Words(nn.Module):
    '''A transformer's layer over words; what it says of each word, of pairs of words, and of all of them.'''

    def __init__(self, classes):
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.pairs, self.swapped = nn.Conv1d(8, 4, 2, 2), nn.Identity()
        self.tags, self.answer = nn.Linear(8, 5), nn.Linear(8, classes)

    def forward(self, ids, attention_mask):
        own = attention_mask.bool()
        own[:, 0] = True  # an empty row has no other place to look at
        x = self.layer(self.words(ids), src_key_padding_mask=~own)
        x = torch.where(attention_mask.bool()[..., None], x, torch.nan)  # nothing of what is filled up may be kept
        clean = x.nan_to_num()
        odd = ids.shape[1] % 2
        pairs = self.pairs(nn.functional.pad(clean.mT, (0, odd))).mT
        mean = clean.sum(1) / attention_mask.sum(1, keepdim=True).clamp_min(1)
        return {
            "logits": self.answer(mean), "states": x, "tags": self.tags(x), "pairs": pairs, "sizes": x.norm(dim=2),
            "grid": mean.view(-1, 2, 4), "square": x @ x.mT, "halved": x[:, : max(1, ids.shape[1] // 2)],
            "swapped": self.swapped(x.transpose(0, 1)),
        }


class Tokens(Words):
    def forward(self, ids, attention_mask):
        return super().forward(ids, attention_mask)["tags"]


class Learner(nn.Module):
    '''Smaller; what it says of places that rows were filled up with is large, and must not matter.'''

    def __init__(self, classes):
        super().__init__()
        self.words, self.mixed = nn.Embedding(50, 6), nn.Linear(6, 6)
        self.states, self.tags, self.answer = nn.Linear(6, 8), nn.Linear(6, 5), nn.Linear(6, classes)

    def forward(self, ids, attention_mask):
        x = self.mixed(self.words(ids)).tanh()
        own = attention_mask[..., None]
        mean = (x * own).sum(1) / own.sum(1).clamp_min(1)
        x = x + 1e3 * (1 - own)
        return {"logits": self.answer(mean), "states": self.states(x), "tags": self.tags(x), "pairs": x[..., :4]}


class LearnerOfTokens(Learner):
    def forward(self, ids, attention_mask):
        return super().forward(ids, attention_mask)["tags"]


def learner(num_classes=3):
    return Learner(num_classes)


def learner_of_tokens(num_classes=3):
    return LearnerOfTokens(num_classes)


class Widths(Words):
    '''How far its rows are filled up.'''

    def forward(self, ids, attention_mask):
        made = super().forward(ids, attention_mask)
        return {**made, "width": torch.full((len(ids), 1), float(ids.shape[1]))}


def widths(num_classes=3):
    return Widths(num_classes)


def words(num_classes=3):
    return Words(num_classes)


def tokens(num_classes=3):
    return Tokens(num_classes)


class Loud(Words):
    def forward(self, ids, attention_mask):
        made = super().forward(ids, attention_mask)
        return {**made, "states": torch.where((ids == 7)[..., None], torch.inf, made["states"])}


def loud(num_classes=3):
    return Loud(num_classes)


def each(num_classes=3):
    import numpy as np

    def answer(ids):
        made = np.zeros((len(ids), max(map(len, ids)), 2), np.float32)
        for row, own in zip(made, ids):
            row[: len(own), 0], row[: len(own), 1] = own, -own / 4
        return {"logits": np.array([[len(own), own.sum(), 0] for own in ids], np.float32), "each": made}

    return answer
"""
OUTPUTS = ("logits", "states", "tags:kind=classes:codec=fp32", "pairs:codec=bf16", "sizes:codec=fp32", "grid")


def lengths_of_rows() -> np.ndarray:
    """Some rows are empty; so are all of one shard of 16."""
    lengths = np.random.default_rng(2).integers(1, 20, ROWS)
    lengths[[3, 20, 69]] = 0
    lengths[32:48] = 0
    return lengths


def make_place(folder: Path) -> Path:
    """Rows of up to 19 words, and the models and a teacher's weights beside them."""
    (folder / "models.py").write_text(MODELS)
    rng, lengths = np.random.default_rng(1), lengths_of_rows()
    for split in ("train", "test"):
        np.save(folder / f"{split}_ids.npy", rng.integers(8, WORDS, lengths.sum()))
        np.save(folder / f"{split}_ids_offsets.npy", np.cumsum([0, *lengths]))
        np.save(folder / f"{split}_labels.npy", np.arange(ROWS) % CLASSES)
    torch.manual_seed(3)
    torch.save(model(folder).state_dict(), folder / "t.pt")
    return folder


def model(place: Path, name: str = "words", classes: int = CLASSES) -> nn.Module:
    space: dict[str, Any] = {}
    exec((place / "models.py").read_text(), space)
    return space[name](classes).eval()


def rows_of(place: Path) -> list[np.ndarray]:
    return np.split(np.load(place / "train_ids.npy"), np.load(place / "train_ids_offsets.npy")[1:-1])


def asked(place: Path, out: Path, teacher: str = "words", **more: Any) -> dict[str, Any]:
    weights = {} if teacher == "each" else {"teacher_weights": str(place / "t.pt")}
    return {
        "teacher": f"{place / 'models.py'}:{teacher}", "dataset": f"arrays:{place}", "out": out, "batch_size": 12,
        "shard_rows": 16, "device": "cpu", "output": OUTPUTS, **weights, **more,
    }  # fmt: skip
