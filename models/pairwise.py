"""Boltzmann machines with any couplings of pairs: the arithmetic of the fully visible one and of the one with latents.

E(v, h) = -1/2 v'Rv - v'Wh - 1/2 h'Sh - b'v - c'h, R and S symmetric with zero diagonal: each pair counts once (MATH 1;
Ackley, Hinton & Sejnowski 1985). All units are binary, or all are spins: then the log-odds are twice the inputs. Units
without couplings among themselves are drawn together: a sweep goes through the colours of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.conditionals import Bernoulli, Conditional, Spin
from models.errors import CapabilityError, CheckpointError
from models.numerics import ExactMatrix, invariant_sum
from models.quadratic import QuadraticSum, colouring, mean_unit

MAX_POSTERIOR_UNITS = 20
"""Hidden units that energy(v) enumerates; beyond it is a mean-field bound."""
MAX_PARTITION_UNITS = 25
"""Units that log Z enumerates."""
MEAN_FIELD_SWEEPS = 50
ASYMMETRY = 2.0**-20
"""Largest |W_ij - W_ji|, as a share of the largest |W_ij|, that counts as rounding in single precision."""


def symmetric(name: str, matrix: Float[Tensor, "units units"]) -> Float[Tensor, "units units"]:
    """The matrix, with every pair that rounding made to differ replaced by its mean.

    Rounding a symmetric matrix, to half precision too, leaves it symmetric to the bit; sums of outer products in single
    precision need not be: differences up to 2^-20 of the largest entry are taken for that.

    Raises:
        CheckpointError: pairs differ by more, or the diagonal is not zero.
    """
    on_diagonal = matrix.diagonal().nonzero()[:, 0].tolist()
    if on_diagonal:
        i = on_diagonal[0]
        raise CheckpointError(
            f"tensor {name} must have a zero diagonal; found {name}[{i}, {i}] = {float(matrix[i, i])}"
        )
    difference = (matrix - matrix.T).abs()
    if matrix.numel() and float(difference.max()) > ASYMMETRY * float(matrix.abs().max()):
        i, j = divmod(int(difference.argmax()), len(matrix))
        raise CheckpointError(
            f"tensor {name} must be symmetric; found {name}[{i}, {j}] = {float(matrix[i, j])} "
            f"and {name}[{j}, {i}] = {float(matrix[j, i])}"
        )
    return 0.5 * (matrix + matrix.T) if bool(difference.any()) else matrix


@dataclass(frozen=True, eq=False)
class Colour:
    """Units of one block that are drawn together, and what of the couplings their inputs need."""

    block: str
    units: Int[Tensor, " m"] | None
    """Their positions in the block, ascending; None: all."""
    couplings: Mapping[str, Float[Tensor, "_ m"]]
    """As sampled, by the block that they come from."""
    bias: Float[Tensor, " m"]


@dataclass(frozen=True, eq=False)
class Pairwise:
    """The parameters, in one precision. Without hidden units F is 0."""

    R: Float[Tensor, "visible visible"]
    W: Float[Tensor, "visible hidden"]
    S: Float[Tensor, "hidden hidden"]
    b: Float[Tensor, " visible"]
    c: Float[Tensor, " hidden"]
    spin: bool

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.b.device

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Numbers of units by block: `hidden`, where there are any, and `visible`."""
        return ({"hidden": len(self.c)} if len(self.c) else {}) | {"visible": len(self.b)}

    # --- energies with the hidden units summed out, in the parameters' precision ---

    @cached_property
    def _hidden_sum(self) -> QuadraticSum:
        return QuadraticSum(self.S, self.spin)

    @property
    def hidden_independent(self) -> bool:
        """Whether S = 0: then the hidden units are summed out in closed form."""
        return len(self._hidden_sum.enumerated) == 0

    @property
    def exact(self) -> bool:
        """Whether energy(v) is: up to 20 hidden units are enumerated, those not counted that closed forms sum out."""
        return len(self._hidden_sum.enumerated) <= MAX_POSTERIOR_UNITS

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """-log sum_h exp(-E(v, h)), nats, or the mean-field bound from above on it."""
        fields = torch.addmm(self.c, x, self.W)
        total = (self._hidden_sum.log_sum if self.exact else self._bound)(fields)
        return -((0.5 * (x @ self.R) + self.b) * x).sum(1) - total

    def hidden_means(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n hidden"]:
        """E[h | v]: exact where energy(v) is, else of the mean-field posterior."""
        fields = torch.addmm(self.c, x, self.W)
        return (self._hidden_sum.means if self.exact else self._mean_field)(fields)

    def score(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """b + Rv + W E[h | v]."""
        return torch.addmm(self.b, x, self.R) + self.hidden_means(x) @ self.W.T

    @torch.no_grad()
    def _mean_field(self, fields: Float[Tensor, "n hidden"]) -> Float[Tensor, "n hidden"]:
        """Means of the factorial posterior by coordinate ascent, a colour at a time, for a fixed number of sweeps."""
        means = mean_unit(fields, self.spin)
        into = [(units, self.S[:, units]) for units in colouring(self.S)]
        for _ in range(MEAN_FIELD_SWEEPS):
            for units, couplings in into:
                means[:, units] = mean_unit(fields[:, units] + means @ couplings, self.spin)
        return means

    def _bound(self, fields: Float[Tensor, "n hidden"]) -> Float[Tensor, " n"]:
        """E_q[1/2 h'Sh + fields'h] + H(q): at most the log of the sum over h. Its gradient is that at fixed means."""
        means = self._mean_field(fields)
        p = 0.5 * (1.0 + means) if self.spin else means
        entropy = -torch.xlogy(p, p) - torch.xlogy(1.0 - p, 1.0 - p)
        return ((0.5 * (means @ self.S) + fields) * means + entropy).sum(1)

    # --- chains: float64, the same bits in every batch ---

    @cached_property
    def couplings(self) -> Float[Tensor, "units units"]:
        """All couplings, the hidden units first, float64."""
        return torch.cat((torch.cat((self.S, self.W.T), 1), torch.cat((self.W, self.R), 1))).double()

    @cached_property
    def biases(self) -> dict[str, Float[Tensor, " _"]]:
        """By block, float64."""
        return {"hidden": self.c.double(), "visible": self.b.double()}

    @cached_property
    def _rounded(self) -> Float[Tensor, "units units"]:
        return ExactMatrix.of(self.couplings).value

    @property
    def rounding_error(self) -> float:
        """Largest |parameter - parameter as sampled|."""
        return float((self.couplings - self._rounded).abs().max())

    @cached_property
    def colours(self) -> dict[str, Colour]:
        """In the order of a sweep, hidden units first: `visible` where one colour does, else `visible/0`, .."""
        found = {}
        for block, size in self.sizes.items():
            at = self._positions[block]
            sets = colouring(self.couplings[at, at])
            for k, units in enumerate(sets):
                columns = self._rounded[:, at][:, units]
                into = {other: columns[rows].contiguous() for other, rows in self._positions.items()}
                into = {other: part for other, part in into.items() if bool(part.any())}
                whole = len(units) == size
                name = block if whole else f"{block}/{k}"
                found[name] = Colour(block, None if whole else units, into, self.biases[block][units])
        return found

    @cached_property
    def _positions(self) -> dict[str, slice]:
        hidden = len(self.c)
        every = {"hidden": slice(0, hidden), "visible": slice(hidden, hidden + len(self.b))}
        return {block: every[block] for block in self.sizes}

    def pull(self, colour: str, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n m"]:
        """What the other units put into those of a colour."""
        into = self.colours[colour].couplings
        total = torch.zeros(
            len(states["visible"]), len(self.colours[colour].bias), dtype=torch.float64, device=self.device
        )
        for block, couplings in into.items():
            total = torch.addmm(total, states[block], couplings)
        return total

    def law(self, inputs: Float[Tensor, "n m"], beta: Float[Tensor, " n"] | None = None) -> Conditional:
        """The law of units with these inputs, at inverse temperature `beta` (1 where None)."""
        tempered = inputs if beta is None else inputs * beta[:, None]
        return Spin(2.0 * tempered) if self.spin else Bernoulli(tempered)

    def conditional(
        self, colour: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Conditional:
        """p(units of the colour | all others)^beta, normalised."""
        return self.law(self.pull(colour, states) + self.colours[colour].bias, beta)

    def noise(self, block: str, chains: int) -> Conditional:
        """Fair coins."""
        return self.law(torch.zeros(chains, self.sizes[block], dtype=torch.float64, device=self.device))

    def quadratic(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n units"]:
        """x_i times 1/2 sum_j J_ij x_j for every unit of the given blocks, hidden units first, float64.

        Each is exact; their sum is 1/2 x'Jx.
        """
        blocks = [block for block in self.sizes if block in states]
        x = torch.cat([states[block].double() for block in blocks], 1)
        first, last = self._positions[blocks[0]].start, self._positions[blocks[-1]].stop
        return 0.5 * x * (x @ self._rounded[first:last, first:last])

    def joint_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """E(v, h) of the rounded parameters, nats, float64."""
        own = [states[block].double() * self.biases[block] for block in self.sizes]
        return -invariant_sum(torch.cat((self.quadratic(states), *own), 1))

    # --- log Z (MATH 12) ---

    def log_partition(self) -> Float[Tensor, ""]:
        """log Z by enumeration, float64, differentiable. The largest set of units without couplings is summed out.

        Raises:
            CapabilityError: more than 25 units are left.
        """
        every = QuadraticSum(self.couplings, self.spin)
        if len(every.enumerated) > MAX_PARTITION_UNITS:
            raise CapabilityError(
                "exact log Z enumerates the units that cannot be summed out in closed form, "
                f"at most {MAX_PARTITION_UNITS} units; this one has {len(every.enumerated)}"
            )
        return every.log_sum(torch.cat([self.biases[block] for block in self.sizes])[None])[0]
