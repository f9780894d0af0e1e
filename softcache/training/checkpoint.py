"""Where a training stands, in one file that is replaced at once or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from softcache.atomic import open_in_place, replace_file
from softcache.errors import SoftcacheError

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers, strings, lists and dicts of them: what ``weights_only`` loading gives back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace_file(folder / CHECKPOINT, buffer.getvalue())


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any]:
    """Errors: ``SoftcacheError`` where there is none or it can't be read."""
    path = folder / CHECKPOINT
    try:
        with open(open_in_place(path, os.O_RDONLY), "rb") as file:
            return torch.load(file, map_location=device, weights_only=True)
    except SoftcacheError:  # a link, or no file
        raise
    except FileNotFoundError:
        raise SoftcacheError(f"{folder} has no {CHECKPOINT} to resume from") from None
    except Exception as error:  # torch raises many kinds for a damaged zip or pickle
        raise SoftcacheError(f"{path} can't be read: {' '.join(str(error).split())[:120]}") from None
