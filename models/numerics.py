"""Arithmetic that two families need: softplus, log-mean-exp, and the grid on which float64 products are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def softplus(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 + exp(x)). Torch's own default takes x itself beyond 20, which is off by 2e-9."""
    return torch.nn.functional.softplus(x, threshold=40.0)


def log_mean_exp(log_weights: Float[Tensor, " n"]) -> tuple[float, float]:
    """log of the mean of exp(log_weights), and the standard error of that log (delta method), in float64.

    The standard error is sd(w) / (sqrt(n) mean(w)). It is itself an estimate from the same weights: where a few
    weights carry all of the mean it is too small.
    """
    lw = log_weights.double()
    top = lw.max()
    w = torch.exp(lw - top)
    mean = w.mean()
    stderr = float(w.std(unbiased=True) / (mean * math.sqrt(len(w)))) if len(w) > 1 else math.inf
    return float(top + mean.log()), stderr


def log_odds(ones: Float[Tensor, " units"], n: int) -> Float[Tensor, " units"]:
    """log p/(1-p) of units that were 1 `ones` times in n, with one pseudo-observation, so always finite."""
    p = (ones.double() + 0.5) / (n + 1.0)
    return torch.log(p) - torch.log1p(-p)


def all_binary_states(units: int, start: int, stop: int, device: torch.device) -> Float[Tensor, "n units"]:
    """The states number start..stop-1 of `units` binary units; unit 0 is the lowest bit. float64."""
    numbers = torch.arange(start, stop, device=device, dtype=torch.int64)
    return ((numbers[:, None] >> torch.arange(units, device=device)) & 1).double()


ROWS = 64
"""Rows that a network computes at once for chains. Libraries choose how to sum by the shape of a product."""


def by_rows(
    function: Callable[..., tuple[Tensor, ...]], rows: int, *arguments: Tensor | None, most: int | None = None
) -> tuple[Float[Tensor, "*shape"], ...]:
    """`function` of the arguments' first dimension in pieces of just so many rows, the last one filled up.

    Every piece has the same shape, so that what is found for a row depends neither on how many others there are nor on
    which. With `most`, pieces are of multiples of `rows` up to that: for a function to which they are all the same.
    """
    n = next(len(a) for a in arguments if a is not None)
    most, pieces = most or rows, []
    for at in range(0, max(n, 1), most):
        size = min(most, -(-max(n - at, 1) // rows) * rows)
        missing = at + size - n
        piece = [
            a
            if a is None
            else a[at : at + size]
            if missing <= 0
            else torch.cat((a[at:], a.new_zeros(missing, *a.shape[1:])))
            for a in arguments
        ]
        pieces.append(function(*piece))
    if len(pieces) == 1:
        return tuple(part[:n] for part in pieces[0])
    return tuple(torch.cat(parts)[:n] for parts in zip(*pieces, strict=True))


def exact_grid(bound: float) -> float:
    """The finest power of two g >= 2^-40 such that sums of multiples of g up to `bound` are exact in float64.

    A float64 holds 53 bits. If every term is a multiple of g and no partial sum exceeds 2^53 g, then no addition
    rounds, so the result is the same for every order of summation: for every batch size, thread count, library
    and device.
    """
    if not math.isfinite(bound):
        raise ValueError("weights must be finite")
    exponent = math.ceil(math.log2(bound)) if bound > 0 else -40
    return 2.0 ** max(exponent - 52, -40)


def snap(values: Tensor, grid: float) -> Tensor:
    """`values` rounded to the nearest multiples of `grid`, float64."""
    return torch.round(values.double() / grid) * grid


def invariant_sum(terms: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """The sum of each row, float64, the same bits in any order of summation and so in any batch.

    Each row is rounded to a grid of its own on which no partial sum rounds: an error of at most m 2^-53 of m times the
    row's largest term.
    """
    terms = terms.double()
    if terms.shape[1] == 0:
        return terms.sum(1)
    _, exponent = torch.frexp(terms.abs().amax(1) * terms.shape[1])
    grid = torch.ldexp(torch.ones_like(terms[:, 0]), exponent - 52)
    return (torch.round(terms / grid[:, None]) * grid[:, None]).sum(1)


@dataclass(frozen=True, eq=False)
class ExactMatrix:
    """A matrix whose products with vectors do not round: rounded to a grid on which float64 sums are exact.

    Binary vectors need one plane. Vectors of numbers that are multiples of `step` and at most `bound` leave fewer bits
    to the matrix, so that it is held as a coarse plane and a fine one, whose products are added last.
    """

    planes: tuple[Float[Tensor, "inputs outputs"], ...]

    @classmethod
    def of(cls, matrix: Float[Tensor, "inputs outputs"], step: float = 1.0, bound: float = 1.0) -> ExactMatrix:
        """`matrix` for vectors of multiples of `step` within +-`bound`; and the same for its transpose."""
        rest, planes = matrix.double(), []
        for _ in range(1 if step == bound else 2):
            sums = max(float(rest.abs().sum(0).max()), float(rest.abs().sum(1).max())) if rest.numel() else 0.0
            planes.append(snap(rest, exact_grid(2.0 * sums * bound / step)))
            rest = rest - planes[-1]
        return cls(tuple(planes))

    @property
    def T(self) -> ExactMatrix:  # noqa: N802 - as torch names it
        """The transpose."""
        return ExactMatrix(tuple(plane.T for plane in self.planes))

    @property
    def value(self) -> Float[Tensor, "inputs outputs"]:
        """The matrix as rounded, float64."""
        return sum(self.planes[1:], self.planes[0])

    def __call__(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        """x times the matrix."""
        product = x @ self.planes[0]
        for plane in self.planes[1:]:
            product = product + x @ plane
        return product
