"""Small models, tokenizers and datasets as transformers and datasets save them, and a cache as the hub's client has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

transformers = pytest.importorskip("transformers", reason="needs transformers, of the extra [hf]")
datasets = pytest.importorskip("datasets", reason="needs datasets, of the extra [hf]")

WORDS = [f"w{number}" for number in range(40)]
CLASSES = ["negative", "neutral", "positive"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
ROWS = 96
SMALL: dict[str, Any] = {"vocab_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}


def save_tokenizer(folder: str | Path, pad: int = 0) -> Any:
    """A tokenizer of whole words, whose padding has the number ``pad``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = [*SPECIAL[1:]]
    special.insert(pad, SPECIAL[0])
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    fast.save_pretrained(folder)
    return fast


def save_model(folder: str | Path, kind: str = "Bert", seed: int = 0, **options: Any) -> Any:
    """A classifier of sentences with random parameters, which are large enough for its answers to differ."""
    torch.manual_seed(seed)
    names = {"num_labels": 3, "id2label": dict(enumerate(map(str.upper, CLASSES)))}
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, "intermediate_size": 32, **names, **options})
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(15)
    save_pretrained(model, folder)
    return model.eval()


def save_pretrained(model: Any, folder: str | Path) -> None:
    """As ``model.save_pretrained``, which writes a progress bar."""
    model.config.save_pretrained(folder)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()},
        Path(folder) / "model.safetensors",
        metadata={"format": "pt"},
    )


def sentences(rows: int, seed: int) -> dict[str, list[Any]]:
    """Sentences of up to 12 words, most of them about the label: ``w0``, ``w3`` … are of label 0."""
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for row in range(rows):
        length = int(torch.randint(1, 13, (), generator=generator))
        words = torch.randint(0, 13, (length,), generator=generator) * 3 + row % 3
        texts.append(" ".join(WORDS[word] for word in words.tolist()))
        labels.append(row % 3)
    return {"sentence": texts, "idx": list(range(rows)), "label": labels}


def make_dataset() -> Any:
    """As GLUE has them: a test split without labels, and a validation split."""
    features = datasets.Features(
        sentence=datasets.Value("string"), idx=datasets.Value("int32"), label=datasets.ClassLabel(names=CLASSES)
    )
    parts = {"train": (ROWS, 1), "validation": (48, 2), "test": (48, 3)}
    made = {name: sentences(rows, seed) for name, (rows, seed) in parts.items()}
    made["test"]["label"] = [-1] * 48
    return datasets.DatasetDict({n: datasets.Dataset.from_dict(part, features=features) for n, part in made.items()})


def into_hub_cache(cache: Path, kind: str, name: str, folder: Path, commit: str, branch: str = "main") -> Path:
    """Copies a folder to where the hub's client would have put a repository, at a commit that a branch is at."""
    repository = cache / f"{kind}s--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    return repository / "snapshots" / commit


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
