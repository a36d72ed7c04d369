"""Functions of a loaded model's inputs, some rows at a time: numpy arrays in, numpy arrays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import CapabilityError
from models.family import EnergyModel, HasConditionals
from models.numerics import ROWS
from service.core.units import to_model
from service.runtime.library import Served

Array = NDArray[Any]

CHUNK_ROWS = 4096
_NETWORK_NUMBERS = 1 << 16


def chunk_rows(served: Served) -> int:
    """How many rows are computed at once.

    What a network holds of a row between its layers is a multiple of the row: big ones go few at a time.
    """
    if isinstance(served.checkpoint.model, HasConditionals):
        return CHUNK_ROWS
    return min(CHUNK_ROWS, max(ROWS, _NETWORK_NUMBERS // served.card.visible.units))


def over_rows(served: Served, inputs: Array, compute: Callable[..., Tensor], *beside: Array) -> Array:
    """`compute` of the inputs as (rows, D) in the model's precision, and of `beside` (n,), some rows at a time."""
    model, how = served.checkpoint.model, served.checkpoint.manifest.preprocessing
    flat, parts, size = inputs.reshape(len(inputs), -1), [], chunk_rows(served)
    with torch.inference_mode():
        for start in range(0, len(flat), size):
            rows = slice(start, start + size)
            part = np.require(to_model(flat[rows], how), requirements=("C", "W"))
            x = torch.from_numpy(part).to(device=model.device, dtype=model.dtype)
            parts.append(compute(x, *(torch.from_numpy(each[rows]).to(model.device) for each in beside)).cpu().numpy())
    return np.concatenate(parts)


def energies(served: Served, inputs: Array) -> Array:
    """E(x) of every row, nats."""
    return over_rows(served, inputs, served.checkpoint.model.energy)


def capable(served: Served, capability: type[Any], operation: str) -> Any:
    """The model as one that has the capability.

    Raises:
        CapabilityError: it has not, or this very model lacks the operation.
    """
    model: EnergyModel = served.checkpoint.model
    if not isinstance(model, capability) or operation in model.lacks:
        raise CapabilityError(f"family {model.name!r} cannot answer {operation!r}", model.capabilities())
    return model
