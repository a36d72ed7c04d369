"""The synchronous operations on a loaded model: numpy arrays in, numpy arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.catalog import samplers
from models.checkpoint import Reference
from models.errors import CapabilityError, InputError
from models.family import EnergyModel, HasConditionals, HasFeatures, HasScore
from models.manifest import Preprocessing
from models.sampler import Sampler
from service.core.job import SamplerSpec
from service.runtime.chains import ChainBatch, ChainTask
from service.runtime.library import Served

Array = NDArray[Any]
Answer = Mapping[str, Any]

CHUNK_ROWS = 4096
COMPLETE_ROWS = 1024


def _chunks(served: Served, inputs: Array) -> Iterator[Tensor]:
    """Inputs as (rows, D) in the model's precision, a bounded number at a time."""
    model, manifest = served.checkpoint.model, served.checkpoint.manifest
    flat = inputs.reshape(len(inputs), -1)
    for start in range(0, len(flat), CHUNK_ROWS):
        part = flat[start : start + CHUNK_ROWS]
        if manifest.preprocessing is not None:
            part = preprocess(part, manifest.preprocessing)
        yield torch.from_numpy(np.require(part, requirements=("C", "W"))).to(device=model.device, dtype=model.dtype)


def preprocess(inputs: Array, how: Preprocessing) -> Array:
    """(x - mean) / std, or x * scale."""
    if how.scale is not None:
        return inputs * how.scale
    mean = 0.0 if how.mean is None else np.asarray(how.mean)
    std = 1.0 if how.std is None else np.asarray(how.std)
    result: Array = (inputs - mean) / std
    return result


def _rows(served: Served, inputs: Array, compute: Callable[[Tensor], Tensor]) -> Array:
    with torch.inference_mode():
        return np.concatenate([compute(part).cpu().numpy() for part in _chunks(served, inputs)])


def energies(served: Served, inputs: Array) -> Array:
    """E(x) of every row, nats."""
    return _rows(served, inputs, served.checkpoint.model.energy)


def energy(served: Served, inputs: Array, **_: Any) -> Answer:
    """E(x), and whether that is exact."""
    return {"energy": energies(served, inputs), "kind": served.checkpoint.model.energy_kind}


def log_density(served: Served, inputs: Array, **_: Any) -> Answer:
    """-E(x), and -E(x) - log Z where log Z is known."""
    unnormalized = -energies(served, inputs)
    known = served.card.log_partition
    return {
        "unnormalized_log_density": unnormalized,
        "log_density": None if known is None else unnormalized.astype(np.float64) - known.value,
        "log_partition": None if known is None else known.model_dump(include={"value", "stderr", "method"}),
    }


def score(served: Served, inputs: Array, **_: Any) -> Answer:
    """-grad E(x), with respect to the inputs as sent."""
    model = _capable(served, HasScore, "score")
    values = _rows(served, inputs, model.score)
    how = served.checkpoint.manifest.preprocessing
    if how is not None:
        values = values * (
            how.scale if how.scale is not None else 1.0 / np.asarray(1.0 if how.std is None else how.std)
        )
    return {"score": values.reshape(inputs.shape), "relaxed": model.score_is_relaxed}


def features(served: Served, inputs: Array, layer: int | str | None = None, **_: Any) -> Answer:
    """Expected hidden states."""
    if layer not in (None, 1, "1", "hidden"):
        raise InputError(f"layer {layer!r}: this model has one hidden layer, named 1 or 'hidden'", "layer")
    return {"features": _rows(served, inputs, _capable(served, HasFeatures, "features").features)}


def anomaly(
    served: Served,
    inputs: Array,
    threshold: float | None = None,
    false_positive_rate: float | None = None,
    **_: Any,
) -> Answer:
    """E(x) as a score, higher = stranger, with its p-value among the energies of held-out data."""
    reference = served.checkpoint.reference
    scores = energies(served, inputs).astype(np.float64)
    cut = choose_threshold(reference, threshold, false_positive_rate)
    return {
        "score": scores,
        "p_value": None if reference is None else p_values(reference, scores),
        "anomalous": None if cut is None else scores > cut,
        "threshold": cut,
        "reference": None if reference is None else {"kind": "held-out energies", "size": len(reference.energies)},
    }


