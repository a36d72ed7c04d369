"""What the families that tilt a generator's law have in common (MATH 11; Xiao, Yan & Amit 2020; Che et al. 2020)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models.architecture import Architecture, Bound, read
from models.conditionals import Conditional, Gaussian
from models.errors import InputError
from models.family import HasFeatures, HasGenerator, HasStates
from models.generator import PREFIX, Generator, architecture_of, part_of
from models.manifest import Manifest
from models.network_family import FEATURES
from models.numerics import ROWS, by_rows, invariant_sum

LATENT, VISIBLE = "latent", "visible"


@dataclass(frozen=True, eq=False)
class LatentModel(HasGenerator, HasFeatures, HasStates):
    """p(x) proportional to p_g(x) exp(-E(x)): p_g is the law of G(z), z standard normal, E made of a network's output.

    E is the negative log-ratio of p to p_g, up to log Z = log E_g[exp(-E)]: relative to the generator's law, not to the
    uniform measure. Chains run on z, whose law is proportional to exp(-U(z)), U(z) = -log N(z; 0, 1) + E(G(z)).
    Visible units cannot be held: what z makes them is not known. A subclass names the network and says what E is of it.
    """

    domains: ClassVar[frozenset[str]] = frozenset({"real", "unit"})
    architecture: Architecture
    generator: Generator
    shape: tuple[int, ...]
    parameters: Mapping[str, Tensor]
    """Of the network that E is made of, by its own names."""

    @classmethod
    @abstractmethod
    def part(cls) -> str:
        """What that network is called in `config.architecture`, and its tensors begin with."""

    @abstractmethod
    def energy_of(self, output: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """E of the network's output."""

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        """Those of the two networks that `config.architecture` describes."""
        own = read(architecture_of(manifest, cls.part())).shapes(tuple(manifest.visible.shape), 1)
        made = Generator.described(manifest, {}).shapes()
        return {f"{cls.part()}.{name}": s for name, s in own.items()} | {
            f"{PREFIX}{name}": s for name, s in made.items()
        }

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> LatentModel:
        """The two networks with these parameters."""
        return cls(
            read(architecture_of(manifest, cls.part())),
            Generator.described(manifest, part_of(tensors, PREFIX)),
            tuple(manifest.visible.shape),
            part_of(tensors, f"{cls.part()}."),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Both networks' parameters."""
        return self.tilt_tensors() | {f"{PREFIX}{name}": t for name, t in self.generator.parameters.items()}

    def tilt_tensors(self) -> dict[str, Tensor]:
        """Those of E alone."""
        return {f"{self.part()}.{name}": t for name, t in self.parameters.items()}

    @cached_property
    def network(self) -> Bound:
        """What E is made of."""
        return self.architecture.bind(self.shape, 1, self.parameters)

    @property
    def lacks(self) -> frozenset[str]:
        """`complete`."""
        return frozenset({"complete"})

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the energy is relative to."""
        return (
            "energies are relative to the generator's law p_g, not to the uniform measure: "
            "p(x) = p_g(x) exp(-E(x)) / Z. Log-densities and log Z are relative to it too, and there is no score of p",
        )

    # --- energies ---

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """E(x) = -log p(x) / p_g(x) - log Z, nats; differentiable."""
        return self.energy_of(self.network.outputs(x)[:, 0])

    @property
    def layers(self) -> tuple[str, ...]:
        """`features`: what the head takes."""
        return (FEATURES,)

    def features(self, x: Float[Tensor, "n visible"], layer: str | None = None) -> Float[Tensor, "n hidden"]:  # noqa: ARG002
        """The last layer but one of the network that E is made of."""
        return self.network.features(x)

    @property
    def latent_units(self) -> int:
        """`config.latent`."""
        return self.generator.latent

    @property
    def generator_std(self) -> float:
        """0: x is G(z)."""
        return 0.0

    def generate(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n visible"]:
        """G(z), differentiable."""
        return self.generator(z)

    # --- chains ---

    @property
    def blocks(self) -> tuple[str, ...]:
        """z, and G(z)."""
        return (LATENT, VISIBLE)

    def block_units(self, block: str) -> int:
        """`config.latent` and D."""
        if block not in self.blocks:
            raise InputError(f"family {self.name} has no block {block!r}", "block")
        return self.latent_units if block == LATENT else self.generator.units

    def noise(self, block: str, chains: int) -> Conditional:
        """N(0, 1) of the latents, which decide the visibles."""
        if block != LATENT:
            raise InputError(f"chains of family {self.name} start from noise in block {LATENT!r} alone", "block")
        zeros = torch.zeros(chains, self.latent_units, dtype=torch.float64, device=self.device)
        return Gaussian(zeros, zeros + 1.0)

    def visible_of(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n visible"]:
        """G(z) of chains, float64: a row's bits are the same in every batch."""
        (made,) = by_rows(lambda at: (self.generate(at),), ROWS, z.to(self.dtype))
        return made.double()

    def latent_energy_and_gradient(
        self, z: Float[Tensor, "n latent"], beta: Float[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n latent"]]:
        """U(z) = -log N(z; 0, 1) + beta E(G(z)) and its gradient, nats, float64: a row's bits are the same in every
        batch.

        A temperature leaves the generator's law as it is: exp(-U) goes to that of z as beta goes to 0. The integral of
        exp(-U) at beta 1 is Z.
        """
        tilt, slope = (found.double() for found in by_rows(self._slope, ROWS, z.to(self.dtype)))
        if beta is not None:
            tilt, slope = beta * tilt, beta[:, None] * slope
        constant = 0.5 * self.latent_units * math.log(2 * math.pi)
        return constant + 0.5 * invariant_sum(z.square()) + tilt, z + slope

    def _slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # Chains run in inference mode, whose tensors take no part in back-propagation: hence the copy.
        with torch.inference_mode(False), torch.enable_grad():
            at = z.clone().requires_grad_(True)
            energy = self.energy(self.generate(at))
            (gradient,) = torch.autograd.grad(energy.sum(), at)
        return energy.detach(), gradient
