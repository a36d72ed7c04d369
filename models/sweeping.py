"""Sweeps over the parts of a model: what Gibbs sampling, tempering and the base rates of annealing are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.conditionals import Conditional, Gaussian
from models.errors import CapabilityError
from models.family import Clamp, EnergyModel, HasConditionals, HasStates, Part
from models.rng import ChainKeys

DECISIONS = 0xFFFF
"""The stream that decisions to accept are drawn from. Parts have the streams from 0 on: never as many as this."""

Draw = Callable[[Part, Conditional, Float[Tensor, "n m"], int], Float[Tensor, "n m"]]
"""New states of a part from its law, its states so far and its stream."""


def sweepable(model: EnergyModel, sampler: str) -> HasConditionals:
    """The model as one that has conditionals.

    Raises:
        CapabilityError: it has none.
    """
    if not isinstance(model, HasConditionals):
        raise CapabilityError(f"{sampler} needs conditionals, which {model.name} has not", model.capabilities())
    return model


def only_from_noise(
    model: EnergyModel, start: Float[Tensor, "n visible"] | None = None, clamp: Clamp | None = None
) -> None:
    """Refuse what chains can do nothing with that move something else than visibles.

    Raises:
        CapabilityError: visibles are given, to start from or to hold.
    """
    if clamp is not None and bool(clamp.mask.any()):
        raise CapabilityError(f"chains of {model.name} cannot hold visible units", model.capabilities())
    if start is not None:
        raise CapabilityError(f"chains of {model.name} start from noise alone", model.capabilities())


def has_real(model: HasConditionals, *blocks: str) -> bool:
    """Whether any of the blocks (of all where none is named) holds real units: their law at beta = 0 is not proper."""
    return any(isinstance(model.noise(block, 1), Gaussian) for block in blocks or model.blocks)


def begin(
    model: HasStates,
    keys: ChainKeys,
    start: Float[Tensor, "n visible"] | None = None,
    clamp: Clamp | None = None,
) -> dict[str, Float[Tensor, "n _"]]:
    """Every block from noise, block number i from stream i of sweep 0; visibles from `start` where given."""
    sweep = torch.zeros(len(keys), dtype=torch.int64, device=model.device)
    blocks = {
        block: model.noise(block, len(keys)).sample(keys, sweep, stream) for stream, block in enumerate(model.blocks)
    }
    if start is not None:
        blocks["visible"] = start.to(blocks["visible"])
    if clamp is not None:
        blocks = {block: clamp.hold(Part(block, block), drawn) for block, drawn in blocks.items()}
    return blocks


@dataclass(frozen=True)
class Swept:
    """Chains after a sweep."""

    blocks: dict[str, Float[Tensor, "n _"]]
    laws: list[tuple[Part, Conditional]]
    """What the parts of the visibles were drawn from."""

    def expected_visible(self) -> Float[Tensor, "n visible"]:
        """Means of those laws, clamped units not put back."""
        means = self.blocks["visible"]
        for part, law in self.laws:
            means = _put(means, part.units, law.mean())
        return means


def sweep(
    model: HasConditionals,
    blocks: Mapping[str, Float[Tensor, "n _"]],
    keys: ChainKeys,
    number: Int[Tensor, " n"],
    clamp: Clamp | None = None,
    beta: Float[Tensor, " n"] | None = None,
    backwards: bool = False,
    draw: Draw | None = None,
) -> Swept:
    """Every part once, new values used at once; part number i from stream i of sweep `number`.

    Each part is drawn from its conditional at `beta` (1 where None), or by `draw`. `backwards`: the last part first.
    Where each part's draw is reversible with respect to the model's law, as all full conditionals are, the sweep
    backwards is the reversal of the sweep.
    """
    after, laws = dict(blocks), []
    parts = list(enumerate(model.parts))
    for stream, part in reversed(parts) if backwards else parts:
        if part.when_clamped and clamp is None:
            continue
        before = after[part.block] if part.units is None else after[part.block][:, part.units]
        law = model.conditional(part.name, after, beta)
        drawn = law.sample(keys, number, stream) if draw is None else draw(part, law, before, stream)
        if clamp is not None:
            drawn = clamp.hold(part, drawn)
            if part.when_clamped:
                drawn = torch.where(clamp.mask.any(1, keepdim=True), drawn, before)
        after[part.block] = _put(after[part.block], part.units, drawn)
        if part.block == "visible":
            laws.append((part, law))
    return Swept(after, laws)


def _put(block: Tensor, units: Tensor | None, drawn: Tensor) -> Tensor:
    return drawn if units is None else block.index_copy(1, units, drawn)
