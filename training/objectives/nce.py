"""Noise-contrastive estimation, log Z learned as a number (MATH 8; Gutmann & Hyvarinen 2010, 2012)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Num
from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel, HasStates
from training.contrast import Contrast, named, noise_of
from training.flow import Flow
from training.mixture import Mixture
from training.objective import Batch, Draws, Memory

_NOISE = 0
"""Stream; it takes two."""


class NCE(Contrast):
    """E_data[log sigmoid(g)] + ratio E_noise[log sigmoid(-g)], g = -E(x) - c - log p_noise(x) - log ratio.

    The noise is fitted to the training data and then stays: a Gaussian with their mean and covariance, a mixture of
    `components` by EM, or a normalising flow by maximum likelihood.
    """

    name: ClassVar[str] = "nce"

    noise: Literal["gaussian", "mixture", "flow"] = "gaussian"
    components: int = Field(10, ge=2, description="Of `mixture`.")
    flow_layers: int = Field(8, ge=2, le=64, description="Couplings of `flow`.")
    flow_hidden: int = Field(64, ge=1, description="Hidden units of each of them.")
    flow_steps: int = Field(1000, ge=0, description="Of Adam that `flow` is fitted by.")

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """c, the running mean of its steps' squares, and noise that is N(0, 1) until the data are noted."""
        assert isinstance(model, HasStates)
        units = model.block_units("visible")
        if self.noise == "flow":
            return self.first(model) | named(
                Flow.standard(units, self.flow_layers, self.flow_hidden, model.device).tensors
            )
        return self.first(model) | named(Mixture.standard(units, model.device).tensors())

    def noted(self, memory: Memory, examples: Num[Tensor, "n visible"]) -> Memory:
        """The noise fitted to them."""
        if self.noise == "flow":
            fitted = Flow.fitted(examples, self.flow_layers, self.flow_hidden, self.flow_steps)
            return {**memory, **named(fitted.tensors)}
        return {
            **memory,
            **named(Mixture.fitted(examples, self.components if self.noise == "mixture" else 1).tensors()),
        }

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """By back-propagation, c held; then a step of c."""
        data, kept = batch.visible, noise_of(memory)
        law = Flow(kept) if self.noise == "flow" else Mixture.of(kept)
        made = draws.noise(law, data.repeat(self.ratio, 1), draws.step, _NOISE)
        return self.climbed(model, data, made, law.log_density(torch.cat((data, made))), memory, draws.step)
