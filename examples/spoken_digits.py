"""Sound: a small network learns to tell spoken digits apart from a larger one, on spectrograms.

    python examples/spoken_digits.py fsdd.npz     # samples (n,) int16 at 8 kHz, offsets (N + 1,), label (N,), test (N,)

docs/tutorials/sound.md has what comes out. Writes into digits-spoken/, teachers/, caches/ and runs/.
"""

import itertools
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

import softcache
from softcache.console import run_script

FOLDER, BANDS, FRAMES = Path("digits-spoken"), 40, 64


def spectrogram(sound: np.ndarray, window: int = 256, step: int = 100) -> np.ndarray:
    """(BANDS, FRAMES) float32: the logarithm of the energy in bands of the mel scale, cut or padded at the end."""
    sound = np.pad(sound.astype(np.float32) / 2**15, (0, window))
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::step][:FRAMES] * np.hanning(window)
    energy = np.abs(np.fft.rfft(frames)) ** 2  # (frames, window // 2 + 1)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), BANDS + 2) / 2595) - 1)  # Hz
    hertz = np.linspace(0, 4000, window // 2 + 1)
    rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    bands = np.log(energy @ np.clip(np.minimum(rising, falling), 0, None).T + 1e-6).T
    return np.pad(bands, ((0, 0), (0, FRAMES - bands.shape[1])), constant_values=np.log(1e-6)).astype(np.float32)


def convert(file: str) -> str:
    """Writes {train,test}_spectrogram.npy and _labels.npy."""
    with np.load(file) as held:
        samples, offsets, labels, test = (held[name] for name in ("samples", "offsets", "label", "test"))
    made = np.stack([spectrogram(samples[a:b]) for a, b in itertools.pairwise(offsets)])
    FOLDER.mkdir(exist_ok=True)
    for split, part in (("train", ~test.astype(bool)), ("test", test.astype(bool))):
        np.save(FOLDER / f"{split}_spectrogram.npy", made[part])
        np.save(FOLDER / f"{split}_labels.npy", labels[part].astype(np.int64))
    return f"arrays:{FOLDER}"


class Recurrent(nn.Module):
    """Bands over time: (B, BANDS, FRAMES) → logits."""

    def __init__(self, num_classes: int = 10, width: int = 128, layers: int = 2):
        super().__init__()
        self.read = nn.Conv1d(BANDS, width, 3, stride=2, padding=1)
        self.remember = nn.GRU(width, width, layers, batch_first=True, bidirectional=True)
        self.answer = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.remember(torch.relu(self.read(x)).transpose(1, 2))
        return self.answer(found.mean(1))


def small(num_classes: int = 10) -> nn.Module:
    return Recurrent(num_classes, width=12, layers=1)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--epochs", default=20, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Students of each kind.")
def main(file: str, epochs: int, seeds: int) -> None:
    fit = {"epochs": epochs, "batch_size": 32, "optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01}
    teacher = softcache.teach(f"{__file__}:Recurrent", dataset=convert(file), **fit)
    cache = softcache.dump(teacher.folder)
    print(f"teacher            {100 * teacher.test.top1:.2f} %")
    for name, how in (("alone", {"alpha": 0}), ("distilled", {})):
        runs = [softcache.train(f"{__file__}:small", cache=cache.folder, seed=s, **fit, **how) for s in range(seeds)]
        print(f"student {name:9}  {', '.join(f'{100 * run.test.top1:.2f}' for run in runs)} %")


if __name__ == "__main__":
    run_script(main)
