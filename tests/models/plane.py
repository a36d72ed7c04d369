"""Models of two real units whose law is known to any accuracy: by sums over a fine grid, and a mixture of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar
from unittest.mock import patch

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from models import latent_family, network_family
from models.conditionals import Conditional, Gaussian, Uniform
from models.families import grbm
from models.family import Clamp, HasGradient
from models.manifest import Manifest
from models.rng import ChainKeys
from models.sampler import Sampler
from tests.models.kernels import widen

FALSE_ALARM = 1e-6
BINS, FINE = 6, 100
REACH = 14.0
"""Beyond this no law here has anything worth the name."""


@contextmanager
def fast_rows() -> Iterator[None]:
    """Energies of thousands of rows at once: laws do not depend on it, bits do."""
    with (
        patch.object(network_family, "ROWS", 4096),
        patch.object(grbm, "ROWS", 4096),
        patch.object(latent_family, "ROWS", 4096),
    ):
        yield


class Given(HasGradient):
    """A model that is written down: E and its gradient from torch operations."""

    name: ClassVar[str] = "given"
    domains: ClassVar[frozenset[str]] = frozenset({"real"})
    units, walls, spread = 2, None, 3.0

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        raise NotImplementedError

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> Given:
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        return {"none": torch.zeros(1, dtype=torch.float64)}

    def energy(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64)

    @property
    def score_is_relaxed(self) -> bool:
        return False

    def score(self, x: Tensor) -> Tensor:
        return -self.energy_and_gradient(x)[1]

    @property
    def blocks(self) -> tuple[str, ...]:
        return ("visible",)

    def block_units(self, block: str) -> int:
        return self.units

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.walls

    def noise(self, block: str, chains: int) -> Conditional:
        zeros = torch.zeros(chains, self.units, dtype=torch.float64)
        if self.walls is not None:
            return Uniform(zeros + self.walls[0], zeros + self.walls[1])
        return Gaussian(zeros, zeros + self.spread)

    def energy_and_gradient(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = x.clone().requires_grad_(True)
            energy = self.energy(at)
            if not energy.requires_grad:
                return energy, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(energy.sum(), at)
        return energy.detach(), gradient


class Slope(Given):
    """E = a'x within walls: truncated exponentials, uniform where a = 0."""

    def __init__(self, a: list[float], walls: tuple[float, float]) -> None:
        self.a, self.walls, self.units = torch.tensor(a, dtype=torch.float64), walls, len(a)

    def energy(self, x: Tensor) -> Tensor:
        return x @ self.a


class Normal(Given):
    """N(mean, covariance) of any number of units, log Z of `log_z`."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance, self.units = mean, covariance, len(mean)
        self.precision = torch.linalg.inv(covariance)

    def energy(self, x: Tensor) -> Tensor:
        away = x - self.mean
        return 0.5 * ((away @ self.precision) * away).sum(1)

    @property
    def log_z(self) -> float:
        return 0.5 * float(torch.logdet(2 * math.pi * self.covariance))


@dataclass(frozen=True)
class Plane:
    """The law exp(-beta E(x[, y])) of a model of two units, or of one unit given the other, on bins."""

    model: HasGradient
    beta: float = 1.0
    clamp: Clamp | None = None

    @cached_property
    def _axis(self) -> np.ndarray:
        """Midpoints of cells of one width."""
        low, high = self.model.bounds or (-REACH, REACH)
        count = BINS * FINE
        return np.asarray(low + (high - low) * (np.arange(count) + 0.5) / count)

    @cached_property
    def free(self) -> list[int]:
        return [0, 1] if self.clamp is None else (~self.clamp.mask[0]).nonzero()[:, 0].tolist()

    @cached_property
    def _density(self) -> np.ndarray:
        """Of the cells, summing to 1; an axis for each free unit."""
        grid = np.stack(np.meshgrid(*[self._axis] * len(self.free), indexing="ij"), -1).reshape(-1, len(self.free))
        x = torch.zeros(len(grid), 2, dtype=torch.float64)
        label = None
        if self.clamp is not None:
            x = widen(self.clamp, len(grid)).apply(x)
            label = None if self.clamp.label is None else self.clamp.label.expand(len(grid))
        x[:, self.free] = torch.from_numpy(grid)
        energy = torch.cat(
            [
                self.model.energy_and_gradient(x[i : i + 4096], None if label is None else label[i : i + 4096])[0]
                for i in range(0, len(x), 4096)
            ]
        )
        p = torch.softmax(-self.beta * energy, 0).numpy()
        return np.asarray(p.reshape([len(self._axis)] * len(self.free)))

    def _edges(self, at: int) -> np.ndarray:
        """Cells at which the bins of a free unit begin: of nearly the same probability."""
        marginal = self._density.sum(tuple(i for i in range(len(self.free)) if i != at))
        return np.searchsorted(marginal.cumsum(), np.arange(1, BINS) / BINS)

    def p_value(self, x: Tensor) -> tuple[float, float]:
        """Of Pearson's chi-square; and the statistic as a multiple of the bound that it crosses once in a million."""
        low, width = self._axis[0], self._axis[1] - self._axis[0]
        law, number = self._density, np.zeros(len(x), np.int64)
        for at, unit in enumerate(self.free):
            edges = self._edges(at)
            law = np.add.reduceat(law, [0, *edges], axis=at)
            cell = np.floor((x[:, unit].numpy() - low) / width + 0.5)
            number = number * BINS + np.searchsorted(edges, cell, side="right")
        expected = len(x) * law.reshape(-1)
        assert expected.min() > 5
        observed = np.bincount(number, minlength=law.size)
        statistic = float(((observed - expected) ** 2 / expected).sum())
        return float(stats.chi2.sf(statistic, law.size - 1)), statistic / float(
            stats.chi2.isf(FALSE_ALARM, law.size - 1)
        )


def last(
    sampler: Sampler,
    model: HasGradient,
    n: int,
    sweeps: int,
    beta: float | None = None,
    clamp: Clamp | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The visibles of n independent chains after so many sweeps."""
    keys, wide = ChainKeys.of(20261126, n), None if clamp is None else widen(clamp, n)
    betas = None if beta is None else torch.full((n,), beta, dtype=torch.float64)
    with fast_rows():
        state = sampler.init(model, keys, start, wide)
        for _ in range(sweeps):
            state, _ = sampler.step(model, state, keys, wide, betas)
    return state.visible
