"""Mixtures of Gaussians: laws that can be drawn from, whose density is known, fitted to data by EM (Dempster 1977)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models import rng
from models.rng import ChainKeys

_SEED, _FIRST = 0, 40
"""Of the examples that the components begin at."""
_ROUNDS = 30
_FLOOR = 1e-3
"""Share of the mean variance that is added to every variance: a unit may be constant."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """sum_k w_k N(m_k, L_k L_k'), float64."""

    log_weights: Float[Tensor, " components"]
    means: Float[Tensor, "components visible"]
    factors: Float[Tensor, "components visible visible"]
    """L_k, lower triangular."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The mixture with these tensors."""
        return cls(tensors["log_weights"], tensors["means"], tensors["factors"])

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {"log_weights": self.log_weights, "means": self.means, "factors": self.factors}

    @classmethod
    def standard(cls, units: int, device: torch.device) -> Self:
        """N(0, 1)."""
        zeros = torch.zeros(1, units, dtype=torch.float64, device=device)
        return cls(zeros[:, 0], zeros, torch.eye(units, dtype=torch.float64, device=device)[None])

    @classmethod
    def fitted(cls, examples: Float[Tensor, "n visible"], components: int) -> Self:
        """By `_ROUNDS` rounds of EM from examples drawn at random; of one component, the data's mean and covariance."""
        x = examples.double()
        if components == 1:
            return cls.weighed(x, torch.ones_like(x[:, :1]))
        keys = ChainKeys.of(_SEED, 1, x.device)
        bits = rng.random_bits(keys, torch.zeros_like(keys.chain), _FIRST, len(x))[0]
        nearest = torch.cdist(x, x[torch.argsort(bits, stable=True)[:components]]).argmin(1)
        found = cls.weighed(x, torch.nn.functional.one_hot(nearest, components).double())
        for _ in range(_ROUNDS):
            found = cls.weighed(x, torch.softmax(found.joint(x), 1))
        return found

    @classmethod
    def weighed(cls, x: Float[Tensor, "n visible"], shares: Float[Tensor, "n components"]) -> Self:
        """The likeliest mixture where example n belongs to component k by shares[n, k], its variances widened."""
        counts = shares.sum(0) + 1e-9
        means, kept = (shares.T @ x) / counts[:, None], []
        floor = _FLOOR * x.var(0, correction=0).mean().clamp(min=1e-12) * torch.eye(x.shape[1]).to(x)
        for mean, share, count in zip(means, shares.T, counts, strict=True):
            apart = x - mean
            kept.append(torch.linalg.cholesky((apart * share[:, None]).T @ apart / count + floor))
        return cls(torch.log(counts / counts.sum()), means, torch.stack(kept))

    def joint(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n components"]:
        """log w_k + log N(x; m_k, L_k L_k')."""
        apart = (x.double()[None] - self.means[:, None]).mT  # (components, visible, n)
        z = torch.linalg.solve_triangular(self.factors, apart, upper=False)
        logs = self.factors.diagonal(dim1=1, dim2=2).log().sum(1) + 0.5 * x.shape[1] * math.log(2 * math.pi)
        found: Tensor = (self.log_weights - logs) - 0.5 * z.square().sum(1).T
        return found

    def log_density(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """log p(x), nats."""
        return self.joint(x).logsumexp(1)

    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n visible"]:
        """One draw for each row. Takes this stream and the next."""
        drawn = rng.categorical(self.log_weights.expand(len(keys), -1), keys, sweep, stream).argmax(1)
        z = rng.normals(keys, sweep, stream + 1, self.means.shape[1])
        found = torch.empty_like(z)
        for k in range(len(self.means)):
            rows = drawn == k
            found[rows] = self.means[k] + z[rows] @ self.factors[k].T
        return found
