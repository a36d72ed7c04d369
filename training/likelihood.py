"""The test log-likelihood from both sides, and what the monitors say on the way (MATH 12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from models import annealing
from models.anomaly import SCORES
from models.errors import CapabilityError
from models.estimator import Effort, LogPartition
from models.estimators.ais_hmc import AISHMC
from models.estimators.exact import Exact
from models.estimators.reverse_ais import ReverseAIS
from models.families.dbn import DBN, DRAWS
from models.family import Base, EnergyModel, HasAnnealing, HasClasses, HasEnumeration, HasNoiseScales
from models.latent_family import LATENT, LatentModel
from models.layered_family import LayeredModel
from models.layered_posterior import annealed
from models.manifest import Manifest
from models.numerics import log_mean_exp
from models.rng import ChainKeys, categorical, normals, random_bits
from training import plane
from training.config import LikelihoodSettings, MonitorSettings
from training.data import Dataset
from training.fit import base_of, model_of
from training.smooth import denoising, is_unbounded, score_matching

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, work done, work in all)."""

_EXACT_MONITOR_UNITS = 16
_MONITOR_DRAWS = 10
_CHUNK = 1024
_FLIPS = 16
# The estimates' draws are those of seeds that no recipe has: training used up the ones of its own.
_AIS_SEED, _REVERSE_SEED, _POSTERIOR_SEED = 1 << 32, 2 << 32, 3 << 32
# Numbers of chains and streams that no other draw of the same seed has.
_RAISE_FIRST, _SUBSET_STREAM, _FLIP_STREAM, _LABEL_STREAM, _SLICE_STREAM = 1 << 24, 0xFF10, 0xFF11, 0xFF12, 0xFF13
_BLUR_STREAM = 0xFF14
_BINS = 15
_GENERATED = 10_000
"""Draws of a generator."""
_MATCHED = 1000
"""Test examples on which scores are matched."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is known of a trained model."""

    log_partition: LogPartition | None
    metrics: dict[str, Any]
    samples: Float[Tensor, "n visible"] | None
    """Where the annealed chains ended: approximate samples of the model."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model makes of examples."""

    energy: Float[Tensor, " n"]
    bound: Float[Tensor, " n"] | None
    """Variational lower bounds on -E, where the energy is an estimate."""
    error: float | None
    """Share of the examples whose likeliest class is not theirs, where both have classes."""
    calibration: float | None = None
    """Expected calibration error of the classes' probabilities, where the error is known from them."""


def wide(of: Manifest, model: EnergyModel) -> EnergyModel:
    """The model in float64, in which every figure is computed."""
    return model_of(of, {name: tensor.double() for name, tensor in model.tensors().items()})


def evaluate(
    of: Manifest,
    model: EnergyModel,
    data: Dataset,
    settings: LikelihoodSettings,
    seed: int,
    progress: Progress,
    known: LogPartition | None = None,
) -> Evaluation:
    """log Z and the mean log-likelihood of the test examples, in nats, each figure with its side.

    AIS is on average too low on log Z: its log-likelihood is optimistic. Reverse AIS and RAISE are on average
    pessimistic; reverse AIS as far as its starting samples are the model's. Where the energy is a bound or an estimate
    (`energy_kind`), so are the likelihoods, in that direction, beside. An estimate is made on some of the examples,
    drawn at random, and comes with the variational bound. Labels are summed out. A network has no such estimates: in
    two dimensions log Z is integrated, else it may be `known` to the objective, else there is no likelihood. Of a
    tilted generator it is the log-ratio to the generator's law that is averaged, which is no likelihood.
    """
    model = wide(of, model)
    blurred = (
        {"test_denoising": _denoising(model, data.test[:_MATCHED], seed)} if isinstance(model, HasNoiseScales) else {}
    )
    if not has_energy(model):
        known_of = {"binarization": None, "energy_kind": None, "test_examples": len(data.test)}
        return Evaluation(None, known_of | blurred, None)
    if model.energy_kind == "estimate":
        data = _some(data, settings.estimated_examples, seed)
    test = judged(model, data.test, data.test_labels)
    mean = float(test.energy.mean())
    metrics: dict[str, Any] = {
        "binarization": data.binarization,
        "energy_kind": model.energy_kind,
        "test_examples": len(data.test),
        "test_log_likelihood_examples_stderr": _stderr(test.energy),
        **blurred,
    }
    if isinstance(model, HasClasses) and test.error is not None:
        metrics |= {"test_classification_error": test.error, "classification": model.class_kind}
        if test.calibration is not None:
            metrics["test_calibration_error"] = test.calibration
    if is_unbounded(model):
        metrics["test_score_matching"] = _score_matching(model, data.test[:_MATCHED], seed)
    if data.test_anomalies is not None:
        metrics["test_anomaly_auroc"] = auroc(test.energy, data.test_anomalies)
    log_partition, samples = None, None
    if isinstance(model, LatentModel):
        metrics["test_log_ratio_examples_stderr"] = metrics.pop("test_log_likelihood_examples_stderr")
        log_partition, found = _tilt(model, mean, settings, seed, progress)
        return Evaluation(log_partition, metrics | found, None)
    if isinstance(model, HasAnnealing):
        log_partition, samples, found = _annealed(model, data, mean, settings, seed, progress)
        metrics |= found
    exact = _exact(model)
    if exact is not None:
        log_partition = exact
        metrics |= {"log_partition_exact": exact.value, "test_log_likelihood_exact": -mean - exact.value}
    elif not isinstance(model, HasAnnealing):
        log_partition = plane.log_partition(model, data) if plane.lies_in(model, data) else known
        metrics |= _normalised(log_partition, mean)
    if test.bound is not None:
        metrics |= _bounds(test.bound, metrics)
    if isinstance(model, LayeredModel) and model.energy_kind == "lower_bound" and settings.annealed_examples:
        metrics |= _above_the_bound(model, data, metrics, mean, settings, seed, progress)
    return Evaluation(log_partition, metrics, samples)


