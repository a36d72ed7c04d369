"""The two phases of learning where any pairs are coupled (MATH 1; Ackley, Hinton & Sejnowski 1985)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from models.family import Base
from models.pairwise import Pairwise
from models.pairwise_family import PairwiseModel
from training.objective import Batch, Draws, Memory
from training.phases import Centring, States
from training.products import Gradient

_FIRST = 0x8000
"""First stream of the chains' first draws, after one for each unit."""
_SLIDE = 0.01
"""Weight of a new batch in the running means of hidden units."""
_ENTRIES = 1 << 22
"""Hidden states times examples that are enumerated at once. Bounds the memory."""


def dense(machine: Pairwise) -> Pairwise:
    """The machine with every coupling of 0 made the smallest number there is.

    Sums over states leave a coupling that is 0 out, so that it would have no derivative; yet it is a parameter.
    """
    R, W, S = (J + torch.finfo(J.dtype).tiny * (J == 0).to(J.dtype) for J in (machine.R, machine.W, machine.S))
    return replace(machine, R=R, W=W, S=S)


@dataclass(frozen=True, eq=False)
class PairwisePhases:
    """Both phases of one model. Units count hidden ones first, then visible ones; sweeps go through them one by one."""

    model: PairwiseModel

    @cached_property
    def machine(self) -> Pairwise:
        """The arithmetic of the parameters as they are now: nothing that was computed from earlier ones is kept."""
        return replace(self.model.machine)

    def data(self, batch: Batch) -> States:
        """Expected states given the data, exact where the energy is, else mean-field: the hidden units' means, and the
        mean over the data of their `covariance` (F, F), off its diagonal."""
        visible, machine = batch.visible, dense(self.machine)
        if not len(machine.c):
            return {"visible": visible}
        means, pairs = machine.hidden_means(visible), torch.zeros_like(machine.S)
        rows = max(1, _ENTRIES >> len(machine.c)) if machine.exact else len(visible)
        for examples in visible.split(rows):  # type: ignore[no-untyped-call]
            pairs += _hidden_pairs(machine, examples)
        return {
            "hidden": means,
            "visible": visible,
            "covariance": (pairs - means.T @ means) / len(visible),
        }

    def first(self, base: Base, chains: int, seed: int) -> States:
        """Chains from independent visibles, and fair coins."""
        machine, draws = self.machine, Draws(seed, 0)
        visible = base["visible"].to(machine.b).expand(chains, -1) * (2 if machine.spin else 1)
        states = {"visible": self._states(draws.bernoulli(visible.contiguous(), 0, _FIRST))}
        if len(machine.c):
            coins = torch.zeros(chains, len(machine.c), device=machine.b.device)
            states["hidden"] = self._states(draws.bernoulli(coins, 0, _FIRST + 1))
        return states

    def advance(self, chains: Mapping[str, Tensor], draws: Draws, first: int, steps: int) -> tuple[States, States]:
        """The chains after so many sweeps, numbered from `first`: for the statistics, and to go on from."""
        x = torch.cat([chains[block] for block in self.machine.sizes], 1)
        couplings, bias = self.machine.couplings.to(x), torch.cat((self.machine.c, self.machine.b))
        for sweep in range(first, first + steps):
            for unit in range(x.shape[1]):
                inputs = torch.addmv(bias[unit], x, couplings[unit])[:, None]
                drawn = draws.bernoulli(2 * inputs if self.machine.spin else inputs, sweep, unit)
                x[:, unit] = self._states(drawn)[:, 0]
        states = dict(zip(self.machine.sizes, x.split(list(self.machine.sizes.values()), 1), strict=True))  # type: ignore[no-untyped-call]
        return states, {block: state.contiguous() for block, state in states.items()}

    def both(
        self, batch: Batch, chains: Mapping[str, Tensor], draws: Draws, first: int, steps: int
    ) -> tuple[States, States, States]:
        """`data`, and what `advance` gives."""
        return self.data(batch), *self.advance(chains, draws, first, steps)

    def _states(self, ones: Tensor) -> Tensor:
        return 2 * ones - 1 if self.machine.spin else ones

    def offsets(self, base: Base, centring: Centring) -> Memory:
        """Memory of a gradient so centred: the mean state of every unit."""
        if centring != "centred":
            return {}
        bias = base["visible"].to(self.machine.b)
        visible = torch.tanh(bias) if self.machine.spin else torch.sigmoid(bias)
        hidden = torch.full_like(self.machine.c, 0.0 if self.machine.spin else 0.5)
        return {"offset": torch.cat((hidden, visible))}

    def factored(
        self, data: Mapping[str, Tensor], model: Mapping[str, Tensor], memory: Memory, centring: Centring
    ) -> tuple[Gradient, Memory]:
        """`contrast`: no product is left undone, as one of all pairs goes into several parameters."""
        gradient, memory = self.contrast(data, model, memory, centring)
        return {**gradient}, memory

    def contrast(
        self, data: Mapping[str, Tensor], model: Mapping[str, Tensor], memory: Memory, centring: Centring
    ) -> tuple[dict[str, Tensor], Memory]:
        """dJ_ij = <x_i x_j>_data - <x_i x_j>_model for pairs, each counted once, and the like for biases.

        Centred as in `phases.Phases.contrast`: dJ of the covariances, db = <x>_data - <x>_model - dJ mu. The rows of
        `data` may be means, with their `covariance` beside them.
        """
        hidden = len(self.machine.c)
        x, y = (torch.cat([states[block] for block in self.machine.sizes], 1) for states in (data, model))
        dJ, db = x.T @ x / len(x) - y.T @ y / len(y), x.mean(0) - y.mean(0)
        if "covariance" in data:
            dJ[:hidden, :hidden] += data["covariance"]
        if centring == "centred":
            mu = torch.cat(
                (torch.lerp(memory["offset"][:hidden], x.mean(0)[:hidden], _SLIDE), memory["offset"][hidden:])
            )
            memory = {**memory, "offset": mu}
        else:
            mu = (x.mean(0) + y.mean(0)) / 2
        if centring != "none":
            dJ.addr_(db, mu, alpha=-1).addr_(mu, db, alpha=-1)
        dJ = 0.5 * (dJ + dJ.T)
        dJ.fill_diagonal_(0.0)
        if centring != "none":
            db = db - dJ @ mu
        if not hidden:
            return {"W": dJ, "b": db}, memory
        parts = {"R": dJ[hidden:, hidden:], "W": dJ[hidden:, :hidden], "S": dJ[:hidden, :hidden]}
        biases = {"b": db[hidden:], "c": db[:hidden]}
        return {name: part.contiguous() for name, part in (parts | biases).items()}, memory


def _hidden_pairs(machine: Pairwise, visible: Tensor) -> Tensor:
    """The sum over examples of E[h h' | v], off the diagonal: minus the energy's derivative by S; of its bound's, the
    products of mean-field means."""
    S = machine.S.detach().requires_grad_()
    (slope,) = torch.autograd.grad(-replace(machine, S=S).energy(visible).sum(), S)
    return slope + slope.T
