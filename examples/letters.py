"""A table: a perceptron learns from scikit-learn's gradient boosting, with all labels and with few.

    pip install scikit-learn
    python examples/letters.py letter-recognition.csv      # of UCI: a letter and 16 whole numbers in each line

docs/tutorials/tables.md has what comes out. Writes into letters/, caches/ and runs/.
"""

import functools
import hashlib
from pathlib import Path

import click
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier as Trees
from torch import nn

import softcache
from softcache.console import run_script

FOLDER = Path("letters")


def convert(csv: str, training: int) -> str:
    """Writes {train,test}_features.npy and _labels.npy; the first rows are for training."""
    rows = [line.split(",") for line in Path(csv).read_text().splitlines()[1:]]
    classes, labels = np.unique([row[0] for row in rows], return_inverse=True)
    features = np.array([row[1:] for row in rows], np.float32)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "classes.txt").write_text("\n".join(classes))
    for split, part in (("train", slice(training)), ("test", slice(training, None))):
        np.save(FOLDER / f"{split}_features.npy", features[part])
        np.save(FOLDER / f"{split}_labels.npy", labels[part])
    return f"arrays:{FOLDER}"


class Boosted:
    """Trees in folds: for a row answer those that weren't fitted to it, or they would only repeat its label."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, folds: int = 4):
        self.fold_of = {row.tobytes(): number % folds for number, row in enumerate(features)}  # equal rows share one
        fold = np.array([self.fold_of[row.tobytes()] for row in features])
        data = hashlib.sha256(features.tobytes() + labels.tobytes()).hexdigest()
        self.fingerprint = f"{folds} folds of {Trees(max_iter=60, random_state=0)} on {data}"  # what it is known by
        parts = [(features[fold != k], labels[fold != k]) for k in range(folds)]
        self.models = [Trees(max_iter=60, random_state=0).fit(*part) for part in parts]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        answers = np.stack([model.predict_proba(features) for model in self.models])  # (folds, B, classes)
        fold = np.array([self.fold_of.get(row.tobytes(), -1) for row in features])
        return np.log(np.where(fold[:, None] < 0, answers.mean(0), answers[fold, np.arange(len(fold))]).clip(1e-7))


@functools.cache
def boosted(num_classes: int = 26) -> Boosted:
    return Boosted(np.load(FOLDER / "train_features.npy"), np.load(FOLDER / "train_labels.npy"))


def perceptron(num_classes: int = 26) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, num_classes))


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("csv", type=click.Path(exists=True, dir_okay=False))
@click.option("--training", default=16_000, show_default=True, help="How many rows are for training.")
@click.option("--epochs", default=20, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Students of each kind.")
def main(csv: str, training: int, epochs: int, seeds: int) -> None:
    cache = softcache.dump(f"{__file__}:boosted", dataset=convert(csv, training))
    print(f"teacher, on rows that it was not fitted to    {100 * cache.teacher_top1:.2f} %")
    for share in (1.0, 0.1):
        for name, how in (("alone", {"alpha": 0}), ("distilled", {"loss": "kl", "T": 1})):
            fit = {"cache": cache.folder, "epochs": epochs, "label_fraction": share, **how}
            runs = [softcache.train(f"{__file__}:perceptron", seed=seed, **fit) for seed in range(seeds)]
            accuracy = ", ".join(f"{100 * run.test.top1:.2f}" for run in runs)
            print(f"{f'student {name}, {100 * share:g} % of the labels':44}  {accuracy} %")


if __name__ == "__main__":
    run_script(main)
