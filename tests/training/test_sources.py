from __future__ import annotations

import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import sources
from training.errors import DataError
from training.sources import find, read_idx

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"


def test_digits_come_without_a_download_in_their_own_levels() -> None:
    digits = find("digits")
    assert (digits.train.shape, digits.train.max(), digits.test) == ((1797, 8, 8), 16, None)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "mnist"])
def test_idx_files_are_found_in_the_folder_or_in_its_mnist(
    tmp_path: Path, images: np.ndarray, write_idx: Callable[..., Path], end: str, folder: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    write_idx(tmp_path / folder / f"{TRAIN}{end}", images)
    write_idx(tmp_path / folder / f"{TEST}{end}", images[:7])
    source = find(str(tmp_path))
    np.testing.assert_array_equal(source.train, images)
    assert source.test is not None
    np.testing.assert_array_equal(source.test, images[:7])


@pytest.mark.parametrize("where", ["file.npz", "mnist.npz", "mnist/mnist.npz"])
def test_an_npz_is_found_by_its_path_or_in_its_folder(tmp_path: Path, images: np.ndarray, where: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    np.savez(path, x_train=images, x_test=images[:5])
    source = find(str(path if where == "file.npz" else tmp_path))
    np.testing.assert_array_equal(source.train, images)


def test_an_npz_with_one_array_x_comes_unsplit(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "all.npz", x=images)
    assert find(str(tmp_path / "all.npz")).test is None


def test_the_data_folder_is_searched_for_mnist(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "mnist.npz", x_train=images, x_test=images[:5])
    monkeypatch.setenv("EBM_DATA_DIR", str(tmp_path))
    np.testing.assert_array_equal(find("mnist").train, images)


def _idx(*shape: int, magic: int = 0x803) -> bytes:
    return struct.pack(">IIII", magic, *shape)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is no idx file of images"),
        (_idx(2, 2, 2, magic=0x801) + bytes(8), "is no idx file of images"),
        (_idx(2, 2, 2) + bytes(7), r"the header says 8 pixels \(2, 2, 2\), the file holds only 7"),
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


def _objects() -> dict[str, Any]:
    return {"x_train": np.array([{"a": 1}], dtype=object), "x_test": np.zeros((1, 2, 2))}


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        (_objects(), "is no npz file of plain arrays"),
        ({"images": np.zeros((3, 2, 2))}, "neither arrays x_train and x_test nor an array x"),
        ({"x": np.array(["a", "b"])}, "must be numbers"),
        ({"x": np.zeros(3)}, r"must be numbers \(n, \.\.\.\), found float64 \(3,\)"),
        ({"x": np.zeros((0, 2, 2))}, "must be numbers"),
        ({"x": np.full((3, 2, 2), np.nan)}, "NaN or infinite"),
        ({"x": np.full((3, 2, 2), -1)}, "negative values"),
        ({"x_train": np.zeros((3, 2, 2)), "x_test": np.zeros((3, 2, 3))}, r"training images are \(2, 2\), test"),
    ],
)
def test_a_malformed_npz_is_refused(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=expected):
        find(str(tmp_path / "bad.npz"))


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_damaged_npz_is_refused(tmp_path: Path, images: np.ndarray, keep: int) -> None:
    np.savez_compressed(tmp_path / "whole.npz", x=images)
    (tmp_path / "bad.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:keep])
    with pytest.raises(DataError, match="is no npz file of plain arrays"):
        find(str(tmp_path / "bad.npz"))


def test_a_folder_with_half_of_the_files_or_none_is_refused(
    tmp_path: Path, images: np.ndarray, write_idx: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match="holds no data set: expected"):
        find(str(tmp_path))
    write_idx(tmp_path / TRAIN, images)
    with pytest.raises(DataError, match="holds one of"):
        find(str(tmp_path))


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="no data set 'nmist': expected digits, mnist, or the path"):
        find("nmist")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def mirrors(
    tmp_path: Path, images: np.ndarray, write_idx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Two mirrors on this machine, `bad/` and `good/`, with synthetic images; the good ones have the right SHA-256."""
    sums = {}
    for name, part in ((f"{TRAIN}.gz", images), (f"{TEST}.gz", images[:9])):
        for mirror in ("bad", "good"):
            (tmp_path / "web" / mirror).mkdir(parents=True, exist_ok=True)
            write_idx(tmp_path / "web" / mirror / name, part if mirror == "good" else part[::-1])
        sums[name] = hashlib.sha256((tmp_path / "web" / "good" / name).read_bytes()).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(sources, "_MNIST_MIRRORS", (f"{here}/none/", f"{here}/bad/", f"{here}/good/"))
    monkeypatch.setattr(sources, "_MNIST_SHA256", sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EBM_DATA_DIR", raising=False)
    yield tmp_path / "web"
    server.shutdown()
    thread.join()
    server.server_close()


def test_mnist_is_downloaded_from_the_first_mirror_whose_checksum_is_right_and_kept(
    mirrors: Path, images: np.ndarray
) -> None:
    np.testing.assert_array_equal(find("mnist").train, images)
    for name in (TRAIN, TEST):
        (mirrors / "good" / f"{name}.gz").unlink()
    np.testing.assert_array_equal(find("mnist").train, images)


def test_a_wrong_checksum_is_refused_and_nothing_of_it_is_kept(mirrors: Path, tmp_path: Path) -> None:
    for name in (TRAIN, TEST):
        (mirrors / "good" / f"{name}.gz").unlink()
    with pytest.raises(DataError, match=r"--data PATH or set EBM_DATA_DIR.*SHA-256 is [0-9a-f]{64}, expected"):
        find("mnist")
    assert not list((tmp_path / "cache").rglob("*.gz"))
