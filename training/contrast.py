"""What the objectives that tell data from noise have in common: the loss, and log Z, which is learned (MATH 8)."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.estimator import LogPartition
from models.family import EnergyModel
from training.objective import Memory, Objective, slopes
from training.smooth import is_unbounded

_LONGEST = 10.0
"""Nats that c goes in a step at most."""
_NOISE = "noise."
"""What the noise's tensors are called by in a memory, before their own names."""


def named(tensors: Memory) -> dict[str, Tensor]:
    """The noise's tensors as a memory has them."""
    return {f"{_NOISE}{name}": tensor for name, tensor in tensors.items()}


def noise_of(memory: Memory) -> dict[str, Tensor]:
    """The noise's tensors by their own names."""
    return {name.removeprefix(_NOISE): t for name, t in memory.items() if name.startswith(_NOISE)}


class Contrast(Objective):
    """V = E_data[log sigmoid(g)] + ratio E_noise[log sigmoid(-g)], g = -E(x) - c - log p_noise(x) - log ratio.

    c is where V is greatest for the parameters as they are, followed by Newton steps of one variable of which `gain` is
    taken; at the optimum it is log Z. It begins at the importance estimate from the first noise.
    """

    ratio: int = Field(1, ge=1, description="Noise for each example.")
    gain: float = Field(0.05, gt=0, le=1)

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Smooth energies on the whole space, where the noise lies too."""
        return is_unbounded(model)

    @abstractmethod
    def noted(self, memory: Memory, examples: Float[Tensor, "n visible"]) -> Memory:
        """The noise fitted to the training data."""

    def first(self, model: EnergyModel) -> dict[str, Tensor]:
        """c, and the running mean of its steps' squares."""
        zero = torch.zeros((), dtype=torch.float64, device=model.device)
        return {"c": zero, "squares": zero.clone()}

    def climbed(
        self,
        model: EnergyModel,
        data: Float[Tensor, "n visible"],
        made: Float[Tensor, "m visible"],
        log_noise: Float[Tensor, " both"],
        memory: Memory,
        step: int,
    ) -> tuple[dict[str, Tensor], Memory]:
        """The gradient of V by the parameters, by back-propagation, c held; and the memory with c a step on.

        `log_noise`: log p_noise, of the data and then of what the noise `made`.
        """
        both, offset = torch.cat((data, made)), log_noise + math.log(self.ratio)
        n, logits = len(data), list[Tensor]()
        if step == 0:
            weights = -model.energy(made).double() - log_noise[n:]
            memory = {**memory, "c": weights.logsumexp(0) - math.log(len(weights))}

        def figure() -> Tensor:
            g = -model.energy(both).double() - memory["c"] - offset
            logits.append(g.detach())
            return self.value(g, n)

        gradient = slopes(model.tensors(), figure)
        change = self._newton(logits[0], n)
        squares = memory["squares"].lerp(change.square(), 1.0 if step == 0 else self.gain)
        return gradient, {**memory, "c": memory["c"] + self.gain * change, "squares": squares}

    def value(self, g: Float[Tensor, " both"], n: int) -> Tensor:
        """V, of the logits of n examples and then of noise."""
        return logsigmoid(g[:n]).mean() + self.ratio * logsigmoid(-g[n:]).mean()

    def _newton(self, g: Float[Tensor, " both"], n: int) -> Tensor:
        p = torch.sigmoid(g)
        slope = self.ratio * p[n:].mean() - (1 - p[:n]).mean()
        curvature = self.ratio * (p[n:] * (1 - p[n:])).mean() + (p[:n] * (1 - p[:n])).mean()
        return (slope / curvature.clamp(min=1e-12)).clamp(-_LONGEST, _LONGEST)

    def log_partition(self, model: EnergyModel, memory: Memory) -> LogPartition | None:  # noqa: ARG002
        """c. The standard error is that of a mean of 2 / gain - 1 independent steps: it says nothing of how far the
        parameters are from the optimum, where alone c is log Z."""
        return LogPartition(
            float(memory["c"]), math.sqrt(self.gain / (2 - self.gain) * float(memory["squares"])), self.name
        )
