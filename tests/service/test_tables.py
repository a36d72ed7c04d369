"""Scoring whole tables in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from models.errors import InputError
from service.runtime import tables
from service.runtime.library import Served, serve_folder
from service.runtime.rows import energies
from service.runtime.tables import score_table
from tests.service.example import D, write_rbm


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return serve_folder(write_rbm(tmp_path / "models", references=999), torch.device("cpu"))


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (1000, D)).astype(np.float64)


def put(rows: np.ndarray, path: Path) -> Path:
    table = pa.table({f"x{i}": rows[:, i] for i in range(rows.shape[1])})
    match path.suffix:
        case ".npy":
            np.save(path, rows)
        case ".parquet":
            pa.parquet.write_table(table, path, row_group_size=137)
        case ".csv":
            pa.csv.write_csv(table, path)
    return path


def get(path: Path) -> dict[str, np.ndarray]:
    match path.suffix:
        case ".npy":
            array = np.load(path, allow_pickle=False)
            return {name: array[name] for name in array.dtype.names}
        case ".parquet":
            table = pa.parquet.read_table(path)
        case _:
            table = pa.csv.read_csv(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


@pytest.mark.parametrize("source", tables.FORMATS)
@pytest.mark.parametrize("target", tables.FORMATS)
def test_every_format_gives_the_models_energies_in_order(
    served: Served, rows: np.ndarray, tmp_path: Path, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS", 64)
    out = tmp_path / f"out{target}"
    assert score_table(served, put(rows, tmp_path / f"in{source}"), out, false_positive_rate=0.1) == 1000
    found = get(out)
    np.testing.assert_array_equal(found["row"], np.arange(1000))
    np.testing.assert_allclose(found["score"], energies(served, rows), atol=1e-5)
    reference = served.checkpoint.reference
    assert reference is not None
    brute = [(1 + (reference.energies >= s).sum()) / 1000 for s in found["score"]]
    np.testing.assert_allclose(found["p_value"], brute, rtol=1e-12)
    np.testing.assert_array_equal(found["anomalous"], found["p_value"] <= 0.1)
    assert 0 < found["anomalous"].sum() < 1000


def test_a_csv_without_a_header_keeps_its_first_row(served: Served, rows: np.ndarray, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "in.csv", rows, delimiter=",", fmt="%d")
    assert score_table(served, tmp_path / "in.csv", tmp_path / "out.csv") == 1000


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: rows[:, :-1], r"9.*expected 10"),
        (
            lambda rows: np.where(np.arange(D) == 3, np.where(np.arange(1000)[:, None] == 700, 0.5, rows), rows),
            r"row 700, column 3 is 0.5; expected 0 or 1",
        ),
        (lambda rows: np.where(np.arange(1000)[:, None] == 2, np.nan, rows), r"row 2, column 0 is nan"),
        (lambda rows: rows[:0], "no rows"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_table_that_does_not_fit_is_refused_and_leaves_no_output(
    served: Served, rows: np.ndarray, tmp_path: Path, suffix: str, spoil, said: str
) -> None:
    source = put(spoil(rows), tmp_path / f"in{suffix}")
    with pytest.raises(InputError, match=said):
        score_table(served, source, tmp_path / "out.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, "models"])


@pytest.mark.parametrize("suffix", tables.FORMATS)
def test_a_file_that_is_something_else_is_refused(served: Served, tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"in{suffix}"
    source.write_bytes(b"\x80\x04\x95pickled, perhaps\n\x00\x01")
    with pytest.raises(InputError, match="in"):
        score_table(served, source, tmp_path / "out.csv")


def test_an_unknown_format_is_refused(served: Served, rows: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.csv, \.parquet, \.npy"):
        score_table(served, tmp_path / "in.xlsx", tmp_path / "out.csv")


def test_a_rate_without_reference_energies_is_refused(tmp_path: Path, rows: np.ndarray) -> None:
    served = serve_folder(write_rbm(tmp_path / "models"), torch.device("cpu"))
    with pytest.raises(InputError, match="no reference energies"):
        score_table(served, put(rows, tmp_path / "in.npy"), tmp_path / "out.npy", false_positive_rate=0.1)
    score_table(served, tmp_path / "in.npy", tmp_path / "out.npy", threshold=0.0)
    found = get(tmp_path / "out.npy")
    assert set(found) == {"row", "score", "anomalous"}
    np.testing.assert_array_equal(found["anomalous"], found["score"] > 0.0)
