"""The zip archives in which TorchScript keeps a network."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

ALIGNMENT = 64  # of each record's first byte, so that tensors can be mapped
_HEADER = 30  # bytes before a record's name


def leave_out(path: Path, unwanted: Callable[[str], bool]) -> None:
    """Writes an archive of torch again without the records that are unwanted, by their names. The others keep their
    bytes, and begin at multiples of 64 bytes, as torch has them.

    Only for files that no one else sees yet: it is not atomic.
    """
    with zipfile.ZipFile(path) as archive:
        records = [(one.filename, archive.read(one)) for one in archive.infolist() if not unwanted(one.filename)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records:
            record = zipfile.ZipInfo(name)  # its date is always 1980, as in torch's
            begin = archive.start_dir + _HEADER + len(name.encode()) + 4  # start_dir: where the next record goes
            padding = -begin % ALIGNMENT
            record.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(record, content)
