"""The deep belief network of any depth (MATH 4; Hinton, Osindero & Teh 2006; Salakhutdinov & Murray 2008)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models import rng
from models.conditionals import Bernoulli, Conditional
from models.errors import CapabilityError, InputError
from models.family import (
    AnnealedState,
    Base,
    HasAnnealing,
    HasClasses,
    HasEnumeration,
    HasFeatures,
    HasRecognition,
    Part,
)
from models.layered import Layered
from models.layered_path import LayeredPath, base_of
from models.manifest import Manifest
from models.numerics import ExactMatrix, all_binary_states, invariant_sum, snap, softplus
from models.rng import ChainKeys

ENUMERATED_UNITS = 16
"""Units of the directed layers together that energy(v) enumerates; beyond it is an estimate."""
DRAWS = 100
"""Recognition draws that the estimate is made of."""
_STATES, _ENTRIES = 1 << 12, 1 << 19
"""Sizes of the pieces that work is done in: they fit into a processor's cache."""
_INTENSITY_STEP = 2.0**-16
_ARTANH = tuple(1.0 / (2 * n + 1) for n in range(16, -1, -1))


@dataclass(frozen=True, eq=False)
class Weighed:
    """Draws of h_1 .. h_(k-1) from the recognition law for each of n examples, weighed; nats, float64."""

    log_weights: Float[Tensor, "n draws labels"]
    """log p~(v, h_1 .. h_(k-1), y) - log q(h | v): a column each label, or one where there are no labels."""

    def bound(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """E_q[log p~(v, h) - log q(h | v)] <= log p~(v), h_k and y summed out, and its standard error.

        The mean over the draws (Salakhutdinov & Murray 2008, eq. 20): unbiased for the bound.
        """
        found = self.log_weights.logsumexp(2)
        return found.mean(1), _deviation(found) / math.sqrt(found.shape[1])

    def log_density(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """log of the mean of p~(v, h) / q(h | v), importance-weighted, and its standard error (delta method).

        exp of it is unbiased for p~(v). Where a few draws carry all of the mean the standard error is too small.
        """
        found = self.log_weights.logsumexp(2)
        weights = torch.exp(found - found.amax(1, keepdim=True))
        stderr = _deviation(weights) / (weights.mean(1) * math.sqrt(found.shape[1]))
        return found.logsumexp(1) - math.log(found.shape[1]), stderr

    def label_terms(self) -> Float[Tensor, "n labels"]:
        """log of the mean of p~(v, h, y) / q(h | v): for log p~(v, y), as `log_density` for log p~(v)."""
        return self.log_weights.logsumexp(1) - math.log(self.log_weights.shape[1])


@dataclass(frozen=True, eq=False)
class DBN(HasFeatures, HasClasses, HasRecognition, HasEnumeration, HasAnnealing):
    """p(v, h_1 .. h_k, y) = p(v | h_1) .. p(h_(k-2) | h_(k-1)) p(h_(k-1), h_k, y), the last factor an RBM's.

    Units of a directed layer are independent given the layer above: p(h_(l-1) = 1 | h_l) = sigmoid(b_(l-1) + W_l h_l).
    The top RBM has E = -h_(k-1)'W_k h_k - b_(k-1)'h_(k-1) - b_k'h_k - y'U h_k - d'y. A factorial recognition law
    q(h_l = 1 | h_(l-1)) = sigmoid(a_l + V_l'h_(l-1)) stands for the posterior of h_1 .. h_(k-1); untied from the
    generative parameters where the checkpoint has V and a.

    Z is the top RBM's. The energy sums h_1 .. h_(k-1) out exactly where they have at most 16 units in all; else it is
    estimated by importance sampling from the recognition law. One hidden layer makes an RBM. In the domain `unit`
    chains draw binary states, and intensities count to 16 bits after the point.
    """

    name: ClassVar[str] = "dbn"
    domains: ClassVar[frozenset[str]] = frozenset({"binary", "unit"})

    parameters: Mapping[str, Tensor]
    """By their names in a checkpoint."""
    depth: int
    domain: str = "binary"

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """`W1..Wk` (below, above), `b0..bk`; recognition `V1..V{k-1}`, `a1..a{k-1}` where there is any of them; `U`
        (K, Hk), `d` (K) where there are classes. The sizes are `layers` in the config."""
        sizes = manifest.layers
        shapes: dict[str, tuple[int, ...]] = {"b0": (sizes[0],)}
        for n in range(1, len(sizes)):
            shapes |= {f"W{n}": (sizes[n - 1], sizes[n]), f"b{n}": (sizes[n],)}
        if any(name[:1] in ("V", "a") and name[1:].isdecimal() for name in found):
            for n in range(1, len(sizes) - 1):
                shapes |= {f"V{n}": (sizes[n - 1], sizes[n]), f"a{n}": (sizes[n],)}
        if manifest.classes is not None or "U" in found or "d" in found:
            K = len(manifest.classes) if manifest.classes is not None else (*found.get("d", ()), 1)[0]
            shapes |= {"U": (K, sizes[-1]), "d": (K,)}
        return shapes

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> DBN:
        """The DBN with these parameters."""
        return cls(dict(tensors), len(manifest.layers) - 1, manifest.visible.domain)

    def tensors(self) -> dict[str, Tensor]:
        """All parameters."""
        return dict(self.parameters)

    # --- shape ---

    @property
    def layers(self) -> tuple[str, ...]:
        """`hidden1` .. `hiddenk`."""
        return self._names[1:]

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return ("visible", *(f"hidden{n}" for n in range(1, self.depth + 1)))

    @property
    def _directed(self) -> range:
        """Numbers of the layers whose units generate the layer below: all but the topmost."""
        return range(1, self.depth)

    @property
    def blocks(self) -> tuple[str, ...]:
        """`visible`, `hidden1` .. `hiddenk`, and `label` where there are label units."""
        return (*self._names, "label") if self.class_count else self._names

    def block_units(self, block: str) -> int:
        """How many units the block has."""
        return self.class_count if block == "label" else len(self._bias(self._names.index(block)))

    def _bias(self, level: int) -> Float[Tensor, " units"]:
        return self.parameters[f"b{level}"]

    def _recognition(self, level: int) -> tuple[Float[Tensor, "below above"], Float[Tensor, " above"]]:
        """V_l and a_l, or what they are tied to."""
        p = self.parameters
        return (p[f"V{level}"], p[f"a{level}"]) if "V1" in p else (p[f"W{level}"], p[f"b{level}"])

    # --- the top RBM ---

    @cached_property
    def top(self) -> Layered:
        """The top RBM; its visibles are layer k - 1."""
        p, k = self.parameters, self.depth
        domain = self.domain if k == 1 else "binary"
        return Layered((p[f"W{k}"],), (p[f"b{k - 1}"], p[f"b{k}"]), domain, U=p.get("U"), d=p.get("d"))

    @cached_property
    def _wide_top(self) -> Layered:
        return self.top.double()

    @cached_property
    def _in_top(self) -> dict[str, str]:
        """What the top RBM calls this model's blocks."""
        return {self._names[-2]: "visible", self._names[-1]: "hidden"} | (
            {"label": "label"} if self.class_count else {}
        )

    def _inside(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {inner: states[outer] for outer, inner in self._in_top.items() if outer in states}

    def _outside(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {outer: states[inner] for outer, inner in self._in_top.items() if inner in states}

    # --- energies, float64 within ---

    @property
    def _enumerable(self) -> bool:
        return sum(self.block_units(self._names[n]) for n in self._directed) <= ENUMERATED_UNITS

    @property
    def energy_kind(self) -> str:
        """`exact` up to 16 units in the directed layers together, else `estimate`."""
        return "exact" if self._enumerable else "estimate"

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """-log sum_h,y p~(v, h, y), nats; see `energy_with_error`."""
        return self.energy_with_error(x)[0]

    def energy_with_error(
        self, x: Float[Tensor, "n visible"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
        """The energy by enumeration; or its importance-weighted estimate, and the standard error of that.

        The estimate is on average too high (-energy is a stochastic lower bound on the unnormalized log-density), and
        has the same random numbers for every row, so that a row's energy does not depend on its company.
        """
        if self._enumerable:
            return -self._summed(x).logsumexp(1).to(self.dtype), None
        value, stderr = self.weighed(x).log_density()
        return -value.to(self.dtype), stderr.to(self.dtype)

    def weighed(self, x: Float[Tensor, "n visible"], draws: int = DRAWS, seed: int = 0) -> Weighed:
        """Recognition draws for each row, and what they are worth: bound and estimates from one pass.

        Draw number s has the random numbers of chain s, in every row.

        Raises:
            InputError: fewer than one draw.
        """
        if draws < 1:
            raise InputError(f"draws must be at least 1; got {draws}", "draws")
        keys = ChainKeys.of(seed, draws, self.device)
        widest = max(self.block_units(name) for name in self._names)
        rows = max(1, _ENTRIES // (draws * widest))
        return Weighed(torch.cat([self._weigh(piece, keys) for piece in torch.split(x.double(), rows)]))

    def _weigh(self, x: Tensor, keys: ChainKeys) -> Tensor:
        n, draws = len(x), len(keys)
        every = keys.rows(torch.arange(draws, device=self.device).repeat(n))
        sweep = torch.zeros(n * draws, dtype=torch.int64, device=self.device)
        below, total = {"visible": x}, x.new_zeros(n * draws)
        for level in self._directed:
            inputs = self.recognition(self._names[level], below)
            if level == 1:
                below = {"visible": x.repeat_interleave(draws, 0)}
                inputs = inputs.repeat_interleave(draws, 0)
            law = Bernoulli(inputs)
            above = {self._names[level]: law.sample(every, sweep, level)}
            total += Bernoulli(self._generated(level, above)).log_prob(below[self._names[level - 1]])
            total -= law.log_prob(above[self._names[level]])
            below = above
        lower = x.repeat_interleave(draws, 0) if self.depth == 1 else below[self._names[-2]]
        terms = self._top_terms(lower)
        return (total[:, None] + terms).reshape(n, draws, terms.shape[1])

    def _top_terms(self, lower: Float[Tensor, "n units"]) -> Float[Tensor, "n labels"]:
        """log sum_h_k exp(-E_top): a column each label, or one where there are no labels."""
        top = self._wide_top
        if top.U is None or top.d is None:
            return -top.energy(lower)[:, None]
        inputs = top.inputs("hidden", {"visible": lower})  # one product for all labels
        together = torch.stack([softplus(inputs + row).sum(1) for row in top.U], 1)
        return top.visible_term(lower)[:, None] + top.d + together

    # --- energies by enumeration of h_1 .. h_(k-1) ---

    def _summed(self, x: Tensor) -> Float[Tensor, "n labels"]:
        """log sum_h p~(v, h, y), float64: a column each label, or one where there are no labels."""
        return self._top_terms(x.double()) if self.depth == 1 else self._sum_out(1, x.double(), self._prior)

    @cached_property
    def _prior(self) -> Float[Tensor, "states labels"]:
        """For each state of h_1 the log of what all above it and each label make of it, see `_sum_out`."""
        level = self.depth - 1
        terms = torch.cat([self._top_terms(states) for _, states, _ in self._states(level)])
        while True:
            norms = torch.cat([softplus(inputs).sum(1) for _, _, inputs in self._states(level)])
            terms = terms - norms[:, None]
            if level == 1:
                return terms
            level -= 1
            terms = torch.cat([self._sum_out(level + 1, states, terms) for _, states, _ in self._states(level)])

    def _sum_out(
        self, level: int, below: Float[Tensor, "n units"], terms: Float[Tensor, "states labels"]
    ) -> Float[Tensor, "n labels"]:
        """log sum over h_l of exp(below'(W_l h_l + b_(l-1)) + terms): with terms log f(h_l) - sum softplus(W_l h_l +
        b_(l-1)) this is log sum p(below | h_l) f(h_l)."""
        total = below.new_full((len(below), terms.shape[1]), -torch.inf)
        rows = max(1, _ENTRIES // _STATES)
        for piece, _, inputs in self._states(level):
            for begin in range(0, len(below), rows):
                joint = below[begin : begin + rows] @ inputs.T
                found = torch.stack([(joint + column).logsumexp(1) for column in terms[piece].T], 1)
                total[begin : begin + rows] = torch.logaddexp(total[begin : begin + rows], found)
        return total

    def _states(self, level: int) -> Iterator[tuple[slice, Float[Tensor, "m units"], Float[Tensor, "m below"]]]:
        """All states of layer l, a bounded piece at a time, with the log-odds they give to the layer below."""
        units = self.block_units(self._names[level])
        W, b = self.parameters[f"W{level}"].double(), self._bias(level - 1).double()
        for start in range(0, 1 << units, _STATES):
            piece = slice(start, min(start + _STATES, 1 << units))
            states = all_binary_states(units, piece.start, piece.stop, self.device)
            yield piece, states, torch.addmm(b, states, W.T)

    # --- features and classes ---

    def features(self, x: Float[Tensor, "n visible"], layer: str | None = None) -> Float[Tensor, "n hidden"]:
        """Means of a layer in one pass up: of the recognition law, each layer given the means of the one below; of the
        topmost layer in the top RBM, labels summed out. Exact for a single hidden layer."""
        for level in self._directed:
            V, a = self._recognition(level)
            x = torch.sigmoid(torch.addmm(a, x, V))
            if self._names[level] == layer:
                return x
        return self.top.posterior_means(x)["hidden"]

    @property
    def class_count(self) -> int:
        """K, or 0 without label units."""
        return self.top.classes

    @property
    def class_kind(self) -> str:
        """`exact` where the energy is, else `estimate`."""
        return self.energy_kind

    def class_log_probs(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n classes"]:
        """log p(y | x), nats. The estimate is sum_s w_s p(y | h_(k-1)^s) / sum_s w_s: the label's posteriors in the top
        RBM for the recognition draws s of the energy's estimate, weighted as there. It is the softmax of the estimated
        -E(x, y)."""
        return torch.log_softmax(self._label_terms(x), 1).to(self.dtype)

    def class_energy(self, x: Float[Tensor, "n visible"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """E(x, y), nats: as `energy`, the labels given as positions."""
        return -self._label_terms(x).gather(1, labels[:, None])[:, 0].to(self.dtype)

    def _label_terms(self, x: Tensor) -> Float[Tensor, "n classes"]:
        if not self.class_count:
            raise CapabilityError("this model has no label units", self.capabilities())
        if self._enumerable:
            return self._summed(x)
        return self.weighed(x).label_terms()

    # --- chains: float64, the same bits in every batch ---

    @cached_property
    def _down(self) -> tuple[ExactMatrix, ...]:
        return tuple(ExactMatrix.of(self.parameters[f"W{level}"]).T for level in self._directed)

    @cached_property
    def _up(self) -> tuple[ExactMatrix, ...]:
        steps = [_INTENSITY_STEP if level == 1 and self.domain == "unit" else 1.0 for level in self._directed]
        return tuple(
            ExactMatrix.of(self._recognition(n)[0], step) for n, step in zip(self._directed, steps, strict=True)
        )

    @property
    def rounding_error(self) -> float:
        """Largest |weight - weight as sampled|."""
        pairs = [(self.parameters[f"W{n}"].T, self._down[n - 1]) for n in self._directed]
        pairs += [(self._recognition(n)[0], self._up[n - 1]) for n in self._directed]
        errors = [float((mine.double() - rounded.value).abs().max()) for mine, rounded in pairs]
        return max(errors, default=0.0) if self.depth == 1 else max(*errors, self.top.rounding_error)

    def _generated(self, level: int, states: Mapping[str, Tensor]) -> Float[Tensor, "n below"]:
        """Log-odds of layer l - 1 given layer l."""
        return self._down[level - 1](states[self._names[level]]) + self._bias(level - 1).double()

    def recognition(self, block: str, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n units"]:
        """a_l + V_l'h_(l-1)."""
        level = self._names.index(block)
        below = states[self._names[level - 1]]
        if level == 1 and self.domain == "unit":
            below = snap(below, _INTENSITY_STEP)
        return self._up[level - 1](below) + self._recognition(level)[1].double()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Where visibles are held a recognition pass up to layer k - 1; then the top RBM (layer k, labels, layer
        k - 1), and one ancestral pass down to the visibles."""
        up = [Part(f"recognised {name}", name, when_clamped=True) for name in self._names[1:-1]]
        top = [self._names[-1], *(["label"] if self.class_count else [])]
        return (*up, *(Part(name, name) for name in (*top, *self._names[-2::-1])))

    @property
    def exact_when_clamped(self) -> bool:
        """Only with one hidden layer: the posterior of directed layers does not factorise as the recognition law."""
        return self.depth == 1

    def conditional(
        self, part: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Conditional:
        """p(block | neighbours)^beta within the top RBM; of a directed layer p(h_l | h_(l+1)), or q(h_l | h_(l-1))
        where the part is named `recognised`."""
        if part in self._in_top:
            return self.top.conditional(self._in_top[part], self._inside(states), beta)
        if part.startswith("recognised "):
            return Bernoulli(self.recognition(part.removeprefix("recognised "), states))
        return Bernoulli(self._generated(self._names.index(part) + 1, states))

    def _log_generated(self, level: int, states: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """log p(h_(l-1) | h_l)."""
        inputs = self._generated(level, states)
        return invariant_sum(states[self._names[level - 1]] * inputs - _softplus(inputs))

    def log_given_rest(
        self, block: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """log p(h_(l-1) | h_l) + log p(h_l | h_(l+1)) without the second term's normaliser; h_(k-1) has that of the top
        RBM, at inverse temperature beta."""
        level = self._names.index(block)
        if level < self.depth - 1:
            pull = self._generated(level + 1, states)
        else:
            pull = self.top.exact_inputs("visible", self._inside(states))
            pull = pull if beta is None else pull * beta[:, None]
        return self._log_generated(level, states) + invariant_sum(states[block] * pull)

    def joint_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """-log p~(v, h, y) = E_top(h_(k-1), h_k, y) - sum_l log p(h_(l-1) | h_l), nats."""
        wide = {block: state.double() for block, state in states.items()}
        total = self.thermal_energy(wide)
        for level in self._directed:
            total = total - self._log_generated(level, wide)
        return total

    def thermal_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """E_top(h_(k-1), h_k, y), nats."""
        return self.top.joint_energy(self._inside(states))

    def noise(self, block: str, chains: int) -> Conditional:
        """Fair coins and dice."""
        if block in self._in_top:
            return self.top.noise(self._in_top[block], chains)
        return Bernoulli(torch.zeros(chains, self.block_units(block), dtype=torch.float64, device=self.device))

    # --- log Z: the top RBM's ---

    def log_partition(self) -> float:
        """log Z of the top RBM by enumerating its smaller side, at most 25 units, float64.

        Raises:
            CapabilityError: both have more.
        """
        return float(self.top.log_partition())

    @property
    def kept_blocks(self) -> tuple[str, ...]:
        """The lower side of the top RBM: layer k - 1 and the labels."""
        return tuple(outer for outer, inner in self._in_top.items() if inner in self.top.side(False))

    @property
    def base_blocks(self) -> tuple[str, ...]:
        """Both sides of the top RBM."""
        return tuple(self._in_top)

    def _path(self, base: Base) -> LayeredPath:
        return LayeredPath(self.top, self._inside(base))

    def base_of(self, totals: Mapping[str, Float[Tensor, " _"]], n: int) -> Base:
        """Log-odds of binary units, log-probabilities of the classes; all finite."""
        return self._outside(base_of(self.top, self._inside(totals), n))

    def annealed_base(self, base: Base) -> float:
        """log Z of independent units."""
        return self._path(base).log_base()

    def annealed_start(self, base: Base, keys: ChainKeys, sweep: Int[Tensor, " n"]) -> AnnealedState:
        """The lower side of the top RBM drawn independently."""
        return self.annealed_at(self._outside(self._path(base).start(keys, sweep)))

    def annealed_at(self, kept: Mapping[str, Float[Tensor, "n _"]]) -> AnnealedState:
        """The lower side of the top RBM with the inputs of layer k."""
        return AnnealedState(kept, self._outside(self._path({}).activations(self._inside(kept))))

    def annealed_log_density(self, state: AnnealedState, base: Base, beta: float) -> Float[Tensor, " n"]:
        """log f_beta(lower side), layer k summed out, float64."""
        return self._path(base).log_density(self._inside(state.kept), self._inside(state.activations), beta)

    def annealed_transition(
        self, state: AnnealedState, base: Base, beta: float, keys: ChainKeys, sweep: Int[Tensor, " n"]
    ) -> AnnealedState:
        """Layer k given the lower side, then the lower side given layer k, at beta."""
        after = self._path(base).transition(self._inside(state.activations), beta, keys, sweep)
        return self.annealed_at(self._outside(after))


def _deviation(values: Float[Tensor, "n draws"]) -> Float[Tensor, " n"]:
    """Standard deviation of each row; infinite for a single draw."""
    if values.shape[1] < 2:
        return torch.full_like(values[:, 0], torch.inf)
    return torch.sqrt((values - values.mean(1, keepdim=True)).square().sum(1) / (values.shape[1] - 1))


def _softplus(x: Float[Tensor, "n units"]) -> Float[Tensor, "n units"]:
    """log(1 + exp(x)) in float64, the same bits at every position of every batch: torch's own differ.

    With e = exp(-|x|): max(x, 0) + log(1 + e), and log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3, by its series to
    s^33 (the rest is below 1e-17).
    """
    e = rng.exp_minus_abs(x)
    s = e / (2.0 + e)
    square, series = s * s, torch.zeros_like(s)
    for coefficient in _ARTANH:
        series = series * square + coefficient
    return x.clamp(min=0.0) + 2.0 * s * series
