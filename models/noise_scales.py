"""`config.sigmas` of a manifest: the scales of noise that a score was learned at (MATH 7; Song & Ermon 2019, 2020)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from models.errors import CheckpointError


def read_sigmas(config: Mapping[str, Any]) -> tuple[float, ...]:
    """The standard deviations, the largest first.

    Raises:
        CheckpointError: they are no list of positive numbers each of which is below the one before.
    """
    found = config.get("sigmas")
    if (
        not isinstance(found, list)
        or not found
        or not all(type(sigma) in (int, float) and 0 < sigma < math.inf for sigma in found)
        or any(above <= below for above, below in itertools.pairwise(found))
    ):
        raise CheckpointError(f"config.sigmas must be a list of positive numbers, the largest first; found {found!r}")
    return tuple(float(sigma) for sigma in found)
