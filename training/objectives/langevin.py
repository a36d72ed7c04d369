"""Maximum likelihood with negatives by Langevin dynamics (MATH 6; Du & Mordatch 2019; Nijkamp et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from models.dynamics import reflect
from models.family import Base, EnergyModel, HasStates
from training.objective import Batch, Draws, Memory, Objective, contrast
from training.smooth import bounds, drift, is_smooth

_START, _WALK, _CHOICE, _AGAIN, _AFRESH, _DATA = range(6)
"""Streams."""


class Langevin(Objective):
    """The log-likelihood, its expectation under the model from chains of `steps` steps of Langevin dynamics each.

    A step takes x to x - (step_size^2 / 2) grad E(x) + noise z: the slope takes it to the bounds at most, the noise is
    reflected there. With `noise` equal to `step_size` the law of the model is stationary but for an error of the order
    of step_size^2; with less, that of the model at temperature (noise / step_size)^2, as is usual for images (Grathwohl
    et al. 2020).

    Chains begin `noise`: at noise, each step (short-run: Nijkamp et al. 2019); `data`: at the minibatch (contrastive
    divergence); `persistent`: where they ended (Tieleman 2008); `replay`: at states of a buffer, which they go back to,
    each with probability `reinit` at noise in place of it (Du & Mordatch 2019).
    """

    name: ClassVar[str] = "langevin"

    start_at: Literal["noise", "data", "persistent", "replay"] = "replay"
    steps: int = Field(20, ge=1)
    step_size: float = Field(0.1, gt=0)
    noise: float | None = Field(None, ge=0, description="None: `step_size`.")
    chains: int = Field(100, ge=1, description="Of `persistent`; in the others there are as many as examples.")
    buffer: int = Field(10_000, ge=1, description="States that `replay` keeps.")
    reinit: float = Field(0.05, gt=0, lt=1)
    data_noise: float = Field(0.0, ge=0, description="Standard deviation of noise on the examples, afresh each time.")
    energy_penalty: float = Field(0.0, ge=0, description="alpha of -alpha (E[E+^2] + E[E-^2]).")
    largest_gap: float = Field(1000.0, gt=0, description="Nats between data and chains at which training stops.")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Smooth energies of continuous visibles."""
        return is_smooth(model)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """Chains or a buffer of noise, where there are any."""
        if self.start_at not in ("persistent", "replay"):
            return {}
        count = self.chains if self.start_at == "persistent" else self.buffer
        like = torch.empty(count, 1, dtype=model.dtype, device=model.device)
        return {"chains": _noise(model, Draws(seed, 0), like, 0, _START)}

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Minus the mean slope of E at the data, plus that at the chains, and that of the penalty.

        Raises:
            DivergenceError: the mean energies of data and chains are more than `largest_gap` apart, or no numbers.
        """
        positive, rows, first = self._examples(model, batch, draws), None, draws.step * self.steps
        if self.start_at == "replay":
            rows = draws.choice(min(len(positive), self.buffer), memory["chains"], first, _CHOICE)
            negative = memory["chains"][rows]
            odds = torch.full_like(negative[:, :1], self.reinit).logit()
            again = draws.bernoulli(odds, first, _AGAIN) > 0
            negative = torch.where(again, _noise(model, draws, negative, first, _AFRESH), negative)
        elif self.start_at == "persistent":
            negative = memory["chains"]
        else:
            negative = positive if self.start_at == "data" else _noise(model, draws, positive, first, _AFRESH)
        negative = self.walk(model, negative, draws, first)
        gradient = contrast(
            model, model.tensors(), positive, negative, self.energy_penalty, self.largest_gap, draws.step
        )
        if rows is not None:
            kept = memory["chains"].clone()
            kept[rows] = negative
            return gradient, {"chains": kept}
        return gradient, {"chains": negative} if self.start_at == "persistent" else memory

    def ended(self, memory: Memory) -> Float[Tensor, "n visible"] | None:
        """The persistent ones, or the buffer."""
        return memory.get("chains")

    def walk(
        self, model: EnergyModel, x: Float[Tensor, "n visible"], draws: Draws, first: int
    ) -> Float[Tensor, "n visible"]:
        """The states after `steps` steps, of which the first has this number."""
        noise, within = self.step_size if self.noise is None else self.noise, bounds(model)
        for sweep in range(first, first + self.steps):
            x = x + 0.5 * self.step_size**2 * drift(model, x)
            if within is not None:  # long steps of images would come back from the border as noise
                x = x.clamp(*within)
            x, _ = reflect(x + noise * draws.normals(x, sweep, _WALK), within)
        return x

    def _examples(self, model: EnergyModel, batch: Batch, draws: Draws) -> Tensor:
        x = batch.visible
        if self.data_noise:
            noisy = x + self.data_noise * draws.normals(x, draws.step * self.steps, _DATA)
            x, _ = reflect(noisy, bounds(model))
        return x


def _noise(model: EnergyModel, draws: Draws, like: Tensor, sweep: int, stream: int) -> Tensor:
    assert isinstance(model, HasStates)
    return draws.noise(model.noise("visible", len(like)), like, sweep, stream)
