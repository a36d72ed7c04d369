"""What a run looks like: filters, samples, learning curves, completions. Drawn without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from models.catalog import samplers, samplers_of
from models.family import Clamp, EnergyModel, HasConditionals, HasStates
from models.numerics import ROWS
from models.rng import ChainKeys
from models.sampler import Sampler
from models.samplers.annealed_langevin import AnnealedLangevin
from training import plane
from training.data import Dataset

_KEYS_FIRST = 1 << 25
"""Numbers of the pictures' chains, which no other chain of the seed has."""


def filters(model: EnergyModel, shape: Sequence[int], count: int = 100) -> bytes | None:
    """Weights of visible units with the `count` units above that have the largest; blue negative, red positive.

    Of convolutions, their kernels' first planes; None where the visibles are two numbers.
    """
    W = next(tensor for tensor in model.tensors().values() if tensor.ndim >= 2)
    if not isinstance(model, HasConditionals):  # a network, its weights (above, below)
        if W.ndim == 4:
            shape, W = W.shape[2:], W[:, 0].flatten(1)
        if len(shape) < 2:
            return None
        W = W.T
    strongest = W.square().sum(0).argsort(descending=True)[:count]
    rows = W[:, strongest].T
    bound = float(rows.abs().quantile(0.995)) or 1.0
    return _png(
        _grid(rows, shape, gap=np.nan), "filters: weights of single units", cmap="RdBu_r", low=-bound, high=bound
    )


def _sampler(model: HasStates) -> Sampler:
    """The model's default one, or the one that goes through its scales of noise."""
    known = samplers_of(model)
    return samplers()[AnnealedLangevin.name if AnnealedLangevin.name in known else known[0]]()


def samples(
    model: HasStates, start: Float[Tensor, "n visible"] | None, data: Dataset, seed: int, sweeps: int = 100
) -> bytes:
    """Chains continued for some sweeps from annealed starts, their expected state; where there are no such starts, from
    noise, for ten times as many, or the whole of the sampler's schedule."""
    count = ROWS if start is None else len(start)
    keys, sampler = ChainKeys.of(seed, count, model.device, first=_KEYS_FIRST), _sampler(model)
    state = sampler.init(model, keys, start, None)
    for _ in range(sweeps if start is not None else sampler.schedule(model) or 10 * sweeps):
        state, info = sampler.step(model, state, keys)
    low, high = _levels(data)
    title = "samples: expected visible units of independent chains"
    return _png(_grid(_raw(info.expected_visible(), data), data.shape, gap=(low + high) / 2), title, low=low, high=high)


def untilted(model: EnergyModel, data: Dataset, seed: int, count: int = 100) -> bytes:
    """Draws of the generator alone: what its tilt makes of them is in `samples`."""
    low, high = _levels(data)
    shown = _raw(from_generator(model, count, seed), data)
    return _png(_grid(shown, data.shape, gap=(low + high) / 2), "draws of the generator alone", low=low, high=high)


def states(rows: Float[Tensor, "n visible"], data: Dataset) -> bytes:
    """Where chains of training ended."""
    low, high = _levels(data)
    shown = _raw(rows[_spread(len(rows), 100)].double(), data)
    title = "samples: where chains of training ended"
    return _png(_grid(shown, data.shape, gap=(low + high) / 2), title, low=low, high=high)


def from_generator(model: EnergyModel, count: int, seed: int) -> Float[Tensor, "n visible"]:
    """Draws of a model's generator, float64."""
    keys = ChainKeys.of(seed, count, model.device, first=_KEYS_FIRST)
    return samplers()["generator"]().init(model, keys, None, None).visible


def generated(model: EnergyModel, data: Dataset, seed: int) -> bytes:
    """Draws of the generator beside as many test examples."""
    low, high = _levels(data)
    examples = data.test[_spread(len(data.test), 100)].double()
    sides = [from_generator(model, len(examples), seed), examples]
    images = [_grid(_raw(side, data), data.shape, gap=(low + high) / 2) for side in sides]
    gap = np.full((len(images[0]), 8), high)
    title = "samples: draws of the generator | test examples"
    return _png(np.concatenate((images[0], gap, images[1]), 1), title, low=low, high=high)


def density(model: EnergyModel, data: Dataset, seen: Float[Tensor, "n visible"] | None = None) -> bytes:
    """exp(-E) / Z on a grid, beside the test examples, and samples of the model where there are some."""
    found = plane.square(model, data, margin=0.1, cells=300)
    shown = {"test examples": data.test[:5000].cpu().numpy()}
    if seen is not None:
        shown["samples"] = seen.cpu().numpy()
    figure = Figure(figsize=(4.5 * (1 + len(shown)), 4.8), layout="constrained")
    axes, *others = np.ravel(figure.subplots(1, 1 + len(shown), sharex=True, sharey=True))
    extent = (found.low, found.high, found.low, found.high)
    p = torch.exp(-found.energies - found.log_partition).cpu().numpy()
    axes.imshow(p, origin="lower", extent=extent, cmap="magma", interpolation="nearest")
    axes.set_title("density exp(-E) / Z", fontsize=10)
    for other, (title, points) in zip(others, shown.items(), strict=True):
        other.scatter(points[:, 0], points[:, 1], s=1, color="black", linewidths=0)
        other.set_title(title, fontsize=10)
        other.set_aspect("equal")
    return _save(figure)


