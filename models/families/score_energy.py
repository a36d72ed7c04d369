"""An energy learned by its scores at many scales of noise (MATH 7; Song & Ermon 2019, 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models.conditionals import Conditional, Gaussian
from models.errors import CheckpointError
from models.family import HasNoiseScales
from models.manifest import Manifest
from models.network_family import ScalarEnergy
from models.noise_scales import read_sigmas


@dataclass(frozen=True, eq=False)
class ScoreEnergy(ScalarEnergy, HasNoiseScales):
    """E_sigma(x) = f(x) / sigma for any architecture f of one output (Song & Ermon 2020, technique 3).

    The model's own energy is that of the smallest sigma.
    """

    name: ClassVar[str] = "score_energy"

    sigmas: tuple[float, ...] = (1.0,)

    @classmethod
    def kinds(cls) -> None:
        """All that have one output."""

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> ScoreEnergy:
        """The network with these parameters.

        Raises:
            CheckpointError: `config.sigmas` is not what it should be, or there is a `config.prior_std`.
        """
        if manifest.config.get("prior_std") is not None:
            raise CheckpointError("a score_energy has no config.prior_std: its energy at each sigma is f(x) / sigma")
        made = super().from_tensors(manifest, tensors)
        assert isinstance(made, cls)
        return replace(made, sigmas=read_sigmas(manifest.config))

    def labelled_energy(self, x: Float[Tensor, "n visible"], label: Tensor | None) -> Float[Tensor, " n"]:
        """f(x) / sigma, of the smallest sigma."""
        return super().labelled_energy(x, label) / self.sigmas[-1]

    def noise(self, block: str, chains: int) -> Conditional:
        """Uniform within bounds; without, N(0, sigma^2) of the largest sigma."""
        if self.bounds is not None:
            return super().noise(block, chains)
        zeros = torch.zeros(chains, self.block_units(block), dtype=torch.float64, device=self.device)
        return Gaussian(zeros, zeros + self.sigmas[0])

    def blurred_score(self, x: Float[Tensor, "n visible"], sigma: float) -> Float[Tensor, "n visible"]:
        """-grad f(x) / sigma."""
        return -self.energy_and_gradient(x)[1] * (self.sigmas[-1] / sigma)

    def learned_score(self, x: Float[Tensor, "n visible"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n visible"]:
        """-grad f(x) / sigma, by back-propagation that can be differentiated again."""
        at = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.network.outputs(at).sum(), at, create_graph=True)
        return -slope / sigma[:, None]
