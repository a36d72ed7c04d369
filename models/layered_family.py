"""What the families of layered Boltzmann machines have in common: all that is said of their `Layered` arithmetic."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.conditionals import Conditional
from models.errors import CapabilityError
from models.family import (
    AnnealedState,
    Base,
    HasAnnealing,
    HasClasses,
    HasConditionals,
    HasEnumeration,
    HasFeatures,
    HasScore,
    Part,
)
from models.layered import Layered
from models.layered_path import LayeredPath, base_of
from models.rng import ChainKeys


class LayeredModel(HasScore, HasFeatures, HasClasses, HasConditionals, HasEnumeration, HasAnnealing):
    """A family whose models are layered Boltzmann machines. A subclass names its tensors."""

    @property
    @abstractmethod
    def machine(self) -> Layered:
        """The model's arithmetic."""

    @property
    def energy_kind(self) -> str:
        """`exact` where hidden units can be summed out: always for one layer, else up to 20 units of one parity."""
        return "exact" if self.machine.exact else "lower_bound"

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """-log sum_h,y exp(-E(x, h, y)), nats, or its mean-field bound (from above)."""
        return self.machine.energy(x)

    @property
    def score_is_relaxed(self) -> bool:
        """Whether the visibles are binary."""
        return self.machine.domain == "binary"

    @property
    def score_kind(self) -> str:
        """`exact` where the energy is."""
        return "exact" if self.machine.exact else "mean_field"

    def score(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """-grad F(v) = b + W_1 E[h_1 | v]; for real visibles (b - v + s W_1 E[h_1 | v]) / s^2."""
        machine = self.machine
        mean = machine.inputs("visible", {machine.layers[1]: machine.posterior_means(x)[machine.layers[1]]})
        return mean if machine.log_sigma is None else (mean - x) * torch.exp(-2 * machine.log_sigma)

    @property
    def layers(self) -> tuple[str, ...]:
        """`hidden`, or `hidden1` .. `hiddenk`."""
        return self.machine.layers[1:]

    def features(self, x: Float[Tensor, "n visible"], layer: str | None = None) -> Float[Tensor, "n hidden"]:
        """E[h_l | v]: exact where the energy is, else mean-field."""
        return self.machine.posterior_means(x)[self.layers[-1] if layer is None else layer]

    @property
    def class_count(self) -> int:
        """K, or 0 without label units."""
        return self.machine.classes

    @property
    def class_kind(self) -> str:
        """`exact` where the energy is."""
        return "exact" if self.machine.exact else "mean_field"

    def class_log_probs(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n classes"]:
        """log p(y | x), nats: of the energies E(x, y), which are bounds where the energy is one."""
        if not self.class_count:
            raise CapabilityError("this model has no label units", self.capabilities())
        return torch.log_softmax(-self.machine.class_energies(x), 1)

    def class_energy(self, x: Float[Tensor, "n visible"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """E(x, y) with the hidden units summed out, nats."""
        if not self.class_count:
            raise CapabilityError("this model has no label units", self.capabilities())
        return self.machine.class_energy(x, labels)

    # --- chains ---

    @property
    def blocks(self) -> tuple[str, ...]:
        """Odd layers, then even ones; `label` beside the layers of its parity."""
        return self.machine.blocks

    def block_units(self, block: str) -> int:
        """How many units the block has."""
        return self.machine.units(block)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The blocks."""
        return tuple(Part(block, block) for block in self.machine.blocks)

    def conditional(
        self, part: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Conditional:
        """p(block | neighbouring layers)^beta, normalised."""
        return self.machine.conditional(part, states, beta)

    def joint_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """E(v, h, y), nats."""
        return self.machine.joint_energy(states)

    def noise(self, block: str, chains: int) -> Conditional:
        """Fair coins and dice; N(b, s^2) for real visibles."""
        return self.machine.noise(block, chains)

    @property
    def rounding_error(self) -> float:
        """Largest |weight - weight as sampled|."""
        return self.machine.rounding_error

    # --- log Z ---

    def log_partition(self) -> float:
        """log Z by enumerating one parity, at most 25 units, float64.

        Raises:
            CapabilityError: both have more.
        """
        return float(self.machine.log_partition())

    @property
    def kept_blocks(self) -> tuple[str, ...]:
        """The even layers, and the labels where they stand beside them."""
        return self.machine.side(False)

    @property
    def base_blocks(self) -> tuple[str, ...]:
        """All blocks; odd ones that are left out begin at fair coins and dice."""
        return self.machine.blocks

    def base_of(self, totals: Mapping[str, Float[Tensor, " _"]], n: int) -> Base:
        """Log-odds of binary units, log-probabilities of the classes, means of real ones; all finite."""
        return base_of(self.machine, totals, n)

    def annealed_base(self, base: Base) -> float:
        """log Z of independent units."""
        return LayeredPath(self.machine, base).log_base()

    def annealed_start(self, base: Base, keys: ChainKeys, sweep: Int[Tensor, " n"]) -> AnnealedState:
        """Even layers drawn independently."""
        return self.annealed_at(LayeredPath(self.machine, base).start(keys, sweep))

    def annealed_at(self, kept: Mapping[str, Float[Tensor, "n _"]]) -> AnnealedState:
        """The even layers with the inputs of the odd ones."""
        return AnnealedState(kept, LayeredPath(self.machine, {}).activations(kept))

    def annealed_log_density(self, state: AnnealedState, base: Base, beta: float) -> Float[Tensor, " n"]:
        """log f_beta(even layers), odd ones summed out, float64."""
        return LayeredPath(self.machine, base).log_density(state.kept, state.activations, beta)

    def annealed_transition(
        self, state: AnnealedState, base: Base, beta: float, keys: ChainKeys, sweep: Int[Tensor, " n"]
    ) -> AnnealedState:
        """Odd layers given even ones, then even ones given odd ones, at beta."""
        return self.annealed_at(LayeredPath(self.machine, base).transition(state.activations, beta, keys, sweep))
