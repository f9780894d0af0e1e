"""``tracking.json`` in a run's folder: what each tracker calls the run, and how many epochs it has taken."""

from __future__ import annotations

import json
import logging
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from softcache import strictjson
from softcache.atomic import replace_file

log = logging.getLogger(__name__)

TRACKING = "tracking.json"
VERSION = 1
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}")


@dataclass(frozen=True)
class Kept:
    """Of one tracker: ``key``, what it calls the run, None before it was opened; ``epochs``: how many it has taken."""

    key: str | None = None
    epochs: int = 0


class KeptFile:
    """The file in ``folder``; several threads may change it. One that can't be read is begun anew, with a warning: the
    trackers then show this run twice, and nothing else is lost."""

    def __init__(self, folder: Path):
        self._path, self._lock = folder / TRACKING, threading.Lock()
        self._kept = self._read()

    def of(self, spec: str) -> Kept:
        return self._kept.get(spec, Kept())

    def keep(self, spec: str, kept: Kept) -> None:
        with self._lock:
            self._kept[spec] = kept
            document = {"version": VERSION, "trackers": {name: asdict(one) for name, one in self._kept.items()}}
            replace_file(self._path, (json.dumps(document, indent=1) + "\n").encode())

    def _read(self) -> dict[str, Kept]:
        try:
            document = strictjson.loads(self._path.read_bytes())
            if document["version"] != VERSION:
                raise ValueError(f"it is of version {str(document['version'])[:40]}")
            return {name: _checked(values) for name, values in document["trackers"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(f"{self._path} can't be read ({error}): trackers begin this run anew")
            return {}


def _checked(values: dict[str, object]) -> Kept:
    key, epochs = values["key"], values["epochs"]
    if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise ValueError("a key has other characters than letters, digits, _, - and .")
    if type(epochs) is not int or epochs < 0:
        raise ValueError("epochs is not a whole number")
    return Kept(key, epochs)
