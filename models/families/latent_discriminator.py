"""Discriminator-driven latent sampling: the energy is a discriminator's (MATH 11; Che et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from models.latent_family import LatentModel


@dataclass(frozen=True, eq=False)
class LatentDiscriminator(LatentModel):
    """p(x) proportional to p_g(x) exp(d(x)): d, of `discriminator.*`, is the logit that x is no draw of `generator.*`.

    Of the discriminator that tells data from p_g best, exp(d) is the ratio of the two densities, and p the data's law.
    """

    name: ClassVar[str] = "latent_discriminator"

    @classmethod
    def part(cls) -> str:
        """`discriminator`."""
        return "discriminator"

    def energy_of(self, output: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """-d."""
        return -output