def completions(
    model: HasStates, data: Dataset, seed: int, count: int = 16, chains: int = 4, sweeps: int = 500
) -> bytes:
    """Test examples with their upper half clamped, the lower half drawn by clamped chains from noise."""
    whole = data.test[_spread(len(data.test), count)].double()
    known = torch.zeros(data.shape, dtype=torch.bool, device=whole.device)
    known[: max(1, data.shape[0] // 2)] = True
    mask = known.flatten().expand(len(whole) * chains, -1)
    clamp = Clamp(mask, whole.repeat_interleave(chains, 0))
    keys, sampler = ChainKeys.of(seed, len(mask), model.device, first=_KEYS_FIRST), _sampler(model)
    state = sampler.init(model, keys, None, clamp)
    for _ in range(sweeps):
        state, info = sampler.step(model, state, keys, clamp)
    low, high = _levels(data)
    drawn = clamp.apply(info.expected_visible()).view(len(whole), chains, -1)
    unknown = torch.zeros_like(whole) if data.preprocessing is not None else torch.full_like(whole, (low + high) / 2)
    half = torch.where(known.flatten(), whole, unknown)
    table = torch.cat((whole[:, None], half[:, None], drawn), 1)
    columns = torch.cat((table[: len(whole) // 2], table[len(whole) // 2 :]), 1) if len(whole) % 2 == 0 else table
    title = f"completions: original | upper half given | {chains} completions"
    if sampler.approximate(model, clamped=True):
        title += " (approximate)"
    grid = _grid(_raw(columns.flatten(0, 1), data), data.shape, columns=columns.shape[1], gap=(low + high) / 2)
    return _png(grid, title, low=low, high=high)


def _raw(rows: Tensor, data: Dataset) -> Tensor:
    """Real units in the units of the data as they came; levels in [0, 1] stay, between which `_levels` draws."""
    how = data.preprocessing
    if how is None or how.scale is not None:
        return rows
    mean, std = (torch.as_tensor(default if t is None else t) for t, default in ((how.mean, 0.0), (how.std, 1.0)))
    return rows.cpu() * std + mean


def _levels(data: Dataset) -> tuple[float, float]:
    """What is drawn black and white."""
    if data.domain == "real":
        shown = _raw(data.test[:1000].double(), data)
        return float(shown.min()), float(shown.max())
    return (-1.0, 1.0) if data.domain == "spin" else (0.0, 1.0)


def curves(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Every monitored quantity over the epochs; quantities that belong together share a panel."""
    panels = {
        "free energy (nats)": ("free_energy_train", "free_energy_validation"),
        "free-energy gap, validation - training (nats)": ("free_energy_gap",),
        "score matching, validation": ("score_matching_validation",),
        "denoising, validation": ("denoising_validation",),
        "energy of the generator's draws (nats)": ("generator_energy",),
        "mean log-ratio to the generator, validation (nats)": ("log_ratio_to_generator_validation",),
        "classes, validation": ("classification_error_validation", "calibration_error_validation"),
        "pseudo-log-likelihood, validation (nats)": ("pseudo_log_likelihood",),
        "weights": ("weight_rms", "weight_max"),
        "log-likelihood estimate, validation (nats)": ("log_likelihood_validation",),
    }
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    shown = {title: keys for title, keys in panels.items() if any(k in r for r in records for k in keys)}
    for axes, (title, keys) in zip(np.ravel(figure.subplots(2, 3)), shown.items(), strict=False):
        for key in (key for key in keys if any(key in r for r in records)):
            points = [(r["epoch"], r[key]) for r in records if key in r]
            label = key.removesuffix("_validation") if title.startswith("classes") else key.rsplit("_", 1)[-1]
            axes.plot(*zip(*points, strict=True), marker=".", label=label.replace("_", " "))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        if len(keys) > 1:
            axes.legend()
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    return _save(figure)


def write(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Each picture as `{name}.png`."""
    for name, content in pictures.items():
        (folder / f"{name}.png").write_bytes(content)


def _spread(n: int, count: int) -> Tensor:
    return torch.linspace(0, n - 1, min(n, count)).long()


def _grid(rows: Tensor, shape: Sequence[int], columns: int | None = None, gap: float = 0.5) -> np.ndarray:
    """Images side by side with one pixel between them, RGB in colour; data without two dimensions become strips."""
    colours = tuple(shape[2:]) if len(shape) == 3 and shape[2] == 3 else ()
    height, width = (shape[0], math.prod(shape[1:]) // math.prod(colours)) if len(shape) > 1 else (1, shape[0])
    columns = columns or math.ceil(math.sqrt(len(rows)))
    lines = math.ceil(len(rows) / columns)
    canvas = np.full((lines * (height + 1) + 1, columns * (width + 1) + 1, *colours), gap, dtype=np.float64)
    for k, row in enumerate(rows.detach().cpu().double().numpy()):
        y, x = 1 + (k // columns) * (height + 1), 1 + (k % columns) * (width + 1)
        canvas[y : y + height, x : x + width] = row.reshape(height, width, *colours)
    return canvas


def _png(image: np.ndarray, title: str, cmap: str = "gray", low: float = 0.0, high: float = 1.0) -> bytes:
    scale = 9 / max(image.shape[:2])
    if image.ndim == 3:  # which matplotlib takes as they are
        image = np.clip((image - low) / (high - low), 0, 1)
    figure = Figure(figsize=(max(image.shape[1] * scale, 4), image.shape[0] * scale + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return _save(figure)


def _save(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
