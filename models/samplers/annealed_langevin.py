"""Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1; denoised at the end as in Song & Ermon 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models import rng, sweeping
from models.errors import CapabilityError
from models.family import Clamp, EnergyModel, HasNoiseScales, HasStates
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo

_NOISE = 0
"""The stream of the Langevin noise."""
BLURRED = "blurred"


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """A sweep is a step from x to x + (a / 2) beta s(x, sigma) + sqrt(a) z, where a = step_scale sigma^2 (MATH 7).

    That is the published a = e sigma^2 / sigma_L^2 with e = step_scale sigma_L^2. The sigma of a chain's sweep number m
    is the one at place floor((m - 1) / steps), the largest first, and once all were had the last, sigma_L.

    The noisy point that goes on from sweep to sweep is the block `blurred`. The visibles are the point that the sweep
    set out from without its noise, x + sigma^2 s(x, sigma), the expectation of what was blurred, put within bounds
    where the domain has some: at the last sigma draws, before it a preview of them. They take no second evaluation of
    the score. Draws should be taken at the last sigma: burn-in is best `steps` times the number of sigmas.

    Units that are held are held at their values through all scales: their neighbours see them sharper than they are at
    the scale, so that completions are approximate, as the chains themselves are.
    """

    name: ClassVar[str] = "annealed_langevin"

    steps: int = 100
    """Sweeps at each sigma, 1..100000."""
    step_scale: float = 0.2
    """a / sigma^2, above 0 and below 4. The published 2e-5 at a last sigma of 0.01 is 0.2."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: one is out of range.
        """
        if type(self.steps) is not int or not 1 <= self.steps <= 100_000:
            raise ValueError(f"steps must be a whole number from 1 to 100000; got {self.steps!r}")
        if type(self.step_scale) not in (int, float) or not 0 < self.step_scale < 4:
            raise ValueError(f"step_scale must be a number above 0 and below 4; got {self.step_scale!r}")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with scores at several scales of noise."""
        return isinstance(model, HasNoiseScales) and isinstance(model, HasStates)

    def approximate(self, model: EnergyModel, clamped: bool) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def schedule(self, model: EnergyModel) -> int:
        """As long as it takes through all sigmas."""
        return self.steps * len(model.sigmas) if isinstance(model, HasNoiseScales) else 0

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Visibles from noise, or from `start` where given; `blurred` is the same."""
        if not isinstance(model, HasStates) or not isinstance(model, HasNoiseScales):
            raise self._refusal(model)
        visible = sweeping.begin(model, keys, start, clamp)["visible"]
        sweep = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
        return ChainState({"visible": visible, BLURRED: visible.clone()}, sweep)

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One step of every chain at its own sigma."""
        if not isinstance(model, HasNoiseScales):
            raise self._refusal(model)
        number, x = state.sweep + 1, state.blocks[BLURRED]
        place = torch.div(state.sweep, self.steps, rounding_mode="floor").clamp(max=len(model.sigmas) - 1)
        score = torch.empty_like(x)
        for at in sorted(set(place.tolist())):
            rows = place == at
            score[rows] = model.blurred_score(x[rows], model.sigmas[at])
        sigma = torch.tensor(model.sigmas, dtype=torch.float64, device=x.device)[place][:, None]
        noise = rng.normals(keys, number, _NOISE, x.shape[1])
        drift = score if beta is None else score * beta[:, None]
        moved = x + 0.5 * self.step_scale * sigma.square() * drift + math.sqrt(self.step_scale) * sigma * noise
        clean = x + sigma.square() * score
        sound = torch.isfinite(moved).all(1, keepdim=True) & torch.isfinite(clean).all(1, keepdim=True)
        moved, clean = torch.where(sound, moved, x), torch.where(sound, clean, x)
        if model.bounds is not None:
            clean = clean.clamp(*model.bounds)
        if clamp is not None:
            moved, clean = clamp.apply(moved), clamp.apply(clean)
        return ChainState({"visible": clean, BLURRED: moved}, number), SweepInfo(lambda: clean)

    def _refusal(self, model: EnergyModel) -> CapabilityError:
        return CapabilityError(
            f"{self.name} needs scores at several scales of noise, which {model.name} has not", model.capabilities()
        )
