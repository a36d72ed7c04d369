"""Data sets by name, and the places where they are looked for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from training import downloads, files, generated
from training.errors import DataError
from training.files import Layout, Part, Source

DENSITY = ("nltcs", "plants", "baudio", "bnetflix", "mushrooms", "dna", "nips")
"""Binary density estimation (Lowd & Davis 2010; Van Haaren & Davis 2012): plain vectors, with their standard parts."""
_FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class _Known:
    """A data set with a name of its own, and where in a place it may lie besides where any data set may."""

    paths: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    fits: Callable[[Path], bool] = files.holds_idx
    """Whether a folder holds files of the right kind."""
    layout: Layout = field(default_factory=Layout)


_KNOWN = {
    "digits": _Known(),
    "mnist": _Known(folders=("mnist", "MNIST/raw", ".")),
    "fashion_mnist": _Known(folders=("fashion_mnist", "FashionMNIST/raw", "."), layout=Layout(classes=_FASHION)),
    "binarized_mnist": _Known(layout=Layout(packed=784, shape=(28, 28))),
    "caltech101_silhouettes": _Known(
        paths=("caltech101_silhouettes/caltech101_silhouettes_28.npz", "caltech101_silhouettes_28.npz"),
        layout=Layout(packed=784, shape=(28, 28)),
    ),
    "frey_faces": _Known(layout=Layout(frames=True)),
    "olivetti_faces": _Known(),
    "cifar10": _Known(folders=("cifar-10-batches-bin", "."), fits=files.holds_cifar, layout=Layout(classes=_CIFAR10)),
    "cifar10_patches": _Known(
        paths=(
            "cifar10_subset/cifar10_first4000_lossless.npz",
            "cifar10_first4000_lossless.npz",
            "cifar10_subset/cifar10_jpeg_8k_1600.npz",
            "cifar10_jpeg_8k_1600.npz",
        ),
        folders=("cifar-10-batches-bin", "."),
        fits=files.holds_cifar,
        layout=Layout(classes=_CIFAR10),
    ),
    **{name: _Known() for name in DENSITY},
    **{name: _Known() for name in generated.LAWS},
}
_AT_HAND = ("digits", *generated.LAWS)
"""Data sets that lie nowhere."""


def find(dataset: str, place: str | None = None) -> Source:
    """The data set of that name or at that path.

    A name is looked for in the folder `place`; without one in $EBM_DATA_DIR, then in the cache ($XDG_CACHE_HOME/ebm),
    and `mnist` and `fashion_mnist` are else downloaded there. `digits` and what is generated are always at hand.

    Raises:
        DataError: nothing of that name or at that path, a damaged file, or no way to download.
    """
    if dataset == "digits":
        return _digits()
    if dataset in generated.LAWS:
        return generated.made(dataset)
    if place is None and dataset not in _KNOWN and Path(dataset).expanduser().exists():
        return _own(Path(dataset).expanduser())
    places = [Path(place).expanduser()] if place is not None else _places()
    if place is None and downloads.incomplete(dataset, places[-1] / dataset):
        downloads.download(dataset, places[-1] / dataset)
    for folder in places:
        if (spot := _spot(dataset, folder)) is not None:
            return _read(dataset, spot)
    if place is None and dataset in downloads.SHA256:
        folder = places[-1] / dataset
        downloads.download(dataset, folder)
        return _read(dataset, folder)
    raise DataError(_missing(dataset, places, place))


def located(given: str, dataset: str) -> tuple[str, str | None]:
    """The data set and its place that `--data GIVEN` stands for, in a recipe that learns from `dataset`.

    A known name is that data set, and so is a file. A folder is a place that holds the recipe's data set or, failing
    that, itself a data set.

    Raises:
        DataError: it is a folder that is neither.
    """
    path = Path(given).expanduser()
    if given in _KNOWN or not path.is_dir():
        return given, None
    if _spot(dataset, path) is not None:
        return dataset, given
    if _itself(path) is not None:
        return given, None
    if dataset in _AT_HAND:  # they need no place
        return dataset, given
    raise DataError(_missing(dataset, [path], given))


def _digits() -> Source:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import, and only needed here

    bunch = load_digits()
    part = Part(bunch.images.astype(np.uint8), bunch.target.astype(np.int64))
    return Source("digits", part, classes=list(range(10)))


def _places() -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebm"
    own = os.environ.get("EBM_DATA_DIR")
    return [*([Path(own).expanduser()] if own else []), cache]


def _spots(dataset: str) -> Iterator[str]:
    """The files that a data set may be in, as paths relative to a place."""
    if Path(dataset).suffix:
        yield dataset
    yield from _KNOWN.get(dataset, _Known()).paths
    yield from (f"{folder}{dataset}{end}" for folder in (f"{dataset}/", "density/", "") for end in files.FORMATS)


def _spot(dataset: str, place: Path) -> Path | None:
    for spot in _spots(dataset):
        if (place / spot).is_file():
            return place / spot
    known = _KNOWN.get(dataset, _Known())
    return next((place / folder for folder in known.folders if known.fits(place / folder)), None)


def _read(dataset: str, path: Path) -> Source:
    if dataset not in _KNOWN:
        return _own(path)
    source = files.read(path, _KNOWN[dataset].layout)
    if dataset == "mnist":  # idx files of other data sets have the same names: MNIST is known by its pixels
        return source
    if source.name == "mnist":
        raise DataError(f"{path} holds MNIST, not {dataset}")
    return replace(source, name=dataset)


def _own(path: Path) -> Source:
    """The data set at a path of the user's. A file of a known data set is known by its name."""
    if path.is_dir():
        itself = _itself(path) or _spot("mnist", path)
        if itself is None:
            formats = ", ".join(files.FORMATS)
            raise DataError(f"{path} holds no data set: expected idx files of images, or one file of {formats}")
        path = itself
    stem = files.stem(path)
    known = (k for n, k in _KNOWN.items() if stem in (n, *(files.stem(Path(at)) for at in (*k.paths, *k.folders))))
    return files.read(path, next(known, _Known()).layout)


def _itself(folder: Path) -> Path | None:
    """What to read where a folder is itself a data set and not a place of several."""
    if files.holds_idx(folder) or files.holds_cifar(folder):
        return folder
    found = sorted(path for path in folder.iterdir() if path.name.endswith(files.FORMATS) and path.is_file())
    return found[0] if len(found) == 1 else None


def _missing(dataset: str, places: list[Path], place: str | None) -> str:
    where = " and ".join(map(str, places))
    folders = (f"{folder}/" for folder in _KNOWN.get(dataset, _Known()).folders)
    spots = ", ".join((*_spots(dataset), *folders))
    if dataset in _KNOWN or place is not None:
        advice = "" if place is not None else "; give --data PATH or set EBM_DATA_DIR to a folder that has it"
        return f"no data set {dataset!r} in {where}: looked for {spots}{advice}"
    close = difflib.get_close_matches(dataset, _KNOWN, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    else_where = "" if Path(dataset).is_absolute() else f"; nor is there any of {spots} in {where}"
    return f"no data set {dataset!r}{hint}: expected {', '.join(_KNOWN)}, or the path of a folder or file{else_where}"
