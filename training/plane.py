"""Models of data in two dimensions: their energy on a grid, and log Z from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.estimator import LogPartition
from models.family import EnergyModel
from training.data import Dataset
from training.smooth import bounds, is_smooth

_CELLS = 500
_MARGIN = 1.0
"""How far the grid goes beyond the data on each side, in widths of the data."""
_CHUNK = 1 << 14


@dataclass(frozen=True, eq=False)
class Square:
    """Energies at the middles of cells x cells cells, the first unit along the last dimension."""

    low: float
    high: float
    energies: Float[Tensor, "cells cells"]

    @property
    def log_partition(self) -> float:
        """log of the sum of exp(-E) times a cell's area, nats."""
        side = torch.tensor((self.high - self.low) / len(self.energies), dtype=torch.float64)
        return float((-self.energies).flatten().logsumexp(0) + 2 * side.log())


def lies_in(model: EnergyModel, data: Dataset) -> bool:
    """Whether there are two visible units, continuous ones."""
    return data.units == 2 and is_smooth(model)


def square(model: EnergyModel, data: Dataset, margin: float = _MARGIN, cells: int = _CELLS) -> Square:
    """The model's energy over the data and around them, or over all that there is where it has bounds."""
    low, high = float(data.train.min()), float(data.train.max())
    low, high = bounds(model) or (low - margin * (high - low), high + margin * (high - low))
    middles = low + (torch.arange(cells, dtype=model.dtype, device=model.device) + 0.5) * (high - low) / cells
    points = torch.cartesian_prod(middles, middles).flip(1)
    starts = range(0, len(points), _CHUNK)
    energies = torch.cat([model.energy(points[k : k + _CHUNK]).double() for k in starts])
    return Square(low, high, energies.view(cells, cells))


def log_partition(model: EnergyModel, data: Dataset) -> LogPartition:
    """log Z by the midpoint rule; the error stated is what twice as fine a grid changes. Mass beyond is not seen."""
    fine, coarse = (square(model, data, cells=cells).log_partition for cells in (_CELLS, _CELLS // 2))
    return LogPartition(fine, abs(fine - coarse), "quadrature")
