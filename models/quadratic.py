"""Sums of exp(1/2 s'Js + a's) over all states s of a few units, and the graph of the couplings J (MATH 1).

Units that no coupling joins are independent given the others, so the largest such set is summed out in closed form and
only the other units are enumerated: none of them where J = 0, one side of a bipartite graph, all of a complete graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.numerics import all_binary_states, softplus

_LOW_UNITS = 12
"""Enumerated units whose 2^12 states are tabled; the others' states are gone through."""
_STATES, _ENTRIES = 1 << 16, 1 << 22
"""At once: states (times units summed out) of one row, and of all rows. Bounds the memory."""


def colouring(couplings: Float[Tensor, "units units"]) -> list[Int[Tensor, " m"]]:
    """Sets of units without couplings among themselves: each unit in turn joins the first set that takes it.

    A chessboard has two, units that are not coupled at all are one, and in a complete graph each unit is one of its
    own, in their order. Positions are ascending, on the couplings' device.
    """
    neighbours = (couplings != 0).cpu().numpy()
    colours = np.zeros(len(neighbours), dtype=np.int64)
    for unit in range(len(neighbours)):
        taken = np.zeros(unit + 1, dtype=bool)
        taken[colours[:unit][neighbours[unit, :unit]]] = True
        colours[unit] = taken.argmin()
    count = int(colours.max(initial=-1)) + 1
    return [torch.from_numpy(np.flatnonzero(colours == k)).to(couplings.device) for k in range(count)]


def log_sum_unit(inputs: Float[Tensor, "*shape"], spin: bool) -> Float[Tensor, "*shape"]:
    """log of the sum of exp(s a) over one unit's states: softplus(a), or log(2 cosh a) for spins."""
    return inputs.abs() + softplus(-2.0 * inputs.abs()) if spin else softplus(inputs)


def mean_unit(inputs: Float[Tensor, "*shape"], spin: bool) -> Float[Tensor, "*shape"]:
    """The expected state: sigmoid(a), or tanh(a) for spins."""
    return torch.tanh(inputs) if spin else torch.sigmoid(inputs)


@dataclass(frozen=True, eq=False)
class QuadraticSum:
    """Binary units, or spins, with symmetric couplings J of zero diagonal; their fields a come with each question."""

    couplings: Float[Tensor, "units units"]
    spin: bool

    @cached_property
    def _summed(self) -> Int[Tensor, " s"]:
        """The largest independent set. In a complete graph of two or more units there is none worth the name."""
        sets = colouring(self.couplings)
        largest = max(sets, key=len, default=torch.empty(0, dtype=torch.int64, device=self.couplings.device))
        return largest[: len(largest) if len(largest) > 1 or len(sets) == 1 else 0]

    @cached_property
    def enumerated(self) -> Int[Tensor, " e"]:
        """The units whose states are gone through."""
        rest = torch.ones(len(self.couplings), dtype=torch.bool, device=self.couplings.device)
        rest[self._summed] = False
        return rest.nonzero()[:, 0]

    def log_sum(self, fields: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """log of the sum over all states, of a row of fields each."""
        sums = [self._log_sum(fields[rows]) for rows in self._rows(len(fields))]
        return torch.cat(sums) if sums else fields.sum(1)

    def means(self, fields: Float[Tensor, "n units"]) -> Float[Tensor, "n units"]:
        """Expected states under the law proportional to exp(1/2 s'Js + a's)."""
        means = torch.zeros_like(fields)
        _, low, high = self._split
        for rows in self._rows(len(fields)):
            total = self._log_sum(fields[rows])
            for high_states, terms, inputs in self._pieces(fields[rows]):
                weights = torch.exp(terms - total[:, None, None])
                means[rows, high] += weights.sum(2) @ high_states
                means[rows, low] += weights.sum(1) @ self._low_states
                means[rows, self._summed] += torch.einsum("nhl,nhls->ns", weights, mean_unit(inputs, self.spin))
        return means

    def _log_sum(self, fields: Tensor) -> Tensor:
        total = torch.full((len(fields),), -torch.inf, dtype=fields.dtype, device=fields.device)
        for _, terms, _ in self._pieces(fields):
            total = torch.logaddexp(total, terms.logsumexp((1, 2)))
        return total

    # --- a bounded piece at a time ---

    @cached_property
    def _split(self) -> tuple[int, Tensor, Tensor]:
        """How many states of the high units a piece has, the low units and the high ones."""
        width = max(1, len(self._summed))
        low = min(_LOW_UNITS, len(self.enumerated), max(0, (_STATES // width).bit_length() - 1))
        return max(1, (_STATES // width) >> low), self.enumerated[:low], self.enumerated[low:]

    def _rows(self, n: int) -> Iterator[slice]:
        step, low, high = self._split
        entries = (min(step, 1 << len(high)) << len(low)) * max(1, len(self._summed))
        rows = max(1, _ENTRIES // entries)
        return (slice(start, start + rows) for start in range(0, n, rows))

    @cached_property
    def _low_states(self) -> Float[Tensor, "l low"]:
        low = self._split[1]
        return self._states(len(low), 0, 1 << len(low))

    def _states(self, units: int, start: int, stop: int) -> Tensor:
        bits = all_binary_states(units, start, stop, self.couplings.device).to(self.couplings.dtype)
        return 2.0 * bits - 1.0 if self.spin else bits

    def _pieces(self, fields: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(states of the high units (h, _), log weights (n, h, l), inputs of the units summed out (n, h, l, _)).

        A state is one of the high units' and one of the low units'. Its energy is the sum of the two's own, tabled, and
        of what couples them: 2 x 12 operations a state instead of the square of the number of units.
        """
        J, summed, (step, low, high) = self.couplings, self._summed, self._split
        low_states = self._low_states
        low_own = 0.5 * (low_states @ J[low][:, low] * low_states).sum(1) + fields[:, low] @ low_states.T
        low_pull = low_states @ J[low][:, summed]
        for start in range(0, 1 << len(high), step):
            states = self._states(len(high), start, min(start + step, 1 << len(high)))
            own = 0.5 * (states @ J[high][:, high] * states).sum(1) + fields[:, high] @ states.T
            terms = own[:, :, None] + low_own[:, None, :] + states @ J[high][:, low] @ low_states.T
            pull = (states @ J[high][:, summed])[:, None] + low_pull
            inputs = pull + fields[:, None, None, summed]
            yield states, terms + log_sum_unit(inputs, self.spin).sum(3), inputs
