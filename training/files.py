"""Files of examples: npz, npy, csv, idx, CIFAR-10's binary batches. Read as data only, never unpickled."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import tables
from training.errors import DataError

PARTS = ("train", "validation", "test")
FORMATS = (".npz", ".npy", ".csv", tables.TRIPLE)
_MNIST_PIXELS = "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"
"""SHA-256 of the 60,000 x 28 x 28 training pixels, by which MNIST is known in whatever file it comes."""
_IDX = {"train": "train", "test": "t10k"}
_CIFAR_TRAIN, _CIFAR_TEST = tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"
_CIFAR_ROW = 1 + 3 * 32 * 32
# The names under which arrays of examples, and beside them labels, are known; a tuple is one way to name all parts.
_EXAMPLES = (
    {"train": "x_train", "validation": "x_valid", "test": "x_test"},
    {"train": "train", "validation": "valid", "test": "test"},
)
_LABELS = {"train": "y_train", "validation": "y_valid", "test": "y_test"}
_OTHERS = {"x", "y", "n_vars", "split", "classnames"}
_EXPECTED = "x_train (with x_test, x_valid, y_train, ...), or train (with valid, test, n_vars), or x (with y, split)"


@dataclass(frozen=True, eq=False)
class Part:
    """Examples (n, ...), and where there are labels the position of each example's class, int64 (n,)."""

    examples: NDArray[Any]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, index: NDArray[np.int64] | slice) -> Part:
        """These examples with their labels."""
        return Part(self.examples[index], None if self.labels is None else self.labels[index])


@dataclass(frozen=True, eq=False)
class Source:
    """Examples as found, in their own units. `validation` and `test` are None where the data have no such part."""

    name: str
    train: Part
    validation: Part | None = None
    test: Part | None = None
    classes: list[str | int] | None = None
    """What the labels stand for, in order; None without labels."""
    frames: bool = False
    """Whether the examples are in time order, and neighbours much alike."""


@dataclass(frozen=True)
class Layout:
    """What a file does not say of itself."""

    packed: int | None = None
    """Bits in a row of packed bytes (numpy.packbits), where rows are packed."""
    shape: tuple[int, ...] | None = None
    """Shape of one example, where rows are flat."""
    classes: tuple[str, ...] = ()
    frames: bool = False


def holds_idx(folder: Path) -> bool:
    """Whether there are idx files in a folder."""
    return any(_idx(folder))


def holds_cifar(folder: Path) -> bool:
    """Whether there are CIFAR-10's binary batches in a folder."""
    return (folder / _CIFAR_TEST).is_file()


def stem(path: Path) -> str:
    """The name of a data set by that of its file or folder."""
    return path.name.removesuffix(tables.TRIPLE) if path.name.endswith(tables.TRIPLE) else path.stem


def read(path: Path, layout: Layout | None = None) -> Source:
    """The data set in a file or folder, named as the file.

    Raises:
        DataError: not readable, or not what it should be; the message says what was expected.
    """
    layout = layout or Layout()
    if path.is_dir():
        return _read_cifar(path, layout) if holds_cifar(path) else _read_idx_folder(path, layout)
    if path.name.endswith(tables.TRIPLE):
        return _source(path, tables.read_triple(path), {}, layout)
    if path.suffix == ".csv":
        examples, labels = tables.read_table(path)
        return _source(path, {"train": examples}, {} if labels is None else {"train": labels}, layout)
    return _read_numpy(path, layout)


