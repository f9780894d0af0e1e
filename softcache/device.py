"""Which device computes, and in which precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from softcache.distributed import local_rank, world
from softcache.errors import UsageError

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one; under torchrun each process has one of its own.

    Errors: ``UsageError`` for a device that torch doesn't know or doesn't have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu()
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r} is unknown: auto, cpu, cuda, cuda:1, mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this machine has no CUDA device, or torch can't see it")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine's CUDA devices are 0 to {torch.cuda.device_count() - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has none, or torch can't see it")
    return _own_gpu() if device.type == "cuda" and device.index is None else device


def _own_gpu() -> torch.device:
    return torch.device("cuda", local_rank() % torch.cuda.device_count()) if world() > 1 else torch.device("cuda")


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, and so faster than float32: CPUs with AVX512-BF16 or AMX,
    NVIDIA's GPUs from Ampere on."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Private names: torch has no public ones before 2.9, where get_capabilities came.
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(supported() for supported in known if supported is not None)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The autocast context of ``--amp bf16|fp16|off``."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[amp]
    kind = "cpu" if device.type == "meta" else device.type  # torch has none for what is computed without memory
    return torch.autocast(kind, dtype if amp != "off" else torch.bfloat16, enabled=amp != "off")


@contextlib.contextmanager
def reproducible(*, tf32: bool) -> Iterator[None]:
    """A GPU's convolutions give the same bits each time, and matrix products and convolutions may use TF32 or not; the
    caller's own choices come back after it.

    cuDNN's fastest algorithms for the gradient of a convolution's weights add in whatever order blocks end.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32, convolutions.deterministic
    products.allow_tf32 = convolutions.allow_tf32 = tf32
    convolutions.deterministic = True
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32, convolutions.deterministic = before
