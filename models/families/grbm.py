"""The Gaussian-Bernoulli RBM with learned variances (MATH 3; Cho et al. 2011; Liao et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.errors import CapabilityError
from models.family import HasGradient
from models.layered import Layered, check_log_sigma
from models.layered_family import LayeredModel
from models.manifest import Manifest
from models.numerics import ROWS, by_rows


@dataclass(frozen=True, eq=False)
class GRBM(LayeredModel, HasGradient):
    """E(v, h) = sum_i (v_i - b_i)^2 / (2 s_i^2) - sum_ij w_ij h_j v_i / s_i - c'h, v real, h in {0, 1}^F.

    s = exp(log_sigma). Energies, scores and features are exact. In Gibbs chains v / s enters products as a multiple of
    2^-20, at most 2^10 (see `Layered`); the normal draws have a resolution of 2^-32 in probability. Chains that follow
    the gradient see F(v), whose law is a mixture of 2^F Gaussians, and no hidden units.
    """

    name: ClassVar[str] = "grbm"
    domains: ClassVar[frozenset[str]] = frozenset({"real"})

    W: Float[Tensor, "visible hidden"]
    b: Float[Tensor, " visible"]
    c: Float[Tensor, " hidden"]
    log_sigma: Float[Tensor, " visible"]

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """`W` (D, F), `b` (D), `c` (F), `log_sigma` (D); F is the length of c."""
        D = manifest.visible.units
        F = max(1, (*found.get("c", ()), *found.get("W", ())[1:], 1)[0])
        return {"W": (D, F), "b": (D,), "c": (F,), "log_sigma": (D,)}

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> GRBM:  # noqa: ARG003
        """The GRBM with these parameters.

        Raises:
            CheckpointError: `log_sigma` is beyond +-40.
        """
        check_log_sigma(tensors)
        return cls(tensors["W"], tensors["b"], tensors["c"], tensors["log_sigma"])

    def tensors(self) -> dict[str, Tensor]:
        """W, b, c and log_sigma."""
        return {"W": self.W, "b": self.b, "c": self.c, "log_sigma": self.log_sigma}

    @cached_property
    def machine(self) -> Layered:
        """One hidden layer under real visibles."""
        return Layered((self.W,), (self.b, self.c), "real", self.log_sigma)

    @property
    def bounds(self) -> None:
        """None: the visibles are real."""

    def energy_and_gradient(
        self, x: Float[Tensor, "n visible"], label: Int[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n visible"]]:
        """F(v) and (v - b - s W E[h | v]) / s^2 of the parameters themselves, nats, float64.

        Raises:
            CapabilityError: labels are given.
        """
        if label is not None:
            raise CapabilityError(f"family {self.name} has no classes", self.capabilities())
        energy, gradient = by_rows(self._slope, ROWS, x.double())
        return energy, gradient

    @cached_property
    def _wide(self) -> GRBM:
        return GRBM(*(tensor.double() for tensor in self.tensors().values()))

    def _slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._wide.energy(x), -self._wide.score(x)
