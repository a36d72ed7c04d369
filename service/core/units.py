"""From the units that inputs are sent in to those of the visibles that a model sees, and back: its `preprocessing`.

Without any, both are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Domain, Preprocessing

Array = NDArray[Any]

_TOLERANCE = 1e-6


def to_model(inputs: Array, how: Preprocessing | None) -> Array:
    """(x - mean) / std, or x * scale; `inputs` (n, D)."""
    if how is None:
        return inputs
    if how.scale is not None:
        return inputs * how.scale
    mean, std = _moments(how)
    result: Array = (inputs - mean) / std
    return result


def from_model(visible: Array, how: Preprocessing | None) -> Array:
    """x * std + mean, or x / scale: the inverse; `visible` (n, D)."""
    if how is None:
        return visible
    if how.scale is not None:
        return visible / how.scale
    mean, std = _moments(how)
    result: Array = visible * std + mean
    return result


def slope(how: Preprocessing | None) -> Array:
    """d visible / d input, (D,) or a scalar."""
    if how is None:
        return np.asarray(1.0)
    return np.asarray(how.scale) if how.scale is not None else 1.0 / _moments(how)[1]


def chain_values(inputs: Array, how: Preprocessing | None, domain: Domain) -> Array:
    """`inputs` (n, D) as visibles that a chain can hold, float64.

    What preprocessing brings within 1e-6 of a value that the domain has, and only rounding kept from it, is that value;
    whatever else lies outside the domain is left there, to be refused.
    """
    values = to_model(inputs.astype(np.float64), how)
    if how is None or domain == "real":
        return values
    near = np.clip(values, 0.0, 1.0) if domain == "unit" else np.rint(values)
    return np.where(np.abs(values - near) <= _TOLERANCE, near, values)


def _moments(how: Preprocessing) -> tuple[Array, Array]:
    return np.asarray(0.0 if how.mean is None else how.mean), np.asarray(1.0 if how.std is None else how.std)