def p_values(reference: Reference, scores: Array) -> Array:
    """(1 + #{reference >= score}) / (1 + n): valid where scored and reference data come from the same law."""
    n = len(reference.energies)
    result: Array = (1.0 + n - np.searchsorted(reference.energies, scores, side="left")) / (1.0 + n)
    return result


def choose_threshold(reference: Reference | None, threshold: float | None, rate: float | None) -> float | None:
    """The score above which a row is anomalous: as given, or such that its p-value is at most `rate` (default 0.05).

    Raises:
        InputError: a rate was asked for and the checkpoint holds no reference energies, or too few for it.
    """
    if threshold is not None:
        return threshold
    if reference is None:
        if rate is None:
            return None
        raise InputError(
            "this checkpoint holds no reference energies, so no false-positive rate can be kept; send `threshold`",
            "false_positive_rate",
        )
    n = len(reference.energies)
    rate = 0.05 if rate is None else rate
    # A score s has p <= rate exactly where at most k reference energies reach it.
    k = int(np.floor(rate * (n + 1) + 1e-9)) - 1
    if k < 0:
        raise InputError(
            f"{n} reference energies support a false-positive rate of {1 / (n + 1):.3g} or more, not {rate:g}",
            "false_positive_rate",
        )
    return float(reference.energies[n - 1 - min(k, n - 1)])


def make_sampler(served: Served, spec: SamplerSpec | None) -> Sampler:
    """The sampler that a request names, by default the first that runs on the model.

    Raises:
        CapabilityError: it does not exist or does not run on this family.
        InputError: it has no such setting.
    """
    available = served.card.samplers
    settings = dict(spec.model_extra or {}) if spec is not None else {}
    name = spec.name if spec is not None else (available[0] if available else "none")
    if name not in available:
        raise CapabilityError(
            f"sampler {name!r} does not run on {served.card.family!r}; these do: {', '.join(available) or 'none'}",
            available,
        )
    try:
        return samplers()[name](**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"sampler {name!r}: {error}", "sampler") from error


def completion_task(value: Array, mask: Array, samples: int, sweeps: int, seed: int, **sinks: Any) -> ChainTask:
    """Clamped chains, `samples` of each example; the mean is averaged over the second half of the sweeps."""
    return ChainTask(
        seed=seed,
        burn_in=sweeps - 1,
        draws=1,
        clamp_mask=np.ascontiguousarray(mask.reshape(len(mask), -1).astype(bool)),
        clamp_value=np.ascontiguousarray(value.reshape(len(value), -1).astype(np.float64)),
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
    label: Any = None,
    **_: Any,
) -> Answer:
    """Draws of the unknown units given the clamped ones, and their expected values."""
    if label is not None:
        raise InputError("this model has no classes, so no label can be given", "label")
    model = _capable(served, HasConditionals, "complete")
    n, units = len(inputs), int(np.prod(inputs.shape[1:]))
    drawn = np.empty((n * samples, units), inputs.dtype)
    means = np.empty((n * samples, units))

    def on_draw(chains: Array, _draws: Array, visible: Array) -> None:
        drawn[chains] = visible

    def on_average(chains: Array, averages: Array) -> None:
        means[chains] = averages

    task = completion_task(inputs, mask, samples, sweeps, seed, on_draw=on_draw, on_average=on_average)
    chosen = make_sampler(served, sampler)
    for start in range(0, n * samples, COMPLETE_ROWS):
        batch = ChainBatch(model, chosen)
        batch.join("", task, range(start, min(start + COMPLETE_ROWS, n * samples)))
        while len(batch):
            batch.advance(sweeps)
    flat, held = inputs.reshape(n, units), mask.reshape(n, units)
    samples_out = np.where(held[:, None], flat[:, None], drawn.reshape(n, samples, units))
    mean = np.where(held, flat, means.reshape(n, samples, units).mean(axis=1))
    return {
        "samples": samples_out.reshape(n, samples, *inputs.shape[1:]),
        "mean": mean.reshape(inputs.shape),
        "seed": seed,
        "approximate": False,
    }


def _capable(served: Served, capability: type[Any], operation: str) -> Any:
    model: EnergyModel = served.checkpoint.model
    if not isinstance(model, capability):
        raise CapabilityError(f"family {model.name!r} cannot answer {operation!r}", model.capabilities())
    return model


OPERATIONS: Mapping[str, Callable[..., Answer]] = {
    "energy": energy,
    "log-density": log_density,
    "score": score,
    "features": features,
    "anomaly": anomaly,
    "complete": complete,
}
