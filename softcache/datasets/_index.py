"""The fingerprint of a folder of images, kept beside them: asking a million files for their sizes takes a while.

What is kept holds while the listing is the same, no folder has changed since (a file that is added, removed or
replaced changes its folder's times), and a sample of the files has the sizes and times it had. A file that is written
over in place, outside of that sample, goes unnoticed here; so this answers only whether anything is left to do, and
whoever computes something asks every file again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import Any

import numpy as np

from softcache.atomic import replace_file
from softcache.datasets._samples import Samples

SAMPLED = 256
SETTLED_S = 2.0  # a folder that changed just now may change again within the same tick of its clock


def known_fingerprint(samples: Samples) -> str | None:
    """What ``keep_fingerprint`` kept, where it still holds."""
    if samples.names is None:
        return None
    try:
        record = json.loads(_place(samples).read_text())
        now = _stamps(samples)
        return str(record["sha256"]) if {**record, **now} == record else None
    except (OSError, ValueError, TypeError, KeyError):  # none, half of one, or a file that has gone
        return None


def keep_fingerprint(samples: Samples, sha256: str) -> None:
    """Keeps the quick fingerprint of samples in files; in a folder that can't be written to nothing is kept."""
    if samples.names is None:
        return
    with contextlib.suppress(OSError):
        stamps = _stamps(samples)
        if stamps["newest"] > time.time_ns() - SETTLED_S * 1e9:
            return
        replace_file(_place(samples), (json.dumps({**stamps, "sha256": sha256}) + "\n").encode())


def _place(samples: Samples) -> Any:
    assert samples.root is not None
    return samples.root / f".softcache-{samples.split}.fingerprint"


def _stamps(samples: Samples) -> dict[str, Any]:
    names = samples.names or []
    listing = hashlib.sha256(json.dumps([samples.classes, names]).encode())
    listing.update(samples.labels.tobytes())
    folders = sorted({name.rpartition("/")[0] for name in names})
    chosen = [names[row] for row in np.unique(np.linspace(0, len(names) - 1, SAMPLED).astype(int))]
    total, newest = hashlib.sha256(), 0
    for name in [*folders, *chosen]:
        status = os.stat(os.path.join(str(samples.root), name))
        newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        stamp = f"{name}\0{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"
        total.update(stamp.encode("utf-8", "surrogateescape"))
    return {"listing": listing.hexdigest(), "stamps": total.hexdigest(), "newest": newest}
