"""Raw values to grey levels in [0, 1], and to standardised reals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Preprocessing
from training.config import DataSettings
from training.errors import DataError

Array = NDArray[Any]
_CHUNK = 4096
_STD_FLOOR = 0.1
"""Of an image's pixels none counts as less variable than this fraction of their root mean square: the rim of MNIST is
all but constant, and one grey pixel there would be worth hundreds of standard deviations."""


def flat(examples: Array) -> Array:
    """(n, D), row by row."""
    return examples.reshape(len(examples), -1)


def levels(examples: Array, top: float) -> NDArray[np.float32]:
    """(n, D) in [0, 1]: divided by `top`. A held-out example may be brighter than any training example."""
    found = flat(examples).astype(np.float32)
    found /= np.float32(top)
    return np.minimum(found, np.float32(1), out=found)


def check_levels(parts: Sequence[Array], name: str) -> float:
    """The largest training value, by which levels are divided.

    Raises:
        DataError: a value is negative, or every training value is 0.
    """
    lowest = min(part.min() for part in parts)
    if lowest < 0:
        raise DataError(f"{name}: negative values ({lowest:g}); expected grey levels from 0 up (or data.domain = real)")
    top = float(parts[0].max())
    if top <= 0:
        raise DataError(f"{name}: every training value is 0")
    return top


def to_unit(parts: Sequence[Array], name: str) -> tuple[list[NDArray[np.float32]], Preprocessing | None]:
    """Levels, and the scale that takes raw values to them. Fractions that lie in [0, 1] are levels as they stand.

    Raises:
        DataError: a value is negative, or every training value is 0.
    """
    top = check_levels(parts, name)
    if all(part.dtype.kind == "f" and part.max() <= 1 for part in parts):
        top = 1.0
    return [levels(part, top) for part in parts], None if top == 1 else Preprocessing(scale=1 / top)


def to_real(
    parts: Sequence[Array], settings: DataSettings, name: str
) -> tuple[list[NDArray[np.float32]], Preprocessing | None]:
    """(x - mean) / std in float64, rounded to float32, and the mean and std, of the training part and in raw units.

    The std of a pixel is at least a tenth of the pixels' root mean square; a constant unit that is no pixel has 1.

    Raises:
        DataError: every training value is the same, or a value is beyond float32.
    """
    if settings.preprocessing == "none":
        mean, std, how = np.zeros(()), np.ones(()), None
    else:
        mean, std = _statistics(parts[0], settings.statistics == "global")
        if not std.any():
            raise DataError(f"{name}: every training value is the same")
        if std.ndim and parts[0].ndim > 2:
            std = np.maximum(std, _STD_FLOOR * math.sqrt(math.fsum(std**2) / len(std)))
        std = np.where(std > 0, std, 1.0)
        if settings.preprocessing == "centre":
            std = np.ones(())
            how = Preprocessing(mean=mean.tolist())
        else:
            how = Preprocessing(mean=mean.tolist(), std=std.tolist())
    return [_standardised(part, mean, std, name) for part in parts], how


def _standardised(examples: Array, mean: Array, std: Array, name: str) -> NDArray[np.float32]:
    rows = flat(examples)
    found = np.empty(rows.shape, np.float32)
    with np.errstate(over="ignore"):
        for k in range(0, len(rows), _CHUNK):
            found[k : k + _CHUNK] = (rows[k : k + _CHUNK] - mean) / std
    if not np.isfinite(found).all():
        raise DataError(f"{name}: values up to {np.abs(rows).max():g} are beyond float32; scale them down")
    return found


def _statistics(train: Array, together: bool) -> tuple[Array, Array]:
    """Mean and standard deviation of each unit, (D,), or of all, (); float64. Sums in a fixed order: the same bits."""
    rows = flat(train)
    mean = sum(chunk.sum(0) for chunk in _chunks(rows)) / len(rows)
    variance = sum(((chunk - mean) ** 2).sum(0) for chunk in _chunks(rows)) / len(rows)
    if together:
        whole = math.fsum(mean) / len(mean)
        variance = np.array(math.fsum(variance + (mean - whole) ** 2) / len(mean))
        mean = np.array(whole)
    return np.asarray(mean), np.sqrt(variance)


def _chunks(rows: Array) -> Iterator[Array]:
    return (rows[k : k + _CHUNK].astype(np.float64) for k in range(0, len(rows), _CHUNK))
