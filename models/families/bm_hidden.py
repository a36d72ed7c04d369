"""The Boltzmann machine with hidden units and any couplings (MATH 1; Ackley, Hinton & Sejnowski 1985)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from models.family import HasFeatures
from models.manifest import Manifest
from models.pairwise import Pairwise, symmetric
from models.pairwise_family import PairwiseModel


@dataclass(frozen=True, eq=False)
class BMHidden(PairwiseModel, HasFeatures):
    """E(v, h) = -1/2 v'Rv - v'Wh - 1/2 h'Sh - b'v - c'h, R and S symmetric with zero diagonal: each pair counts once.

    All units are binary, or all are spins. Energies, scores and features are exact where the hidden units can be summed
    out: in closed form where S = 0, else by enumeration of up to 20 of them, where a largest set of hidden units that
    are not coupled to each other does not count. Beyond they are mean-field: the energy then is an upper bound, -energy
    a lower bound on the unnormalized log-density. Chains are drawn as in the fully visible machine.
    """

    name: ClassVar[str] = "bm_hidden"
    domains: ClassVar[frozenset[str]] = frozenset({"binary", "spin"})

    R: Float[Tensor, "visible visible"]
    W: Float[Tensor, "visible hidden"]
    S: Float[Tensor, "hidden hidden"]
    b: Float[Tensor, " visible"]
    c: Float[Tensor, " hidden"]
    domain: str = "binary"

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """`R` (D, D), `W` (D, F), `S` (F, F), `b` (D), `c` (F); F is the length of c."""
        D = manifest.visible.units
        F = max(1, (*found.get("c", ()), *found.get("W", ())[1:], 1)[0])
        return {"R": (D, D), "W": (D, F), "S": (F, F), "b": (D,), "c": (F,)}

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> BMHidden:
        """The machine with these parameters.

        Raises:
            CheckpointError: R or S is not symmetric, or its diagonal is not zero.
        """
        R, S = symmetric("R", tensors["R"]), symmetric("S", tensors["S"])
        return cls(R, tensors["W"], S, tensors["b"], tensors["c"], manifest.visible.domain)

    def tensors(self) -> dict[str, Tensor]:
        """R, W, S, b and c."""
        return {"R": self.R, "W": self.W, "S": self.S, "b": self.b, "c": self.c}

    @cached_property
    def machine(self) -> Pairwise:
        """All of it."""
        return Pairwise(self.R, self.W, self.S, self.b, self.c, self.domain == "spin")

    @property
    def layers(self) -> tuple[str, ...]:
        """One: `hidden`."""
        return ("hidden",)

    def features(self, x: Float[Tensor, "n visible"], layer: str | None = None) -> Float[Tensor, "n hidden"]:  # noqa: ARG002
        """E[h | x]: exact where the energy is, else mean-field."""
        return self.machine.hidden_means(x)
