"""The synchronous operations on a loaded model: numpy arrays in, numpy arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anomaly import SCORES
from models.errors import CapabilityError, InputError
from models.family import EnergyModel, HasClasses, HasFeatures, HasNoiseScales, HasScore, HasStates
from models.manifest import LogPartitionRecord
from service.core import units
from service.core.card import values_of
from service.core.job import SamplerSpec
from service.core.units import from_model, slope
from service.runtime.chains import ChainBatch, ChainTask
from service.runtime.library import Served
from service.runtime.rows import capable, over_rows
from service.runtime.samplers import make_sampler

Array = NDArray[Any]
Answer = Mapping[str, Any]

COMPLETE_ROWS = 1024


def energy(served: Served, inputs: Array, labels: Array | None = None, **_: Any) -> Answer:
    """E(x), with its standard error where it is an estimate; or E(x, y)."""
    kind = served.checkpoint.model.energy_kind
    if labels is not None:
        model = capable(served, HasClasses, "classify")
        return {"energy": over_rows(served, inputs, model.class_energy, labels), "kind": kind}
    values, stderr = _energies_with_error(served, inputs)
    return {"energy": values, "kind": kind, **stderr}


def _energies_with_error(served: Served, inputs: Array) -> tuple[Array, dict[str, Array]]:
    def compute(x: Tensor) -> Tensor:
        values, stderr = served.checkpoint.model.energy_with_error(x)
        return values[:, None] if stderr is None else torch.stack((values, stderr), 1)

    found = over_rows(served, inputs, compute)
    return found[:, 0], {"stderr": found[:, 1]} if found.shape[1] > 1 else {}


def log_density(served: Served, inputs: Array, **_: Any) -> Answer:
    """-E(x), and -E(x) - log Z where log Z is known; a model that has a density but no energy normalises it itself."""
    values, stderr = _energies_with_error(served, inputs)
    known = served.card.log_partition
    if "energy" in served.checkpoint.model.lacks:
        known = LogPartitionRecord(value=0.0, stderr=0.0, method="normalised")
    return {
        "unnormalized_log_density": -values,
        "kind": served.checkpoint.model.energy_kind,
        **stderr,
        "log_density": None if known is None else -values.astype(np.float64) - known.value,
        "log_partition": None if known is None else known.model_dump(include={"value", "stderr", "method"}),
    }


def score(served: Served, inputs: Array, sigma: float | None = None, **_: Any) -> Answer:
    """-grad E(x), or grad log p_sigma(x), with respect to the inputs as sent."""
    model = capable(served, HasScore, "score")
    compute, level = model.score, {}
    if sigma is not None:
        _check_sigma(model, sigma)
        compute, level = partial(model.blurred_score, sigma=sigma), {"sigma": sigma}
    values = over_rows(served, inputs, compute)
    if served.card.preprocessing is not None:
        values = values * slope(served.card.preprocessing)
    return {"score": values.reshape(inputs.shape), "relaxed": model.score_is_relaxed, "kind": model.score_kind, **level}


def _check_sigma(model: EnergyModel, sigma: float) -> None:
    if not isinstance(model, HasNoiseScales):
        raise InputError(f"family {model.name!r} is not conditioned on a noise level: send no sigma", "sigma")
    low, high = min(model.sigmas), max(model.sigmas)
    if not low <= sigma <= high:
        raise InputError(f"sigma is {sigma:g}; this model knows noise levels from {low:g} to {high:g}", "sigma")


def classify(served: Served, inputs: Array, **_: Any) -> Answer:
    """p(y | x), and how it is had."""
    model = capable(served, HasClasses, "classify")
    log_probs = over_rows(served, inputs, model.class_log_probs)
    return {"probabilities": np.exp(log_probs.astype(np.float64)), "kind": model.class_kind}


def features(served: Served, inputs: Array, layer: int | str | None = None, **_: Any) -> Answer:
    """Expected hidden states of a layer: by name, by position counted from 1 at the bottom, or the topmost."""
    model = capable(served, HasFeatures, "features")
    known: dict[int | str | None, str] = {None: model.layers[-1]}
    known |= {key: name for place, name in enumerate(model.layers, 1) for key in (place, name)}
    if layer not in known or isinstance(layer, bool):
        layers = ", ".join(f"{place} or {name!r}" for place, name in enumerate(model.layers, 1))
        raise InputError(f"layer is {layer!r}; this model's layers are {layers}", "layer")
    chosen = known[layer]
    return {"features": over_rows(served, inputs, lambda x: model.features(x, chosen)), "layer": chosen}


def anomaly(
    served: Served,
    inputs: Array,
    score: str | None = None,
    threshold: float | None = None,
    false_positive_rate: float | None = None,
    **_: Any,
) -> Answer:
    """A score, higher = stranger, by default E(x), with its p-value among the same score of held-out data."""
    name = choose_score(served, score)
    scores = anomaly_scores(served, inputs, name)
    reference = reference_of(served, name)
    what = values_of(name)
    cut = choose_threshold(reference, threshold, false_positive_rate, what)
    return {
        "score": scores,
        "of": name,
        "p_value": None if reference is None else p_values(reference, scores),
        "anomalous": None if cut is None else scores > cut,
        "threshold": cut,
        "reference": None if reference is None else {"kind": f"held-out {what}", "size": len(reference)},
    }


def anomaly_scores(served: Served, inputs: Array, name: str) -> Array:
    """The anomaly score of that name, (n,) float64."""
    return over_rows(served, inputs, partial(SCORES[name].of, served.checkpoint.model))


def choose_score(served: Served, name: str | None) -> str:
    """The anomaly score that was asked for, or the model's default one.

    Raises:
        CapabilityError: the model has none.
        InputError: it has others.
    """
    known = served.card.anomaly_scores
    if not known:
        raise CapabilityError(f"{served.card.name} cannot answer 'anomaly'", served.card.capabilities)
    chosen = known[0] if name is None else name
    if chosen not in known:
        raise InputError(f"score is {chosen!r}; {served.card.name} has these: {', '.join(known)}", "score")
    return chosen


def reference_of(served: Served, name: str) -> Array | None:
    """The score of held-out data, sorted, or None."""
    kept = served.checkpoint.reference
    return None if kept is None else kept.of(name)


def p_values(reference: Array, scores: Array) -> Array:
    """(1 + #{reference >= score}) / (1 + n): valid where scored and reference data come from the same law."""
    n = len(reference)
    result: Array = (1.0 + n - np.searchsorted(reference, scores, side="left")) / (1.0 + n)
    return result


def choose_threshold(
    reference: Array | None, threshold: float | None, rate: float | None, what: str = "energies"
) -> float | None:
    """The score above which a row is anomalous: as given, or such that its p-value is at most `rate` (default 0.05).

    Raises:
        InputError: a rate was asked for and the checkpoint holds no reference values, or too few for it.
    """
    if threshold is not None:
        return threshold
    if reference is None:
        if rate is None:
            return None
        raise InputError(
            f"this checkpoint holds no reference {what}, so no false-positive rate can be kept; send `threshold`",
            "false_positive_rate",
        )
    n = len(reference)
    rate = 0.05 if rate is None else rate
    # A score s has p <= rate exactly where at most k reference scores reach it.
    k = int(np.floor(rate * (n + 1) + 1e-9)) - 1
    if k < 0:
        raise InputError(
            f"{n} reference {what} support a false-positive rate of {1 / (n + 1):.3g} or more, not {rate:g}",
            "false_positive_rate",
        )
    return float(reference[n - 1 - min(k, n - 1)])


def chain_model(served: Served) -> HasStates:
    """The model, where chains can be run on it.

    Raises:
        CapabilityError: they cannot.
    """
    model: HasStates = capable(served, HasStates, "sample")
    return model


def chain_values(served: Served, inputs: Array) -> Array:
    """Values in the inputs' units as chains hold them, (n, D) float64."""
    manifest = served.checkpoint.manifest
    return units.chain_values(inputs.reshape(len(inputs), -1), manifest.preprocessing, manifest.visible.domain)


@dataclass(frozen=True)
class Held:
    """What was sent to be held: `value` and `mask`, (groups, D), in the inputs' own units."""

    value: Array
    mask: Array

    def put_back(self, shown: Array, groups: Array | slice = slice(None)) -> Array:
        """`shown`, a row for each of `groups`, with held units exactly as they were sent."""
        return np.where(self.mask[groups], self.value[groups], shown)


def shown(served: Served, visible: Array) -> Array:
    """Draws or means (n, D), as the model has them, in the inputs' own units."""
    return from_model(visible, served.checkpoint.manifest.preprocessing)


def completion_task(
    served: Served, held: Held, label: Array | None, samples: int, sweeps: int, seed: int, **sinks: Any
) -> ChainTask:
    """Clamped chains, `samples` of each example; the mean is averaged over the second half of the sweeps."""
    return ChainTask(
        seed=seed,
        burn_in=sweeps - 1,
        draws=1,
        clamp_mask=held.mask,
        clamp_value=chain_values(served, held.value),
        label=label,
        chains_per_clamp=samples,
        average_from=sweeps // 2 + 1,
        **sinks,
    )


def complete(
    served: Served,
    inputs: Array,
    mask: Array,
    seed: int,
    samples: int = 1,
    sweeps: int = 100,
    sampler: SamplerSpec | None = None,
    label: Array | None = None,
    **_: Any,
) -> Answer:
    """Draws of the unknown units given the clamped ones, and their expected values."""
    model = chain_model(served)
    n, width = len(inputs), int(np.prod(inputs.shape[1:]))
    held = Held(inputs.reshape(n, width), np.ascontiguousarray(mask).reshape(n, width).astype(bool))
    drawn = np.empty((n * samples, width), inputs.dtype)
    means = np.empty((n * samples, width))

    def on_draw(chains: Array, _draws: Array, visible: Array) -> None:
        drawn[chains] = held.put_back(shown(served, visible), chains // samples)

    def on_average(chains: Array, averages: Array) -> None:
        means[chains] = averages

    task = completion_task(served, held, label, samples, sweeps, seed, on_draw=on_draw, on_average=on_average)
    chosen = make_sampler(served.card, sampler)
    for start in range(0, n * samples, COMPLETE_ROWS):
        batch = ChainBatch(model, chosen)
        batch.join("", task, range(start, min(start + COMPLETE_ROWS, n * samples)))
        while len(batch):
            batch.advance(sweeps)
    mean = shown(served, means.reshape(n, samples, width).mean(axis=1))
    return {
        "samples": drawn.reshape(n, samples, *inputs.shape[1:]),
        "mean": held.put_back(mean).reshape(inputs.shape),
        "seed": seed,
        "approximate": chosen.approximate(model, clamped=bool(held.mask.any())),
    }


OPERATIONS: Mapping[str, Callable[..., Answer]] = {
    "energy": energy,
    "log-density": log_density,
    "score": score,
    "classify": classify,
    "features": features,
    "anomaly": anomaly,
    "complete": complete,
}
