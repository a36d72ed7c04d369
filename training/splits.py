"""What is learned from and what is held out: parts as found or cut off, always alike, and patches of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from models.rng import ChainKeys, random_bits
from training.config import DataSettings
from training.errors import DataError
from training.files import Part, Source

_SPLIT_SEED = 0
_SPLIT, _PATCHES = 19, 21
"""Streams; patches take three, one for each part."""
_STRETCHES = 5
_PATCHES_PER_IMAGE = 10
_LUMA = (299, 587, 114)
"""Thousandths of red, green and blue in a grey level (ITU-R BT.601)."""

Parts = tuple[Part, Part, Part]
"""Training, validation, test."""


def split(source: Source, settings: DataSettings) -> Parts:
    """Parts that the data have are kept as found; what they lack is held out from training.

    Validation is then the end of the training part, and so is test, after a shuffle that is always the same; frames in
    time order are not shuffled, but held out in stretches.

    Raises:
        DataError: a size is needed and not given, or leaves nothing to train on.
    """
    train, validation, test = source.train, source.validation, source.test
    if test is None:
        count = _count(source, "test", settings.test)
        if source.frames and validation is None:
            return _stretches(source, _count(source, "validation", settings.validation), count)
        if not source.frames:
            train = train.rows(shuffled(ChainKeys.of(_SPLIT_SEED, 1), 0, _SPLIT, len(train)).numpy())
        train, test = _cut(source.name, train, "test", count)
    if validation is None:
        train, validation = _cut(source.name, train, "validation", _count(source, "validation", settings.validation))
    return train, validation, test


def shuffled(keys: ChainKeys, sweep: int, stream: int, n: int) -> Int[Tensor, " n"]:
    """A permutation of n numbers, a function of its arguments."""
    at = torch.full((1,), sweep, dtype=torch.int64, device=keys.seed.device)
    return torch.argsort(random_bits(keys, at, stream, n)[0], stable=True)


def _count(source: Source, part: str, count: int | None) -> int:
    if count is None:
        lacks = "comes unsplit" if source.test is None and source.validation is None else f"has no {part} part"
        raise DataError(f"{source.name} {lacks}: set data.{part} to the number of {part} examples")
    return count


def _cut(name: str, train: Part, part: str, count: int) -> tuple[Part, Part]:
    if count >= len(train):
        raise DataError(f"{name}: data.{part} = {count}, but there are only {len(train)} training examples")
    return train.rows(slice(None, -count)), train.rows(slice(-count, None))


def _stretches(source: Source, validation: int, test: int) -> Parts:
    """Held-out frames lie together at the ends of a few stretches of time: a neighbour of a frame is much like it."""
    n, count = len(source.train), min(_STRETCHES, validation, test)
    if validation + test > n - 2 * count:
        raise DataError(
            f"{source.name}: data.validation = {validation} and data.test = {test}, but there are only {n} examples"
        )
    rows: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    shares = [[len(share) for share in np.array_split(np.arange(held), count)] for held in (validation, test)]
    for stretch, for_validation, for_test in zip(np.array_split(np.arange(n), count), *shares, strict=True):
        ends = len(stretch) - for_test - for_validation, len(stretch) - for_test
        for part, piece in zip(rows, np.split(stretch, ends), strict=True):
            part.append(piece)
    train, held_out, tested = (source.train.rows(np.concatenate(part)) for part in rows)
    return train, held_out, tested


def by_ink(parts: Parts, ink: str, name: str) -> Parts:
    """Of each part the images with more ink (a larger mean) than the training part's median, or with less.

    Raises:
        DataError: nothing is left of a part.
    """
    means = [part.examples.reshape(len(part), -1).mean(1, dtype=np.float64) for part in parts]
    median = np.median(means[0])
    train, validation, test = (
        part.rows(np.flatnonzero(m > median if ink == "thick" else m < median))
        for part, m in zip(parts, means, strict=True)
    )
    if not (len(train) and len(validation) and len(test)):
        raise DataError(f"{name}: data.ink = {ink!r} leaves nothing of a part")
    return train, validation, test


def grey(part: Part, name: str) -> Part:
    """RGB images (n, height, width, 3) in grey levels (n, height, width), bytes rounded to bytes.

    Raises:
        DataError: the examples have another shape.
    """
    rgb = part.examples
    if rgb.ndim != 4 or rgb.shape[3] != 3:
        raise DataError(f"{name}: data.grey needs RGB images (n, height, width, 3), found {rgb.shape}")
    whole = rgb.dtype == np.uint8
    exact: NDArray[Any] = rgb.astype(np.int32 if whole else np.float64)
    thousandths = exact @ np.array(_LUMA, exact.dtype)
    return Part(((thousandths + 500) // 1000).astype(np.uint8) if whole else thousandths / 1000, part.labels)


def patches(parts: Parts, settings: DataSettings, name: str) -> Parts:
    """Square patches of the images of each part, without labels: no image is in two parts, and so no patch is.

    Each image gives as many, at places that are a function of `patch_seed`.

    Raises:
        DataError: the examples are no images, or smaller than a patch.
    """
    assert settings.patch is not None
    count = settings.patches or _PATCHES_PER_IMAGE * len(parts[0])
    cut = []
    for number, part in enumerate(parts):
        shape, size = part.examples.shape[1:], settings.patch
        if len(shape) not in (2, 3) or size > min(shape[:2]):
            raise DataError(
                f"{name}: data.patch = {size}, but an example is {shape}; expected (height, width[, colours])"
            )
        n = max(1, count * len(part) // len(parts[0]))
        cut.append(Part(_patches(part.examples, size, n, settings.patch_seed, _PATCHES + number)))
    return cut[0], cut[1], cut[2]


def _patches(images: NDArray[np.generic], size: int, count: int, seed: int, stream: int) -> NDArray[np.generic]:
    keys = ChainKeys.of(seed, count)
    bits = random_bits(keys, torch.zeros_like(keys.chain), stream, 2).numpy()
    room = np.array([images.shape[1] - size + 1, images.shape[2] - size + 1])
    top, left = ((bits * room) >> 32).T
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
    found = windows[np.arange(count) % len(images), top, left]
    return found if images.ndim == 3 else np.ascontiguousarray(np.moveaxis(found, 1, -1))
