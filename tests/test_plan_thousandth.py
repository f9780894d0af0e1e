"""ImageNet × 300 views in 35 GB: what ``softcache plan`` says of it holds of the files of a thousandth of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_plan import IMAGENET, same_files

from softcache.cache.reader import Cache
from softcache.stages.dump import dump
from softcache.stages.plan import plan

ROWS, CLASSES, WIDTH = 1281, 1000, 64
CODEC = {"output": ("logits:codec=basis:bytes=80",)}
PAGE = 4096


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("views", [4, pytest.param(300, marks=pytest.mark.torture)])
def test_a_thousandth_of_imagenet_takes_the_planned_bytes_a_key(tmp_path: Path, views: int) -> None:
    whole = plan(**IMAGENET, views=300, **CODEC)
    assert whole.files.bytes <= 35e9
    teacher = tmp_path / "teacher.py"
    teacher.write_text(
        "import torch\n\n\n"
        f"def make(num_classes={CLASSES}):\n"
        f"    first, last = torch.nn.Linear({WIDTH}, 256), torch.nn.Linear(256, num_classes)\n"
        "    return torch.nn.Sequential(first, torch.nn.ReLU(), last)\n"
    )
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "train_features.npy", rng.standard_normal((ROWS, WIDTH), dtype=np.float32))
    np.save(data / "train_labels.npy", np.arange(ROWS) % CLASSES)
    from runpy import run_path

    torch.manual_seed(0)
    network = run_path(str(teacher))["make"]()
    for layer in (network[0], network[2]):
        torch.nn.init.normal_(layer.weight, std=2 * layer.in_features**-0.5)
    torch.save(network.state_dict(), tmp_path / "teacher.pt")
    options: dict[str, Any] = {
        "dataset": f"arrays:{data}", "augment": "noise:std=0.3", "views": views, "batch_size": 1024, **CODEC,
    }  # fmt: skip
    weights = str(tmp_path / "teacher.pt")
    done = dump(f"{teacher}:make", teacher_weights=weights, out=str(tmp_path / "cache"), workers=0, **options)
    thousandth = plan(f"{teacher}:make", **options)
    same_files(thousandth, done.folder)

    keys = thousandth.columns[0].key_bytes
    assert keys == whole.columns[0].key_bytes == 80 + 4, "a key's bytes and its digest"
    for found, rows in ((thousandth, ROWS), (whole, IMAGENET["rows"])):
        around = found.files.view_bytes - keys * rows
        assert 0 < around < found.files.shards / found.views * 12 * PAGE, "pages that aren't full, and a shard's header"
    cache = Cache(done.folder)
    assert cache.manifest.state.columns["logits"].codec.startswith("basis:")
    assert not cache.missing(["logits"], views)
