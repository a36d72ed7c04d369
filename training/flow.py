"""Normalising flows: laws that can be drawn from, whose density is known, of any shape (Dinh et al. 2017, RealNVP)."""

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
from training import adam
from training.mixture import Mixture

_SEED, _FIRST, _ROWS = 0, 41, 42
"""Of the first weights, and of the minibatches that a flow is fitted on."""
_BATCH, _RATE, _LARGEST = 200, 5e-3, 2.0
"""Examples in a minibatch; the first learning rate; the largest log-factor of one coupling."""


@dataclass(frozen=True, eq=False)
class Flow:
    """x = m + L T(z), z standard normal, T a chain of affine couplings, float64.

    A coupling leaves some units as they are and takes each other unit u to u exp(s) + t, where s and t are a network's
    of those that stay: its inverse and its density are exact. Which units stay changes from coupling to coupling,
    by the binary digits of their numbers and the other way round, so that any two units come to be apart.
    """

    tensors: Mapping[str, Tensor]
    """`mean` (D), `factor` (D, D), lower triangular, and of K networks of H hidden units at once: `first` (K, D, H),
    `first_bias` (K, H), `second` (K, H, 2 D), `second_bias` (K, 2 D)."""

    @classmethod
    def standard(cls, units: int, layers: int, hidden: int, device: torch.device) -> Self:
        """N(0, 1): every coupling does nothing yet."""
        keys = ChainKeys.of(_SEED, layers * units, device)
        first = rng.normals(keys, torch.zeros_like(keys.chain), _FIRST, hidden) / math.sqrt(units)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(
            {
                "mean": zeros(units),
                "factor": torch.eye(units, dtype=torch.float64, device=device),
                "first": first.view(layers, units, hidden),
                "first_bias": zeros(layers, hidden),
                "second": zeros(layers, hidden, 2 * units),
                "second_bias": zeros(layers, 2 * units),
            }
        )

    @classmethod
    def fitted(cls, examples: Float[Tensor, "n visible"], layers: int, hidden: int, steps: int) -> Self:
        """The likeliest by so many steps of Adam, from the Gaussian of the data's mean and covariance, which stay."""
        gaussian = Mixture.fitted(examples, 1)
        made = cls.standard(examples.shape[1], layers, hidden, examples.device).tensors
        learned = {name: t for name, t in made.items() if name not in ("mean", "factor")}
        kept = {"mean": gaussian.means[0], "factor": gaussian.factors[0]}
        velocity = {name: (torch.zeros_like(t), torch.zeros_like(t)) for name, t in learned.items()}
        keys = ChainKeys.of(_SEED, 1, examples.device)
        x = torch.linalg.solve_triangular(kept["factor"], (examples.double() - kept["mean"]).T, upper=False).T
        for step in range(steps):
            at = torch.full_like(keys.chain, step)
            batch = x[rng.random_bits(keys, at, _ROWS, min(_BATCH, len(x)))[0] % len(x)]
            at_work = {name: t.detach().requires_grad_() for name, t in learned.items()}  # the same numbers
            slopes = torch.autograd.grad(cls(at_work)._log_density(batch).mean(), list(at_work.values()))
            for name, slope in zip(learned, slopes, strict=True):
                adam.ascend(learned[name], *velocity[name], slope, _RATE * (1 - step / steps), step + 1)
        return cls({**kept, **learned})

    @property
    def units(self) -> int:
        """D."""
        return self.tensors["first"].shape[1]

    def log_density(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """log p(x), nats; differentiable by x and by the tensors."""
        apart = (x.double() - self.tensors["mean"]).T
        factor = self.tensors["factor"]
        whitened = torch.linalg.solve_triangular(factor, apart, upper=False).T
        return self._log_density(whitened) - factor.diagonal().log().sum()

    def _log_density(self, y: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """Of T(z)."""
        change = torch.zeros((), dtype=y.dtype, device=y.device)
        for k in reversed(range(len(self.tensors["first"]))):
            log_scale, shift = self._coupling(k, y)
            y = (y - shift) * torch.exp(-log_scale)
            change = change - log_scale.sum(1)
        return change + _standard(y)

    def pushed(self, z: Float[Tensor, "n visible"]) -> tuple[Float[Tensor, "n visible"], Float[Tensor, " n"]]:
        """x of standard normal numbers, and log p(x); differentiable by the tensors."""
        y = z.double()
        logs = _standard(y) - self.tensors["factor"].diagonal().log().sum()
        for k in range(len(self.tensors["first"])):
            log_scale, shift = self._coupling(k, y)
            y = y * torch.exp(log_scale) + shift
            logs = logs - log_scale.sum(1)
        return self.tensors["mean"] + y @ self.tensors["factor"].T, logs

    def sample(self, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int) -> Float[Tensor, "n visible"]:
        """One draw for each row."""
        return self.pushed(rng.normals(keys, sweep, stream, self.units))[0]

    def _coupling(self, k: int, y: Tensor) -> tuple[Tensor, Tensor]:
        """Log-factors and shifts, 0 for the units that stay."""
        digit, turned = divmod(k, 2)
        number = torch.arange(self.units, device=y.device)
        digits = max(1, (self.units - 1).bit_length())
        moves = ((number >> digit % digits) & 1 == turned).to(y)
        first, second = self.tensors["first"][k], self.tensors["second"][k]
        inner = torch.tanh((y * (1 - moves)) @ first + self.tensors["first_bias"][k])
        raw, shift = (inner @ second + self.tensors["second_bias"][k]).chunk(2, 1)
        return _LARGEST * torch.tanh(raw / _LARGEST) * moves, shift * moves


def _standard(z: Tensor) -> Tensor:
    found: Tensor = -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
    return found
