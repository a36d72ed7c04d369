from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.errors import DataError
from training.files import Layout, Source, read, read_idx

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"


def _parts(source: Source) -> list[int | None]:
    return [None if part is None else len(part) for part in (source.train, source.validation, source.test)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("x",), [5, None, None]),
        (("X",), [5, None, None]),
        (("x_train",), [5, None, None]),
        (("x_train", "x_test"), [5, None, 6]),
        (("x_train", "x_test", "x_valid"), [5, 7, 6]),
        (("train", "test", "valid"), [5, 7, 6]),
        (("train", "test"), [5, None, 6]),
    ],
)
def test_an_npz_has_the_parts_that_its_arrays_name(
    tmp_path: Path, images: np.ndarray, names: tuple[str, ...], expected: list[int | None]
) -> None:
    np.savez(tmp_path / "a.npz", **{name: images[: 5 + k] for k, name in enumerate(names)})
    assert _parts(read(tmp_path / "a.npz")) == expected


def test_an_npy_holds_examples_that_come_unsplit(tmp_path: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", images)
    np.testing.assert_array_equal(read(tmp_path / "a.npy").train.examples, images)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(bits=st.integers(1, 40), n=st.integers(1, 5), seed=st.integers(0, 99))
def test_packed_rows_come_back_bit_for_bit(tmp_path: Path, bits: int, n: int, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 2, (n, bits), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train=np.packbits(rows, axis=1), n_vars=np.int64(bits))
    np.testing.assert_array_equal(read(tmp_path / "a.npz").train.examples, rows)
    np.savez(tmp_path / "b.npz", x=np.packbits(rows, axis=1))
    np.testing.assert_array_equal(read(tmp_path / "b.npz", Layout(packed=bits)).train.examples, rows)


@pytest.mark.parametrize("labels", [[3, 3, 7, 5], [3.0, 3.0, 7.0, 5.0], ["b", "b", "d", "c"], [-1, -1, 9, 0]])
def test_labels_become_positions_among_the_classes_met(tmp_path: Path, labels: list[Any]) -> None:
    x = np.zeros((4, 2))
    np.savez(tmp_path / "a.npz", x_train=x[:2], y_train=labels[:2], x_test=x[2:], y_test=labels[2:])
    source = read(tmp_path / "a.npz")
    assert source.test is not None
    assert source.train.labels is not None
    assert source.test.labels is not None
    assert source.classes == sorted(set(labels))
    assert source.train.labels.dtype == source.test.labels.dtype == np.int64
    positions = [*source.train.labels.tolist(), *source.test.labels.tolist()]
    assert [source.classes[k] for k in positions] == labels


@pytest.mark.parametrize(("labels", "expected"), [([0, 1, 2, 1], [0, 1, 2, 1]), ([1, 2, 3, 1], [0, 1, 2, 0])])
def test_named_classes_are_numbered_from_0_or_from_1(tmp_path: Path, labels: list[int], expected: list[int]) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=labels, classnames=["a", "b", "c"])
    source = read(tmp_path / "a.npz")
    assert source.classes == ["a", "b", "c"]
    np.testing.assert_array_equal(source.train.labels, expected)


def _csv(path: Path, text: str) -> Source:
    path.write_bytes(text.encode())
    return read(path)


def test_a_csv_of_numbers_is_read_with_or_without_a_line_of_names(tmp_path: Path) -> None:
    for text in ("1.5,-2\n3,4\n", "a,b\n1.5,-2\n3,4\n", "1.5;-2\n3;4\n", "\ufeff1.5,-2\r\n3,4\r\n"):
        source = _csv(tmp_path / "a.csv", text)
        np.testing.assert_array_equal(source.train.examples, [[1.5, -2], [3, 4]])
        assert source.train.labels is None


def test_a_csv_of_bytes_stays_small(tmp_path: Path) -> None:
    assert _csv(tmp_path / "a.csv", "0,255\n3,4\n").train.examples.dtype == np.uint8


