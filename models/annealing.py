"""Walking a model's annealing path in either direction: the weights of every AIS-type estimator (MATH 12)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models import sweeping
from models.family import Base, HasAnnealing, HasConditionals
from models.rng import ChainKeys

Progress = Callable[[int, int], None]


def temperatures(count: int) -> list[float]:
    """`count` + 1 inverse temperatures from 0 to 1, denser towards 1.

    As Salakhutdinov & Murray (2008) spaced them: 500 : 4000 : 10,000 steps for [0, 0.5], [0.5, 0.9] and [0.9, 1].
    """
    ends, shares = (0.0, 0.5, 0.9, 1.0), (500 / 14500, 4500 / 14500, 1.0)
    betas = [0.0]
    for k in range(1, count + 1):
        share = k / count
        piece = next(i for i, top in enumerate(shares) if share <= top)
        low = shares[piece - 1] if piece else 0.0
        betas.append(ends[piece] + (ends[piece + 1] - ends[piece]) * (share - low) / (shares[piece] - low))
    return betas


def forward(
    model: HasAnnealing,
    base: Base,
    keys: ChainKeys,
    betas: Sequence[float],
    progress: Progress | None = None,
) -> tuple[dict[str, Float[Tensor, "n _"]], Float[Tensor, " n"]]:
    """Anneal from the base-rate model to the model (Neal 2001).

    Returns the final kept blocks and log weights, float64; the mean of exp(log weight) is an unbiased estimate of Z.
    """
    sweep = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
    state = model.annealed_start(base, keys, sweep)
    log_weight = torch.full((len(keys),), model.annealed_base(base), dtype=torch.float64, device=model.device)
    for k in range(1, len(betas)):
        log_weight += model.annealed_log_density(state, base, betas[k])
        log_weight -= model.annealed_log_density(state, base, betas[k - 1])
        if k < len(betas) - 1:
            state = model.annealed_transition(state, base, betas[k], keys, sweep + k)
        if progress:
            progress(k, len(betas) - 1)
    return dict(state.kept), log_weight


def backward(
    model: HasAnnealing,
    base: Base,
    keys: ChainKeys,
    betas: Sequence[float],
    start: Mapping[str, Float[Tensor, "n _"]],
    progress: Progress | None = None,
) -> Float[Tensor, " n"]:
    """Anneal from the kept blocks `start` down to the base-rate model.

    Returns log weights w, float64, such that exp(-w) has mean 1/Z where `start` is drawn from the model, and such that
    f_1(start) exp(-w) is an unbiased estimate of the probability with which the forward walk ends in `start`
    (Burda, Grosse & Salakhutdinov 2015).
    """
    sweep = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
    state = model.annealed_at(start)
    log_weight = torch.full((len(keys),), model.annealed_base(base), dtype=torch.float64, device=model.device)
    for step, k in enumerate(range(len(betas) - 1, 0, -1), start=1):
        if k < len(betas) - 1:
            state = model.annealed_transition(state, base, betas[k], keys, sweep + step)
        log_weight += model.annealed_log_density(state, base, betas[k])
        log_weight -= model.annealed_log_density(state, base, betas[k - 1])
        if progress:
            progress(step, len(betas) - 1)
    return log_weight


def base_rates(model: HasAnnealing, keys: ChainKeys, sweeps: int = 50) -> Base:
    """The base-rate model of short Gibbs chains of the model: independent units with the means seen there."""
    assert isinstance(model, HasConditionals)
    blocks = model.base_blocks
    number = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
    states = sweeping.begin(model, keys)
    totals = {b: torch.zeros(model.block_units(b), dtype=torch.float64, device=model.device) for b in blocks}
    for k in range(1, sweeps + 1):
        states = sweeping.sweep(model, states, keys, number + k).blocks
        if k > sweeps // 2:
            for block in blocks:
                totals[block] += states[block].sum(0)
    n = (sweeps - sweeps // 2) * len(keys)
    return model.base_of(totals, n)
