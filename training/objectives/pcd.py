"""Persistent contrastive divergence (Tieleman 2008), also known as stochastic maximum likelihood (Younes 1989)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from models.families.rbm import RBM
from training.centring import Centring, contrast, offsets
from training.objective import Draws, Memory, Objective


class PCD(Objective):
    """PCD-k: the model's expectations from chains that go on from step to step, k sweeps each.

    Close to the log-likelihood's gradient while the parameters move slowly compared with the chains.
    """

    name: ClassVar[str] = "pcd"

    steps: int = Field(1, ge=1, description="k.")
    chains: int = Field(100, ge=1)
    centring: Centring = "none"

    def start(self, model: RBM, means: Float[Tensor, " visible"], seed: int) -> Memory:
        """Hidden units of the chains, drawn given independent visibles with the data's means; and the offsets."""
        draws = Draws(seed, 0)
        v = draws.bernoulli(torch.special.logit(means, 1e-6).expand(self.chains, -1), 0, 2)
        return {"h": draws.bernoulli(model.hidden_logits(v), 0, 3), **offsets(model, means, self.centring)}

    def gradient(
        self, model: RBM, batch: Float[Tensor, "n visible"], draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Data against the chains. A sweep draws visible given hidden, then hidden given visible.

        In that order the last sweep's hidden logits serve the statistics too, and data and chains share a product.
        """
        h, n = memory["h"], len(batch)
        for k in range(self.steps):
            sweep = draws.step * self.steps + k
            v = draws.bernoulli(model.visible_logits(h), sweep, 1)
            last = k == self.steps - 1
            logits = model.hidden_logits(torch.cat((batch, v)) if last else v)
            h = draws.bernoulli(logits[-self.chains :], sweep, 0)
        means = torch.sigmoid(logits)
        gradient, kept = contrast((batch, means[:n]), (v, means[n:]), memory, self.centring)
        return gradient, {**kept, "h": h}
