"""Walking a model's annealing path in either direction: the weights of every AIS-type estimator (MATH 12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.family import HasAnnealing, HasConditionals
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
    base: Float[Tensor, " visible"],
    keys: ChainKeys,
    betas: Sequence[float],
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "n visible"], Float[Tensor, " n"]]:
    """Anneal from the base-rate model to the model (Neal 2001).

    Returns the final visibles and log weights, float64; the mean of exp(log weight) is an unbiased estimate of Z.
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
    return state.visible, log_weight


def backward(
    model: HasAnnealing,
    base: Float[Tensor, " visible"],
    keys: ChainKeys,
    betas: Sequence[float],
    start: Float[Tensor, "n visible"],
    progress: Progress | None = None,
) -> Float[Tensor, " n"]:
    """Anneal from `start` down to the base-rate model.

    Returns log weights w, float64, such that exp(-w) has mean 1/Z where `start` is drawn from the model, and such that
    exp(-energy(start) - w) is an unbiased estimate of the probability with which the forward walk ends in `start`
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


def base_rates(model: HasConditionals, keys: ChainKeys, sweeps: int = 50) -> Float[Tensor, " visible"]:
    """Visible biases of the base-rate model: the log-odds of each unit's mean over short Gibbs chains of the model."""
    sweep = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
    states = {b: model.noise(b, len(keys)).sample(keys, sweep, i) for i, b in enumerate(model.blocks)}
    total = torch.zeros(model.block_units("visible"), dtype=torch.float64, device=model.device)
    for k in range(1, sweeps + 1):
        for stream, block in enumerate(model.blocks):
            states[block] = model.conditional(block, states).sample(keys, sweep + k, stream)
        if k > sweeps // 2:
            total += states["visible"].sum(0)
    return log_odds(total, (sweeps - sweeps // 2) * len(keys))


def log_odds(ones: Float[Tensor, " visible"], n: int) -> Float[Tensor, " visible"]:
    """log p/(1-p) of units that were 1 `ones` times in n, with one pseudo-observation, so always finite."""
    p = (ones.double() + 0.5) / (n + 1.0)
    return torch.log(p) - torch.log1p(-p)
