"""The students of ``benchmarks.codecs``: the same trainings, from caches that differ in their codec alone.

In a command ``{fp32}`` stands for the teacher's cache in float32, ``{int5}`` and the like for those that were made
from it, and ``{held}`` for the dataset.
"""

from __future__ import annotations

from benchmarks.cifar100_rows import CHOOSING, RECIPES, alone, cached
from benchmarks.codecs_peers import FlatTail
from benchmarks.codecs_schemes import BASIS, BITS, FLAT, FLOATS, TOPK, Scheme
from benchmarks.rows import Trial, trials

TABLE = "students"
VIEWS = 2
EPOCHS = 6
STUDENT = "cifar:resnet8"
# As in docs/real.md, in half of the epochs, and in float32, which processors without bfloat16 are faster in.
OPTIMIZED = f"--epochs {EPOCHS} {RECIPES['sgd 0.4']} --amp off --channels-last"
FP32 = "fp32"
FLAT_TAIL = "top-10, flat tail (TinyViT)"
# Placeholder → what the cache's logits are kept in.
NEEDED = {
    "fp16": Scheme("fp16", FLOATS, "fp16"),
    "int5": Scheme("int:bits=5", BITS, "int:bits=5"),
    "int4": Scheme("int:bits=4", BITS, "int:bits=4"),
    "topk20": Scheme("topk:k=20", TOPK, "topk:k=20"),
    "topk10": Scheme("topk:k=10", TOPK, "topk:k=10"),
    "basis45": Scheme("basis:bytes=45", BASIS, "basis:bytes=45"),
    "basis22": Scheme("basis:bytes=22", BASIS, "basis:bytes=22"),
    "flat10": Scheme(FLAT_TAIL, FLAT, FlatTail(10)),
}
# At T = 1, which the schemes of others are made for, and by default, at T = 4.
LOSSES = {"kl": "--loss kl:T=1,weight=4 --alpha 1 --beta 1", "dist": "--loss dist:T=4,weight=2 --alpha 1 --beta 1"}
# The student whose logits the table of losses is made with.
FIXED = f"train --student {STUDENT} --alpha 0 --epochs 1 {RECIPES['sgd 0.4']} --amp off --seed 0"


def row(loss: str, codec: str) -> str:
    """A row's name."""
    return f"{loss}, {codec}"


def students() -> list[Trial]:
    """For each loss a student from each cache, and one on labels alone."""
    rows = {"alone": alone(STUDENT, OPTIMIZED)}
    for name, options in LOSSES.items():
        # The dataset is said, because softcache opens no path that only a cache names.
        how = f"--dataset {{held}} {options} {OPTIMIZED}"
        rows[row(name, FP32)] = cached(STUDENT, how, "{fp32}")
        for place, scheme in NEEDED.items():
            rows[row(name, scheme.name)] = cached(STUDENT, how, f"{{{place}}}")
    return trials(TABLE, rows, CHOOSING)
