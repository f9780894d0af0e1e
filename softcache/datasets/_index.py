"""The fingerprint of a folder of images, kept in the user's cache folder.

Asking a million files for their sizes takes a while. What is kept holds while the listing is the same, no folder has
changed since (a file that is added, removed or replaced changes its folder's times), and a sample of the files has the
sizes and times it had. A file that is written over in place, outside of that sample, goes unnoticed here; so this
answers only whether anything is left to do, and whoever computes something asks every file again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any

import numpy as np

from softcache import localfiles
from softcache.datasets._labels import label_bytes
from softcache.datasets._samples import Samples

SAMPLED = 256
SETTLED_S = 2.0  # a folder that changed just now may change again within the same tick of its clock


def known_fingerprint(samples: Samples) -> str | None:
    """What ``keep_fingerprint`` kept, where it still holds."""
    if samples.names is None or samples.root is None:
        return None
    try:
        return localfiles.known_fingerprint(samples.root, _stamps(samples), samples.split)
    except OSError:  # a file that has gone
        return None


def keep_fingerprint(samples: Samples, sha256: str) -> None:
    """Keeps the quick fingerprint of samples in files; where the user's cache folder can't be written to, nothing."""
    if samples.names is None or samples.root is None:
        return
    try:
        stamps = _stamps(samples)
    except OSError:  # a file that has gone
        return
    if stamps["newest"] <= time.time_ns() - SETTLED_S * 1e9:
        localfiles.keep_fingerprint(samples.root, stamps, sha256, samples.split)


def describe_data(samples: Samples, fingerprint: str | None = None) -> dict[str, Any]:
    """What a run's or a teacher's ``config.json`` says of the samples that it was trained on.

    ``fingerprint``: the quick one, where it is known already.
    """
    if fingerprint is None:
        fingerprint = samples.fingerprint()
        keep_fingerprint(samples, fingerprint)
    labels = hashlib.sha256(json.dumps(list(samples.classes)).encode())
    labels.update(label_bytes(samples.labels))
    return {
        "spec": samples.spec,
        "split": samples.split,
        "rows": len(samples),
        "fingerprint": fingerprint,
        "labels": labels.hexdigest(),
    }


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
