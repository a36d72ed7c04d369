"""Arithmetic that two families need: softplus, log-mean-exp, and the grid on which float64 products are exact."""

from __future__ import annotations

import math

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


def all_binary_states(units: int, start: int, stop: int, device: torch.device) -> Float[Tensor, "n units"]:
    """The states number start..stop-1 of `units` binary units; unit 0 is the lowest bit. float64."""
    numbers = torch.arange(start, stop, device=device, dtype=torch.int64)
    return ((numbers[:, None] >> torch.arange(units, device=device)) & 1).double()


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
