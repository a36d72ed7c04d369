"""Contrastive divergence (Hinton 2002)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from models.families.rbm import RBM
from training.centring import Centring, contrast, offsets
from training.objective import Draws, Memory, Objective


class CD(Objective):
    """CD-k: the model's expectations from chains that start at the minibatch and make k sweeps.

    Biased for the log-likelihood's gradient; the bias falls with k.
    """

    name: ClassVar[str] = "cd"

    steps: int = Field(1, ge=1, description="k.")
    centring: Centring = "none"

    def start(self, model: RBM, means: Float[Tensor, " visible"], seed: int) -> Memory:  # noqa: ARG002
        """The offsets alone."""
        return offsets(model, means, self.centring)

    def gradient(
        self, model: RBM, batch: Float[Tensor, "n visible"], draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Data against the k-th reconstruction, its hidden units at their means."""
        logits = model.hidden_logits(batch)
        h_data = torch.sigmoid(logits)
        for k in range(self.steps):
            sweep = draws.step * self.steps + k
            h = draws.bernoulli(logits, sweep, 0)
            v = draws.bernoulli(model.visible_logits(h), sweep, 1)
            logits = model.hidden_logits(v)
        return contrast((batch, h_data), (v, torch.sigmoid(logits)), memory, self.centring)
