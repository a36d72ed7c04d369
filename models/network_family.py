"""What the families whose energy is a network's have in common (MATH 6, 10)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.architecture import Architecture, Bound, Pullback, read
from models.conditionals import Conditional, Gaussian, Uniform
from models.errors import CapabilityError, CheckpointError, InputError
from models.family import HasFeatures, HasGradient
from models.manifest import Manifest
from models.numerics import ROWS, by_rows
from models.perceptron import Along

FEATURES = "features"
_MOST = 4 * ROWS
"""Rows of the largest pieces."""


def read_prior_std(config: Mapping[str, Any]) -> float | None:
    """`config.prior_std`, or None where there is none.

    Raises:
        CheckpointError: it is no standard deviation.
    """
    std = config.get("prior_std")
    if std is not None and (type(std) not in (int, float) or not 0 < std < float("inf")):
        raise CheckpointError(f"config.prior_std must be a number above 0, or absent; found {std!r}")
    return std


@dataclass(frozen=True, eq=False)
class NetworkEnergy(HasGradient, HasFeatures):
    """A family whose E(x) is made of a network's outputs, plus |x|^2 / (2 s^2) where config has `prior_std` s.

    Without that term an energy on the whole line need not have a finite Z. A subclass says how many outputs there are
    and what they mean.
    """

    domains: ClassVar[frozenset[str]] = frozenset({"real", "unit"})
    architecture: Architecture
    shape: tuple[int, ...]
    domain: str
    parameters: Mapping[str, Tensor]
    """By their names in a checkpoint."""
    classes: int = 0
    prior_std: float | None = None

    @classmethod
    @abstractmethod
    def kinds(cls) -> tuple[str, ...] | None:
        """Architectures that the family may have; None: every one."""

    @classmethod
    @abstractmethod
    def outputs_of(cls, manifest: Manifest) -> int:
        """How many outputs the network has."""

    @abstractmethod
    def energy_of(
        self, outputs: Float[Tensor, "n outputs"], label: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """The network's part of E(x), or of E(x, y) in rows whose label is 0 or more."""

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        """Those of the network that `config.architecture` describes."""
        return read(manifest.config, cls.kinds()).shapes(tuple(manifest.visible.shape), cls.outputs_of(manifest))

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> NetworkEnergy:
        """The network with these parameters.

        Raises:
            CheckpointError: `config.prior_std` is no standard deviation.
        """
        return cls(
            read(manifest.config, cls.kinds()),
            tuple(manifest.visible.shape),
            manifest.visible.domain,
            dict(tensors),
            len(manifest.classes or ()),
            read_prior_std(manifest.config),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The network's parameters."""
        return dict(self.parameters)

    @property
    def network_parameters(self) -> Mapping[str, Tensor]:
        """The network's, by its own names."""
        return self.parameters

    @cached_property
    def network(self) -> Bound:
        """The network, of flat examples in the parameters' precision."""
        own = self.network_parameters
        return self.architecture.bind(self.shape, len(own["head.bias"]), own)

    # --- energies ---

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """E(x), nats; differentiable."""
        return self.labelled_energy(x, None)

    def labelled_energy(self, x: Float[Tensor, "n visible"], label: Int[Tensor, " n"] | None) -> Float[Tensor, " n"]:
        """E(x, y) where the label is 0 or more, else E(x)."""
        energy = self.energy_of(self.network.outputs(x), label)
        return energy if self.prior_std is None else energy + x.square().sum(1) / (2 * self.prior_std**2)

    @property
    def score_is_relaxed(self) -> bool:
        """No: the visibles are continuous."""
        return False

    def score(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """-grad E(x), by back-propagation."""
        return -self._slope(x, None)[1]

    @property
    def layers(self) -> tuple[str, ...]:
        """`features`: what the head takes."""
        return (FEATURES,)

    def features(self, x: Float[Tensor, "n visible"], layer: str | None = None) -> Float[Tensor, "n hidden"]:  # noqa: ARG002
        """The network's last layer but one."""
        return self.network.features(x)

    # --- chains ---

    @property
    def blocks(self) -> tuple[str, ...]:
        """The visibles alone."""
        return ("visible",)

    def block_units(self, block: str) -> int:
        """D."""
        if block != "visible":
            raise InputError(f"family {self.name} has no block {block!r}", "block")
        return math.prod(self.shape)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """[0, 1] for `unit`."""
        return (0.0, 1.0) if self.domain == "unit" else None

    def noise(self, block: str, chains: int) -> Conditional:
        """Uniform within bounds; without, N(0, prior_std^2), or N(0, 1)."""
        zeros = torch.zeros(chains, self.block_units(block), dtype=torch.float64, device=self.device)
        if self.bounds is not None:
            return Uniform(zeros, zeros + 1.0)
        return Gaussian(zeros, zeros + (self.prior_std or 1.0))

    def energy_and_gradient(
        self, x: Float[Tensor, "n visible"], label: Int[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n visible"]]:
        """In the parameters' precision, so many rows at a time that bits do not depend on the batch; then float64."""
        if label is not None and not self.classes:
            raise CapabilityError(f"family {self.name} has no classes", self.capabilities())
        energy, gradient = by_rows(self._slope, ROWS, x.to(self.dtype), label, most=self._most_rows)
        return energy.double(), gradient.double()

    def energy_slope(
        self, outputs: Float[Tensor, "n outputs"], label: Int[Tensor, " n"] | None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n outputs"]]:
        """`energy_of` and its slope by the outputs."""
        return _with_slope(lambda at: self.energy_of(at, label), outputs)

    @cached_property
    def _pullback(self) -> Pullback | None:
        return self.architecture.pullback(self.network_parameters) if self.is_single_on_cpu else None

    @property
    def is_single_on_cpu(self) -> bool:
        """Whether what is compiled is for this network."""
        return self.dtype == torch.float32 and self.device.type == "cpu"

    @cached_property
    def _most_rows(self) -> int:
        """Rows of the largest pieces that come out as the smallest do, bit for bit: tried once, on numbers at random.

        How a library sums goes by the shapes of matrices and not by what is in them.
        """
        if self._pullback is None:
            return ROWS
        x = torch.randn(_MOST, self.block_units("visible"), generator=torch.Generator().manual_seed(0))
        small = by_rows(self._slope, ROWS, x)
        for rows in range(_MOST, ROWS, -ROWS):
            found = self._slope(x[:rows], None)
            if not all(torch.equal(a, b[:rows]) for a, b in zip(found, small, strict=True)):
                return ROWS
        return _MOST

    def _slope(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self._pullback is None:
            return _with_slope(lambda at: self.labelled_energy(at, label), x)
        outputs, pull = self._pullback(x)
        energy, slope = self.energy_slope(outputs, label)
        gradient = pull(slope)
        if self.prior_std is not None:
            energy, gradient = energy + x.square().sum(1) / (2 * self.prior_std**2), gradient + x / self.prior_std**2
        return energy, gradient


def _with_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    # Chains run in inference mode, whose tensors take no part in back-propagation: hence the copies.
    with torch.inference_mode(False), torch.enable_grad():
        at = x.clone().requires_grad_(True)
        found = function(at)
        (slope,) = torch.autograd.grad(found.sum(), at)
    return found.detach(), slope


class ScalarEnergy(NetworkEnergy):
    """A family whose network has one output, the energy."""

    @classmethod
    def outputs_of(cls, manifest: Manifest) -> int:  # noqa: ARG003
        """One."""
        return 1

    def energy_of(
        self,
        outputs: Float[Tensor, "n outputs"],
        label: Int[Tensor, " n"] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, " n"]:
        """The output itself."""
        return outputs[:, 0]

    def energy_slope(
        self,
        outputs: Float[Tensor, "n outputs"],
        label: Int[Tensor, " n"] | None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n outputs"]]:
        """The output itself, and 1."""
        return outputs[:, 0], torch.ones_like(outputs)

    def along(self, x: Float[Tensor, "n visible"], v: Float[Tensor, "n visible"]) -> Along | None:
        """Derivatives of E along v, differentiable by the parameters; None: there is only differentiating twice."""
        found = self.architecture.along(self.network_parameters, x, v) if self.is_single_on_cpu else None
        if found is None or self.prior_std is None:
            return found
        precision = 1 / self.prior_std**2
        return Along(
            found.first + precision * (x * v).sum(1),
            found.second + precision * v.square().sum(1),
            lambda: found.slope() + precision * x,
        )
