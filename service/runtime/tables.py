"""Scoring whole tables, a bounded part at a time: CSV, Parquet and .npy in, the same out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from models.domain import DESCRIPTION, inside
from models.errors import InputError
from service.core.card import values_of
from service.runtime.library import Served
from service.runtime.operations import anomaly_scores, choose_score, choose_threshold, p_values, reference_of

Array = NDArray[Any]
Write = Callable[[dict[str, Array]], None]

ROWS = 8192
FORMATS = (".csv", ".parquet", ".npy")


def score_table(
    served: Served,
    source: Path,
    target: Path,
    *,
    score: str | None = None,
    threshold: float | None = None,
    false_positive_rate: float | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> int:
    """Write `row, score, p_value, anomalous` for every row of `source`, in its order; returns the number of rows.

    `score` (higher = stranger) is the anomaly score of that name, by default the model's first: the energy, nats.
    `p_value` and `anomalous` are left out where they are not defined: no reference of that score, no threshold.
    `target` appears whole or not at all. `progress` is told (rows, rows in all).

    Raises:
        InputError: the table does not fit the model, or a value is outside its domain; the row is named.
        OSError: a file cannot be read or written.
    """
    name = choose_score(served, score)
    reference = reference_of(served, name)
    cut = choose_threshold(reference, threshold, false_positive_rate, values_of(name))
    done = 0
    with _read(source, served.card.visible.units) as (total, parts), _write(target) as write:
        for part in parts:
            _check(served, part, done)
            scores = anomaly_scores(served, part.reshape(len(part), *served.card.visible.shape), name)
            columns: dict[str, Array] = {"row": np.arange(done, done + len(part)), "score": scores}
            if reference is not None:
                columns["p_value"] = p_values(reference, scores)
            if cut is not None:
                columns["anomalous"] = scores > cut
            write(columns)
            done += len(part)
            if progress:
                progress(done, total)
        if done == 0:
            raise InputError(f"{source} has no rows")
    return done


def _check(served: Served, part: Array, first: int) -> None:
    # With preprocessing the raw values are in units of their own: there only finiteness can be asked for.
    domain = "real" if served.checkpoint.manifest.preprocessing is not None else served.card.visible.domain
    good = inside(part, domain)
    if not good.all():
        row, column = np.unravel_index(int(np.argmin(good)), good.shape)
        raise InputError(
            f"row {first + int(row)}, column {int(column)} is {part[row, column]}; expected {DESCRIPTION[domain]}"
        )


def _format(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    return suffix


@contextmanager
def _read(source: Path, units: int) -> Iterator[tuple[int | None, Iterator[Array]]]:
    suffix = _format(source)
    try:
        if suffix == ".npy":
            yield _npy(source, units)
        elif suffix == ".parquet":
            with pa.parquet.ParquetFile(source) as file:
                yield file.metadata.num_rows, (_matrix(b, units, source) for b in file.iter_batches(ROWS))
        else:
            options = pa.csv.ReadOptions(autogenerate_column_names=_starts_with_numbers(source))
            with pa.csv.open_csv(source, read_options=options) as reader:
                yield None, (_matrix(batch, units, source) for batch in reader)
    except pa.ArrowInvalid as error:
        raise InputError(f"{source}: {error}") from error


def _npy(source: Path, units: int) -> tuple[int, Iterator[Array]]:
    try:
        array = np.load(source, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{source} is not a .npy array of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise InputError(f"{source} is not a .npy array of numbers")
    if array.ndim < 2 or int(np.prod(array.shape[1:])) != units:
        raise InputError(f"{source} has shape {list(array.shape)}; expected {units} numbers in each row")
    flat = array.reshape(len(array), units)
    return len(flat), (np.asarray(flat[i : i + ROWS], np.float64) for i in range(0, len(flat), ROWS))


def _starts_with_numbers(source: Path) -> bool:
    with source.open(newline="", errors="replace") as file:
        cells = file.readline().strip().split(",")
    try:
        [float(cell.strip().strip('"')) for cell in cells]
    except ValueError:
        return False
    return True


def _matrix(batch: Any, units: int, source: Path) -> Array:
    if batch.num_columns != units:
        raise InputError(f"{source} has {batch.num_columns} columns; expected {units}, one a visible unit")
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise InputError(f"{source}: column {name!r} holds {kind}; expected numbers")
        columns.append(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    return np.column_stack(columns)


@contextmanager
def _write(target: Path) -> Iterator[Write]:
    suffix = _format(target)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    opened: AbstractContextManager[Write] = _npy_writer(aside) if suffix == ".npy" else _arrow_writer(aside, suffix)
    try:
        with opened as write:
            yield write
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _arrow_writer(path: Path, suffix: str) -> Iterator[Write]:
    writer: Any = None
    opens = pa.csv.CSVWriter if suffix == ".csv" else pa.parquet.ParquetWriter

    def write(columns: dict[str, Array]) -> None:
        nonlocal writer
        table = pa.table(columns)
        if writer is None:
            writer = opens(path, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _npy_writer(path: Path) -> Iterator[Write]:
    """A structured array whose header, of fixed length, is written again once the number of rows is known."""
    with path.open("w+b") as file:
        rows, dtype = 0, None

        def write(columns: dict[str, Array]) -> None:
            nonlocal rows, dtype
            if dtype is None:
                dtype = np.dtype([(name, values.dtype) for name, values in columns.items()])
                _npy_header(file, dtype, 0)
            block = np.empty(len(columns["row"]), dtype)
            for name, values in columns.items():
                block[name] = values
            file.write(block.tobytes())
            rows += len(block)

        yield write
        if dtype is not None:
            file.seek(0)
            _npy_header(file, dtype, rows)


def _npy_header(file: IO[bytes], dtype: np.dtype[Any], rows: int) -> None:
    # numpy pads the header so that the number of rows can grow in place.
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows,)}
    )