def _normalised(log_partition: LogPartition | None, mean: float) -> dict[str, float]:
    if log_partition is None:
        return {}
    return {
        f"log_partition_{log_partition.method}": log_partition.value,
        f"log_partition_{log_partition.method}_stderr": log_partition.stderr,
        f"test_log_likelihood_{log_partition.method}": -mean - log_partition.value,
    }


def _tilt(
    model: LatentModel, mean: float, settings: LikelihoodSettings, seed: int, progress: Progress
) -> tuple[LogPartition, dict[str, Any]]:
    """log Z relative to the generator's law, by AIS in latent space, and the mean log-ratio of the test examples."""
    effort = Effort(settings.chains, settings.temperatures, seed + _AIS_SEED)
    found = AISHMC().estimate(model, effort, lambda done, total: progress("AIS in latent space", done, total))
    return found, {
        "log_partition_ais_hmc": found.value,
        "log_partition_ais_hmc_stderr": found.stderr,
        "test_energy": mean,
        "generator_energy": float(_generated(model, _GENERATED, seed).mean()),
        "test_log_ratio_to_generator": -mean - found.value,
    }


def _generated(model: LatentModel, count: int, seed: int) -> Float[Tensor, " n"]:
    """E(G(z)) of so many z from N(0, 1)."""
    keys = ChainKeys.of(seed + _AIS_SEED, count, model.device, first=_RAISE_FIRST)
    z = model.noise(LATENT, count).sample(keys, torch.zeros_like(keys.chain), 0)
    starts = range(0, count, _CHUNK)
    return torch.cat([model.energy(model.generate(z[k : k + _CHUNK].to(model.dtype))) for k in starts])


def _bounds(bound: Tensor, metrics: dict[str, Any]) -> dict[str, Any]:
    """The variational bound with each log Z that there is, called as the likelihood is."""
    mean = float(bound.mean())
    return {
        "importance_draws": DRAWS,
        "test_variational_bound_examples_stderr": _stderr(bound),
        **{f"test_variational_bound_{side}": mean - value for side, value in _log_z(metrics).items()},
    }


