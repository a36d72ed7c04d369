"""The restricted Boltzmann machine with binary units (MATH 2; Smolensky 1986, Hinton 2002)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.conditionals import Bernoulli, Conditional
from models.errors import CapabilityError
from models.family import AnnealedState, HasAnnealing, HasConditionals, HasEnumeration, HasFeatures, HasScore
from models.manifest import Manifest
from models.numerics import all_binary_states, exact_grid, snap, softplus
from models.rng import ChainKeys, bernoulli

_MAX_ENUMERATED_UNITS = 25
_CHUNK = 1 << 14
_INTENSITY_GRID = 2.0**-16


@dataclass(frozen=True, eq=False)
class RBM(HasScore, HasFeatures, HasConditionals, HasEnumeration, HasAnnealing):
    """E(v, h) = -v'Wh - b'v - c'h with v in {0, 1}^D, h in {0, 1}^F.

    Energies, scores and features are computed in the parameters' own precision. Conditionals that chains are drawn
    from are computed in float64 from parameters rounded to a grid on which no sum rounds (`rounding_error` says by
    how much, about 1e-12), so a chain is the same bit for bit in every batch and on every device. In the domain `unit`
    chains draw binary states too; values between 0 and 1, where a chain starts from or is clamped at them, count to
    16 bits after the point, and the grid of the parameters is coarser by as much (about 1e-8).
    """

    name: ClassVar[str] = "rbm"
    domains: ClassVar[frozenset[str]] = frozenset({"binary", "unit"})
    blocks: ClassVar[tuple[str, ...]] = ("hidden", "visible")

    W: Float[Tensor, "visible hidden"]
    b: Float[Tensor, " visible"]
    c: Float[Tensor, " hidden"]
    domain: str = "binary"

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """`W` (D, F), `b` (D), `c` (F); F is the length of `c`."""
        d = manifest.visible.units
        f = max(1, (*found.get("c", ()), *found.get("W", ())[1:], 1)[0])
        return {"W": (d, f), "b": (d,), "c": (f,)}

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> RBM:
        """The RBM with these parameters."""
        return cls(tensors["W"], tensors["b"], tensors["c"], manifest.visible.domain)

    def tensors(self) -> dict[str, Tensor]:
        """W, b and c."""
        return {"W": self.W, "b": self.b, "c": self.c}

    def hidden_logits(self, v: Float[Tensor, "n visible"]) -> Float[Tensor, "n hidden"]:
        """c + v'W in the parameters' precision."""
        return torch.addmm(self.c, v, self.W)

    def visible_logits(self, h: Float[Tensor, "n hidden"]) -> Float[Tensor, "n visible"]:
        """b + Wh in the parameters' precision."""
        return torch.addmm(self.b, h, self.W.T)

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """Free energy F(v) = -b'v - sum_j softplus(c_j + (v'W)_j), nats."""
        return -(x @ self.b) - softplus(self.hidden_logits(x)).sum(1)

    @property
    def score_is_relaxed(self) -> bool:
        """Whether the visibles are binary."""
        return self.domain == "binary"

    def score(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """-grad F(v) = b + W sigmoid(c + v'W)."""
        return self.visible_logits(torch.sigmoid(self.hidden_logits(x)))

    def features(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n hidden"]:
        """p(h_j = 1 | v)."""
        return torch.sigmoid(self.hidden_logits(x))

    def joint_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """E(v, h), nats."""
        v, h = states["visible"].to(self.W), states["hidden"].to(self.W)
        return -((v @ self.W) * h).sum(1) - v @ self.b - h @ self.c

    # --- chains ---

    @cached_property
    def _exact(self) -> tuple[Tensor, Tensor, Tensor]:
        w, b, c = self.W.double(), self.b.double(), self.c.double()
        bound = torch.maximum((w.abs().sum(0) + c.abs()).max(), (w.abs().sum(1) + b.abs()).max())
        grid = exact_grid(2.0 * float(bound) / (_INTENSITY_GRID if self.domain == "unit" else 1.0))
        return snap(w, grid), snap(b, grid), snap(c, grid)

    @property
    def rounding_error(self) -> float:
        """Largest |parameter - parameter as sampled|."""
        pairs = zip((self.W, self.b, self.c), self._exact, strict=True)
        return max(float((mine.double() - rounded).abs().max()) for mine, rounded in pairs)

    def block_units(self, block: str) -> int:
        """D for `visible`, F for `hidden`."""
        return self.W.shape[0] if block == "visible" else self.W.shape[1]

    def conditional(
        self, block: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Conditional:
        """p(h_j=1|v) = sigmoid(beta (c_j + (v'W)_j)), p(v_i=1|h) = sigmoid(beta (b_i + (Wh)_i))."""
        w, b, c = self._exact
        if block == "visible":
            logits = b + states["hidden"] @ w.T
        else:
            v = states["visible"]
            logits = c + (snap(v, _INTENSITY_GRID) if self.domain == "unit" else v) @ w
        return Bernoulli(logits if beta is None else logits * beta[:, None])

    def noise(self, block: str, chains: int) -> Conditional:
        """Fair coins."""
        return Bernoulli(torch.zeros(chains, self.block_units(block), dtype=torch.float64, device=self.device))

    # --- log Z ---

    def log_partition(self) -> float:
        """log Z by summing one side out exactly and enumerating the other, float64.

        Raises:
            CapabilityError: both sides have more than 25 units.
        """
        w, b, c = self.W.double(), self.b.double(), self.c.double()
        if w.shape[0] < w.shape[1]:
            w, b, c = w.T, c, b
        units = w.shape[1]
        if units > _MAX_ENUMERATED_UNITS:
            raise CapabilityError(
                f"exact log Z enumerates the smaller side, at most {_MAX_ENUMERATED_UNITS} units; this one has {units}"
            )
        total = torch.tensor(-torch.inf, dtype=torch.float64, device=self.device)
        for start in range(0, 1 << units, _CHUNK):
            h = all_binary_states(units, start, min(start + _CHUNK, 1 << units), self.device)
            terms = h @ c + softplus(b + h @ w.T).sum(1)
            total = torch.logaddexp(total, terms.logsumexp(0))
        return float(total)

    def annealed_base(self, base: Float[Tensor, " visible"]) -> float:
        """f_0 has visible biases `base` and F free hidden units: sum_i softplus(base_i) + F log 2."""
        return float(
            softplus(base.double()).sum() + self.W.shape[1] * torch.log(torch.tensor(2.0, dtype=torch.float64))
        )

    def annealed_start(
        self, base: Float[Tensor, " visible"], keys: ChainKeys, sweep: Int[Tensor, " n"]
    ) -> AnnealedState:
        """Visibles drawn independently with logits `base`."""
        return self.annealed_at(bernoulli(base.double().expand(len(keys), -1), keys, sweep, 1))

    def annealed_at(self, visible: Float[Tensor, "n visible"]) -> AnnealedState:
        """The visibles with c + v'W, exact."""
        w, _, c = self._exact
        return AnnealedState(visible, c + visible @ w)

    def annealed_log_density(
        self, state: AnnealedState, base: Float[Tensor, " visible"], beta: float
    ) -> Float[Tensor, " n"]:
        """((1-beta) base + beta b)'v + sum_j softplus(beta (c_j + (v'W)_j)) (Salakhutdinov & Murray 2008, eq. 15)."""
        biases = (1.0 - beta) * base.double() + beta * self._exact[1]
        return state.visible @ biases + softplus(beta * state.activation).sum(1)

    def annealed_transition(
        self,
        state: AnnealedState,
        base: Float[Tensor, " visible"],
        beta: float,
        keys: ChainKeys,
        sweep: Int[Tensor, " n"],
    ) -> AnnealedState:
        """Hidden given visible, then visible given hidden, in the RBM (beta W, (1-beta) base + beta b, beta c)."""
        w, b, _ = self._exact
        h = bernoulli(beta * state.activation, keys, sweep, 0)
        logits = (1.0 - beta) * base.double() + beta * (b + h @ w.T)
        return self.annealed_at(bernoulli(logits, keys, sweep, 1))
