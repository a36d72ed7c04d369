"""A network that turns latent noise into examples: what the families with a generator have in common (MATH 9, 11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from models.architecture import Architecture, Bound, read
from models.errors import CheckpointError
from models.manifest import Manifest

PREFIX = "generator."
LOG_STD = f"{PREFIX}log_std"
"""The logarithm of the noise's standard deviation, where that is a parameter."""


@dataclass(frozen=True, eq=False)
class Generator:
    """G(z) of latent z, (n, latent) -> (n, D): a network's outputs, through the logistic where visibles are `unit`."""

    architecture: Architecture
    latent: int
    units: int
    domain: str
    parameters: Mapping[str, Tensor]
    """By the network's own names."""

    @classmethod
    def described(cls, manifest: Manifest, parameters: Mapping[str, Tensor]) -> Generator:
        """The generator of `config.latent` numbers whose network is `config.architecture.generator`.

        Raises:
            CheckpointError: one of them is missing or wrong.
        """
        latent = manifest.config.get("latent")
        if type(latent) is not int or not 1 <= latent <= 65_536:
            raise CheckpointError(f"config.latent must say of how many numbers z is made, 1 to 65536; found {latent!r}")
        return cls(
            read(architecture_of(manifest, "generator")),
            latent,
            prod(manifest.visible.shape),
            manifest.visible.domain,
            dict(parameters),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters by the network's own names."""
        return self.architecture.shapes((self.latent,), self.units)

    @cached_property
    def network(self) -> Bound:
        """The network with its parameters."""
        return self.architecture.bind((self.latent,), self.units, self.parameters)

    def __call__(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n visible"]:
        """G(z)."""
        made = self.network.outputs(z)
        return torch.sigmoid(made) if self.domain == "unit" else made


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def architecture_of(manifest: Manifest, part: str) -> dict[str, object]:
    """`config.architecture.<part>` as the config of one network alone.

    Raises:
        CheckpointError: there is none.
    """
    found = manifest.config.get("architecture")
    if not isinstance(found, dict) or not isinstance(found.get(part), dict):
        raise CheckpointError(f"config.architecture.{part} must say how the {part} is made; found {found!r}")
    return {"architecture": found[part]}
