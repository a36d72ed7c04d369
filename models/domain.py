"""Which values a visible unit can take (MATH 0). Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Domain

DESCRIPTION: dict[Domain, str] = {
    "binary": "0 or 1",
    "spin": "-1 or 1",
    "unit": "a number from 0 to 1",
    "real": "a finite number",
}


def inside(values: NDArray[Any], domain: Domain) -> NDArray[np.bool_]:
    """True where a value lies in the domain. NaN lies in none."""
    with np.errstate(invalid="ignore"):
        match domain:
            case "binary":
                good = (values == 0) | (values == 1)
            case "spin":
                good = (values == -1) | (values == 1)
            case "unit":
                good = (values >= 0) & (values <= 1)
            case "real":
                good = np.isfinite(values)
    return np.asarray(good)
