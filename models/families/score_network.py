"""A free network as the score of a law at many scales of noise (MATH 7; Song & Ermon 2019, 2020; Song et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models import rng
from models.architecture import Architecture, Bound, read
from models.conditionals import Conditional, Gaussian, Uniform
from models.errors import InputError
from models.family import HasNoiseScales, HasStates
from models.manifest import Manifest
from models.noise_scales import read_sigmas
from models.numerics import ROWS, by_rows
from models.rng import ChainKeys

STEPS = 64
"""Heun steps of the flow from the smallest sigma to the largest, evenly spaced in log sigma."""
EXACT_UNITS, PROBES, PROBE_SEED = 64, 16, 7
"""Visibles up to which a divergence is summed unit by unit; beyond, random directions, the same for every example."""
_WORK = 1 << 20
"""Numbers in all tangents at once. Bounds the memory."""


@dataclass(frozen=True, eq=False)
class ScoreNetwork(HasNoiseScales, HasStates):
    """s(x, sigma) = f(x) / sigma for any architecture f of D outputs (Song & Ermon 2020, technique 3).

    f need not be the slope of anything, so there is no energy: -log p(x), Z = 1, is that of the probability flow (Song
    et al. 2021, eq. 13 and 39), which carries the law at the smallest sigma to N(0, sigma^2) at the largest. It is an
    estimate in that a finite number of steps is made, that beyond 64 units the divergence is had from random
    directions (Hutchinson 1990), and that the law at the largest sigma is taken to be that normal one.
    """

    name: ClassVar[str] = "score_network"
    domains: ClassVar[frozenset[str]] = frozenset({"real", "unit"})
    architecture: Architecture
    shape: tuple[int, ...]
    domain: str
    parameters: Mapping[str, Tensor]
    """By their names in a checkpoint."""
    sigmas: tuple[float, ...] = (1.0,)

    @classmethod
    def outputs_of(cls, manifest: Manifest) -> int:
        """One for each visible unit."""
        return manifest.visible.units

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        """Those of the network that `config.architecture` describes."""
        return read(manifest.config).shapes(tuple(manifest.visible.shape), cls.outputs_of(manifest))

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> ScoreNetwork:
        """The network with these parameters.

        Raises:
            CheckpointError: `config.sigmas` is not what it should be.
        """
        visible = manifest.visible
        return cls(
            read(manifest.config), tuple(visible.shape), visible.domain, dict(tensors), read_sigmas(manifest.config)
        )

    def tensors(self) -> dict[str, Tensor]:
        """The network's parameters."""
        return dict(self.parameters)

    @cached_property
    def network(self) -> Bound:
        """f, of flat examples in the parameters' precision."""
        return self.architecture.bind(self.shape, math.prod(self.shape), self.parameters)

    # --- scores ---

    @property
    def score_is_relaxed(self) -> bool:
        """No: the visibles are continuous."""
        return False

    def score(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """f(x) / sigma, of the smallest sigma; differentiable."""
        return self.network.outputs(x) / self.sigmas[-1]

    def blurred_score(self, x: Float[Tensor, "n visible"], sigma: float) -> Float[Tensor, "n visible"]:
        """f(x) / sigma: so many rows at a time that bits do not depend on the batch; then float64."""
        with torch.no_grad():
            (field,) = by_rows(lambda piece: (self.network.outputs(piece),), ROWS, x.to(self.dtype))
        return field.double() / sigma

    def learned_score(self, x: Float[Tensor, "n visible"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n visible"]:
        """f(x) / sigma."""
        return self.network.outputs(x) / sigma[:, None]

    # --- the probability flow ---

    @property
    def energy_kind(self) -> str:
        """`estimate`."""
        return "estimate"

    @property
    def lacks(self) -> frozenset[str]:
        """`energy`: there is a normalised log-density or nothing."""
        return frozenset({"energy"})

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """-log p(x), nats."""
        return self.energy_with_error(x)[0]

    def energy_with_error(self, x: Float[Tensor, "n visible"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """-log p(x); its error is how far half as many steps lead elsewhere, and the random directions' standard error.

        Of a method of second order the error is a third of that distance: this is on the safe side.
        """
        rows = max(1, _WORK // (x.shape[1] * len(self._probes)))
        pieces = [self._both(x[at : at + rows]) for at in range(0, max(len(x), 1), rows)]
        energy, error = (torch.cat(parts).to(self.dtype) for parts in zip(*pieces, strict=True))
        return energy, error

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Tensors of inference mode take no part in back-propagation: hence the copy.
        with torch.inference_mode(False), torch.no_grad():
            at = x.to(self.dtype).clone()
            fine, coarse = self._log_density(at, STEPS), self._log_density(at, STEPS // 2)
        error = (fine.mean(0) - coarse.mean(0)).abs()
        if len(fine) > 1:
            error = torch.hypot(error, fine.std(0) / math.sqrt(len(fine)))
        return -fine.mean(0), error

    def _log_density(self, x: Tensor, steps: int) -> Float[Tensor, "m n"]:
        """log p(x), an estimate for each random direction, or one. With u = log sigma, dx/du = -sigma f(x), and
        log p changes along the flow by the divergence of that."""
        low, high = math.log(self.sigmas[-1]), math.log(self.sigmas[0])
        h = (high - low) / steps
        at, gained = x.double(), torch.zeros(1, len(x), dtype=torch.float64, device=x.device)
        for k in range(steps):
            first, second = math.exp(low + k * h), math.exp(low + (k + 1) * h)
            flow, divergence = self._field(at, -first)
            ahead, divergence_ahead = self._field(at + h * flow, -second)
            at = at + 0.5 * h * (flow + ahead)
            gained = gained + 0.5 * h * (divergence + divergence_ahead)
        zeros = torch.zeros_like(at)
        return Gaussian(zeros, zeros + self.sigmas[0]).log_prob(at) + gained

    @cached_property
    def _probes(self) -> Tensor:
        """Unit vectors, or directions of -1 and 1, (m, D)."""
        units = math.prod(self.shape)
        if units <= EXACT_UNITS:
            return torch.eye(units, dtype=self.dtype, device=self.device)
        keys = ChainKeys.of(PROBE_SEED, PROBES, self.device)
        bits = rng.random_bits(keys, torch.zeros_like(keys.chain), 0, units) & 1
        return 2 * bits.to(self.dtype) - 1

    def _field(self, x: Tensor, factor: float) -> tuple[Float[Tensor, "n visible"], Float[Tensor, "m n"]]:
        """factor f(x), and factor times its divergence, by each random direction or summed over the units; float64."""
        value, pull = torch.func.vjp(self.network.outputs, x.to(self.dtype))[:2]

        def along(probe: Tensor) -> Tensor:
            slope: Tensor = pull(probe.expand_as(value))[0]
            return (slope * probe).sum(1)

        each = torch.func.vmap(along)(self._probes).double()
        if x.shape[1] <= EXACT_UNITS:
            each = each.sum(0, keepdim=True)
        return factor * value.double(), factor * each

    # --- chains ---

    @property
    def blocks(self) -> tuple[str, ...]:
        """The visibles alone."""
        return ("visible",)

    def block_units(self, block: str) -> int:
        """D."""
        if block != "visible":
            raise InputError(f"family {self.name} has no block {block!r}", "block")
        return math.prod(self.shape)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """[0, 1] for `unit`."""
        return (0.0, 1.0) if self.domain == "unit" else None

    def noise(self, block: str, chains: int) -> Conditional:
        """Uniform within bounds; without, N(0, sigma^2) of the largest sigma."""
        zeros = torch.zeros(chains, self.block_units(block), dtype=torch.float64, device=self.device)
        return Uniform(zeros, zeros + 1.0) if self.bounds is not None else Gaussian(zeros, zeros + self.sigmas[0])
