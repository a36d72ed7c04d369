"""The fully visible Boltzmann machine (MATH 1; Ackley, Hinton & Sejnowski 1985)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from models.manifest import Manifest
from models.pairwise import Pairwise, symmetric
from models.pairwise_family import PairwiseModel


@dataclass(frozen=True, eq=False)
class BM(PairwiseModel):
    """E(x) = -1/2 x'Wx - b'x, W symmetric with zero diagonal, x in {0, 1}^D or {-1, 1}^D: each pair counts once.

    Energies and scores are exact, in the parameters' own precision. Chains are drawn in float64 from couplings rounded
    to a grid on which no sum rounds (`rounding_error` says by how much): the same bits in every batch.
    """

    name: ClassVar[str] = "bm"
    domains: ClassVar[frozenset[str]] = frozenset({"binary", "spin"})

    W: Float[Tensor, "visible visible"]
    b: Float[Tensor, " visible"]
    domain: str = "binary"

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        """`W` (D, D), `b` (D)."""
        D = manifest.visible.units
        return {"W": (D, D), "b": (D,)}

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> BM:
        """The machine with these parameters.

        Raises:
            CheckpointError: W is not symmetric, or its diagonal is not zero.
        """
        return cls(symmetric("W", tensors["W"]), tensors["b"], manifest.visible.domain)

    def tensors(self) -> dict[str, Tensor]:
        """W and b."""
        return {"W": self.W, "b": self.b}

    @cached_property
    def machine(self) -> Pairwise:
        """Without hidden units."""
        none = self.b[:0]
        return Pairwise(self.W, self.W[:, :0], self.W[:0, :0], self.b, none, self.domain == "spin")
