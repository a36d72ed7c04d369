"""Data sets: found, checked, split and brought into the domain of the visible units. The same bits for everyone.

Binary and spin units: values are read as grey levels in [0, 1] (divided by the largest training value) and take two
states in one of the ways of `data.binarization`: `threshold` (1 where the level is above 1/2), `fixed-stochastic` (one
Bernoulli(level) draw, the same for every run) or `stochastic` (a fresh draw each epoch; validation and test keep the
one fixed draw). Data that have only two states are taken as they are: `fixed`. Unit: the levels themselves. Real:
(x - mean) / std, with the statistics of the training part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num, UInt8
from torch import Tensor

from models.manifest import Domain, Preprocessing
from models.rng import ChainKeys, uniforms
from training import scaling
from training.config import Binarization, DataSettings
from training.errors import DataError
from training.files import Part, Source
from training.sources import find
from training.splits import Parts, by_ink, grey, patches, shuffled, split

_DRAWS_SEED = 0
_CHUNK = 4096
# Streams of the data's own draws, apart from those of chains (0, 1).
_TRAIN, _VALIDATION, _TEST, _ORDER = 16, 17, 18, 20


_LABELS = ("train_labels", "validation_labels", "test_labels", "test_anomalies")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of examples, flattened row by row: uint8 (binary), int8 (spin) or float32 (unit, real)."""

    name: str
    shape: tuple[int, ...]
    binarization: Binarization | None
    """How levels became two states; None where the units are not two-valued."""
    train: Num[Tensor, "n visible"]
    validation: Num[Tensor, "m visible"]
    test: Num[Tensor, "k visible"]
    grey: UInt8[Tensor, "n visible"] | Float[Tensor, "n visible"] | None
    """Grey values of the training examples, kept only where they are binarized afresh each epoch."""
    train_means: Float[Tensor, " visible"]
    """Mean of each unit under what training sees, float64."""
    domain: Domain = "binary"
    preprocessing: Preprocessing | None = None
    """What takes raw values to what training sees, unit and real alone; None: nothing."""
    train_labels: Int[Tensor, " n"] | None = None
    """Positions among the classes, int64; None where the data have no labels."""
    validation_labels: Int[Tensor, " m"] | None = None
    test_labels: Int[Tensor, " k"] | None = None
    classes: list[str | int] | None = None
    """What the labels stand for, in order."""
    test_anomalies: Bool[Tensor, " k"] | None = None
    """Which of the test examples are anomalies, where the data say so."""
    white: float = 1.0
    """The value of `grey` that counts as 1."""

    @property
    def units(self) -> int:
        """D, the number of visible units."""
        return self.train.shape[1]

    @cached_property
    def train_stds(self) -> Float[Tensor, " visible"]:
        """Standard deviation of each unit under what training sees (divided by n), float64."""
        means = self.train_means
        if self.domain == "binary":
            return (means * (1 - means)).clamp(min=0).sqrt()
        if self.domain == "spin":
            return (1 - means.square()).clamp(min=0).sqrt()
        squares = torch.zeros_like(means)
        for k in range(0, len(self.train), _CHUNK):
            squares += (self.train[k : k + _CHUNK].double() - means).square().sum(0)
        return (squares / len(self.train)).sqrt()

    def to(self, device: torch.device) -> Self:
        """The same data on `device`."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: t.to(device) for name, t in held.items() if isinstance(t, Tensor)}
        return replace(self, **moved)

    def order(self, epoch: int, seed: int) -> Int[Tensor, " n"]:
        """The order in which an epoch reads the training examples: a function of (seed, epoch)."""
        keys = ChainKeys.of(seed, 1, self.train.device)
        return shuffled(keys, epoch, _ORDER, len(self.train))

    def batch(self, rows: Int[Tensor, " b"], epoch: int, seed: int) -> Float[Tensor, "b visible"]:
        """These training examples as an epoch sees them, float32."""
        if self.grey is None:
            return self.train.index_select(0, rows).float()
        # Divided by a tensor: on a GPU, division by a number is a product with its inverse, and other bits.
        levels = self.grey.index_select(0, rows).float() / torch.full((1,), self.white, device=self.grey.device)
        states = _draw(levels, rows, seed, epoch, _TRAIN).float()
        return 2 * states - 1 if self.domain == "spin" else states

    def labels_of(self, rows: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The positions of these training examples' classes.

        Raises:
            DataError: the data have no labels.
        """
        if self.train_labels is None:
            raise DataError(f"{self.name} has no labels")
        return self.train_labels[rows]

    def fingerprint(self) -> str:
        """SHA-256 of everything that training reads."""
        how = None if self.preprocessing is None else self.preprocessing.model_dump_json()
        digest = hashlib.sha256(
            f"{self.shape} {self.domain} {self.binarization} {self.classes} {how} {self.white}".encode()
        )
        for name in ("train", "validation", "test", "grey", *_LABELS):
            tensor = getattr(self, name)
            if tensor is not None:
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().numpy().data)
        return digest.hexdigest()


