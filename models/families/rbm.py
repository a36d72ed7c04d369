"""The restricted Boltzmann machine (MATH 2; Smolensky 1986, Hinton 2002; with labels Larochelle & Bengio 2008)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from models.layered import Layered
from models.layered_family import LayeredModel
from models.manifest import Manifest


@dataclass(frozen=True, eq=False)
class RBM(LayeredModel):
    """E(v, h, y) = -v'Wh - b'v - c'h - y'Uh - d'y with v in {0, 1}^D, h in {0, 1}^F, and y one-hot of K where labelled.

    Energies, scores, features and class probabilities are exact, in the parameters' own precision. Conditionals that
    chains are drawn from are computed in float64 from weights rounded to a grid on which no sum rounds
    (`rounding_error` says by how much, about 1e-12), so a chain is the same bit for bit in every batch and on every
    device. In the domain `unit` chains draw binary states too; values between 0 and 1, where a chain starts from or is
    clamped at them, count to 16 bits after the point.
    """

    name: ClassVar[str] = "rbm"
    domains: ClassVar[frozenset[str]] = frozenset({"binary", "unit"})

    W: Float[Tensor, "visible hidden"]
    b: Float[Tensor, " visible"]
    c: Float[Tensor, " hidden"]
    domain: str = "binary"
    U: Float[Tensor, "classes hidden"] | None = None
    d: Float[Tensor, " classes"] | None = None

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """`W` (D, F), `b` (D), `c` (F); with classes also `U` (K, F), `d` (K). F is the length of c."""
        D = manifest.visible.units
        F = max(1, (*found.get("c", ()), *found.get("W", ())[1:], 1)[0])
        shapes: dict[str, tuple[int, ...]] = {"W": (D, F), "b": (D,), "c": (F,)}
        if manifest.classes is not None or "U" in found or "d" in found:
            K = len(manifest.classes) if manifest.classes is not None else (*found.get("d", ()), 1)[0]
            shapes |= {"U": (K, F), "d": (K,)}
        return shapes

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> RBM:
        """The RBM with these parameters."""
        domain = manifest.visible.domain
        return cls(tensors["W"], tensors["b"], tensors["c"], domain, tensors.get("U"), tensors.get("d"))

    def tensors(self) -> dict[str, Tensor]:
        """W, b and c; U and d where there are labels."""
        every = {"W": self.W, "b": self.b, "c": self.c, "U": self.U, "d": self.d}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    @cached_property
    def machine(self) -> Layered:
        """One hidden layer."""
        return Layered((self.W,), (self.b, self.c), self.domain, U=self.U, d=self.d)
