"""What the families of Boltzmann machines with any couplings have in common: all that is said of their `Pairwise`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property

from jaxtyping import Float, Int
from torch import Tensor

from models.conditionals import Conditional
from models.family import AnnealedState, Base, HasAnnealing, HasConditionals, HasEnumeration, HasScore, Part
from models.numerics import log_odds
from models.pairwise import Pairwise
from models.quadratic import log_sum_unit
from models.rng import ChainKeys


class PairwiseModel(HasScore, HasConditionals, HasEnumeration, HasAnnealing):
    """A family whose models are Boltzmann machines with any couplings of pairs. A subclass names its tensors."""

    @property
    @abstractmethod
    def machine(self) -> Pairwise:
        """The model's arithmetic."""

    @property
    def energy_kind(self) -> str:
        """`exact` where hidden units can be summed out: where S = 0, else up to 20 units."""
        return "exact" if self.machine.exact else "lower_bound"

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """-log sum_h exp(-E(x, h)), nats, or its mean-field bound (from above)."""
        return self.machine.energy(x)

    @property
    def score_is_relaxed(self) -> bool:
        """True: the visibles are binary, or spins."""
        return True

    @property
    def score_kind(self) -> str:
        """`exact` where the energy is."""
        return "exact" if self.machine.exact else "mean_field"

    def score(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """b + Rx + W E[h | x]."""
        return self.machine.score(x)

    # --- chains ---

    @property
    def blocks(self) -> tuple[str, ...]:
        """`hidden`, where there are such units, and `visible`."""
        return tuple(self.machine.sizes)

    def block_units(self, block: str) -> int:
        """How many units the block has."""
        return self.machine.sizes[block]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The colours of each block's graph, hidden units first; single units in their order where all are coupled."""
        return tuple(Part(name, colour.block, colour.units) for name, colour in self.machine.colours.items())

    def conditional(
        self, part: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Conditional:
        """p(units of the part | all others)^beta, normalised."""
        return self.machine.conditional(part, states, beta)

    def joint_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """E(v, h), nats."""
        return self.machine.joint_energy(states)

    def noise(self, block: str, chains: int) -> Conditional:
        """Fair coins."""
        return self.machine.noise(block, chains)

    @property
    def rounding_error(self) -> float:
        """Largest |coupling - coupling as sampled|."""
        return self.machine.rounding_error

    # --- log Z ---

    def log_partition(self) -> float:
        """log Z by enumeration of at most 25 units, float64; units not coupled to each other are summed out.

        Raises:
            CapabilityError: there are more.
        """
        return float(self.machine.log_partition())

    @property
    def kept_blocks(self) -> tuple[str, ...]:
        """The visibles; the hidden units too, where S is not zero."""
        return ("visible",) if self.machine.hidden_independent else self.blocks

    def base_of(self, totals: Mapping[str, Float[Tensor, " _"]], n: int) -> Base:
        """Log-odds of binary units, half the log-odds of spins: the bias with the same mean. All finite."""
        if self.machine.spin:
            return {block: 0.5 * log_odds(0.5 * (total + n), n) for block, total in totals.items()}
        return {block: log_odds(total, n) for block, total in totals.items()}

    def annealed_base(self, base: Base) -> float:
        """log Z of independent units with the base's biases, and of fair coins for those that are summed out."""
        kept = sum(float(log_sum_unit(biases.double(), self.machine.spin).sum()) for biases in base.values())
        return kept + math.log(2.0) * sum(self.block_units(block) for block in self.blocks if block not in base)

    def annealed_start(self, base: Base, keys: ChainKeys, sweep: Int[Tensor, " n"]) -> AnnealedState:
        """Units drawn independently."""
        laws = {block: self.machine.law(biases.double().expand(len(keys), -1)) for block, biases in base.items()}
        return self.annealed_at({block: law.sample(keys, sweep, i) for i, (block, law) in enumerate(laws.items())})

    def annealed_at(self, kept: Mapping[str, Float[Tensor, "n _"]]) -> AnnealedState:
        """The kept blocks, with the inputs of the hidden units where those are summed out."""
        machine, summed = self.machine, [block for block in self.blocks if block not in self.kept_blocks]
        return AnnealedState(kept, {block: machine.pull(block, kept) + machine.biases[block] for block in summed})

    def annealed_log_density(self, state: AnnealedState, base: Base, beta: float) -> Float[Tensor, " n"]:
        """log f_beta: the couplings and the biases of what is summed out times beta, the kept biases between the base's
        and the model's. float64."""
        total = beta * self.machine.quadratic(state.kept).sum(1)
        for block, states in state.kept.items():
            total += states @ self._biases(block, base, beta)
        for inputs in state.activations.values():
            total += log_sum_unit(beta * inputs, self.machine.spin).sum(1)
        return total

    def _biases(self, block: str, base: Base, beta: float) -> Float[Tensor, " units"]:
        return (1.0 - beta) * base[block].double() + beta * self.machine.biases[block]

    def annealed_transition(
        self, state: AnnealedState, base: Base, beta: float, keys: ChainKeys, sweep: Int[Tensor, " n"]
    ) -> AnnealedState:
        """What is summed out anew, then the kept parts in their order and back again: that is its own reversal."""
        machine = self.machine
        states = {block: states.clone() for block, states in state.kept.items()}
        for stream, (block, inputs) in enumerate(state.activations.items()):
            states[block] = machine.law(beta * inputs).sample(keys, sweep, stream)
        biases = {block: self._biases(block, base, beta) for block in state.kept}
        parts = [part for part in self.parts if part.block in state.kept]
        for stream, part in enumerate([*parts, *parts[-2::-1]], start=len(state.activations)):
            bias = biases[part.block] if part.units is None else biases[part.block][part.units]
            drawn = machine.law(bias + beta * machine.pull(part.name, states)).sample(keys, sweep, stream)
            if part.units is None:
                states[part.block] = drawn
            else:
                states[part.block].index_copy_(1, part.units, drawn)
        return self.annealed_at({block: states[block] for block in state.kept})
