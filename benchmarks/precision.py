"""A training step and a forward pass in bfloat16 and in channels_last, beside float32 as torch has it.

    python -m benchmarks.precision

``--amp auto`` and the memory format that goes with it are chosen by the kind of processor and by how many inputs meet a
weight in a batch (``softcache.models._arithmetic``). The note of each row has that number; where it is below the bound,
softcache leaves the network as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.measure import Result, Row, arguments, paired, ratio, timed
from softcache.device import autocast, native_bf16, pick_device
from softcache.models._arithmetic import WORTHWHILE, Arithmetic, inputs_a_weight
from softcache.models._network import Network
from softcache.models._open import open_network

# network, side of its input, samples of a batch
NETWORKS = (
    ("cifar:resnet8", 32, 128),
    ("cifar:resnet20", 32, 128),
    ("cifar:wrn_16_2", 32, 128),
    ("resnet18", 32, 32),
    ("resnet18", 112, 32),
    ("resnet50", 112, 16),
    ("mobilenet_v2", 112, 32),
    ("squeezenet1_1", 112, 32),
    ("vit_b_16", 224, 4),
)
WAYS = {
    "channels_last": Arithmetic("off", True),
    "bfloat16": Arithmetic("bf16", False),
    "bfloat16, channels_last": Arithmetic("bf16", True),
}
AS_IT_IS = Arithmetic("off", False)


def main() -> None:
    options = arguments(__doc__)
    device = pick_device(options.device)
    rows: list[Row] = []
    for name, size, batch in NETWORKS[:1] if options.tiny else NETWORKS:
        network = open_network(name, classes=10, statistics=((0.5,) * 3, (0.25,) * 3), seed=0).to(device)
        pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
        labels = torch.randint(0, 10, (batch,), device=device)
        inputs = inputs_a_weight(network, pixels[:2]) * batch
        chosen = "chosen" if native_bf16(device) and inputs >= WORTHWHILE else "left as it is"
        sides: dict[str, Callable[[], float]] = {
            way: timed(_step(network, pixels, labels, arithmetic, device))
            for way, arithmetic in {"as it is": AS_IT_IS, **WAYS}.items()
        }
        taken = paired(sides, options.repetitions)
        for way in WAYS:
            note = f"{inputs:,.0f} inputs a weight: {chosen}" if way == list(WAYS)[-1] else ""
            rows.append(ratio(f"{name}, {size}², batch {batch}: {way}", taken[way], taken["as it is"], note=note))
    title = "Training steps in other precisions, in parts of the time of float32 in the usual layout"
    Result("precision", title, rows).show()


def _step(
    network: Network, pixels: torch.Tensor, labels: torch.Tensor, arithmetic: Arithmetic, device: torch.device
) -> Callable[[], None]:
    def step() -> None:
        arithmetic.apply(network).train()
        with autocast(device, arithmetic.amp):
            logits = network(pixels)
        F.cross_entropy(logits.float(), labels).backward()
        network.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


if __name__ == "__main__":
    main()
