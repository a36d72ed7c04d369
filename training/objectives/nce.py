"""Noise-contrastive estimation, log Z learned as a number (MATH 8; Gutmann & Hyvarinen 2010, 2012)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.estimator import LogPartition
from models.family import Base, EnergyModel, HasStates
from training.mixture import Mixture
from training.objective import Batch, Draws, Memory, Objective, slopes
from training.smooth import is_unbounded

_NOISE = 0
"""Stream; it takes two."""
_LONGEST = 10.0
"""Nats that c goes in a step at most."""


class NCE(Objective):
    """E_data[log sigmoid(g)] + ratio E_noise[log sigmoid(-g)], g = -E(x) - c - log p_noise(x) - log ratio.

    The noise is a Gaussian with the training data's mean and covariance, or a mixture of `components` fitted to them
    by EM. c is where the objective is greatest for the parameters as they are, followed by Newton steps of one variable
    of which `gain` is taken; at the optimum it is log Z. It begins at the importance estimate from the first noise.
    """

    name: ClassVar[str] = "nce"

    noise: Literal["gaussian", "mixture"] = "gaussian"
    components: int = Field(10, ge=2, description="Of `mixture`.")
    ratio: int = Field(1, ge=1, description="Noise for each example.")
    gain: float = Field(0.05, gt=0, le=1)

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Smooth energies on the whole space, where the noise lies too."""
        return is_unbounded(model)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """c, the running mean of its steps' squares, and noise that is N(0, 1) until the data are noted."""
        assert isinstance(model, HasStates)
        zero = torch.zeros((), dtype=torch.float64, device=model.device)
        return {"c": zero, "squares": zero.clone()} | _named(
            Mixture.standard(model.block_units("visible"), model.device)
        )

    def noted(self, memory: Memory, examples: Num[Tensor, "n visible"]) -> Memory:
        """The noise fitted to them."""
        return {**memory, **_named(Mixture.fitted(examples, self.components if self.noise == "mixture" else 1))}

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """By back-propagation, c held; then a step of c."""
        data = batch.visible
        law = Mixture.of({name.removeprefix("noise."): t for name, t in memory.items()})
        made = draws.noise(law, data.repeat(self.ratio, 1), draws.step, _NOISE)
        both = torch.cat((data, made))
        offset, n, logits = law.log_density(both) + math.log(self.ratio), len(data), list[Tensor]()
        if draws.step == 0:
            weights = -model.energy(made).double() - offset[n:] + math.log(self.ratio)
            memory = {**memory, "c": weights.logsumexp(0) - math.log(len(weights))}

        def figure() -> Tensor:
            g = -model.energy(both).double() - memory["c"] - offset
            logits.append(g.detach())
            return logsigmoid(g[:n]).mean() + self.ratio * logsigmoid(-g[n:]).mean()

        gradient = slopes(model.tensors(), figure)
        step = self._newton(logits[0], n)
        squares = memory["squares"].lerp(step.square(), 1.0 if draws.step == 0 else self.gain)
        return gradient, {**memory, "c": memory["c"] + self.gain * step, "squares": squares}

    def _newton(self, g: Float[Tensor, " m"], n: int) -> Tensor:
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


def _named(law: Mixture) -> dict[str, Tensor]:
    return {f"noise.{name}": tensor for name, tensor in law.tensors().items()}
