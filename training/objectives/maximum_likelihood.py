"""The log-likelihood itself, by enumeration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from models.family import Base, EnergyModel
from models.layered import Layered
from models.layered_family import LayeredModel
from models.pairwise import Pairwise
from models.pairwise_family import PairwiseModel
from training.objective import Batch, Draws, Memory, Objective, slopes
from training.pairwise_phases import dense


class MaximumLikelihood(Objective):
    """The mean log-likelihood of the minibatch, nats, and its exact gradient: log Z is enumerated at every step.

    For machines with few units on one side, or few in all where they are fully coupled (at most 25; up to about 16 is
    fast). Labels are not given to it.
    """

    name: ClassVar[str] = "maximum_likelihood"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Layered machines and those with any couplings of pairs."""
        return isinstance(model, LayeredModel | PairwiseModel)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """Nothing is kept."""
        return {}

    def gradient(
        self,
        model: EnergyModel,
        batch: Batch,
        draws: Draws,  # noqa: ARG002
        memory: Memory,
    ) -> tuple[dict[str, Tensor], Memory]:
        """Of every parameter; a coupling of two units of the same kind counts once."""
        assert isinstance(model, LayeredModel | PairwiseModel)
        # A new machine: what one keeps is of earlier parameters. Made before there is a graph, which it would keep too.
        machine: Layered | Pairwise = replace(model.machine)

        def log_likelihood() -> Tensor:
            whole = dense(machine) if isinstance(machine, Pairwise) else machine
            return -whole.energy(batch.visible).mean() - whole.log_partition()

        gradient = slopes(model.tensors(), log_likelihood)
        if isinstance(model, PairwiseModel):
            gradient |= _symmetric(gradient, ("R", "S") if "R" in gradient else ("W",))
        return gradient, memory


def _symmetric(gradient: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    both = {name: gradient[name] + gradient[name].T for name in names if name in gradient}
    return {name: g.fill_diagonal_(0.0) for name, g in both.items()}
