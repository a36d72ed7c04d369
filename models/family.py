"""The contract of a family. A capability is a base class: what a family inherits is what it can do.

The card, the service's refusals and the documentation are read off these classes, so they cannot drift from the code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
    def energy_kind(self) -> str:
        """`exact`, `lower_bound` (on the unnormalized log-density) or `estimate`."""
        return "exact"

    def energy_with_error(
        self, x: Float[Tensor, "n visible"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
        """The energy and, where it is an estimate, its standard error, nats."""
        return self.energy(x), None

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(iter(self.tensors().values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' precision, in which energies are computed."""
        return next(iter(self.tensors().values())).dtype

    @property
    def lacks(self) -> frozenset[str]:
        """Operations of its family that this very model has not: one without label units cannot classify."""
        return frozenset()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know of this very model before trusting it."""
        return ()

    def capabilities(self) -> tuple[str, ...]:
        """The operations of every capability that this model has, in the order of its family's bases."""
        found: dict[str, None] = {}
        for base in (EnergyModel, *type(self).__mro__):
            for operation in vars(base).get("operations", ()):
                found[operation] = None
        return tuple(operation for operation in found if operation not in self.lacks)


class HasScore(EnergyModel):
    """Knows grad_x log p(x)."""

    operations: ClassVar[tuple[str, ...]] = ("score",)

    @property
    @abstractmethod
    def score_is_relaxed(self) -> bool:
        """True where the visibles are discrete: then the score is that of the energy's continuous extension."""

    @property
    def score_kind(self) -> str:
        """`exact`, or the approximation that the score is made by: `mean_field`."""
        return "exact"

    @abstractmethod
    def score(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """-grad_x E(x)."""


class HasFeatures(EnergyModel):
    """Represents an input by hidden activations."""

    operations: ClassVar[tuple[str, ...]] = ("features",)

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """Names of the hidden layers, lowest first."""

    @abstractmethod
    def features(self, x: Float[Tensor, "n visible"], layer: str | None = None) -> Float[Tensor, "n hidden"]:
        """Expected hidden states of a layer, the topmost where None, given x."""


class HasClasses(EnergyModel):
    """Knows classes y beside x, where it has label units: `class_count` is 0 where it has none."""

    operations: ClassVar[tuple[str, ...]] = ("classify",)

    @property
    @abstractmethod
    def class_count(self) -> int:
        """K, or 0."""

    @property
    def lacks(self) -> frozenset[str]:
        """`classify`, where there are no label units."""
        return frozenset() if self.class_count else frozenset({"classify"})

    @property
    def class_kind(self) -> str:
        """How p(y | x) is had: `exact`, `mean_field`, `recognition` or `estimate`."""
        return "exact"

    @abstractmethod
    def class_log_probs(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n classes"]:
        """log p(y | x), nats."""

    @abstractmethod
    def class_energy(self, x: Float[Tensor, "n visible"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """E(x, y): log p(x, y) = -E(x, y) - log Z, nats. `labels` are positions 0..K-1."""


@dataclass(frozen=True, eq=False)
class Part:
    """Units that a sweep draws at once: a whole block, or some units of it (a colour of the model's graph)."""

    name: str
    block: str
    units: Int[Tensor, " m"] | None = None
    """Their positions in the block; None: all."""
    when_clamped: bool = False
    """Only chains that hold some visible units draw it; the others pass over it."""


class HasStates(EnergyModel):
    """Chains run on it: their state is a tensor for each block of units.

    What a step computes for a chain does not depend, to the bit, on the batch that the chain is in.
    """

    operations: ClassVar[tuple[str, ...]] = ("sample", "complete")

    @property
    @abstractmethod
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks. One of them is `visible`; `label` are one-hot label units."""

    @abstractmethod
    def block_units(self, block: str) -> int:
        """How many units the block has."""

    @abstractmethod
    def noise(self, block: str, chains: int) -> Conditional:
        """What a chain that starts from noise draws the block from."""


class HasConditionals(HasStates):
    """A sweep draws parts of blocks in turn, each from its law given the rest: Gibbs sampling applies."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The parts in the order that a sweep draws them, each from its `conditional`, new values used at once.

        The whole sweep leaves the model's law unchanged; in all families but those with directed layers each part's
        draw does.
        """

    @property
    def exact_when_clamped(self) -> bool:
        """Whether sweeps with held visibles have the exact posterior as their stationary law."""
        return True

    @abstractmethod
    def conditional(
        self, part: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Conditional:
        """The law that a sweep draws the part from, at inverse temperature `beta` for each chain (1 where None)."""

    @abstractmethod
    def joint_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """E(v, h) of the parameters as sampled, nats, float64."""

    def thermal_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """The part of E(v, h) that beta multiplies: all of it, but for models with directed layers. nats, float64."""
        return self.joint_energy(states)

    @property
    @abstractmethod
    def rounding_error(self) -> float:
        """Largest |parameter - parameter as sampled|. The sampler is exact for the rounded parameters."""


class HasGradient(HasScore, HasStates):
    """Its visibles are continuous and its energy smooth: Langevin dynamics and Hamiltonian Monte Carlo apply."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float] | None:
        """The interval that each visible unit lies in, or None where it is the whole line."""

    @abstractmethod
    def energy_and_gradient(
        self, x: Float[Tensor, "n visible"], label: Int[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n visible"]]:
        """E(x) and grad E(x), nats, float64, of chains: a row's bits are the same in every batch.

        `label`: of rows where it is 0 or more, E(x, y) and its gradient.
        """


class HasNoiseScales(HasScore):
    """Knows the score of its law blurred by Gaussian noise, at every scale of a list (MATH 7)."""

    @property
    @abstractmethod
    def sigmas(self) -> tuple[float, ...]:
        """The standard deviations of the noise, the largest first."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float] | None:
        """The interval that each visible unit lies in before it is blurred, or None where it is the whole line."""

    @abstractmethod
    def blurred_score(self, x: Float[Tensor, "n visible"], sigma: float) -> Float[Tensor, "n visible"]:
        """grad_x log p_sigma(x), p_sigma the law of x + sigma z, float64: a row's bits are the same in every batch."""

    @abstractmethod
    def learned_score(self, x: Float[Tensor, "n visible"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n visible"]:
        """`blurred_score`, a scale for each row, differentiable by the parameters: what training climbs."""


class HasGenerator(EnergyModel):
    """Holds a generator beside its energy: x = G(z) + s e, z and e standard normal (MATH 9, 11)."""

    @property
    @abstractmethod
    def latent_units(self) -> int:
        """How many numbers z is made of."""

    @property
    @abstractmethod
    def generator_std(self) -> float:
        """s: 0 where x is G(z) itself."""

    @abstractmethod
    def generate(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n visible"]:
        """G(z), differentiable by z and by the generator's parameters."""


class HasEnumeration(EnergyModel):
    """Can sum out all of its states where one side is small."""

    operations: ClassVar[tuple[str, ...]] = ("log_partition",)

    @abstractmethod
    def log_partition(self) -> float:
        """log Z by enumeration, float64.

        Raises:
            CapabilityError: more than 2^25 states on the smaller side.
        """


@dataclass(frozen=True, eq=False)
class AnnealedState:
    """Chains on the way between base-rate model and model: the blocks not summed out, and what both need of them."""

    kept: Mapping[str, Float[Tensor, "n _"]]
    activations: Mapping[str, Float[Tensor, "n _"]]
    """Inputs of the blocks that are summed out, by block."""


Base = Mapping[str, Float[Tensor, " _"]]
"""The base-rate model: independent units with these biases (means, for Gaussian units), by block."""


class HasAnnealing(EnergyModel):
    """Has a path of distributions f_beta from a tractable base (beta 0) to the model (beta 1).

    The distributions are over the kept blocks; all others are summed out exactly. `visible` is kept, but in a DBN: its
    directed layers do not enter log Z.
    """

    operations: ClassVar[tuple[str, ...]] = ("log_partition",)

    @property
    @abstractmethod
    def kept_blocks(self) -> tuple[str, ...]:
        """The blocks that are not summed out."""

    @property
    def base_blocks(self) -> tuple[str, ...]:
        """The blocks that the base-rate model has biases for: the kept ones, and summed-out ones where the path begins
        at units that are independent but not fair."""
        return self.kept_blocks

    @abstractmethod
    def base_of(self, totals: Mapping[str, Float[Tensor, " _"]], n: int) -> Base:
        """The base-rate model whose units have the means of n states that add up to `totals`, by base block."""

    @abstractmethod
    def annealed_base(self, base: Base) -> float:
        """log Z of f_0, nats."""

    @abstractmethod
    def annealed_start(self, base: Base, keys: ChainKeys, sweep: Int[Tensor, " n"]) -> AnnealedState:
        """Independent draws from f_0."""

    @abstractmethod
    def annealed_at(self, kept: Mapping[str, Float[Tensor, "n _"]]) -> AnnealedState:
        """The state whose kept blocks are given."""

    @abstractmethod
    def annealed_log_density(self, state: AnnealedState, base: Base, beta: float) -> Float[Tensor, " n"]:
        """log f_beta(kept blocks), unnormalized, float64."""

    @abstractmethod
    def annealed_transition(
        self, state: AnnealedState, base: Base, beta: float, keys: ChainKeys, sweep: Int[Tensor, " n"]
    ) -> AnnealedState:
        """One transition that leaves f_beta unchanged and is reversible with respect to it."""


class HasRecognition(HasConditionals):
    """Has directed layers: their posterior is not drawn from, but a recognition law proposes states of them (MATH 4).

    The parts of a sweep that are drawn `when_clamped` are the recognition law's, a whole layer each; all other parts,
    but those of the same layers, are full conditionals. Bits do not depend on the batch here either.
    """

    @abstractmethod
    def recognition(self, block: str, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n units"]:
        """Log-odds of a directed layer's binary units, given the layer below alone, float64."""

    @abstractmethod
    def log_given_rest(
        self, block: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """log p(directed layer | all others) but for a term that the layer does not enter; nats, float64."""


@dataclass(frozen=True)
class Term:
    """A part of a composed model, as a manifest names it."""

    model: str
    version: int
    weight: float = 1.0
    label: int | str | None = None
    """A class of that model, by name or by position."""


class IsComposed(EnergyModel):
    """Made of other checkpoints of its models directory, and of no tensors of its own (MATH 11)."""

    @classmethod
    @abstractmethod
    def terms_of(cls, manifest: Manifest) -> tuple[Term, ...]:
        """What it is made of.

        Raises:
            CheckpointError: the manifest does not say.
        """

    @classmethod
    @abstractmethod
    def from_terms(cls, manifest: Manifest, models: Sequence[tuple[Manifest, EnergyModel]]) -> EnergyModel:
        """The model made of these, in the order of `terms_of`.

        Raises:
            CheckpointError: they do not go together.
        """

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        """None."""
        return {}

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> EnergyModel:  # noqa: ARG003
        """Refused: there are none."""
        return cls.from_terms(manifest, ())

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True, eq=False)
class Clamp:
    """Units held fixed, a row each chain: visibles are `value` where `mask` is true; the class is `label` if >= 0."""

    mask: Bool[Tensor, "n visible"]
    value: Float[Tensor, "n visible"]
    label: Int[Tensor, " n"] | None = None

    def apply(self, visible: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """`visible` with the clamped units put back."""
        return torch.where(self.mask, self.value, visible)

    def hold(self, part: Part, drawn: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """What was drawn for a part, with the units that are held put back."""
        if part.block == "visible":
            if part.units is None:
                return self.apply(drawn)
            return torch.where(self.mask[:, part.units], self.value[:, part.units], drawn)
        if part.block == "label" and self.label is not None:
            held = torch.nn.functional.one_hot(self.label.clamp(min=0), drawn.shape[1]).to(drawn)
            return torch.where(self.label[:, None] >= 0, held, drawn)
        return drawn

    def rows(self, index: Tensor | slice) -> Clamp:
        """The clamps of the rows that `index` selects."""
        return Clamp(self.mask[index], self.value[index], None if self.label is None else self.label[index])
