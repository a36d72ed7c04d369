"""An energy and the generator that it was trained against (MATH 9; Grathwohl et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from models.architecture import read
from models.errors import CheckpointError
from models.family import HasGenerator
from models.generator import LOG_STD, PREFIX, Generator, architecture_of, part_of
from models.manifest import Manifest
from models.network_family import ScalarEnergy, read_prior_std

_ENERGY = "energy."


@dataclass(frozen=True, eq=False, kw_only=True)
class Adversarial(ScalarEnergy, HasGenerator):
    """E(x) is the output of one network, x = G(z) + s e that of another, z and e standard normal, s = exp(log_std).

    The generator has no part in p(x) = exp(-E(x)) / Z: it was trained to draw from nearly that law.
    """

    name: ClassVar[str] = "adversarial"

    generator: Generator

    @classmethod
    def kinds(cls) -> None:
        """All that have one output."""

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        """Those of the energy's network, of the generator's, and log_std of shape ()."""
        energy = read(architecture_of(manifest, "energy"), cls.kinds())
        shapes = energy.shapes(tuple(manifest.visible.shape), cls.outputs_of(manifest))
        return {
            **{f"{_ENERGY}{name}": shape for name, shape in shapes.items()},
            **{f"{PREFIX}{name}": shape for name, shape in Generator.described(manifest, {}).shapes().items()},
            LOG_STD: (),
        }

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> Adversarial:
        """The networks with these parameters.

        Raises:
            CheckpointError: `config` is not what it should be, or log_std is the logarithm of no standard deviation.
        """
        if abs(float(tensors[LOG_STD])) > 40:
            raise CheckpointError(f"tensor {LOG_STD} is the logarithm of a standard deviation beyond +-40")
        own = {name: tensor for name, tensor in tensors.items() if name != LOG_STD}
        return cls(
            architecture=read(architecture_of(manifest, "energy"), cls.kinds()),
            shape=tuple(manifest.visible.shape),
            domain=manifest.visible.domain,
            parameters=dict(tensors),
            prior_std=read_prior_std(manifest.config),
            generator=Generator.described(manifest, part_of(own, PREFIX)),
        )

    @property
    def network_parameters(self) -> Mapping[str, Tensor]:
        """The energy's."""
        return part_of(self.parameters, _ENERGY)

    @property
    def latent_units(self) -> int:
        """`config.latent`."""
        return self.generator.latent

    @property
    def generator_std(self) -> float:
        """exp(log_std)."""
        return math.exp(float(self.parameters[LOG_STD].detach()))

    def generate(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n visible"]:
        """G(z)."""
        return self.generator(z)
