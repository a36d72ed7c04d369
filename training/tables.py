"""Tables in text: csv files, and the .train.data, .valid.data, .test.data of binary density estimation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

TRIPLE = ".train.data"
_LABEL_COLUMNS = {"y", "label", "class", "target"}


def read_triple(path: Path) -> dict[str, NDArray[np.uint8]]:
    """The 0/1 rows of NAME.train.data and of those of NAME.valid.data and NAME.test.data that stand beside it.

    Raises:
        DataError: a file is unreadable or holds anything but rows of 0 and 1.
    """
    parts = {}
    for part, word in (("train", "train"), ("validation", "valid"), ("test", "test")):
        file = path.with_name(f"{path.name.removesuffix(TRIPLE)}.{word}.data")
        if file.is_file():
            parts[part], _ = read_table(file)
            if parts[part].dtype != np.uint8 or parts[part].max(initial=0) > 1:
                raise DataError(f"{file}: expected rows of 0 and 1")
    return parts


def read_table(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Numbers (n, columns), uint8 where they are whole and from 0 to 255, else float64; and labels, if any.

    A first line that is no row of numbers names the columns; one named y, label, class or target holds labels.

    Raises:
        DataError: unreadable, an entry is missing or no number, or there are no rows.
    """
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and only needed here
    from pyarrow import csv  # noqa: PLC0415

    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline().strip()
        delimiter = next((d for d in ",;\t " if d in first), ",")
        fields = [field.strip().strip("\"'") for field in first.split(delimiter)]
        header = any(field and not _is_number(field) for field in fields)
        label = next((k for k, field in enumerate(fields) if header and field.lower() in _LABEL_COLUMNS), None)
        names = [str(k) for k in range(len(fields))]
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=names, skip_rows=int(header)),
            csv.ParseOptions(delimiter=delimiter),
            csv.ConvertOptions(
                column_types={n: pa.string() if k == label else pa.float64() for k, n in enumerate(names)}
            ),
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} is no table of numbers: {error}") from error
    missing = [fields[k] if header else f"column {k + 1}" for k in range(len(names)) if table.column(k).null_count]
    if missing:
        raise DataError(f"{path}: entries are missing in {', '.join(missing[:5])}")
    columns = [table.column(k).to_numpy() for k in range(len(names)) if k != label]
    if not columns or not table.num_rows:
        raise DataError(f"{path}: expected rows of numbers, found {table.num_rows} rows of {len(columns)} columns")
    numbers = np.column_stack(columns)
    with np.errstate(invalid="ignore"):
        if ((numbers >= 0) & (numbers <= 255) & (numbers % 1 == 0)).all():
            numbers = numbers.astype(np.uint8)
    return numbers, None if label is None else _labels(table.column(label).to_pylist())


def _labels(texts: list[str]) -> NDArray[Any]:
    try:
        return np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        return np.array(texts)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
