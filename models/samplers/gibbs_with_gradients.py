"""Gibbs-with-gradients (Grathwohl et al. 2021, "Oops I Took A Gradient")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models import rng, sweeping
from models.conditionals import Bernoulli, Categorical, Spin
from models.errors import CapabilityError
from models.family import Clamp, EnergyModel, HasClasses, HasScore, HasStates
from models.numerics import ROWS, by_rows
from models.rng import ChainKeys
from models.sampler import ChainState, Sampler, SweepInfo

MOST_STEPS = 100_000
_PROPOSALS = 0
"""The stream that units are drawn from."""


@dataclass(frozen=True)
class GibbsWithGradients(Sampler):
    """A step proposes to turn one visible unit, the likelier the more the slope says it gains, and accepts or refuses.

    The unit is drawn from q(i | x), proportional to exp(d_i / 2), where d_i = beta (x_i' - x_i) score_i is to first
    order what turning unit i adds to -beta E(x); the step is accepted with probability
    min(1, exp(beta (E(x) - E(x'))) q(i | x') / q(i | x)) (eq. 6, algorithm 1). All else is summed out: the chain is of
    the visibles alone, and the model's law is stationary, whatever the slope's worth. Held units are not proposed;
    where a class is held E(x, y) takes the place of E(x) in the decisions, and not in the proposals.

    Step k of a sweep draws with replica number k. A unit 2^-41 times as likely as the likeliest is never proposed.
    """

    name: ClassVar[str] = "gibbs_with_gradients"

    steps: int = 10
    """Proposals in a sweep, 1..100000."""

    def __post_init__(self) -> None:
        """Check the setting.

        Raises:
            ValueError: it is out of range.
        """
        if type(self.steps) is not int or not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps must be a whole number from 1 to {MOST_STEPS}; got {self.steps!r}")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Models with binary visibles, or spins, whose energy has an exact value and a relaxed slope."""
        return (
            isinstance(model, HasStates)
            and isinstance(model, HasScore)
            and model.score_is_relaxed
            and model.energy_kind == model.score_kind == "exact"
            and isinstance(model.noise("visible", 1), (Bernoulli, Spin))
        )

    def init(
        self,
        model: EnergyModel,
        keys: ChainKeys,
        start: Float[Tensor, "n visible"] | None,
        clamp: Clamp | None,
    ) -> ChainState:
        """Visibles from noise, or from `start` where given."""
        if not self.applies_to(model):
            raise self._refusal(model)
        assert isinstance(model, HasStates)
        visible = sweeping.begin(model, keys, start, clamp)["visible"]
        return ChainState({"visible": visible}, torch.zeros(len(keys), dtype=torch.int64, device=model.device))

    def step(
        self,
        model: EnergyModel,
        state: ChainState,
        keys: ChainKeys,
        clamp: Clamp | None = None,
        beta: Float[Tensor, " n"] | None = None,
    ) -> tuple[ChainState, SweepInfo]:
        """`steps` proposals for every chain; the acceptance rate of chains with no free unit is NaN."""
        if not self.applies_to(model):
            raise self._refusal(model)
        walk = _Walk.of(model, clamp, beta, len(keys))
        number, x = state.sweep + 1, state.visible
        energy, log_q = walk.look(x)
        count = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for k in range(self.steps):
            own = ChainKeys(keys.seed, keys.chain, torch.full_like(keys.chain, k))
            drawn = Categorical(log_q).sample(own, number, _PROPOSALS)
            proposal = torch.where((drawn > 0) & walk.free, walk.total - x, x)
            energy_new, log_q_new = walk.look(proposal)
            unit = drawn.argmax(1, keepdim=True)
            log_ratio = energy - energy_new + (log_q_new.gather(1, unit) - log_q.gather(1, unit))[:, 0]
            accepted = rng.accept(log_ratio, own, number, sweeping.DECISIONS)
            count += accepted
            x = torch.where(accepted[:, None], proposal, x)
            energy, log_q = torch.where(accepted, energy_new, energy), torch.where(accepted[:, None], log_q_new, log_q)
        rate = torch.where(walk.free.any(1), count / self.steps, torch.nan)
        return ChainState({"visible": x}, number), SweepInfo(lambda: x, rate)

    def _refusal(self, model: EnergyModel) -> CapabilityError:
        return CapabilityError(
            f"{self.name} needs binary visibles and an exact energy with a slope, which {model.name} has not",
            model.capabilities(),
        )


@dataclass(frozen=True)
class _Walk:
    model: HasScore
    total: float
    """The sum of a unit's two values."""
    free: Bool[Tensor, "n visible"]
    beta: Float[Tensor, " n"]
    label: Int[Tensor, " n"] | None
    """Classes that are held, where 0 or more."""

    @classmethod
    def of(cls, model: EnergyModel, clamp: Clamp | None, beta: Tensor | None, n: int) -> _Walk:
        assert isinstance(model, HasStates)
        assert isinstance(model, HasScore)
        spin = isinstance(model.noise("visible", 1), Spin)
        units = (n, model.block_units("visible"))
        free = torch.ones(units, dtype=torch.bool, device=model.device) if clamp is None else ~clamp.mask
        ones = torch.ones(n, dtype=torch.float64, device=model.device)
        labelled = clamp is not None and isinstance(model, HasClasses) and model.class_count > 0
        label = clamp.label if clamp is not None and labelled else None
        return cls(model, 0.0 if spin else 1.0, free, ones if beta is None else beta.double(), label)

    def look(self, x: Float[Tensor, "n visible"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n visible"]]:
        """beta E(x) and log q(. | x), float64: -inf for held units; the bits of a row are the same in every batch."""
        energy, log_q = by_rows(self._look, ROWS, x, self.free, self.beta, self.label)
        return energy, log_q

    def _look(self, x: Tensor, free: Tensor, beta: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            own = x.to(self.model.dtype)
            energy, score = self.model.energy(own).double(), self.model.score(own).double()
            if label is not None:
                # E(x, y) = E(x) - log p(y | x): `class_energy` computes classes apart, as many rows as each has.
                assert isinstance(self.model, HasClasses)
                given = self.model.class_log_probs(own).double().gather(1, label.clamp(min=0)[:, None])[:, 0]
                energy = torch.where(label >= 0, energy - given, energy)
        gain = beta[:, None] * (self.total - 2.0 * x) * score
        return beta * energy, torch.log_softmax(torch.where(free, 0.5 * gain, -torch.inf), 1)
