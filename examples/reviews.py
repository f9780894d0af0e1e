"""Text: a small network learns from a recurrent one what a sentence thinks of a film, from sentences of any length.

    python examples/reviews.py train.tsv test.tsv     # a sentence, a tab and 0 or 1 in each line

docs/tutorials/text.md has what comes out on SST-2. Writes into reviews/, teachers/, caches/ and runs/.
"""

from collections import Counter
from pathlib import Path

import click
import numpy as np
from torch import Tensor, nn

import softcache
from softcache.console import run_script

FOLDER, UNKNOWN, WORDS = Path("reviews"), 1, 20_000  # 0 fills sentences up


def convert(train: str, test: str) -> str:
    """Writes {train,test}_words.npy, all sentences end to end, _words_offsets.npy and _labels.npy."""
    lines = {split: Path(file).read_text().splitlines() for split, file in (("train", train), ("test", test))}
    pairs = {split: [line.rsplit("\t", 1) for line in found] for split, found in lines.items()}
    counted = Counter(word for sentence, _ in pairs["train"] for word in sentence.split())
    number = {word: UNKNOWN + 1 + k for k, (word, n) in enumerate(counted.most_common(WORDS - 2)) if n > 1}
    FOLDER.mkdir(exist_ok=True)
    for split, rows in pairs.items():
        sentences = [[number.get(word, UNKNOWN) for word in sentence.split()] for sentence, _ in rows]
        np.save(FOLDER / f"{split}_words.npy", np.concatenate(sentences).astype(np.int64))
        np.save(FOLDER / f"{split}_words_offsets.npy", np.cumsum([0, *map(len, sentences)]))
        np.save(FOLDER / f"{split}_labels.npy", np.array([int(label) for _, label in rows]))
    return f"arrays:{FOLDER}"


def drop_words():  # --augment: a view has a fifth of its words unknown; softcache seeds the generator from the key
    return lambda row: {"words": np.where(np.random.random(len(row["words"])) < 0.2, UNKNOWN, row["words"])}


class Recurrent(nn.Module):
    def __init__(self, num_classes: int = 2, width: int = 128):
        super().__init__()
        self.vectors, self.drop = nn.Embedding(WORDS, width, padding_idx=0), nn.Dropout(0.5)
        self.read = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.answer = nn.Linear(2 * width, num_classes)

    def forward(self, words: Tensor, attention_mask: Tensor) -> Tensor:
        lengths = attention_mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.drop(self.vectors(words)), lengths, True, False)
        found, _ = nn.utils.rnn.pad_packed_sequence(self.read(packed)[0], True, float("-inf"))
        return self.answer(self.drop(found.amax(1)))  # the largest of each number over the sentence


def small(num_classes: int = 2) -> nn.Module:
    return Recurrent(num_classes, width=16)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("train", type=click.Path(exists=True, dir_okay=False))
@click.argument("test", type=click.Path(exists=True, dir_okay=False))
@click.option("--epochs", default=20, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Students of each kind.")
def main(train: str, test: str, epochs: int, seeds: int) -> None:
    how = {"batch_size": 32, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.01}
    teacher = softcache.teach(f"{__file__}:Recurrent", dataset=convert(train, test), epochs=epochs // 2, **how)
    cache = softcache.dump(teacher.folder, augment=f"{__file__}:drop_words", views=8)
    print(f"{'teacher':40}  {100 * teacher.test.top1:.2f} %")
    for share in (1.0, 0.1):
        for name, loss in (("alone", {"alpha": 0}), ("distilled", {})):
            options = {"cache": cache.folder, "label_fraction": share, "epochs": epochs, **how, **loss}
            runs = [softcache.train(f"{__file__}:small", seed=seed, **options) for seed in range(seeds)]
            accuracy = ", ".join(f"{100 * run.test.top1:.2f}" for run in runs)
            print(f"{f'student {name}, {100 * share:g} % of the labels':40}  {accuracy} %")


if __name__ == "__main__":
    run_script(main)
