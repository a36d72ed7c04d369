"""A convolutional network as an energy of images (MATH 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.network_family import ScalarEnergy


@dataclass(frozen=True, eq=False)
class ConvEnergy(ScalarEnergy):
    """E(x) is the output of a network of kind `conv`; see `models/architectures/conv.py` for its settings."""

    name: ClassVar[str] = "conv_energy"

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """`conv`."""
        return ("conv",)