def read_idx(path: Path, dimensions: int = 3) -> NDArray[np.uint8]:
    """The content of an idx-ubyte file, gzipped or not: images (n, height, width), or labels (n,) of dimension 1.

    Raises:
        DataError: it is no such file, or shorter or longer than its header says.
    """
    magic, size = 0x800 + dimensions, 4 + 4 * dimensions
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(size)
            if len(header) < size or struct.unpack(">I", header[:4])[0] != magic:
                kind = "labels" if dimensions == 1 else "images"
                raise DataError(f"{path} is no idx file of {kind}: it must start with 0x{magic:08x}")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            expected = int(np.prod(shape, dtype=np.int64))
            content = file.read(expected + 1)
    except (OSError, EOFError, OverflowError, MemoryError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) != expected:
        more = "more" if len(content) > expected else f"only {len(content):,}"
        raise DataError(f"{path}: the header says {expected:,} bytes {shape}, the file holds {more}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()  # writable, as torch wants it


def _idx(folder: Path) -> list[Path | None]:
    """The idx files of a folder: training images, test images, training labels, test labels."""
    # Two spellings are in circulation: train-images-idx3-ubyte and train-images.idx3-ubyte.
    ends = [f"{dash}idx{{}}-ubyte{gz}" for dash in "-." for gz in (".gz", "")]
    stems = [(part, kind, n) for kind, n in (("images", 3), ("labels", 1)) for part in _IDX.values()]
    return [
        next((p for end in ends if (p := folder / f"{part}-{kind}{end.format(n)}").is_file()), None)
        for part, kind, n in stems
    ]


def _read_idx_folder(folder: Path, layout: Layout) -> Source:
    train, test, *labels = _idx(folder)
    if train is None or test is None:
        raise DataError(f"{folder} holds one of train-images-idx3-ubyte and t10k-images-idx3-ubyte, and not the other")
    examples = {"train": read_idx(train), "test": read_idx(test)}
    found = {part: read_idx(path, 1) for part, path in zip(_IDX, labels, strict=True) if path is not None}
    return _source(folder, examples, found, layout)


def _read_cifar(folder: Path, layout: Layout) -> Source:
    batches = {}
    for name in (*_CIFAR_TRAIN, _CIFAR_TEST):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read: {error}") from error
        if not content or len(content) % _CIFAR_ROW:
            raise DataError(f"{folder / name}: expected rows of {_CIFAR_ROW:,} bytes, found {len(content):,} bytes")
        batches[name] = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_ROW)
    rows = {"train": np.concatenate([batches[name] for name in _CIFAR_TRAIN]), "test": batches[_CIFAR_TEST]}
    images = {part: row[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for part, row in rows.items()}
    return _source(folder, images, {part: row[:, 0] for part, row in rows.items()}, layout)


def _read_numpy(path: Path, layout: Layout) -> Source:
    names = {*_LABELS.values(), *_OTHERS, *(name for way in _EXAMPLES for name in way.values())}
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                arrays, found = {"x": file}, ["x"]
            else:
                found = list(file.files)
                arrays = {name.lower(): file[name] for name in found if name.lower() in names}
    except Exception as error:  # a damaged header lets through whatever zipfile, zlib or Python's tokenizer raise
        raise DataError(f"{path} is no {path.suffix[1:] or 'npz'} file of plain arrays: {error}") from error
    return _from_arrays(path, arrays, found, layout)


def _from_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], found: list[str], layout: Layout) -> Source:
    way = next((way for way in _EXAMPLES if way["train"] in arrays), None)
    if way is not None:
        examples = {part: arrays[name] for part, name in way.items() if name in arrays}
        labels = {part: arrays[name] for part, name in _LABELS.items() if name in arrays and part in examples}
    elif "x" in arrays:
        examples, labels = {"train": arrays["x"]}, {"train": arrays["y"]} if "y" in arrays else {}
    else:
        raise DataError(f"{path} holds {', '.join(found) or 'nothing'}; expected the arrays {_EXPECTED}")
    bits = arrays.get("n_vars", layout.packed)
    if bits is not None:
        examples = {part: _unpacked(path, array, bits) for part, array in examples.items()}
    if "split" in arrays and way is None:
        examples, labels = (_by_split(path, named, arrays["split"]) for named in (examples, labels))
    names = tuple(map(str, arrays["classnames"].ravel())) if "classnames" in arrays else layout.classes
    return _source(path, examples, labels, Layout(None, layout.shape, names, layout.frames))


