"""Held-out rows are evaluated without their dataset's pixels being held a second time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from softcache.datasets._open import open_samples
from softcache.models._open import open_network
from softcache.stream.inputs import InputSource, ResidentInputs, WorkerInputs
from softcache.stream.parts import in_view
from softcache.training.evaluation import evaluate_networks, held_out_evaluator
from softcache.views._viewed import ViewedDataset

CPU = torch.device("cpu")
OPTIONS = {"resident": "auto", "workers": 0, "start_method": "auto"}


@pytest.mark.parametrize("way", ["resident", "workers"])
def test_held_out_rows_take_the_memory_of_these_rows_at_most(way: str) -> None:
    """Images are resized, so that clean pixels are no view of the samples' own array."""
    viewed = ViewedDataset(open_samples("digits", "train"), "crop:pad=4" if way == "resident" else "rrc", size=96)
    training: InputSource = ResidentInputs(viewed, CPU) if way == "resident" else WorkerInputs(viewed, CPU, 0)
    held = np.flatnonzero(np.arange(len(viewed)) % 10 == 3)
    network = open_network("cifar:resnet8", classes=10, statistics=viewed.samples.statistics, seed=0)
    everything = viewed.bytes
    tracemalloc.start()
    try:
        validate = held_out_evaluator(viewed, training, held, CPU, **OPTIONS)
        next(iter(training.epoch(in_view([held[:4]], 0))))
        found = validate([(network, "off")])[0] if way == "workers" else None
        grown = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # for workers: the kept pixels, the rows of an evaluation batch, and the small images that are copied
    assert grown < (everything / 100 if way == "resident" else everything * 0.45)
    found = validate([(network, "off")])[0]
    clean = ViewedDataset(viewed.samples, "none", size=96)
    inputs = WorkerInputs(clean, CPU, 0)
    (expected,) = evaluate_networks([(network, "off")], inputs, viewed.samples.labels, CPU, rows=held)
    assert found == expected
    assert found.samples == len(held)


@pytest.mark.parametrize("kind", ["images", "mapped", "files", "decoded"])
def test_a_subset_has_the_pixels_and_labels_of_its_rows(kind: str, tmp_path) -> None:
    import dataclasses
    import pickle

    from PIL import Image

    samples = open_samples("digits", "train")
    samples = dataclasses.replace(samples, images=samples.images[:50], labels=samples.labels[:50])
    if kind == "mapped":
        np.save(tmp_path / "images.npy", samples.images)
        samples = dataclasses.replace(
            samples, images=np.load(tmp_path / "images.npy", mmap_mode="r"), mapped=tmp_path / "images.npy"
        )
    elif kind == "files":
        for row, image in enumerate(samples.images):
            Image.fromarray(image[:, :, 0]).save(tmp_path / f"{row}.png")
        names = [f"{row}.png" for row in range(50)]
        samples = dataclasses.replace(samples, images=None, names=names, root=tmp_path)
    elif kind == "decoded":
        samples = dataclasses.replace(samples, images=None, decode=samples.image)
    rows = np.array([7, 3, 49])
    part = pickle.loads(pickle.dumps(samples.subset(rows))) if kind != "decoded" else samples.subset(rows)
    assert len(part) == 3
    assert np.array_equal(part.labels, samples.labels[rows])
    for at, row in enumerate(rows):
        assert np.array_equal(part.image(at), samples.image(int(row)))
    assert len(samples) == 50
