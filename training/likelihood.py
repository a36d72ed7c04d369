"""The test log-likelihood from both sides, and what the monitors say on the way (MATH 12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from models import annealing
from models.estimator import Effort, LogPartition
from models.estimators.exact import Exact
from models.estimators.reverse_ais import ReverseAIS
from models.families.rbm import RBM
from models.numerics import log_mean_exp
from models.rng import ChainKeys, random_bits
from training.config import LikelihoodSettings, MonitorSettings
from training.data import Dataset

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, work done, work in all)."""

_EXACT_UNITS, _EXACT_MONITOR_UNITS = 25, 14
_CHUNK = 1024
_FLIPS = 16
# The estimates' draws are those of seeds that no recipe has: training used up the ones of its own.
_AIS_SEED, _REVERSE_SEED = 1 << 32, 2 << 32
# Numbers of chains and streams that no other draw of the same seed has.
_RAISE_FIRST, _SUBSET_STREAM, _FLIP_STREAM = 1 << 24, 26, 27


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is known of a trained model."""

    log_partition: LogPartition
    metrics: dict[str, Any]
    samples: Float[Tensor, "n visible"]
    """Where the annealed chains ended: approximate samples of the model."""


def evaluate(model: RBM, data: Dataset, settings: LikelihoodSettings, seed: int, progress: Progress) -> Evaluation:
    """log Z and the mean log-likelihood of the test examples, in nats, each figure with its side.

    AIS is on average too low on log Z: its log-likelihood is optimistic. Reverse AIS and RAISE are on average
    pessimistic; reverse AIS as far as its starting samples are the model's.
    """
    test = free_energies(model, data.test)
    base = annealing.log_odds(data.train_means * len(data.train), len(data.train))
    samples, forward = _forward(model, base, settings, seed, progress)
    up = LogPartition(*log_mean_exp(forward), "ais")
    down = ReverseAIS().estimate(
        model,
        Effort(settings.chains, settings.temperatures, seed + _REVERSE_SEED),
        lambda done, total: progress("reverse AIS", done, total),
    )
    mean = float(test.mean())
    metrics: dict[str, Any] = {
        "binarization": data.binarization,
        "test_examples": len(test),
        "ais_chains": settings.chains,
        "ais_temperatures": settings.temperatures,
        "log_partition_ais": up.value,
        "log_partition_ais_stderr": up.stderr,
        "log_partition_reverse_ais": down.value,
        "log_partition_reverse_ais_stderr": down.stderr,
        "test_log_likelihood_optimistic": -mean - up.value,
        "test_log_likelihood_pessimistic": -mean - down.value,
        "test_log_likelihood_examples_stderr": float(test.std(correction=0)) / math.sqrt(len(test)),
    }
    if settings.raise_examples:
        metrics |= _raise(model, data, mean, base, settings, seed, progress)
    log_partition = up
    if min(model.W.shape) <= _EXACT_UNITS:
        log_partition = Exact().estimate(model, Effort())
        metrics |= {
            "log_partition_exact": log_partition.value,
            "test_log_likelihood_exact": -mean - log_partition.value,
        }
    return Evaluation(log_partition, metrics, samples)


def free_energies(model: RBM, examples: Tensor) -> Float[Tensor, " n"]:
    """F(v) of binary examples in float64, whatever the precision of the parameters."""
    wide = RBM(model.W.double(), model.b.double(), model.c.double())
    starts = range(0, len(examples), _CHUNK)
    return torch.cat([wide.energy(examples[k : k + _CHUNK].double()) for k in starts])


def monitor(model: RBM, data: Dataset, settings: MonitorSettings, seed: int, step: int) -> dict[str, float]:
    """What a glance tells: free energies of training and validation examples, reconstruction, pseudo-likelihood.

    A free-energy gap (validation minus training) that grows says overfitting. None of these is a log-likelihood but
    the last, which is there for small models (exact) or where the recipe asks for it (AIS: optimistic).
    """
    train = free_energies(model, data.train[: settings.examples]).mean()
    held_out = data.validation[: settings.examples]
    validation = free_energies(model, held_out).mean()
    found = {
        "free_energy_train": float(train),
        "free_energy_validation": float(validation),
        "free_energy_gap": float(validation - train),
        "reconstruction_error": _reconstruction_error(model, held_out.float()),
        "pseudo_log_likelihood": _pseudo_log_likelihood(model, held_out, seed, step),
        "weight_rms": float(model.W.square().mean().sqrt()),
        "weight_max": float(model.W.abs().max()),
    }
    if min(model.W.shape) <= _EXACT_MONITOR_UNITS:
        found["log_likelihood_validation"] = -float(validation) - model.log_partition()
    elif settings.ais_temperatures:
        base = annealing.log_odds(data.train_means * len(data.train), len(data.train))
        keys = ChainKeys.of(seed + _AIS_SEED, settings.ais_chains, model.device)
        _, weights = annealing.forward(model, base, keys, annealing.temperatures(settings.ais_temperatures))
        found["log_likelihood_validation"] = -float(validation) - log_mean_exp(weights)[0]
    return found


def _forward(
    model: RBM, base: Tensor, settings: LikelihoodSettings, seed: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    keys = ChainKeys.of(seed + _AIS_SEED, settings.chains, model.device)
    betas = annealing.temperatures(settings.temperatures)
    return annealing.forward(model, base, keys, betas, lambda done, total: progress("AIS", done, total))


def _raise(
    model: RBM, data: Dataset, mean: float, base: Tensor, settings: LikelihoodSettings, seed: int, progress: Progress
) -> dict[str, Any]:
    """RAISE (Burda, Grosse & Salakhutdinov 2015): log p_ann(v) ~ -F(v) - w, w of chains annealed down from v.

    exp(-F(v) - w) is unbiased for the probability p_ann(v) that the annealed walk up ends in v, so the log of its mean
    is on average too low. p_ann stands for the model: the two agree as the temperatures grow in number. Drawn at random
    are only the examples on which w is found, F is averaged over all of them: the mean is the same, without the spread
    of F among the examples drawn.
    """
    examples = data.test[_subset(len(data.test), settings.raise_examples, seed).to(data.test.device)]
    start = examples.repeat_interleave(settings.raise_runs, 0).double()
    keys = ChainKeys.of(seed + _AIS_SEED, len(start), model.device, first=_RAISE_FIRST)
    betas = annealing.temperatures(settings.temperatures)
    weights = annealing.backward(model, base, keys, betas, start, lambda done, total: progress("RAISE", done, total))
    runs = weights.view(-1, settings.raise_runs)
    minus_log_z = torch.logsumexp(-runs, 1) - math.log(settings.raise_runs)
    log_z, stderr = -float(minus_log_z.mean()), float(minus_log_z.std()) / math.sqrt(len(examples))
    return {
        "raise_examples": len(examples),
        "raise_runs": settings.raise_runs,
        "raise_temperatures": settings.temperatures,
        "log_partition_raise": log_z,
        "log_partition_raise_stderr": stderr,
        "test_log_likelihood_raise": -mean - log_z,
    }


def _subset(n: int, count: int, seed: int) -> Tensor:
    keys = ChainKeys.of(seed, 1, first=_RAISE_FIRST)
    bits = random_bits(keys, torch.zeros(1, dtype=torch.int64), _SUBSET_STREAM, n)
    return torch.argsort(bits[0], stable=True)[:count]


def _reconstruction_error(model: RBM, v: Float[Tensor, "n visible"]) -> float:
    """Mean over units of the squared error of the mean-field reconstruction."""
    return float((model.score(v).sigmoid() - v).square().mean())


def _pseudo_log_likelihood(model: RBM, v: Tensor, seed: int, step: int) -> float:
    """D log p(v_i | the other units), a few units i drawn for each example: unbiased for sum_i log p(v_i | v_-i)."""
    keys = ChainKeys.of(seed, len(v), model.device)
    at = torch.full((len(v),), step, dtype=torch.int64, device=model.device)
    energy = free_energies(model, v)
    total = 0.0
    for unit in (random_bits(keys, at, _FLIP_STREAM, _FLIPS) % v.shape[1]).T[..., None]:
        flipped = v.scatter(1, unit, 1 - v.gather(1, unit))
        total += float(logsigmoid(free_energies(model, flipped) - energy).mean())
    return v.shape[1] * total / _FLIPS
