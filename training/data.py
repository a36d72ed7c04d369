"""Data sets: found, checked, split and binarized. The same bits for everyone.

Images are read as grey levels in [0, 1] (divided by the largest training value) and become 0 and 1 in one of three
named ways: `threshold` (1 where the level is above 1/2), `fixed-stochastic` (one Bernoulli(level) draw, the same for
every run) or `stochastic` (a fresh draw each epoch; validation and test keep the one fixed draw).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from models.rng import ChainKeys, random_bits, uniforms
from training.config import Binarization, DataSettings
from training.errors import DataError
from training.sources import Source, find

_SPLIT_SEED = 0
_CHUNK = 4096
# Streams of the data's own draws, apart from those of chains (0, 1).
_TRAIN, _VALIDATION, _TEST, _SPLIT, _ORDER = 16, 17, 18, 19, 20


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of binary examples, flattened row by row."""

    name: str
    shape: tuple[int, ...]
    binarization: Binarization
    train: UInt8[Tensor, "n visible"]
    validation: UInt8[Tensor, "m visible"]
    test: UInt8[Tensor, "k visible"]
    grey: Float[Tensor, "n visible"] | None
    """Levels of the training examples, kept only where they are binarized afresh each epoch."""
    train_means: Float[Tensor, " visible"]
    """Mean of each unit under what training sees, float64."""

    @property
    def units(self) -> int:
        """D, the number of visible units."""
        return self.train.shape[1]

    def to(self, device: torch.device) -> Self:
        """The same data on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "validation", "test", "train_means")}
        return replace(self, **moved, grey=None if self.grey is None else self.grey.to(device))

    def order(self, epoch: int, seed: int) -> Int[Tensor, " n"]:
        """The order in which an epoch reads the training examples: a function of (seed, epoch)."""
        keys = ChainKeys.of(seed, 1, self.train.device)
        return _shuffled(keys, epoch, _ORDER, len(self.train))

    def batch(self, rows: Int[Tensor, " b"], epoch: int, seed: int) -> Float[Tensor, "b visible"]:
        """These training examples as an epoch sees them, float32."""
        if self.grey is None:
            return self.train[rows].float()
        return _draw(self.grey[rows], rows, seed, epoch, _TRAIN).float()

    def fingerprint(self) -> str:
        """SHA-256 of everything that training reads."""
        digest = hashlib.sha256(f"{self.shape} {self.binarization}".encode())
        for tensor in (self.train, self.validation, self.test, self.grey):
            if tensor is not None:
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


def load(settings: DataSettings) -> Dataset:
    """The data set that `settings` name, split and binarized.

    Raises:
        DataError: it is missing, damaged, or too small for the splits asked for.
    """
    source = find(settings.dataset)
    parts = _split(source, settings)
    top = float(parts[0].max())
    if top <= 0:
        raise DataError(f"{source.name}: every training value is 0")
    how = settings.binarization
    levels = [torch.from_numpy(_levels(part, top)) for part in parts]
    train, validation, test = (
        _binarize(part, how, stream) for part, stream in zip(levels, (_TRAIN, _VALIDATION, _TEST), strict=True)
    )
    seen = levels[0] if how == "stochastic" else train
    return Dataset(
        name=source.name,
        shape=parts[0].shape[1:],
        binarization=how,
        train=train,
        validation=validation,
        test=test,
        grey=seen if how == "stochastic" else None,
        train_means=seen.mean(0, dtype=torch.float64),
    )


def _levels(images: np.ndarray, top: float) -> np.ndarray:
    """(n, D) float32 in [0, 1]; a test image may be brighter than any training image."""
    levels = images.reshape(len(images), -1).astype(np.float32)
    levels /= np.float32(top)
    return np.minimum(levels, np.float32(1), out=levels)


def _split(source: Source, settings: DataSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Validation is the end of the training part; data that come unsplit are shuffled, always alike, and cut."""
    train, test = source.train, source.test
    if test is None:
        if settings.test is None:
            raise DataError(f"{source.name} comes unsplit: set data.test to the number of test examples")
        keys = ChainKeys.of(_SPLIT_SEED, 1)
        train = train[_shuffled(keys, 0, _SPLIT, len(train)).numpy()]
        if settings.test >= len(train):
            raise DataError(f"{source.name}: data.test = {settings.test}, but there are only {len(train)} examples")
        train, test = train[: -settings.test], train[-settings.test :]
    if settings.validation >= len(train):
        raise DataError(
            f"{source.name}: data.validation = {settings.validation}, but there are only {len(train)} training examples"
        )
    return train[: -settings.validation], train[-settings.validation :], test


def _shuffled(keys: ChainKeys, sweep: int, stream: int, n: int) -> Int[Tensor, " n"]:
    at = torch.full((1,), sweep, dtype=torch.int64, device=keys.seed.device)
    return torch.argsort(random_bits(keys, at, stream, n)[0], stable=True)


def _binarize(levels: Float[Tensor, "n visible"], how: Binarization, stream: int) -> UInt8[Tensor, "n visible"]:
    if how == "threshold":
        return (levels > 0.5).byte()
    rows, starts = torch.arange(len(levels)), range(0, len(levels), _CHUNK)
    draws = [_draw(levels[k : k + _CHUNK], rows[k : k + _CHUNK], _SPLIT_SEED, 0, stream) for k in starts]
    return torch.cat(draws)


def _draw(
    levels: Float[Tensor, "n visible"], rows: Int[Tensor, " n"], seed: int, epoch: int, stream: int
) -> UInt8[Tensor, "n visible"]:
    """Example number r of a split in an epoch is the same draw whatever batch it is in."""
    keys = ChainKeys(torch.full_like(rows, seed), rows)
    return (uniforms(keys, torch.full_like(rows, epoch), stream, levels.shape[1]) < levels).byte()
