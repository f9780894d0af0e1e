"""What the folder of a run or of a teacher says of itself: ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softcache.atomic import replace_file
from softcache.errors import SoftcacheError

CONFIG = "config.json"
TEACHER_FILE, STUDENT_FILE = "teacher.safetensors", "student.safetensors"


def write_config(folder: Path, config: dict[str, Any]) -> None:
    replace_file(folder / CONFIG, (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode())


def read_config(folder: Path) -> dict[str, Any]:
    """Errors: ``SoftcacheError`` where there is none or it isn't one."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        raise SoftcacheError(f"{folder} has no {CONFIG}: it is neither a run nor a teacher") from None
    except (OSError, ValueError) as error:
        raise SoftcacheError(f"{folder / CONFIG} can't be read: {error}") from None
    if not isinstance(config, dict):
        raise SoftcacheError(f"{folder / CONFIG} is not a configuration")
    return config


def recorded_options(folder: Path) -> dict[str, Any]:
    """What the run or teacher in ``folder`` was trained with, its dataset and size among it."""
    config = read_config(folder)
    recorded = config.get("train") or config.get("teach")
    return recorded if isinstance(recorded, dict) else {}