def load(settings: DataSettings) -> Dataset:
    """The data set that `settings` name: split, and in their domain.

    Raises:
        DataError: it is missing, damaged, too small for the splits asked for, or has no values of that domain.
    """
    source = find(settings.dataset, settings.place)
    name = source.name
    parts, anomalies = _without_anomalies(split(source, settings), source, settings)
    if settings.ink is not None:
        if settings.anomaly is not None:
            raise DataError(f"{name}: data.ink and data.anomaly do not go together")
        parts = by_ink(parts, settings.ink, name)
    if settings.grey:
        parts = grey(parts[0], name), grey(parts[1], name), grey(parts[2], name)
    if settings.patch is not None:
        parts, anomalies = patches(parts, settings, name), None
    encoded = _encoded([part.examples for part in parts], settings, name)
    labels = [None if part.labels is None else torch.from_numpy(part.labels) for part in parts]
    return Dataset(
        name=name,
        shape=parts[0].examples.shape[1:],
        binarization=encoded.binarization,
        train=encoded.parts[0],
        validation=encoded.parts[1],
        test=encoded.parts[2],
        grey=encoded.grey,
        train_means=_means(encoded, settings.domain),
        white=encoded.white,
        domain=settings.domain,
        preprocessing=encoded.preprocessing,
        train_labels=labels[0],
        validation_labels=labels[1],
        test_labels=labels[2],
        test_anomalies=anomalies,
        classes=None if labels[0] is None else source.classes,
    )


def _without_anomalies(parts: Parts, source: Source, settings: DataSettings) -> tuple[Parts, Tensor | None]:
    """Training and validation parts that have none, all parts without labels; and which test examples are some."""
    if settings.anomaly is None:
        return parts, None
    if source.classes is None or settings.anomaly not in source.classes:
        found = "no classes" if source.classes is None else f"the classes {', '.join(map(str, source.classes))}"
        raise DataError(f"{source.name}: data.anomaly = {settings.anomaly}, but the data have {found}")
    told = [np.equal(np.asarray(part.labels), source.classes.index(settings.anomaly)) for part in parts]
    if not told[2].any() or told[2].all():
        raise DataError(f"{source.name}: the test part needs anomalies, and others, for data.anomaly")
    train, validation = (Part(part.examples[~odd]) for part, odd in zip(parts[:2], told[:2], strict=True))
    return (train, validation, Part(parts[2].examples)), torch.from_numpy(told[2])


@dataclass(frozen=True, eq=False)
class _Encoded:
    parts: list[Num[Tensor, "n visible"]]
    binarization: Binarization | None = None
    grey: UInt8[Tensor, "n visible"] | Float[Tensor, "n visible"] | None = None
    white: float = 1.0
    preprocessing: Preprocessing | None = None


def _encoded(parts: Sequence[scaling.Array], settings: DataSettings, name: str) -> _Encoded:
    match settings.domain:
        case "unit":
            found, how = scaling.to_unit(parts, name)
            return _Encoded([torch.from_numpy(part) for part in found], preprocessing=how)
        case "real":
            found, how = scaling.to_real(parts, settings, name)
            return _Encoded([torch.from_numpy(part) for part in found], preprocessing=how)
        case _:
            return _two_valued(parts, settings, name)


def _two_valued(parts: Sequence[scaling.Array], settings: DataSettings, name: str) -> _Encoded:
    domain, how, grey, white = settings.domain, settings.binarization, None, 1.0
    if _only(parts, 0) or (domain == "spin" and _only(parts, -1)):
        how = "fixed"
        if not (parts[0] > 0).any():
            raise DataError(f"{name}: every training value is the lower of the two")
        states = [torch.from_numpy(scaling.flat(part) > 0).byte() for part in parts]
    else:
        top = scaling.check_levels(parts, name)
        if how == "fixed":
            raise DataError(f"{name}: data.binarization = fixed, but values are not only 0 and 1 (they reach {top:g})")
        states = [_binarize(part, top, how, s) for part, s in zip(parts, (_TRAIN, _VALIDATION, _TEST), strict=True)]
        if how == "stochastic" and parts[0].dtype == np.uint8:
            grey, white = torch.from_numpy(np.ascontiguousarray(scaling.flat(parts[0]))), top
        elif how == "stochastic":
            grey = torch.from_numpy(scaling.levels(parts[0], top))
    if domain == "spin":
        states = [2 * part.char() - 1 for part in states]
    return _Encoded(states, how, grey, white)


def _only(parts: Sequence[scaling.Array], low: int) -> bool:
    """Whether there are no values but `low` and 1."""
    return all(part.max() <= 1 and bool(((part == low) | (part == 1)).all()) for part in parts)


def _means(encoded: _Encoded, domain: Domain) -> Float[Tensor, " visible"]:
    """Mean of each unit; of grey values, the mean of the states that are drawn from them."""
    if encoded.grey is None:
        return torch.from_numpy(encoded.parts[0].numpy().mean(0, dtype=np.float64))
    means = torch.from_numpy(encoded.grey.numpy().mean(0, dtype=np.float64)) / encoded.white
    return 2 * means - 1 if domain == "spin" else means


def _binarize(examples: scaling.Array, top: float, how: Binarization, stream: int) -> UInt8[Tensor, "n visible"]:
    states = []
    for k in range(0, len(examples), _CHUNK):
        levels = torch.from_numpy(scaling.levels(examples[k : k + _CHUNK], top))
        rows = torch.arange(k, k + len(levels))
        states.append((levels > 0.5).byte() if how == "threshold" else _draw(levels, rows, _DRAWS_SEED, 0, stream))
    return torch.cat(states)


def _draw(
    levels: Float[Tensor, "n visible"], rows: Int[Tensor, " n"], seed: int, epoch: int, stream: int
) -> UInt8[Tensor, "n visible"]:
    """Example number r of a split in an epoch is the same draw whatever batch it is in."""
    keys = ChainKeys(torch.full_like(rows, seed), rows)
    return (uniforms(keys, torch.full_like(rows, epoch), stream, levels.shape[1]) < levels).byte()
