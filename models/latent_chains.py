"""Chains on a generator's latents: what the samplers in latent space have in common (MATH 11; Che et al. 2020)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models import dynamics, sweeping
from models.errors import CapabilityError
from models.family import Clamp, EnergyModel
from models.hamiltonian import HamiltonianSampler, Scales
from models.latent_family import LATENT, VISIBLE, LatentModel
from models.rng import ChainKeys
from models.sampler import ChainState, SweepInfo


class LatentSampler(HamiltonianSampler):
    """A sweep moves z along the slope of U(z) = -log N(z; 0, 1) + beta E(G(z)); the visibles are G(z)."""

    @property
    def adjusted(self) -> bool:
        """Whether moves are accepted or refused, so that the law of the model is stationary."""
        return True

    @property
    def scales(self) -> Scales:
        """All 1: latents are standard normal but for the tilt."""
        return Scales(0)

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models that tilt a generator's law."""
        return isinstance(model, LatentModel)

    def approximate(self, model: EnergyModel, clamped: bool) -> bool:  # noqa: ARG002
        """Where nothing corrects the steps."""
        return not self.adjusted

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Latents from N(0, 1).

        Raises:
            CapabilityError: visibles are given, to start from or to hold: their latents are not known.
        """
        model = _latent(model, self.name)
        sweeping.only_from_noise(model, start, clamp)
        number = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
        z = model.noise(LATENT, len(keys)).sample(keys, number, dynamics.MOMENTA)
        sizes = self.step_sizes.blocks(len(keys), model.device)
        return ChainState({LATENT: z, VISIBLE: model.visible_of(z), **sizes}, number)

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """One proposal for every chain, or one step where nothing corrects it.

        Raises:
            CapabilityError: visibles are to be held.
        """
        latent, number, sizes = _latent(model, self.name), state.sweep + 1, self.step_sizes
        sweeping.only_from_noise(latent, clamp=clamp)
        z, rate, adapted = state.blocks[LATENT], None, dict[str, Tensor]()

        def slope(at: Tensor) -> tuple[Tensor, Tensor]:
            return latent.latent_energy_and_gradient(at, beta)

        if self.adjusted:
            size, free = sizes.at(state.blocks, number)[:, None], torch.ones_like(z, dtype=torch.bool)
            moved = dynamics.transition(slope, z, keys, number, size, self.leaps, None, free)
            z, rate, adapted = moved.x, moved.accepted.double(), sizes.after(state.blocks, number, moved.chance)
        else:
            z = dynamics.langevin_step(slope, z, keys, number, sizes.initial, None, None)
        visible = latent.visible_of(z)
        return ChainState({LATENT: z, VISIBLE: visible, **adapted}, number), SweepInfo(lambda: visible, rate)


def _latent(model: EnergyModel, sampler: str) -> LatentModel:
    if not isinstance(model, LatentModel):
        raise CapabilityError(f"{sampler} needs a tilted generator, which {model.name} is not", model.capabilities())
    return model