@pytest.mark.parametrize(("words", "classes"), [("3 3 1", [1, 3]), ("cat cat ant", ["ant", "cat"])])
def test_a_csv_column_of_that_name_holds_labels(tmp_path: Path, words: str, classes: list[Any]) -> None:
    a, b, c = words.split()
    source = _csv(tmp_path / "a.csv", f"u,Label,v\n1,{a},2\n3,{b},4\n5,{c},6\n")
    np.testing.assert_array_equal(source.train.examples, [[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(source.train.labels, [1, 1, 0])
    assert source.classes == classes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is no table of numbers|found 0 rows"),
        ("a,b\n", "is no table of numbers|found 0 rows"),
        ("1,2\n3\n", "is no table of numbers"),
        ("1,2\n3,x\n", "is no table of numbers"),
        ("1,\n3,4\n", "entries are missing in column 2"),
        ("a,b\n1,2\n3,\n", "entries are missing in b"),
        ("1,2\n3,inf\n", "NaN or infinite"),
        ("label\n1\n2\n", "found 2 rows of 0 columns"),
    ],
)
def test_a_malformed_csv_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        _csv(tmp_path / "a.csv", text)


def test_text_that_is_not_of_zeros_and_ones_is_refused_as_a_density_set(tmp_path: Path) -> None:
    (tmp_path / "a.train.data").write_text("0,1\n")
    (tmp_path / "a.test.data").write_text("0,2\n")
    with pytest.raises(DataError, match=r"a\.test\.data: expected rows of 0 and 1"):
        read(tmp_path / "a.train.data")


def _idx(*shape: int, magic: int = 0x803) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is no idx file of images"),
        (_idx(2, 2, 2, magic=0x801) + bytes(8), "is no idx file of images"),
        (_idx(2, 2, 2) + bytes(7), r"the header says 8 bytes \(2, 2, 2\), the file holds only 7"),
        (_idx(2, 2, 2) + bytes(9), "the file holds more"),
        (_idx(2**32 - 1, 2**32 - 1, 2**32 - 1), "the header says"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_malformed_idx_file_is_refused(tmp_path: Path, content: bytes, expected: str, end: str) -> None:
    path = tmp_path / f"{TRAIN}{end}"
    path.write_bytes(gzip.compress(content) if end else content)
    with pytest.raises(DataError, match=expected):
        read_idx(path)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(_idx(2, 2, 2) + bytes(8))
    for content in (b"no gzip", whole[:-12], whole[:20] + b"\xff\xff" + whole[22:]):
        path = tmp_path / f"{TRAIN}.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read|the file holds"):
            read_idx(path)


def test_idx_labels_go_with_their_images_and_must_be_as_many(
    tmp_path: Path, images: np.ndarray, write_idx: Callable[..., Path]
) -> None:
    write_idx(tmp_path / TRAIN, images)
    write_idx(tmp_path / TEST, images[:3])
    write_idx(tmp_path / "train-labels.idx1-ubyte.gz", np.arange(40) % 4)
    with pytest.raises(DataError, match="train examples have labels, test examples have none"):
        read(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([2, 1, 0]))
    source = read(tmp_path)
    assert source.test is not None
    np.testing.assert_array_equal(source.test.labels, [2, 1, 0])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([2, 1]))
    with pytest.raises(DataError, match=r"3 test examples have labels \(2,\)"):
        read(tmp_path)


def _objects() -> dict[str, Any]:
    return {"x_train": np.array([{"a": 1}], dtype=object), "x_test": np.zeros((1, 2, 2))}


_X = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        (_objects(), "is no npz file of plain arrays"),
        ({"images": np.zeros((3, 2, 2))}, "holds images; expected the arrays x_train"),
        ({"x": np.array(["a", "b"])}, "must be numbers"),
        ({"x": np.zeros(3)}, r"must be numbers \(n, \.\.\.\), found float64 \(3,\)"),
        ({"x": np.zeros((0, 2, 2))}, "must be numbers"),
        ({"x": np.full((3, 2, 2), np.nan)}, "NaN or infinite"),
        ({"x_train": np.zeros((3, 2, 2)), "x_test": np.zeros((3, 2, 3))}, r"training examples are \(2, 2\), test"),
        ({"valid": _X, "test": _X}, "expected the arrays"),
        ({"train": np.zeros((3, 2), np.uint8), "n_vars": 17}, r"expected rows of 17 values, or packed in 3 bytes"),
        ({"train": np.zeros((3, 2), np.uint8), "n_vars": [16]}, "n_vars must be one positive integer"),
        ({"train": np.zeros((3, 2), np.uint8), "n_vars": -1}, "n_vars must be one positive integer"),
        ({"x": _X, "split": [0, 1]}, r"split is \(2,\), for 3 examples"),
        ({"x": _X, "split": [0, 1, 3]}, "split must hold 0"),
        ({"x": _X, "split": [1, 1, 2]}, "train examples must be numbers"),
        ({"x": _X, "y": [0, 1]}, r"3 train examples have labels \(2,\)"),
        ({"x": _X, "y": [[0], [1], [2]]}, r"3 train examples have labels \(3, 1\)"),
        ({"x": _X, "y": [0, 0.5, 1]}, "labels must be whole numbers or names"),
        ({"x": _X, "y": [0, np.nan, 1]}, "labels must be whole numbers or names"),
        ({"x": _X, "y": [0, 1, 3], "classnames": ["a", "b"]}, "2 classes are named, but labels run from 0 to 3"),
        ({"x_train": _X, "x_test": _X, "y_train": [0, 1, 0]}, "train examples have labels, test examples have none"),
    ],
)
def test_a_malformed_npz_is_refused(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=expected):
        read(tmp_path / "bad.npz")


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_damaged_npz_is_refused(tmp_path: Path, images: np.ndarray, keep: int) -> None:
    np.savez_compressed(tmp_path / "whole.npz", x=images)
    (tmp_path / "bad.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:keep])
    with pytest.raises(DataError, match="is no npz file of plain arrays"):
        read(tmp_path / "bad.npz")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255), kind=st.sampled_from(["npz", "npy"]))
def test_a_file_with_a_wrong_byte_is_read_or_refused_and_nothing_else(
    tmp_path: Path, at: int, value: int, kind: str
) -> None:
    whole = io.BytesIO()
    rows = np.arange(12.0).reshape(3, 4)
    if kind == "npz":
        np.savez(whole, x=rows, y=np.arange(3))
    else:
        np.save(whole, rows)
    content = bytearray(whole.getvalue())
    content[at % len(content)] = value
    (tmp_path / f"a.{kind}").write_bytes(content)
    try:
        source = read(tmp_path / f"a.{kind}")
    except DataError as refusal:
        message = str(refusal)
        assert f"a.{kind}" in message
    else:
        assert source.train.examples.size
