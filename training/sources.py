"""Where images come from: scikit-learn's digits, MNIST, npz and idx files. Read as data only, never unpickled."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.errors import DataError

_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_TRAIN_IDX, _TEST_IDX = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
_MNIST_SHA256 = {
    f"{_TRAIN_IDX}.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    f"{_TEST_IDX}.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
}
_MNIST_PIXELS = "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"
"""SHA-256 of the 60,000 x 28 x 28 training pixels, by which MNIST is known in whatever file it comes."""
_MAX_DOWNLOAD = 64 * 2**20
_IDX_UBYTE_IMAGES = 0x00000803


@dataclass(frozen=True, eq=False)
class Source:
    """Images as found: (n, height, width) or any (n, ...), values >= 0. `test` is None where the data come unsplit."""

    name: str
    train: np.ndarray
    test: np.ndarray | None


def find(dataset: str) -> Source:
    """The data set of that name, or at that path.

    `mnist` is looked for in $EBM_DATA_DIR, then in the cache ($XDG_CACHE_HOME/ebm), and else downloaded there.

    Raises:
        DataError: unknown name, nothing usable at the path, damaged file, or no way to download.
    """
    if dataset == "digits":
        return _digits()
    if dataset == "mnist":
        return _mnist()
    path = Path(dataset).expanduser()
    if not path.exists():
        raise DataError(f"no data set {dataset!r}: expected digits, mnist, or the path of a folder or file")
    source = _at(path)
    if source is None:
        raise DataError(
            f"{path} holds no data set: expected mnist/mnist.npz, mnist.npz, or {_TRAIN_IDX}[.gz] and {_TEST_IDX}[.gz]"
        )
    return source


def _digits() -> Source:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import, and only needed here

    return Source("digits", load_digits().images.astype(np.uint8), None)


def _mnist() -> Source:
    folder = os.environ.get("EBM_DATA_DIR")
    if folder and (source := _at(Path(folder))) is not None:
        return source
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebm" / "mnist"
    for name in _MNIST_SHA256:
        if not (cache / name).exists():
            download(name, cache)
    source = _at(cache)
    assert source is not None
    return source


def _at(path: Path) -> Source | None:
    """The data set in a file or folder; None where a folder holds none."""
    if path.is_file():
        return _read_npz(path)
    for folder in (path / "mnist", path):
        if (folder / "mnist.npz").is_file():
            return _read_npz(folder / "mnist.npz")
        train, test = _idx_file(folder, _TRAIN_IDX), _idx_file(folder, _TEST_IDX)
        if train and test:
            return _source(path, read_idx(train), read_idx(test))
        if train or test:
            raise DataError(f"{folder} holds one of {_TRAIN_IDX} and {_TEST_IDX}, and not the other")
    return None


def _idx_file(folder: Path, stem: str) -> Path | None:
    # Both spellings are in circulation: train-images-idx3-ubyte and train-images.idx3-ubyte.
    names = (stem, stem.replace("-idx3", ".idx3"))
    return next((folder / f"{n}{end}" for n in names for end in (".gz", "") if (folder / f"{n}{end}").is_file()), None)


def read_idx(path: Path) -> np.ndarray:
    """The images of an idx3-ubyte file, gzipped or not, (n, height, width) uint8.

    Raises:
        DataError: it is no such file, or shorter or longer than its header says.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(16)
            if len(header) < 16 or struct.unpack(">I", header[:4])[0] != _IDX_UBYTE_IMAGES:
                raise DataError(f"{path} is no idx file of images: it must start with 0x{_IDX_UBYTE_IMAGES:08x}")
            shape = struct.unpack(">III", header[4:])
            expected = int(np.prod(shape, dtype=np.int64))
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) != expected:
        more = "more" if len(content) > expected else f"only {len(content):,}"
        raise DataError(f"{path}: the header says {expected:,} pixels {shape}, the file holds {more}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_npz(path: Path) -> Source:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in {"x_train", "x_test", "x"}}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no npz file of plain arrays: {error}") from error
    if "x_train" in arrays and "x_test" in arrays:
        return _source(path, arrays["x_train"], arrays["x_test"])
    if "x" in arrays:
        return _source(path, arrays["x"], None)
    raise DataError(f"{path} has neither arrays x_train and x_test nor an array x")


def _source(path: Path, train: np.ndarray, test: np.ndarray | None) -> Source:
    for name, array in (("training", train), ("test", test)):
        if array is None:
            continue
        if array.dtype.kind not in "buif" or array.ndim < 2 or array.size == 0:
            raise DataError(f"{path}: {name} images must be numbers (n, ...), found {array.dtype} {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{path}: {name} images hold NaN or infinite values")
        if array.min() < 0:
            raise DataError(f"{path}: {name} images hold negative values; expected grey levels from 0 up")
    if test is not None and test.shape[1:] != train.shape[1:]:
        raise DataError(f"{path}: training images are {train.shape[1:]}, test images {test.shape[1:]}")
    pixels = hashlib.sha256(train.tobytes()).hexdigest() if train.dtype == np.uint8 else ""
    return Source("mnist" if pixels == _MNIST_PIXELS else path.stem, train, test)


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - https addresses of our own
        return bytes(answer.read(_MAX_DOWNLOAD))


def download(name: str, folder: Path, fetch: Callable[[str], bytes] = _fetch) -> None:
    """Fetch one of MNIST's files into `folder`; it appears there only if its SHA-256 is right.

    Raises:
        DataError: no mirror gave the right bytes.
    """
    faults = []
    for mirror in _MNIST_MIRRORS:
        try:
            content = fetch(mirror + name)
        except (urllib.error.URLError, OSError) as error:
            faults.append(f"{mirror + name}: {error}")
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == _MNIST_SHA256[name]:
            _store(folder / name, content)
            return
        faults.append(f"{mirror + name}: SHA-256 is {found}, expected {_MNIST_SHA256[name]}")
    raise DataError(
        "MNIST could not be downloaded; give --data PATH or set EBM_DATA_DIR to a folder that has it. "
        + "; ".join(faults)
    )


def _store(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)
