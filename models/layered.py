"""Boltzmann machines whose units lie in layers, only neighbouring layers coupled: the arithmetic of RBM, GRBM, DBM.

With layers x_0 (visible), x_1 .. x_k (hidden, binary) and one-hot label units y above x_k (MATH 2, 3, 5):
E = -sum_l x_(l-1)'W_l x_l - sum_l b_l'x_l - x_k'U'y - d'y for binary visibles; for real ones x_0 / s takes the place of
x_0 in the products, and sum_i (x_0i - b_i)^2 / (2 s_i^2) that of -b_0'x_0. Given the odd layers the even ones are
independent, and the other way round; the labels stand beside layer k + 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from models.conditionals import Bernoulli, Categorical, Conditional, Gaussian
from models.errors import CapabilityError, CheckpointError
from models.numerics import ExactMatrix, invariant_sum, snap, softplus

MAX_POSTERIOR_UNITS = 20
"""Hidden units of one parity that energy(v) enumerates; beyond it is a mean-field bound."""
MAX_PARTITION_UNITS = 25
"""Units of one parity that log Z enumerates."""
MEAN_FIELD_SWEEPS = 50
_STATES, _ENTRIES = 1 << 14, 1 << 24
_INTENSITY_STEP = 2.0**-16
_STEP, _REACH = 2.0**-20, 2.0**10
"""Real visibles enter products as multiples of 2^-20 standard deviations, at most 2^10 standard deviations."""
LARGEST_LOG_SIGMA = 40.0
"""exp of twice this is still a float32."""


def check_log_sigma(tensors: Mapping[str, Tensor]) -> None:
    """Check that the variances that `log_sigma`, if there is one, stands for are numbers, and not 0.

    Raises:
        CheckpointError: they are not.
    """
    if "log_sigma" in tensors and float(tensors["log_sigma"].abs().max()) > LARGEST_LOG_SIGMA:
        raise CheckpointError(
            f"tensor log_sigma holds logarithms of standard deviations beyond +-{LARGEST_LOG_SIGMA:g}"
        )


@dataclass(frozen=True, eq=False)
class Layered:
    """The parameters, in one precision. `weights[l-1]` is W_l (units below, units above), `biases[l]` is b_l."""

    weights: tuple[Float[Tensor, "_ _"], ...]
    biases: tuple[Float[Tensor, " _"], ...]
    domain: str = "binary"
    """Of the visibles: `binary`, `unit` (drawn binary; intensities where given) or `real`."""
    log_sigma: Float[Tensor, " visible"] | None = None
    U: Float[Tensor, "classes top"] | None = None
    d: Float[Tensor, " classes"] | None = None

    # --- shape ---

    @property
    def depth(self) -> int:
        """k, the number of hidden layers."""
        return len(self.weights)

    @property
    def classes(self) -> int:
        """K, or 0 without label units."""
        return 0 if self.d is None else len(self.d)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of layers 0..k: `visible`, then `hidden` or `hidden1` .. `hiddenk`."""
        return ("visible", *(f"hidden{n}" if self.depth > 1 else "hidden" for n in range(1, self.depth + 1)))

    def side(self, odd: bool) -> tuple[str, ...]:
        """The blocks of one parity, lowest first, `label` last."""
        names = self.layers[1::2] if odd else self.layers[::2]
        return (*names, "label") if self.classes and (self.depth + 1) % 2 == odd else names

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """In the order of a sweep: the odd layers, then the even ones."""
        return (*self.side(True), *self.side(False))

    def units(self, block: str) -> int:
        """How many units the block has."""
        return self.classes if block == "label" else len(self.biases[self.layers.index(block)])

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.weights[0].device

    # --- inputs of the units, in the parameters' precision ---

    def inputs(
        self, block: str, states: Mapping[str, Float[Tensor, "n _"]], own: Float[Tensor, "n units"] | None = None
    ) -> Float[Tensor, "n units"]:
        """What the neighbours and the bias put into a block: the log-odds of its units, and for real visibles the
        conditional mean. Neighbours that are not in `states` put in nothing. `own`: in place of a hidden layer's
        bias, it and what neighbours that do not change put in."""
        if block == "label":
            assert self.U is not None
            assert self.d is not None
            return torch.addmm(self.d, states[self.layers[-1]], self.U.T)
        at = self.layers.index(block)
        total = self.biases[at] if own is None else own
        if at > 0 and self.layers[at - 1] in states:
            below = states[self.layers[at - 1]]
            total = torch.addmm(total, self._scaled(below) if at == 1 else below, self.weights[at - 1])
        if at < self.depth and self.layers[at + 1] in states:
            above = states[self.layers[at + 1]]
            if at == 0 and self.log_sigma is not None:
                return total + self.log_sigma.exp() * (above @ self.weights[0].T)
            total = torch.addmm(total, above, self.weights[at].T)
        if at == self.depth and self.U is not None and "label" in states:
            total = torch.addmm(total, states["label"], self.U)
        return total

    def _scaled(self, visible: Tensor) -> Tensor:
        return visible if self.log_sigma is None else visible * torch.exp(-self.log_sigma)

    def visible_term(self, visible: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """The part of -E that only the visibles enter."""
        if self.log_sigma is None:
            return visible @ self.biases[0]
        return -0.5 * ((visible - self.biases[0]) * torch.exp(-self.log_sigma)).square().sum(1)

    # --- energies with hidden units summed out (MATH 2, 3, 5) ---

    @property
    def exact(self) -> bool:
        """Whether energy(v) is had by enumeration; for one hidden layer it always is."""
        return self._enumerated is not None

    @cached_property
    def _enumerated(self) -> bool | None:
        """The parity whose hidden units are enumerated while those of the other are summed out; None: too many."""
        sizes = {odd: self._state_count(odd) for odd in (False, True)}
        odd = min(sizes, key=lambda side: sizes[side])
        return odd if sizes[odd] <= 1 << MAX_POSTERIOR_UNITS or self.depth == 1 else None

    def _state_count(self, odd: bool) -> int:
        names = [name for name in self.side(odd) if name != "visible"]
        return math.prod(self.classes if name == "label" else 1 << self.units(name) for name in names)

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """-log sum_h,y exp(-E(v, h, y)) by enumeration, or the mean-field bound from above on it; nats."""
        if self._enumerated is None:
            return -self.bound(x, self.mean_field(x))
        if self.depth == 1 and not self.classes:
            return -self.visible_term(x) - softplus(self.inputs(self.layers[1], {"visible": x})).sum(1)
        total, pieces = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device), []
        for rows, _, terms in self._posterior_terms(x):
            pieces.append(terms.logsumexp(1))
            if rows.stop >= len(x):
                total, pieces = torch.logaddexp(total, torch.cat(pieces)), []
        return -self.visible_term(x) - total

    def posterior_means(self, x: Float[Tensor, "n visible"]) -> dict[str, Float[Tensor, "n _"]]:
        """Expected hidden (and label) states given v: exact where energy(v) is, else of the mean-field posterior."""
        if self._enumerated is None:
            return self.mean_field(x)
        if self.depth == 1 and not self.classes:
            return {self.layers[1]: torch.sigmoid(self.inputs(self.layers[1], {"visible": x}))}
        names = [name for name in self.blocks if name != "visible"]
        means = {name: x.new_zeros(len(x), self.units(name)) for name in names}
        log_p = -self.energy(x) - self.visible_term(x)
        for rows, states, terms in self._posterior_terms(x):
            weights = torch.exp(terms - log_p[rows, None])
            for name in names:
                if name in states:
                    means[name][rows] += weights @ states[name]
                else:
                    means[name][rows] += self._summed_mean(name, x[rows], states, weights)
        return means

    def _summed_mean(
        self, name: str, x: Tensor, states: Mapping[str, Tensor], weights: Float[Tensor, "n m"]
    ) -> Float[Tensor, "n units"]:
        inputs = self.inputs(name, states)
        if name != self.layers[1]:
            return weights @ (torch.softmax(inputs, 1) if name == "label" else torch.sigmoid(inputs))
        both = inputs[None] + (self._scaled(x) @ self.weights[0])[:, None]
        return torch.einsum("nm,nmu->nu", weights, torch.sigmoid(both))

    def _posterior_terms(self, x: Tensor) -> Iterator[tuple[slice, dict[str, Tensor], Float[Tensor, "n m"]]]:
        """(rows, enumerated states, log of their weight without the visibles' own term), a bounded piece at a time."""
        odd = self._enumerated
        assert odd is not None
        first = self._scaled(x) @ self.weights[0]
        total = self._state_count(odd)
        names = [name for name in self.side(odd) if name != "visible"]
        for start in range(0, total, _STATES):
            states = self._states(names, start, min(start + _STATES, total), x)
            count = min(_STATES, total - start)
            own = sum((states[n] @ self._bias(n) for n in names), x.new_zeros(count))
            for name in self.side(not odd):
                if name == self.layers[1] or name == "visible":
                    continue
                inputs = self.inputs(name, states)
                own = own + (inputs.logsumexp(1) if name == "label" else softplus(inputs).sum(1))
            width = count * (1 if odd else len(self.biases[1]))
            for begin in range(0, len(x), max(1, _ENTRIES // width)):
                rows = slice(begin, begin + max(1, _ENTRIES // width))
                if odd:
                    terms = own + first[rows] @ states[self.layers[1]].T
                else:
                    above = self.inputs(self.layers[1], states)
                    terms = own + softplus(first[rows, None] + above[None]).sum(2)
                yield rows, states, terms

    def _bias(self, block: str) -> Tensor:
        if block == "label":
            assert self.d is not None
            return self.d
        return self.biases[self.layers.index(block)]

    def _states(self, names: list[str], start: int, stop: int, like: Tensor) -> dict[str, Tensor]:
        numbers = torch.arange(start, stop, device=like.device, dtype=torch.int64)
        states = {}
        for name in names:
            if name == "label":
                states[name] = one_hot(numbers % self.classes, self.classes).to(like)
                numbers = numbers // self.classes
            else:
                units = self.units(name)
                states[name] = ((numbers[:, None] >> torch.arange(units, device=like.device)) & 1).to(like)
                numbers = numbers >> units
        return states

    def given_label(self, label: int) -> tuple[Layered, Float[Tensor, ""]]:
        """The machine whose class is `label`, and the term that then is missing from its -E."""
        assert self.U is not None
        assert self.d is not None
        biases = (*self.biases[:-1], self.biases[-1] + self.U[label])
        return replace(self, biases=biases, U=None, d=None), self.d[label]

    def class_energies(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n classes"]:
        """E(x, y) for every class y, nats."""
        assert self.U is not None
        assert self.d is not None
        if self.depth > 1:
            machines = [self.given_label(label) for label in range(self.classes)]
            return torch.stack([machine.energy(x) - term for machine, term in machines], 1)
        inputs = torch.addmm(self.biases[1], self._scaled(x), self.weights[0])
        together = softplus(inputs[:, None] + self.U).sum(2)
        return -self.visible_term(x)[:, None] - self.d - together

    def class_energy(self, x: Float[Tensor, "n visible"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """E(x, y): as `energy`, the labels given as positions."""
        energies = torch.empty(len(x), dtype=x.dtype, device=x.device)
        for label in sorted(set(labels.tolist())):
            machine, term = self.given_label(label)
            rows = labels == label
            energies[rows] = machine.energy(x[rows]) - term
        return energies

    # --- mean field ---

    def mean_field(
        self,
        x: Float[Tensor, "n visible"],
        start: Mapping[str, Float[Tensor, "n _"]] | None = None,
        sweeps: int = MEAN_FIELD_SWEEPS,
        label: Float[Tensor, "n classes"] | None = None,
    ) -> dict[str, Float[Tensor, "n _"]]:
        """Means of the factorial posterior, hidden and label units, by coordinate ascent (Salakhutdinov & Hinton 2009).

        A fixed number of sweeps, odd layers first, from `start` (by default a pass up in which each layer has its input
        from below doubled, but the topmost). `label`: one-hot labels that are given, not inferred.
        """
        means: dict[str, Tensor] = {"visible": x}
        if label is not None:
            means["label"] = label
        free = [name for name in self.blocks if name not in means]
        if self.depth == 1 and "label" not in free:
            return {self.layers[1]: torch.sigmoid(self.inputs(self.layers[1], means))} | (
                {} if label is None else {"label": label}
            )
        means |= self._pass_up(means) if start is None else {name: start[name] for name in free}
        own = {self.layers[1]: self.inputs(self.layers[1], {"visible": means.pop("visible")})}
        for _ in range(sweeps):
            for name in free:
                inputs = self.inputs(name, means, own.get(name))
                means[name] = torch.softmax(inputs, 1) if name == "label" else torch.sigmoid(inputs)
        return {name: means[name] for name in self.blocks if name != "visible"}

    def _pass_up(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        means, found = dict(given), {}
        for at, name in enumerate(self.layers[1:], start=1):
            below = {self.layers[at - 1]: means[self.layers[at - 1]]}
            inputs = self.inputs(name, below)
            if at < self.depth:
                inputs = 2.0 * inputs - self.biases[at]
            means[name] = found[name] = torch.sigmoid(inputs)
        if self.classes and "label" not in given:
            found["label"] = torch.softmax(self.inputs("label", means), 1)
        return found

    def bound(self, x: Float[Tensor, "n visible"], means: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """E_q[-E] + H(q) for the factorial q with these means: at most log sum_h exp(-E(v, h)); nats."""
        states = {"visible": x, **means}
        total = self.visible_term(x)
        for at, name in enumerate(self.layers[1:], start=1):
            mean = means[name]
            below = states[self.layers[at - 1]]
            total = total + ((self._scaled(below) if at == 1 else below) @ self.weights[at - 1] * mean).sum(1)
            total = total + mean @ self.biases[at] + _entropy(mean) + _entropy(1 - mean)
        if self.U is not None and self.d is not None:
            label = means["label"]
            total = total + (states[self.layers[-1]] @ self.U.T * label).sum(1) + label @ self.d + _entropy(label)
        return total

    # --- chains: float64, the same bits in every batch ---

    @cached_property
    def _matrices(self) -> tuple[ExactMatrix, ...]:
        step, bound = {"unit": (_INTENSITY_STEP, 1.0), "real": (_STEP, _REACH)}.get(self.domain, (1.0, 1.0))
        first = ExactMatrix.of(self.weights[0], step, bound)
        return (first, *(ExactMatrix.of(w) for w in self.weights[1:]))

    @cached_property
    def _label_matrix(self) -> ExactMatrix | None:
        return None if self.U is None else ExactMatrix.of(self.U)

    @cached_property
    def sigma(self) -> Float[Tensor, " visible"]:
        """Standard deviations of real visibles given the hidden units, float64."""
        assert self.log_sigma is not None
        return torch.exp(self.log_sigma.double().cpu()).to(self.device)  # one library's bits, whatever the device

    @property
    def rounding_error(self) -> float:
        """Largest |parameter - parameter as sampled|."""
        pairs = list(zip(self.weights, self._matrices, strict=True))
        if self.U is not None and self._label_matrix is not None:
            pairs.append((self.U, self._label_matrix))
        return max(float((mine.double() - rounded.value).abs().max()) for mine, rounded in pairs)

    def _drive(self, visible: Tensor) -> Tensor:
        """The visibles as they enter products."""
        if self.domain == "binary":
            return visible
        if self.log_sigma is None:
            return snap(visible, _INTENSITY_STEP)
        return snap(visible / self.sigma, _STEP).clamp(-_REACH, _REACH)

    def exact_inputs(self, block: str, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, "n units"]:
        """As `inputs`, of the rounded parameters."""
        if block == "label":
            assert self._label_matrix is not None
            return self._label_matrix.T(states[self.layers[-1]]) + self.wide_bias("label")
        at = self.layers.index(block)
        total = self.wide_bias(block)
        if at > 0:
            below = states[self.layers[at - 1]]
            total = total + self._matrices[at - 1](self._drive(below) if at == 1 else below)
        if at < self.depth:
            above = self._matrices[at].T(states[self.layers[at + 1]])
            total = total + (above if at or self.log_sigma is None else self.sigma * above)
        elif self._label_matrix is not None:
            total = total + self._label_matrix(states["label"])
        return total

    def wide_bias(self, block: str) -> Float[Tensor, " units"]:
        """A block's biases, float64."""
        return self._bias(block).double()

    def law(self, block: str, inputs: Float[Tensor, "n units"], beta: Float[Tensor, " n"] | None = None) -> Conditional:
        """The block's law where these are its inputs, at inverse temperature `beta` (1 where None)."""
        if block == "visible" and self.log_sigma is not None:
            std = self.sigma.expand_as(inputs)
            return Gaussian(inputs, std if beta is None else std / torch.sqrt(beta)[:, None])
        logits = inputs if beta is None else inputs * beta[:, None]
        return Categorical(logits) if block == "label" else Bernoulli(logits)

    def conditional(
        self, block: str, states: Mapping[str, Float[Tensor, "n _"]], beta: Float[Tensor, " n"] | None = None
    ) -> Conditional:
        """p(block | its neighbours)^beta, normalised."""
        return self.law(block, self.exact_inputs(block, states), beta)

    def noise(self, block: str, chains: int) -> Conditional:
        """Fair coins, a fair die for the labels, N(b, s^2) for real visibles."""
        zeros = torch.zeros(chains, self.units(block), dtype=torch.float64, device=self.device)
        return self.law(
            block, zeros + self.wide_bias("visible") if block == "visible" and self.log_sigma is not None else zeros
        )

    def joint_energy(self, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """E(v, h, y) of the rounded parameters, nats, float64."""
        wide = {name: state.double() for name, state in states.items()}
        visible = wide["visible"]
        if self.log_sigma is None:
            terms = [visible * -self.wide_bias("visible")]
        else:
            terms = [0.5 * ((visible - self.wide_bias("visible")) / self.sigma).square()]
        for at, name in enumerate(self.layers[1:], start=1):
            below = wide[self.layers[at - 1]]
            inputs = self._matrices[at - 1](self._drive(below) if at == 1 else below) + self.wide_bias(name)
            terms.append(-inputs * wide[name])
        if self._label_matrix is not None:
            terms.append(-(self._label_matrix.T(wide[self.layers[-1]]) + self.wide_bias("label")) * wide["label"])
        return invariant_sum(torch.cat(terms, 1))

    # --- log Z (MATH 12) ---

    def log_partition(self) -> Float[Tensor, ""]:
        """log Z by enumerating the smaller parity and summing the other out, float64, differentiable.

        Raises:
            CapabilityError: both parities have more than 25 units.
        """
        machine = self.double()
        bits = {odd: sum(1.0 * machine.units(n) for n in machine.side(odd) if n != "label") for odd in (False, True)}
        sizes = {odd: b + (math.log2(self.classes) if "label" in self.side(odd) else 0.0) for odd, b in bits.items()}
        odd = self.log_sigma is not None or sizes[True] <= sizes[False]
        if sizes[odd] > MAX_PARTITION_UNITS:
            units = int(bits[odd])
            raise CapabilityError(
                f"exact log Z enumerates the smaller side, at most {MAX_PARTITION_UNITS} units; this one has {units}"
            )
        names, others = list(machine.side(odd)), machine.side(not odd)
        count = math.prod(machine.classes if n == "label" else 1 << machine.units(n) for n in names)
        total = torch.tensor(-torch.inf, dtype=torch.float64, device=self.device)
        for start in range(0, count, _STATES):
            states = machine._states(names, start, min(start + _STATES, count), machine.weights[0])
            terms = sum((states[n] @ machine._bias(n) for n in names), total.new_zeros(min(_STATES, count - start)))
            for name in others:
                terms = terms + machine.log_sum(name, states)
            total = torch.logaddexp(total, terms.logsumexp(0))
        return total

    def log_sum(self, block: str, states: Mapping[str, Float[Tensor, "n _"]]) -> Float[Tensor, " n"]:
        """log of the sum (integral) of exp(-E) over a block's states, its own bias included."""
        if block == "visible" and self.log_sigma is not None:
            pull = states[self.layers[1]] @ self.weights[0].T  # (v-b)^2/2s^2 - v w/s integrates to w b/s + w^2/2
            own = (0.5 * math.log(2 * math.pi) + self.log_sigma).sum()
            return own + pull @ (self.biases[0] * torch.exp(-self.log_sigma)) + 0.5 * pull.square().sum(1)
        inputs = self.inputs(block, states)
        return inputs.logsumexp(1) if block == "label" else softplus(inputs).sum(1)

    def double(self) -> Layered:
        """The same parameters in float64."""
        return Layered(
            tuple(w.double() for w in self.weights),
            tuple(b.double() for b in self.biases),
            self.domain,
            *(None if t is None else t.double() for t in (self.log_sigma, self.U, self.d)),
        )


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(1)
