"""The contract of a family. A capability is a base class: what a family inherits is what it can do.

The card, the service's refusals and the documentation are read off these classes, so they cannot drift from the code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.conditionals import Conditional
from models.manifest import Manifest
from models.rng import ChainKeys


class EnergyModel(ABC):
    """p(x) = exp(-E(x)) / Z over visible units x. Immutable; all tensors on one device."""

    name: ClassVar[str]
    """The family, as in a manifest."""
    energy_kind: ClassVar[str] = "exact"
    """`exact`, `lower_bound` (on the unnormalized log-density) or `estimate`."""
    domains: ClassVar[frozenset[str]]
    """Visible domains that the family is defined on."""
    operations: ClassVar[tuple[str, ...]] = ("energy", "log-density", "anomaly")

    @classmethod
    @abstractmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The tensors that a checkpoint must hold, with their shapes.

        `found` has the shapes that it does hold, from which free sizes (the number of hidden units) are read.
        """

    @classmethod
    @abstractmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> EnergyModel:
        """The model whose parameters are `tensors`: shapes checked, one floating dtype, one device."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by their names in a checkpoint."""

    @abstractmethod
    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """E(x) = -log p(x) - log Z, nats; for latent-variable models the free energy (MATH 0)."""

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(iter(self.tensors().values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' precision, in which energies are computed."""
        return next(iter(self.tensors().values())).dtype

    @classmethod
    def capabilities(cls) -> tuple[str, ...]:
        """The operations of every capability that this family has, in the order of its bases."""
        found: dict[str, None] = {}
        for base in (EnergyModel, *cls.__mro__):
            for operation in vars(base).get("operations", ()):
                found[operation] = None
        return tuple(found)


class HasScore(EnergyModel):
    """Knows grad_x log p(x)."""

    operations: ClassVar[tuple[str, ...]] = ("score",)

    @property
    @abstractmethod
    def score_is_relaxed(self) -> bool:
        """True where the visibles are discrete: then the score is that of the energy's continuous extension."""

    @abstractmethod
    def score(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """-grad_x E(x)."""


class HasFeatures(EnergyModel):
    """Represents an input by hidden activations."""

    operations: ClassVar[tuple[str, ...]] = ("features",)

    @abstractmethod
    def features(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n hidden"]:
        """Expected hidden states given x."""


class HasConditionals(EnergyModel):
    """Falls into named blocks of units, independent given the others: Gibbs sampling applies.

    Conditionals are computed so that their bits do not depend on the batch they are computed in.
    """

    operations: ClassVar[tuple[str, ...]] = ("sample", "complete")
    blocks: ClassVar[tuple[str, ...]]
    """In the order of a sweep. One of them is `visible`."""

    @abstractmethod
    def block_units(self, block: str) -> int:
        """How many units the block has."""

    @abstractmethod
    def conditional(
        self, block: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Conditional:
        """p(block | the other blocks), at inverse temperature `beta` for each chain (1 where None)."""

    @abstractmethod
    def joint_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """E(v, h), nats."""

    @abstractmethod
    def noise(self, block: str, chains: int) -> Conditional:
        """What a chain that starts from noise draws the block from."""

    @property
    @abstractmethod
    def rounding_error(self) -> float:
        """Largest |parameter - parameter as sampled|. The sampler is exact for the rounded parameters."""


class HasEnumeration(EnergyModel):
    """Can sum out all of its states where one side is small."""

    operations: ClassVar[tuple[str, ...]] = ("log_partition",)

    @abstractmethod
    def log_partition(self) -> float:
        """log Z by enumeration, float64.

        Raises:
            CapabilityError: more than 2^25 states on the smaller side.
        """


@dataclass(frozen=True)
class AnnealedState:
    """Chains on the way between base-rate model and model: visibles, and what both densities need of them."""

    visible: Float[Tensor, "n visible"]
    activation: Float[Tensor, "n hidden"]


class HasAnnealing(EnergyModel):
    """Has a path of distributions f_beta from a tractable base (beta 0) to the model (beta 1)."""

    operations: ClassVar[tuple[str, ...]] = ("log_partition",)

    @abstractmethod
    def annealed_base(self, base: Float[Tensor, " visible"]) -> float:
        """log Z of f_0, the base-rate model with visible biases `base`, nats."""

    @abstractmethod
    def annealed_start(
        self, base: Float[Tensor, " visible"], keys: ChainKeys, sweep: Int[Tensor, " n"]
    ) -> AnnealedState:
        """Independent draws from f_0."""

    @abstractmethod
    def annealed_at(self, visible: Float[Tensor, "n visible"]) -> AnnealedState:
        """The state whose visibles are given."""

    @abstractmethod
    def annealed_log_density(
        self, state: AnnealedState, base: Float[Tensor, " visible"], beta: float
    ) -> Float[Tensor, " n"]:
        """log f_beta(visible), unnormalized, float64."""

    @abstractmethod
    def annealed_transition(
        self,
        state: AnnealedState,
        base: Float[Tensor, " visible"],
        beta: float,
        keys: ChainKeys,
        sweep: Int[Tensor, " n"],
    ) -> AnnealedState:
        """One transition that leaves f_beta unchanged and is reversible with respect to it."""


@dataclass(frozen=True)
class Clamp:
    """Visible units held fixed: where `mask` is true the state is `value`. Data, not structure: a row each chain."""

    mask: Bool[Tensor, "n visible"]
    value: Float[Tensor, "n visible"]

    def apply(self, visible: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """`visible` with the clamped units put back."""
        return torch.where(self.mask, self.value, visible)
