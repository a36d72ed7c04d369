"""Bring your own weights: a checkpoint from plain arrays, or from a fitted scikit-learn BernoulliRBM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from models import checkpoint
from models.catalog import families
from models.errors import CheckpointError
from models.manifest import Domain, Manifest, Visible

_DOMAINS: tuple[Domain, ...] = ("binary", "spin", "unit", "real")


def write(
    models_dir: Path | str,
    name: str,
    family: str,
    arrays: Mapping[str, ArrayLike],
    *,
    shape: Sequence[int] | None = None,
    domain: Domain | None = None,
    classes: Sequence[str | int] | None = None,
    config: Mapping[str, Any] | None = None,
    reference: ArrayLike | None = None,
) -> Path:
    """Write a new version of the model `name` and return its folder.

    `arrays` are the family's tensors by name: floating point, kept in float32, or in float64 where any of them is.
    `shape` is that of one example, by default a vector of the visible units; `domain` may be left out where the family
    has but one, and is binary where it has that; `config.layers` of a dbn or dbm is read off the arrays. `reference`,
    (n, *shape): examples that the model was not trained on, by whose energies the service gives p-values; the first
    256 of them also serve chains to start from.

    Raises:
        CheckpointError: unknown family, or an array that is missing, unexpected, mis-shaped or not finite.
        OSError: the folder cannot be written.
    """
    if family not in families():
        raise CheckpointError(f"family {family!r} is unknown; known: {', '.join(sorted(families()))}")
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    settings = dict(config or {})
    if "W1" in tensors and "layers" not in settings:
        levels = [tensors[f"W{n}"] for n in range(1, len(tensors) + 1) if f"W{n}" in tensors]
        settings["layers"] = [levels[0].shape[0], *(W.shape[-1] for W in levels)]
    manifest = Manifest(
        name=name,
        version=1,  # set when written
        family=family,
        visible=Visible(shape=list(shape or [_visible_units(tensors)]), domain=domain or _domain(family)),
        classes=None if classes is None else list(classes),
        config=settings,
    )
    model = checkpoint.assemble(Path(models_dir), manifest, tensors)
    kept = None
    if reference is not None:
        examples = torch.from_numpy(np.asarray(reference)).reshape(len(np.asarray(reference)), -1).to(model.dtype)
        if examples.shape[1] != manifest.visible.units:
            raise CheckpointError(f"reference has {examples.shape[1]} values a row; expected {manifest.visible.units}")
        kept = checkpoint.Reference(model.energy(examples).numpy(), examples[:256].numpy())
    return checkpoint.write(Path(models_dir), manifest, model, kept)


def write_scikit_learn(
    models_dir: Path | str,
    name: str,
    rbm: Any,
    *,
    shape: Sequence[int] | None = None,
    reference: ArrayLike | None = None,
) -> Path:
    """Write a fitted `sklearn.neural_network.BernoulliRBM` as a checkpoint of family `rbm` and return its folder.

    The model's energies are its free energies, the features its `transform`. Its inputs may lie between 0 and 1, so the
    visible domain is `unit`; chains draw binary states.

    Raises:
        CheckpointError: it is not fitted.
        OSError: the folder cannot be written.
    """
    if not hasattr(rbm, "components_"):
        raise CheckpointError("the BernoulliRBM is not fitted: it has no components_")
    arrays = {"W": np.asarray(rbm.components_).T, "b": rbm.intercept_visible_, "c": rbm.intercept_hidden_}
    return write(models_dir, name, "rbm", arrays, shape=shape, domain="unit", reference=reference)


def _visible_units(tensors: Mapping[str, torch.Tensor]) -> int:
    bias = next((tensors[key] for key in ("b", "b0") if key in tensors), None)
    if bias is None or bias.ndim != 1:
        raise CheckpointError(
            "the biases of the visible units are missing: array b, or b0 where there are several layers"
        )
    return len(bias)


def _domain(family: str) -> Domain:
    domains = families()[family].domains
    if len(domains) > 1 and "binary" not in domains:
        raise CheckpointError(f"family {family!r} has the visible domains {', '.join(sorted(domains))}: say which")
    return next(domain for domain in _DOMAINS if domain in domains)
