"""The shelves by name: families, samplers, estimators; and a model from a manifest and its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from models.discovery import discover
from models.errors import CheckpointError
from models.estimator import Estimator
from models.family import EnergyModel, IsComposed
from models.manifest import Manifest
from models.sampler import Sampler

_PRECISIONS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@cache
def families() -> dict[str, type[EnergyModel]]:
    """Every family by name."""
    return discover("models.families", EnergyModel)  # type: ignore[type-abstract]


@cache
def samplers() -> dict[str, type[Sampler]]:
    """Every sampler by name."""
    return discover("models.samplers", Sampler)  # type: ignore[type-abstract]


DEFAULTS = ("gibbs", "hmc", "mala", "langevin", "annealed_langevin", "latent_hmc", "latent_langevin")
"""The first of these that runs on a model is its default: those whose law is the model's stand before approximate ones.
"""


def samplers_of(model: EnergyModel) -> list[str]:
    """Names of the samplers that run on the model: its default first, then by the alphabet."""
    if "sample" in model.lacks:
        return []
    names = sorted(name for name, sampler in samplers().items() if sampler.applies_to(model))
    first = next((name for name in DEFAULTS if name in names), None)
    return sorted(names, key=lambda name: name != first)


def estimators_of(model: EnergyModel) -> list[str]:
    """Names of the estimators of log Z that apply to the model."""
    if isinstance(model, IsComposed) and "sample" in model.lacks:
        return []
    return sorted(name for name, estimator in estimators().items() if estimator.applies_to(model))


@cache
def estimators() -> dict[str, type[Estimator]]:
    """Every estimator of log Z by name."""
    return discover("models.estimators", Estimator)  # type: ignore[type-abstract]


def build(
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
    terms: Sequence[tuple[Manifest, EnergyModel]] = (),
) -> EnergyModel:
    """The model that a manifest and its tensors describe, on `device`. Half precisions are read as float32.

    `terms`: the models that a composed one is made of, on the device already.

    Raises:
        CheckpointError: unknown family or domain, or a tensor missing, unexpected, mis-shaped or not finite.
    """
    family = families().get(manifest.family)
    if family is None:
        raise CheckpointError(f"family {manifest.family!r} is unknown; known: {', '.join(sorted(families()))}")
    if manifest.visible.domain not in family.domains:
        raise CheckpointError(
            f"family {manifest.family!r} has no visible domain {manifest.visible.domain!r}; "
            f"it has {', '.join(sorted(family.domains))}"
        )
    expected = family.tensor_shapes(manifest, {name: tuple(t.shape) for name, t in tensors.items()})
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"tensor {name} is missing; expected shape {list(shape)}")
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"tensor {name} has shape {list(tensors[name].shape)}; expected {list(shape)}")
    unexpected = sorted(set(tensors) - set(expected))
    if unexpected:
        raise CheckpointError(
            f"tensor {unexpected[0]} is not part of family {manifest.family!r}, whose tensors are "
            f"{', '.join(expected) or 'none'}"
        )
    if issubclass(family, IsComposed):
        return family.from_terms(manifest, terms)
    return family.from_tensors(manifest, _one_precision({n: tensors[n] for n in expected}, torch.device(device)))


def _one_precision(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.dtype not in _PRECISIONS:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in _PRECISIONS)
            raise CheckpointError(
                f"tensor {name} has type {str(tensor.dtype).removeprefix('torch.')}; expected {kinds}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"tensor {name} holds NaN or infinite values")
    wide = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    dtype = torch.float64 if wide else torch.float32
    return {name: tensor.to(device=device, dtype=dtype).contiguous() for name, tensor in tensors.items()}
