"""A multilayer perceptron as an energy (MATH 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.network_family import ScalarEnergy


@dataclass(frozen=True, eq=False)
class MLPEnergy(ScalarEnergy):
    """E(x) is the output of a network of kind `mlp`; see `models/architectures/mlp.py` for its settings."""

    name: ClassVar[str] = "mlp_energy"

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """`mlp`."""
        return ("mlp",)
