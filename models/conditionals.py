"""The law of one block of units given all others: what Gibbs sampling draws from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models import rng
from models.numerics import softplus
from models.rng import ChainKeys


class Conditional(ABC):
    """Independent units given the rest, for each chain of a batch."""

    @abstractmethod
    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n units"]:
        """One draw for each chain, decided by (key, chain, sweep, stream) alone."""

    @abstractmethod
    def mean(self) -> Float[Tensor, "n units"]:
        """Expected state."""

    @abstractmethod
    def log_prob(self, state: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """log p(state | rest), nats."""


@dataclass(frozen=True)
class Bernoulli(Conditional):
    """Units in {0, 1} with P(1) = sigmoid(logits)."""

    logits: Float[Tensor, "n units"]

    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n units"]:
        """One draw for each chain, float64 0.0 or 1.0."""
        return rng.bernoulli(self.logits, keys, sweep, stream)

    def mean(self) -> Float[Tensor, "n units"]:
        """sigmoid(logits)."""
        return rng.logistic(self.logits)

    def log_prob(self, state: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """Sum over units of x a - softplus(a)."""
        return (state * self.logits - softplus(self.logits)).sum(1)


@dataclass(frozen=True)
class Categorical(Conditional):
    """One one-hot variable, P(k) = softmax(logits)_k."""

    logits: Float[Tensor, "n units"]

    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n units"]:
        """One draw for each chain, float64 one-hot."""
        return rng.categorical(self.logits, keys, sweep, stream)

    def mean(self) -> Float[Tensor, "n units"]:
        """softmax(logits)."""
        return torch.softmax(self.logits, 1)

    def log_prob(self, state: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """The logit of the state's class, normalised."""
        return (state * torch.log_softmax(self.logits, 1)).sum(1)


@dataclass(frozen=True)
class Gaussian(Conditional):
    """Independent real units, N(mean, std^2)."""

    location: Float[Tensor, "n units"]
    std: Float[Tensor, "n units"]

    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n units"]:
        """One draw for each chain, float64."""
        return self.location + self.std * rng.normals(keys, sweep, stream, self.location.shape[1])

    def mean(self) -> Float[Tensor, "n units"]:
        """The location."""
        return self.location

    def log_prob(self, state: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """Log density."""
        z = (state - self.location) / self.std
        return -(0.5 * z.square() + torch.log(self.std) + 0.5 * math.log(2 * math.pi)).sum(1)


@dataclass(frozen=True)
class Uniform(Conditional):
    """Independent real units, each uniform on an interval of its own."""

    low: Float[Tensor, "n units"]
    high: Float[Tensor, "n units"]

    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n units"]:
        """One draw for each chain, float64, inside the interval."""
        return self.low + (self.high - self.low) * rng.uniforms(keys, sweep, stream, self.low.shape[1])

    def mean(self) -> Float[Tensor, "n units"]:
        """The middle."""
        return (self.low + self.high) / 2

    def log_prob(self, state: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """Log density; -inf outside."""
        inside = (state >= self.low) & (state <= self.high)
        return torch.where(inside, -torch.log(self.high - self.low), -torch.inf).sum(1)


@dataclass(frozen=True)
class Spin(Conditional):
    """Units in {-1, +1} with P(+1) = sigmoid(logits)."""

    logits: Float[Tensor, "n units"]

    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n units"]:
        """One draw for each chain, float64 -1.0 or 1.0."""
        return 2.0 * rng.bernoulli(self.logits, keys, sweep, stream) - 1.0

    def mean(self) -> Float[Tensor, "n units"]:
        """tanh(logits / 2)."""
        return 2.0 * rng.logistic(self.logits) - 1.0

    def log_prob(self, state: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """Sum over units of -softplus(-x a)."""
        return -softplus(-state * self.logits).sum(1)
