"""Exponential tilting of a generator's law by an energy (MATH 11; Xiao, Yan & Amit 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from models.latent_family import LatentModel


@dataclass(frozen=True, eq=False)
class Tilted(LatentModel):
    """p(x) proportional to p_g(x) exp(-E(x)): `energy.*` make E, `generator.*` make p_g."""

    name: ClassVar[str] = "tilted"

    @classmethod
    def part(cls) -> str:
        """`energy`."""
        return "energy"

    def energy_of(self, output: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The output itself."""
        return output