def _above_the_bound(
    model: LayeredModel,
    data: Dataset,
    metrics: dict[str, Any],
    mean: float,
    settings: LikelihoodSettings,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """How far log p(v) is above its bound, by annealing what is hidden given v, and the likelihoods that follow.

    Found on examples drawn at random and carried over to all: the bound is averaged over the whole test part. On
    average too low, as AIS is.
    """
    some = _some(data, settings.annealed_examples, seed).test.to(model.dtype)
    value, _ = annealed(
        model.machine,
        some,
        settings.annealed_runs,
        settings.temperatures,
        seed + _POSTERIOR_SEED,
        lambda done, total: progress("AIS given v", done, total),
    )
    gap = value + energies(model, some)
    return {
        "annealed_examples": len(some),
        "annealed_runs": settings.annealed_runs,
        "annealed_above_bound": float(gap.mean()),
        "annealed_above_bound_stderr": _stderr(gap),
        **{
            f"test_log_likelihood_annealed_{side}": float(gap.mean()) - mean - log_z
            for side, log_z in _log_z(metrics).items()
        },
    }


def _log_z(metrics: dict[str, Any]) -> dict[str, float]:
    """Every log Z that there is, called as the likelihood with it is."""
    sides = {"optimistic": "ais", "pessimistic": "reverse_ais", "exact": "exact"}
    return {side: metrics[key] for side, by in sides.items() if (key := f"log_partition_{by}") in metrics}


def _stderr(of_examples: Tensor) -> float:
    return float(of_examples.std(correction=0)) / math.sqrt(len(of_examples))


def _some(data: Dataset, count: int, seed: int) -> Dataset:
    """The data with so many of their test examples, drawn at random."""
    chosen = _subset(len(data.test), count, seed).to(data.test.device)
    labels = None if data.test_labels is None else data.test_labels[chosen]
    anomalies = None if data.test_anomalies is None else data.test_anomalies[chosen]
    return replace(data, test=data.test[chosen], test_labels=labels, test_anomalies=anomalies)


def _exact(model: EnergyModel) -> LogPartition | None:
    if not isinstance(model, HasEnumeration):
        return None
    try:
        return Exact().estimate(model, Effort())
    except CapabilityError:
        return None


def _annealed(
    model: HasAnnealing, data: Dataset, mean: float, settings: LikelihoodSettings, seed: int, progress: Progress
) -> tuple[LogPartition, Tensor | None, dict[str, Any]]:
    base = base_rates(model, data, seed)
    keys = ChainKeys.of(seed + _AIS_SEED, settings.chains, model.device)
    betas = annealing.temperatures(settings.temperatures)
    ends, forward = annealing.forward(model, base, keys, betas, lambda done, total: progress("AIS", done, total))
    up = LogPartition(*log_mean_exp(forward), "ais")
    effort = Effort(settings.chains, settings.temperatures, seed + _REVERSE_SEED)
    down = ReverseAIS().estimate(model, effort, lambda done, total: progress("reverse AIS", done, total))
    metrics: dict[str, Any] = {
        "ais_chains": settings.chains,
        "ais_temperatures": settings.temperatures,
        "log_partition_ais": up.value,
        "log_partition_ais_stderr": up.stderr,
        "log_partition_reverse_ais": down.value,
        "log_partition_reverse_ais_stderr": down.stderr,
        "test_log_likelihood_optimistic": -mean - up.value,
        "test_log_likelihood_pessimistic": -mean - down.value,
    }
    if settings.raise_examples and set(model.kept_blocks) <= {"visible", "label"} and model.energy_kind == "exact":
        metrics |= _raise(model, data, mean, base, settings, seed, progress)
    return up, ends.get("visible"), metrics


def base_rates(model: HasAnnealing, data: Dataset, seed: int) -> Base:
    """The base-rate model: visibles and labels with the training data's means, other units with their own."""
    base = {name: bias.to(model.device) for name, bias in base_of(data).items() if name in model.base_blocks}
    if set(base) != set(model.base_blocks):
        keys = ChainKeys.of(seed + _AIS_SEED, 100, model.device, first=2 * _RAISE_FIRST)
        base = {**annealing.base_rates(model, keys), **base}
    return base


def judged(model: EnergyModel, examples: Tensor, labels: Tensor | None = None, draws: int = DRAWS) -> Judged:
    """Energies and classes; where the energy is an estimate both from the same `draws` of the recognition law."""
    if isinstance(model, DBN) and model.energy_kind == "estimate":
        weighed, error = model.weighed(examples.to(model.dtype), draws), None
        if labels is not None and model.class_count:
            error = float((weighed.label_terms().argmax(1) != labels).double().mean())
        return Judged(-weighed.log_density()[0], weighed.bound()[0], error)
    if labels is not None and isinstance(model, HasClasses) and model.class_count:
        error, calibration = classification(model, examples, labels)
        return Judged(energies(model, examples), None, error, calibration)
    return Judged(energies(model, examples), None, None)


def energies(model: EnergyModel, examples: Tensor) -> Float[Tensor, " n"]:
    """E(v) in the model's precision."""
    starts = range(0, len(examples), _CHUNK)
    return torch.cat([model.energy(examples[k : k + _CHUNK].to(model.dtype)) for k in starts])


def scored(model: EnergyModel, score: str, examples: Tensor) -> Float[Tensor, " n"]:
    """An anomaly score of the model's, by its name in `models.anomaly`, in the model's precision, as float64."""
    starts = range(0, len(examples), _CHUNK)
    return torch.cat([SCORES[score].of(model, examples[k : k + _CHUNK].to(model.dtype)) for k in starts])


def classification_error(model: HasClasses, examples: Tensor, labels: Tensor) -> float:
    """Share of the examples whose likeliest class is not theirs."""
    return classification(model, examples, labels)[0]


def classification(model: HasClasses, examples: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of the examples whose likeliest class is not theirs, and the expected calibration error: |accuracy - mean
    confidence| of 15 bins of equal width, weighed by their examples (Guo et al. 2017)."""
    starts = range(0, len(examples), _CHUNK)
    logs = torch.cat([model.class_log_probs(examples[k : k + _CHUNK].to(model.dtype)) for k in starts])
    best, guessed = logs.double().exp().max(1)
    right = (guessed == labels).double()
    bins = (best * _BINS).long().clamp(max=_BINS - 1)
    gaps = torch.zeros(_BINS, dtype=torch.float64, device=best.device).index_add_(0, bins, right - best)
    return int((guessed != labels).sum()) / len(examples), float(gaps.abs().sum()) / len(examples)


def has_energy(model: EnergyModel) -> bool:
    """Whether there is an energy to be had: a free score network has none."""
    return "energy" in model.capabilities()


def auroc(energy: Float[Tensor, " n"], anomalies: Bool[Tensor, " n"]) -> float:
    """The probability that an anomaly has a higher energy than another example; ties count one half."""
    normal, odd = energy[~anomalies].sort().values, energy[anomalies]
    below = torch.searchsorted(normal, odd, side="left") + torch.searchsorted(normal, odd, side="right")
    return float(below.double().mean()) / (2 * len(normal))


def _score_matching(model: EnergyModel, examples: Tensor, seed: int) -> float:
    keys = ChainKeys.of(seed + _AIS_SEED, len(examples), model.device)
    bits = random_bits(keys, torch.zeros_like(keys.chain), _SLICE_STREAM, examples.shape[1])
    v = 1.0 - 2.0 * (bits & 1).to(model.dtype)
    starts = range(0, len(examples), _CHUNK)
    rows = [slice(k, k + _CHUNK) for k in starts]
    return float(torch.cat([score_matching(model, examples[r].to(model.dtype), v[r]).detach() for r in rows]).mean())


def _denoising(model: HasNoiseScales, examples: Tensor, seed: int) -> float:
    """The mean over the scales of noise, which the examples take in turn."""
    keys = ChainKeys.of(seed + _AIS_SEED, len(examples), model.device)
    z = normals(keys, torch.zeros_like(keys.chain), _BLUR_STREAM, examples.shape[1]).to(model.dtype)
    scales = torch.tensor(model.sigmas, dtype=model.dtype, device=model.device)
    sigma = scales[torch.arange(len(examples), device=model.device) % len(scales)][:, None]
    rows, total = [slice(k, k + _CHUNK) for k in range(0, len(examples), _CHUNK)], 0.0
    for r in rows:
        total += float(denoising(model, examples[r].to(model.dtype), sigma[r], z[r]).detach().sum())
    return total / len(examples)


def monitor(
    of: Manifest,
    model: EnergyModel,
    data: Dataset,
    settings: MonitorSettings,
    seed: int,
    step: int,
    known: LogPartition | None = None,
) -> dict[str, float]:
    """What a glance tells: energies of training and validation examples, pseudo-likelihood, classification error.

    An energy gap (validation minus training) that grows says overfitting. Estimated energies are made of few draws
    here, and lie further on their side than at the end. None of these is a log-likelihood but the last, which is there
    for small models (exact), where log Z is `known` to the objective, or where the recipe asks for it (AIS:
    optimistic).
    """
    model = wide(of, model)
    weights = [tensor for tensor in model.tensors().values() if tensor.ndim >= 2]
    sizes = {
        "weight_rms": math.sqrt(sum(float(w.square().sum()) for w in weights) / sum(w.numel() for w in weights)),
        "weight_max": max(float(w.abs().max()) for w in weights),
    }
    if isinstance(model, HasNoiseScales):
        sizes["denoising_validation"] = _denoising(model, data.validation[: settings.examples], seed)
    if not has_energy(model):
        return sizes
    held_out, labels = data.validation[: settings.examples], data.validation_labels
    seen = judged(model, held_out, None if labels is None else labels[: settings.examples], _MONITOR_DRAWS)
    train = float(judged(model, data.train[: settings.examples], None, _MONITOR_DRAWS).energy.mean())
    validation = float(seen.energy.mean())
    found = {
        "free_energy_train": train,
        "free_energy_validation": validation,
        "free_energy_gap": validation - train,
    } | sizes
    if isinstance(model, LatentModel):
        made = _generated(model, settings.examples, seed)
        found["generator_energy"] = float(made.mean())
        found["log_ratio_to_generator_validation"] = -validation - log_mean_exp(-made)[0]
    if is_unbounded(model):
        found["score_matching_validation"] = _score_matching(model, held_out, seed)
    if data.domain in ("binary", "spin") and model.energy_kind == "exact":
        found["pseudo_log_likelihood"] = _pseudo_log_likelihood(model, held_out, data.domain, seed, step)
    if seen.error is not None:
        found["classification_error_validation"] = seen.error
        if seen.calibration is not None:
            found["calibration_error_validation"] = seen.calibration
    log_partition = _glance(model, data, settings, seed, known)
    if log_partition is not None:
        found["log_likelihood_validation"] = -validation - log_partition
    return found


def _glance(
    model: EnergyModel, data: Dataset, settings: MonitorSettings, seed: int, known: LogPartition | None
) -> float | None:
    if _enumerated_units(model) <= _EXACT_MONITOR_UNITS and (exact := _exact(model)) is not None:
        return exact.value
    if known is not None:
        return known.value
    if settings.ais_temperatures and isinstance(model, HasAnnealing):
        keys = ChainKeys.of(seed + _AIS_SEED, settings.ais_chains, model.device)
        betas = annealing.temperatures(settings.ais_temperatures)
        return log_mean_exp(annealing.forward(model, base_rates(model, data, seed), keys, betas)[1])[0]
    return None


def _enumerated_units(model: EnergyModel) -> int:
    """How many units log Z enumerates, labels apart."""
    if isinstance(model, LayeredModel):
        machine = model.machine
        sides = (True,) if machine.log_sigma is not None else (True, False)
        return min(sum(machine.units(block) for block in machine.side(odd) if block != "label") for odd in sides)
    return max((min(t.shape) for t in model.tensors().values() if t.ndim == 2), default=0)


def _raise(
    model: HasAnnealing,
    data: Dataset,
    mean: float,
    base: Base,
    settings: LikelihoodSettings,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """RAISE (Burda, Grosse & Salakhutdinov 2015): log p_ann(v) ~ -F(v) - w, w of chains annealed down from v.

    exp(-F(v) - w) is unbiased for the probability p_ann(v) that the annealed walk up ends in v, so the log of its mean
    is on average too low; where labels are kept too, they are drawn from p(y | v), which cancels. p_ann stands for the
    model: the two agree as the temperatures grow in number. Drawn at random are only the examples on which w is found,
    F is averaged over all of them: the mean is the same, without the spread of F among the examples drawn.
    """
    examples = data.test[_subset(len(data.test), settings.raise_examples, seed).to(data.test.device)]
    start = {"visible": examples.repeat_interleave(settings.raise_runs, 0).double()}
    keys = ChainKeys.of(seed + _AIS_SEED, len(start["visible"]), model.device, first=_RAISE_FIRST)
    if "label" in model.kept_blocks and isinstance(model, HasClasses):
        at = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
        start["label"] = categorical(model.class_log_probs(start["visible"]), keys, at, _LABEL_STREAM)
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


def _pseudo_log_likelihood(model: EnergyModel, examples: Tensor, domain: str, seed: int, step: int) -> float:
    """D log p(v_i | the other units), a few units i drawn for each example: unbiased for sum_i log p(v_i | v_-i)."""
    keys = ChainKeys.of(seed, len(examples), model.device)
    at = torch.full((len(examples),), step, dtype=torch.int64, device=model.device)
    v, total = examples.to(model.dtype), 0.0
    energy = energies(model, v)
    for unit in (random_bits(keys, at, _FLIP_STREAM, _FLIPS) % v.shape[1]).T[..., None]:
        here = v.gather(1, unit)
        flipped = v.scatter(1, unit, -here if domain == "spin" else 1 - here)
        total += float(logsigmoid(energies(model, flipped) - energy).mean())
    return v.shape[1] * total / _FLIPS
