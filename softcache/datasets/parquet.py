"""Samples from image files that a Parquet file lists."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softcache.datasets._fraction import check_fraction
from softcache.datasets._outputs import Outputs, asked_outputs
from softcache.datasets._samples import Samples
from softcache.datasets._table import Table, pick_columns, read_table_file, table_samples
from softcache.errors import DatasetError
from softcache.extras import missing_extra


@dataclass(frozen=True)
class Parquet:
    """``parquet:FILE``: the columns of ``csv:`` in a Parquet file. Labels: texts, whole numbers, null for none."""

    path: str = field(metadata={"rest": True})
    binary: str | None = None
    values: str | None = None
    test_fraction: float | None = None

    def __post_init__(self) -> None:
        asked_outputs(self.binary, self.values, "parquet:")
        if self.test_fraction is not None:
            check_fraction(self.test_fraction)

    def open(self, split: str, *, data_dir: Path | None = None, download: bool = False) -> Samples:
        """A split.

        Errors: ``DatasetError`` that names the row for a table that is not as ``Csv`` says, and for files that are
        missing; ``MissingExtraError`` where pyarrow is not installed.
        """
        path = Path(self.path).expanduser().resolve()
        outputs = asked_outputs(self.binary, self.values, "parquet:")
        table = _read(path, outputs)
        return table_samples(path, table, split, source="parquet", fraction=self.test_fraction, outputs=outputs)


def _read(path: Path, outputs: Outputs | None) -> Table:
    if importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("a parquet: dataset needs pyarrow", "parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = read_table_file(path)
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        chosen = pick_columns(path, file.schema_arrow.names, outputs)
        table = file.read(columns=[file.schema_arrow.names[at] for at in chosen.values()])
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} can't be read as Parquet: {' '.join(str(error).split())[:200]}") from None
    columns = {}
    for name, at in chosen.items():
        column = table.column(file.schema_arrow.names[at])
        to_text = _number_text if outputs is not None and name in outputs.names else _text
        columns[name] = [to_text(value, path, name) for value in column.to_pylist()]
    return Table(columns, [f"row {row}" for row in range(len(columns["file"]))])


def _number_text(value: Any, path: Path, column: str) -> str:
    """Of a label that is a number or a truth value, as it stands in a CSV file."""
    if value is None:
        return ""
    if not isinstance(value, (bool, int, float, str)):
        raise DatasetError(f"{path}: the column {column} must hold numbers, found {type(value).__name__}")
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)


def _text(value: Any, path: Path, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DatasetError(
            f"{path}: the column of the {column} must hold texts"
            + " or whole numbers" * (column == "label")
            + f", found {type(value).__name__}"
        )
    return str(value)
