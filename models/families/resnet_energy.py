"""A residual network as an energy of images (MATH 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.network_family import ScalarEnergy


@dataclass(frozen=True, eq=False)
class ResNetEnergy(ScalarEnergy):
    """E(x) is the output of a network of kind `resnet`; see `models/architectures/resnet.py` for its settings."""

    name: ClassVar[str] = "resnet_energy"

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """`resnet`."""
        return ("resnet",)
