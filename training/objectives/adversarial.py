"""Maximum likelihood against a generator, whose entropy is climbed too (MATH 9; Grathwohl et al. 2021, VERA)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel, HasGenerator
from models.generator import LOG_STD
from training.errors import RecipeError
from training.objective import Batch, Draws, Memory, Objective, check_gap, slopes
from training.smooth import is_smooth

_LATENT, _NOISE, _DATA, _POSTERIOR = range(4)
"""Streams."""
_REMEDY = (
    "Lower fit.learning_rate (or the energy's alone, by fit.rates), or raise objective.gradient_penalty, or set "
    "fit.clip or fit.spectral_norm"
)
_FIRST_STD, _GAIN = 0.1, 0.02
"""eta at first, and what the last minibatch counts for in its running mean, where it is learned."""


class Adversarial(Objective):
    """The energy's E_q[E] - E_data[E] - (gradient_penalty / 2) E_data[|grad E|^2], and for the generator's law q, of
    x = G(z) + s e, -E_q[E] + entropy_weight H(q): both climb at once.

    At entropy_weight 1 the best q is exp(-E) / Z, whose place it takes in the gradient of the log-likelihood; less is a
    lower temperature. The slope of H(q) goes through x and needs -grad log q(x) = E[(x - G(z)) / s^2 | x]. That is had
    by self-normalised importance sampling: `posterior_samples` draws from N(z0, eta^2 I) around the z0 that made x,
    weighed by q(x, z) over their density. eta is `posterior_std`, or learned, one for each latent: it follows the
    maximum of the evidence bound, where 1 / eta_i^2 is the mean of -d^2 log q(x, z) / dz_i^2 (Opper & Archambeau 2009).
    The estimate is off by the order of 1 / posterior_samples, and by more where few of the draws have all the weight.

    Noise is not reflected at bounds: energies are asked for a little beyond them.
    """

    name: ClassVar[str] = "adversarial"

    entropy_weight: float = Field(1.0, ge=0)
    posterior_std: float | None = Field(None, gt=0, description="eta; None: learned.")
    posterior_samples: int = Field(20, ge=2)
    gradient_penalty: float = Field(0.1, ge=0)
    data_noise: float = Field(0.0, ge=0, description="Standard deviation of noise on the examples, afresh each time.")
    smallest_std: float = Field(0.01, gt=0, description="Below it s is not led further down.")
    largest_std: float = Field(0.3, gt=0, description="Above it s is not led further up.")
    largest_gap: float = Field(1000.0, gt=0, description="Nats between data and generator at which training stops.")

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """Smooth energies with a generator whose noise is a parameter."""
        return is_smooth(model) and isinstance(model, HasGenerator) and LOG_STD in model.tensors()

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """1 / eta^2, where it is learned.

        Raises:
            RecipeError: `smallest_std` is above `largest_std`.
        """
        if self.smallest_std > self.largest_std:
            raise RecipeError("objective.smallest_std: above objective.largest_std")
        if self.posterior_std is not None:
            return {}
        assert isinstance(model, HasGenerator)
        return {"precision": torch.full((model.latent_units,), _FIRST_STD**-2, dtype=model.dtype, device=model.device)}

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """By back-propagation through the energy of both, and through x into the generator.

        Raises:
            DivergenceError: the mean energies of data and generator are more than `largest_gap` apart, or no numbers.
        """
        assert isinstance(model, HasGenerator)
        data, step, tensors = batch.visible, draws.step, model.tensors()
        if self.data_noise:
            data = data + self.data_noise * draws.normals(data, step, _DATA)
        z = draws.normals(data.new_zeros(len(data), model.latent_units), step, _LATENT)
        noise, found = draws.normals(data, step, _NOISE), dict[str, Tensor]()

        def figure() -> Tensor:
            x = model.generate(z) + tensors[LOG_STD].exp() * noise
            made, seen = x.detach().requires_grad_(), data.detach().requires_grad_()
            down, up = model.energy(made), model.energy(seen)
            (pull,) = torch.autograd.grad(down.sum(), made, retain_graph=True)
            (slope,) = torch.autograd.grad(up.sum(), seen, create_graph=self.gradient_penalty > 0, retain_graph=True)
            found.update(x=made.detach(), down=down.detach().mean(), up=up.detach().mean())
            push = -pull
            if self.entropy_weight:
                push = push + self.entropy_weight * self._spread(model, found["x"], z, draws, memory)
            penalty = 0.5 * self.gradient_penalty * slope.square().sum(1).mean()
            return down.mean() - up.mean() - penalty + (push * x).sum(1).mean()

        gradient = slopes(tensors, figure)
        check_gap(float(found["up"]), float(found["down"]), "generator", self.largest_gap, step, _REMEDY)
        gradient[LOG_STD] = self._within(float(tensors[LOG_STD]), gradient[LOG_STD])
        if "precision" in memory:
            memory = {"precision": followed(model, found["x"], z, memory["precision"], draws)}
        return gradient, memory

    def _spread(self, model: HasGenerator, x: Tensor, z: Tensor, draws: Draws, memory: Memory) -> Tensor:
        eta = memory["precision"].rsqrt() if self.posterior_std is None else torch.full_like(z[0], self.posterior_std)
        return entropy_slope(model, x, z, eta, self.posterior_samples, draws)

    def _within(self, log_std: float, slope: Tensor) -> Tensor:
        low, high = math.log(self.smallest_std), math.log(self.largest_std)
        outwards = (log_std <= low and slope < 0) or (log_std >= high and slope > 0)
        return torch.zeros_like(slope) if outwards else slope


@torch.no_grad()
def entropy_slope(
    model: HasGenerator,
    x: Float[Tensor, "n visible"],
    z: Float[Tensor, "n latent"],
    eta: Float[Tensor, " latent"],
    samples: int,
    draws: Draws,
) -> Float[Tensor, "n visible"]:
    """-grad log q(x), each row from so many draws around the z that made it (Grathwohl et al. 2021, section 3.1)."""
    variance = model.generator_std**2
    away = _away(z, samples, draws)
    near = z[:, None] + eta * away
    missed = x[:, None] - model.generate(near.flatten(0, 1)).view(len(x), samples, -1)
    log_weights = 0.5 * (away.square().sum(2) - near.square().sum(2) - missed.square().sum(2) / variance)
    return (log_weights.softmax(1)[:, :, None] * missed).sum(1) / variance


def followed(
    model: HasGenerator,
    x: Float[Tensor, "n visible"],
    z: Float[Tensor, "n latent"],
    precision: Float[Tensor, " latent"],
    draws: Draws,
) -> Float[Tensor, " latent"]:
    """The running mean of -d^2 log q(x, z) / dz_i^2 over N(z0, eta^2 I), from this step's draws (Stein's lemma)."""
    away = _away(z, 1, draws)[:, 0]
    near = (z + precision.rsqrt() * away).requires_grad_()
    log_likelihood = -(x - model.generate(near)).square().sum() / (2 * model.generator_std**2)
    (slope,) = torch.autograd.grad(log_likelihood, near)
    seen = 1 - (away * slope).mean(0) * precision.sqrt()
    return precision.lerp(seen, _GAIN).clamp(1.0, 1e8)


def _away(z: Tensor, samples: int, draws: Draws) -> Tensor:
    like = z.new_zeros(len(z), samples * z.shape[1])
    return draws.normals(like, draws.step, _POSTERIOR).view(len(z), samples, -1)