def _unpacked(path: Path, rows: NDArray[Any], bits: Any) -> NDArray[Any]:
    if np.ndim(bits) or np.asarray(bits).dtype.kind not in "iu" or bits < 1:
        raise DataError(f"{path}: n_vars must be one positive integer, the number of bits in a packed row")
    n = int(bits)
    if rows.ndim == 2 and rows.dtype == np.uint8 and rows.shape[1] == (n + 7) // 8:
        return np.unpackbits(rows, axis=1)[:, :n]
    if int(np.prod(rows.shape[1:])) == n:  # not packed after all
        return rows
    raise DataError(
        f"{path}: expected rows of {n} values, or packed in {(n + 7) // 8} bytes; found {rows.dtype} {rows.shape}"
    )


def _by_split(path: Path, named: dict[str, NDArray[Any]], split: NDArray[Any]) -> dict[str, NDArray[Any]]:
    if split.dtype.kind not in "iu" or not np.isin(split, (0, 1, 2)).all():
        raise DataError(f"{path}: split must hold 0 (train), 1 (validation) or 2 (test) for each example")
    for array in named.values():
        if array.shape[:1] != split.shape:
            raise DataError(f"{path}: split is {split.shape}, for {len(array)} examples")
    return {
        part: array[split == number]
        for array in named.values()
        for number, part in enumerate(PARTS)
        if (split == number).any() or part == "train"
    }


def _source(
    path: Path, examples: Mapping[str, NDArray[Any]], labels: Mapping[str, NDArray[Any]], layout: Layout
) -> Source:
    for part, array in examples.items():
        if array.dtype.kind not in "buif" or array.ndim < 2 or array.size == 0:
            raise DataError(f"{path}: {part} examples must be numbers (n, ...), found {array.dtype} {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{path}: {part} examples hold NaN or infinite values")
        if array.shape[1:] != examples["train"].shape[1:]:
            raise DataError(
                f"{path}: training examples are {examples['train'].shape[1:]}, {part} examples {array.shape[1:]}"
            )
    positions, classes = _classes(path, examples, labels, layout.classes)
    train = examples["train"]
    shape = layout.shape if layout.shape and np.prod(train.shape[1:]) == np.prod(layout.shape) else train.shape[1:]
    parts = {part: Part(array.reshape(-1, *shape), positions.get(part)) for part, array in examples.items()}
    return Source(_name(path, train), **parts, classes=classes, frames=layout.frames)


def _classes(
    path: Path, examples: Mapping[str, NDArray[Any]], labels: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> tuple[dict[str, NDArray[np.int64]], list[str | int] | None]:
    """Labels as positions among the classes. Named classes are numbered from 0, or from 1 where the last one is met."""
    if not labels:
        return {}, None
    for part, array in examples.items():
        if part not in labels:
            raise DataError(f"{path}: {', '.join(labels)} examples have labels, {part} examples have none")
        if labels[part].shape != array.shape[:1]:
            raise DataError(f"{path}: {len(array)} {part} examples have labels {labels[part].shape}, expected one each")
    together = np.concatenate([labels[part] for part in examples])
    if together.dtype.kind not in "biuU" and not (
        together.dtype.kind == "f" and (together == np.trunc(together)).all()
    ):
        raise DataError(f"{path}: labels must be whole numbers or names, found {together.dtype}")
    if together.dtype.kind != "U":
        labels, together = {part: a.astype(np.int64) for part, a in labels.items()}, together.astype(np.int64)
    if not names or together.dtype.kind == "U":
        known = np.unique(together)
        return {part: np.searchsorted(known, a).astype(np.int64) for part, a in labels.items()}, known.tolist()
    first = int(together.max() == len(names) and together.min() > 0)
    if together.min() < first or together.max() >= first + len(names):
        raise DataError(
            f"{path}: {len(names)} classes are named, but labels run from {together.min()} to {together.max()}"
        )
    return {part: a - first for part, a in labels.items()}, list(names)


def _name(path: Path, train: NDArray[Any]) -> str:
    if train.dtype == np.uint8 and train.size == 60_000 * 784:
        pixels = hashlib.sha256(np.ascontiguousarray(train).data).hexdigest()
        if pixels == _MNIST_PIXELS:
            return "mnist"
    return stem(path)
