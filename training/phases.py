"""The two phases of Boltzmann learning: expectations under the data and under the model, and their difference.

The gradient of the mean log-likelihood is <-dE/dtheta>_data - <-dE/dtheta>_model (Ackley, Hinton & Sejnowski 1985;
MATH 1-5). Written once for all layered machines; every objective that contrasts data with chains uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from models.families.dbm import DBM
from models.family import Base
from models.layered import Layered
from models.layered_family import LayeredModel
from training.errors import RecipeError
from training.objective import Batch, Draws, Memory
from training.products import Gradient, Outer, Products, dense

Centring = Literal["none", "centred", "enhanced"]
Doubled = Literal["none", "below", "above"]
States = dict[str, Float[Tensor, "n _"]]

_SLIDE = 0.01
"""Weight of a new batch in the running means of hidden units (Melchior, Fischer & Wiskott 2016)."""
_FIRST = 64
"""Stream of the chains' first draws, after those of the blocks."""


@dataclass(frozen=True, eq=False)
class Phases:
    """Both phases of one layered model, in the parameters' own precision."""

    model: LayeredModel
    mean_field_sweeps: int = 10
    doubled: Doubled = "none"
    """Of an RBM that will be an end of a DBM: inputs from the side where the DBM has one more layer count twice."""

    products: Products = "float32"
    """Of the last product, <x y'>; the others are in the precision that whoever asks for them multiplies in."""

    @property
    def machine(self) -> Layered:
        """The model's arithmetic."""
        return self.model.machine

    def data(self, batch: Batch) -> States:
        """Expected states given the data: exact for one hidden layer, else mean-field."""
        given = self._given(batch)
        if self.machine.depth == 1:
            return given | expected(self._odd_inputs(given))
        return given | self._mean_field(given)

    def from_data(self, batch: Batch, draws: Draws, sweep: int) -> tuple[States, States]:
        """Expected states given the data, and odd layers drawn with them, of chains that start there."""
        given = self._given(batch)
        if self.machine.depth == 1:
            inputs = self._odd_inputs(given)
            data = given | expected(inputs)
        else:
            data = given | self._mean_field(given)
            inputs = {b: data[b].log() if b == "label" else torch.logit(data[b]) for b in self.machine.side(True)}
        return data, self.up(inputs, draws, sweep, _FIRST)

    def _given(self, batch: Batch) -> States:
        given = {"visible": batch.visible}
        if self.machine.classes:
            if batch.labels is None:
                raise RecipeError("the model has label units, but the data have no labels")
            given["label"] = one_hot(batch.labels, self.machine.classes).to(batch.visible)
        return given

    def _mean_field(self, given: Mapping[str, Tensor]) -> States:
        visible, start = given["visible"], None
        if isinstance(self.model, DBM) and self.model.has_recognition:
            start = self.model.recognise(visible)
        return self.machine.mean_field(visible, start, self.mean_field_sweeps, given.get("label"))

    def first(self, base: Base, chains: int, seed: int) -> States:
        """Odd layers of chains whose even layers are drawn independently."""
        machine, draws = self.machine, Draws(seed, 0)
        even = {}
        for block in machine.side(False):
            biases = base[block] if block in base else torch.zeros(machine.units(block))
            even[block] = self._draw(block, biases.to(machine.biases[0]).expand(chains, -1), draws, 0, _FIRST)
        return self.up(self._odd_inputs(even), draws, 0, _FIRST)

    def down(self, odd: Mapping[str, Tensor], draws: Draws, sweep: int) -> tuple[States, States]:
        """Even layers drawn given the odd ones, and the inputs that these then give the odd layers."""
        even = self._even(odd, draws, sweep)
        return even, self._odd_inputs(even)

    def _even(self, odd: Mapping[str, Tensor], draws: Draws, sweep: int) -> States:
        machine = self.machine
        inputs = {b: machine.inputs(b, odd) for b in machine.side(False)}
        if self.doubled == "above":
            inputs["visible"] = 2.0 * inputs["visible"] - machine.biases[0]
        return {b: self._draw(b, x, draws, sweep) for b, x in inputs.items()}

    def both(
        self, batch: Batch, odd: Mapping[str, Tensor], draws: Draws, first: int, steps: int
    ) -> tuple[States, States, States]:
        """`data`, and what `advance` gives."""
        if self.machine.depth > 1:
            return self.data(batch), *self.advance(odd, draws, first, steps)
        last = first + steps - 1
        if steps > 1:
            _, odd = self.advance(odd, draws, first, steps - 1)
        given, even = self._given(batch), self._even(odd, draws, last)
        # One product for the rows of data and chains: on a CPU it takes less time than two.
        inputs = self._odd_inputs({b: torch.cat((given[b], even[b])) for b in even})
        n, means = len(batch.visible), expected(inputs)
        odd = self.up({b: x[n:] for b, x in inputs.items()}, draws, last)
        return given | {b: x[:n] for b, x in means.items()}, even | {b: x[n:] for b, x in means.items()}, odd

    def advance(self, odd: Mapping[str, Tensor], draws: Draws, first: int, steps: int) -> tuple[States, States]:
        """The chains after so many sweeps, numbered from `first`: for the statistics, and the odd layers to go on from.

        A sweep draws even layers given odd ones, then odd ones given even ones: so the last sweep's inputs of the odd
        layers serve the statistics, which take these layers at their means.
        """
        for sweep in range(first, first + steps):
            even, inputs = self.down(odd, draws, sweep)
            odd = self.up(inputs, draws, sweep)
        return even | expected(inputs), dict(odd)

    def up(self, inputs: Mapping[str, Tensor], draws: Draws, sweep: int, first_stream: int = 0) -> States:
        """Odd layers drawn from their inputs."""
        return {b: self._draw(b, x, draws, sweep, first_stream) for b, x in inputs.items()}

    def _odd_inputs(self, even: Mapping[str, Tensor]) -> States:
        machine = self.machine
        inputs = {b: machine.inputs(b, even) for b in machine.side(True)}
        if self.doubled == "below":
            inputs[machine.layers[1]] = 2.0 * inputs[machine.layers[1]] - machine.biases[1]
        return inputs

    def _draw(self, block: str, inputs: Tensor, draws: Draws, sweep: int, first_stream: int = 0) -> Tensor:
        stream = first_stream + self.machine.blocks.index(block)
        if block == "label":
            return draws.categorical(inputs, sweep, stream)
        if block == "visible" and self.machine.log_sigma is not None:
            return inputs + self.machine.log_sigma.exp() * draws.normals(inputs, sweep, stream)
        return draws.bernoulli(inputs, sweep, stream)

    # --- the difference ---

    def offsets(self, base: Base, centring: Centring) -> Memory:
        """Memory of a gradient so centred, before the first step: offsets of all blocks, hidden ones as inferred."""
        if centring != "centred":
            return {}
        machine = self.machine
        means = {block: _mean_of_bias(machine, block, bias) for block, bias in base.items() if block in machine.blocks}
        given = {block: mean[None].to(machine.biases[0]) for block, mean in means.items()}
        means = given | (
            expected({machine.layers[1]: machine.inputs(machine.layers[1], given)})
            if machine.depth == 1
            else machine.mean_field(given["visible"], label=given.get("label"))
        )
        if machine.log_sigma is not None:
            means["visible"] = means["visible"] * torch.exp(-machine.log_sigma)
        return {f"offset.{block}": mean[0] for block, mean in means.items()}

    def contrast(
        self, data: Mapping[str, Tensor], model: Mapping[str, Tensor], memory: Memory, centring: Centring
    ) -> tuple[dict[str, Tensor], Memory]:
        """`factored`, multiplied out."""
        gradient, memory = self.factored(data, model, memory, centring)
        return dense(gradient), memory

    def factored(
        self, data: Mapping[str, Tensor], model: Mapping[str, Tensor], memory: Memory, centring: Centring
    ) -> tuple[Gradient, Memory]:
        """<x x'>_data - <x x'>_model and the like, as the steepest ascent of the machine written with centred units.

        With E = -(x-mu)'W(y-lambda) - (x-mu)'b' - (y-lambda)'c' the gradient in (W, b', c') is that of the
        covariances; in the ordinary parameters the same step reads, exactly, dW = <(x-mu)(y-lambda)'>_data -
        <(x-mu)(y-lambda)'>_model, db = <x>_data - <x>_model - dW lambda, dc = <y>_data - <y>_model - dW'mu (Montavon &
        Mueller 2012; Melchior, Fischer & Wiskott 2016); a layer with two neighbours has a term for each. The law that
        the parameters stand for does not know of the offsets. `centred`: running means under the data; `enhanced`:
        halfway between data and model (Cho et al. 2011). Real visibles count in standard deviations; their bias
        ascends its natural direction, s^2 times the gradient.
        """
        machine = self.machine
        data, model = dict(data), dict(model)
        shift, names = {}, self.names
        gradient: Gradient = {}
        if machine.log_sigma is not None:
            gradient[names["log_sigma"]] = self._log_sigma_term(data) - self._log_sigma_term(model)
            raw = data["visible"].mean(0) - model["visible"].mean(0)
            narrow = torch.exp(-machine.log_sigma)
            data["visible"], model["visible"] = data["visible"] * narrow, model["visible"] * narrow
        seen = {block: data[block].mean(0) for block in machine.blocks}
        for block in machine.blocks:
            shift[block] = seen[block] - model[block].mean(0)
        offset, memory = self._offset(seen, shift, memory, centring)
        # Rounded are only deviations from these: of a unit that hardly varies, next to nothing. (One hidden layer has
        # means under the data and under the model, which are rounded alike.)
        around = offset or (seen if self.products == "bfloat16" and machine.depth > 1 else {})
        biases = dict(shift)
        if machine.log_sigma is not None:
            biases["visible"] = raw
        for name, below, above in self._pairs():
            dW = self._difference(below, above, data, model, around)
            if around and not offset:
                dW = dW.dense() if isinstance(dW, Outer) else dW
                dW.addr_(shift[below], around[above]).addr_(around[below], shift[above])
            if offset:
                pull = dW.times(offset[above]) if isinstance(dW, Outer) else dW @ offset[above]
                if below == "visible" and machine.log_sigma is not None:
                    pull = machine.log_sigma.exp() * pull
                biases[below] = biases[below] - pull
                push = dW.transposed().times(offset[below]) if isinstance(dW, Outer) else dW.T @ offset[below]
                biases[above] = biases[above] - push
            gradient[names[name]] = dW
        for block, change in biases.items():
            gradient[names[f"bias of {block}"]] = change
        return gradient, memory

    def _difference(self, below: str, above: str, data: States, model: States, around: States) -> Tensor | Outer:
        """<(x - a)(y - b)'>_data - <(x - a)(y - b)'>_model: one product where there are as many chains as examples, or
        twice, or half.

        Rounded to bfloat16, states divided by their number would be off by the same part in all chains, and so make a
        steady pull: states are multiplied by powers of two alone, and what they add up to is divided.
        """
        n, chains = len(data[below]), len(model[below])
        x, y = (self._stacked(block, data, model, around) for block in (below, above))
        if math.frexp(n / chains)[0] == 0.5:
            y[n:] *= -n / chains
            return Outer(x, y, 1 / n, self.products)
        difference = Outer(x[:n], y[:n], 1 / n, self.products).dense()
        Outer(x[n:], y[n:], 1 / chains, self.products).add_to(difference, -1.0)
        return difference

    def _stacked(self, block: str, data: States, model: States, around: States) -> Tensor:
        rows = torch.cat((data[block], model[block]))
        return rows.sub_(around[block]) if around else rows

    def _log_sigma_term(self, states: Mapping[str, Tensor]) -> Tensor:
        machine = self.machine
        assert machine.log_sigma is not None
        narrow = torch.exp(-machine.log_sigma)
        off = (states["visible"] - machine.biases[0]) * narrow
        pull = states[machine.layers[1]] @ machine.weights[0].T
        return (off.square() - states["visible"] * narrow * pull).mean(0)

    def _offset(
        self, seen: States, shift: States, memory: Memory, centring: Centring
    ) -> tuple[dict[str, Tensor], Memory]:
        if centring == "none":
            return {}, memory
        if centring == "enhanced":
            return {block: seen[block] - shift[block] / 2 for block in seen}, memory
        offset = {block: memory[f"offset.{block}"] for block in seen}
        for block in seen:
            if block not in ("visible", "label"):
                offset[block] = torch.lerp(offset[block], seen[block], _SLIDE)
        return offset, {**memory, **{f"offset.{block}": mean for block, mean in offset.items()}}

    def _pairs(self) -> list[tuple[str, str, str]]:
        layers = self.machine.layers
        pairs = [(f"weights {n}", below, above) for n, (below, above) in enumerate(pairwise(layers))]
        return [*pairs, ("U", "label", layers[-1])] if self.machine.classes else pairs

    @cached_property
    def names(self) -> dict[str, str]:
        """Parameter names in a checkpoint, by what the parameter is: the machine holds the model's own tensors."""
        machine = self.model.machine
        named = {id(tensor): name for name, tensor in self.model.tensors().items()}
        roles: dict[str, Tensor | None] = {f"weights {n}": w for n, w in enumerate(machine.weights)}
        roles |= {f"bias of {block}": b for block, b in zip(machine.layers, machine.biases, strict=True)}
        roles |= {"U": machine.U, "bias of label": machine.d, "log_sigma": machine.log_sigma}
        return {role: named[id(tensor)] for role, tensor in roles.items() if tensor is not None}


def expected(inputs: Mapping[str, Tensor]) -> States:
    """Expected states of blocks with these inputs."""
    return {b: torch.softmax(x, 1) if b == "label" else torch.sigmoid(x) for b, x in inputs.items()}


def _mean_of_bias(machine: Layered, block: str, bias: Tensor) -> Tensor:
    if block == "visible" and machine.log_sigma is not None:
        return bias
    return torch.softmax(bias, 0) if block == "label" else torch.sigmoid(bias)
