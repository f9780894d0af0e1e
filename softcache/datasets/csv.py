"""Samples from image files that a CSV file lists."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from softcache.datasets._fraction import check_fraction
from softcache.datasets._outputs import Outputs, asked_outputs
from softcache.datasets._samples import Samples
from softcache.datasets._table import Table, pick_columns, read_table_file, table_samples
from softcache.errors import DatasetError


@dataclass(frozen=True)
class Csv:
    """``csv:FILE``: a row an image, with a header: columns ``file`` (or ``image``, ``path``), ``label`` (or ``class``).

    Paths are relative to the folder of the CSV file and stay in it; absolute ones are taken as they are. Labels are
    class names; a row with an empty one (or -1 where all others are whole numbers) has no label. An optional column
    ``split`` says ``train``, or ``test``, ``val``, ``valid`` or ``validation``; without it ``test_fraction`` divides
    the rows as ``Folder`` does. ``binary`` and ``values`` name columns, ``a+b``, that are labels of these kinds in
    place of ``label``: 1 or 0 (``true``, ``yes``) each, or numbers; an empty one is unknown. Rows are in the order of
    the file; other columns are not looked at.
    """

    path: str = field(metadata={"rest": True})
    binary: str | None = None
    values: str | None = None
    test_fraction: float | None = None

    def __post_init__(self) -> None:
        asked_outputs(self.binary, self.values, "csv:")
        if self.test_fraction is not None:
            check_fraction(self.test_fraction)

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """A split.

        Errors: ``DatasetError`` that names the line for a table that is not as above, and for files that are missing.
        """
        path = Path(self.path).expanduser().resolve()
        outputs = asked_outputs(self.binary, self.values, "csv:")
        table = _read(path, outputs)
        return table_samples(path, table, split, source="csv", fraction=self.test_fraction, outputs=outputs)


def _read(path: Path, outputs: Outputs | None) -> Table:
    try:
        text = read_table_file(path).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        chosen = pick_columns(path, header, outputs)
        rows: list[Sequence[str]] = []
        lines: list[int] = []
        for row in reader:
            if not row:
                continue  # an empty line
            if len(row) != len(header):
                raise DatasetError(f"{path}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}")
            rows.append(row)
            lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: {error}") from None
    columns = {name: [row[at] for row in rows] for name, at in chosen.items()}
    return Table(columns, [f"line {line}" for line in lines])
