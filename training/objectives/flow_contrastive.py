"""Flow contrastive estimation: the noise is a flow that learns to be taken for data (MATH 8; Gao et al. 2020)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Num
from pydantic import Field
from torch import Tensor

from models.family import Base, EnergyModel, HasStates
from training import adam
from training.contrast import Contrast, named, noise_of
from training.flow import Flow
from training.objective import Batch, Draws, Memory, slopes

_NOISE = 0
"""Stream."""
_FIXED = ("mean", "factor")
"""The flow's tensors that stay as fitted."""


class FlowContrastive(Contrast):
    """max over the energy, min over the flow of V = E_data[log sigmoid(g)] + ratio E_flow[log sigmoid(-g)].

    g = -E(x) - c - log q(x) - log ratio, q the flow's density. The flow, fitted to the training data first by
    `flow_steps` steps of maximum likelihood, then takes a step of Adam down V for each of the energy's up: for the best
    energy V is, but for a number, twice the Jensen-Shannon divergence of data and flow (Gao et al. 2020, section 3.2).
    So the noise stays close to the data where a fixed one is too easily told apart, and c near log Z.
    """

    name: ClassVar[str] = "flow_contrastive"

    flow_layers: int = Field(8, ge=2, le=64, description="Couplings.")
    flow_hidden: int = Field(64, ge=1, description="Hidden units of each of them.")
    flow_steps: int = Field(1000, ge=0, description="Of Adam by maximum likelihood, before the first step.")
    flow_rate: float = Field(1e-3, ge=0, description="The flow's learning rate from then on.")

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """c, the running mean of its steps' squares, a flow that is N(0, 1), and the moments of its Adam."""
        assert isinstance(model, HasStates)
        flow = Flow.standard(model.block_units("visible"), self.flow_layers, self.flow_hidden, model.device).tensors
        learned = {name: t for name, t in flow.items() if name not in _FIXED}
        moments = {f"{kind}.{name}": torch.zeros_like(t) for kind in ("mean", "square") for name, t in learned.items()}
        return self.first(model) | named(flow) | moments

    def noted(self, memory: Memory, examples: Num[Tensor, "n visible"]) -> Memory:
        """The flow fitted to them."""
        fitted = Flow.fitted(examples, self.flow_layers, self.flow_hidden, self.flow_steps)
        return {**memory, **named(fitted.tensors)}

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """That of V by the energy's parameters, c held; then a step of c, and one of the flow against what was."""
        data = batch.visible
        z = draws.normals(data.repeat(self.ratio, 1).double(), draws.step, _NOISE)
        flow = noise_of(memory)
        made = Flow(flow).pushed(z)[0].to(data)
        log_noise = Flow(flow).log_density(torch.cat((data, made)))
        gradient, after = self.climbed(model, data, made, log_noise, memory, draws.step)
        fixed = {name: flow[name] for name in _FIXED}
        at_data, c = -model.energy(data).double(), after["c"] + math.log(self.ratio)

        learned = {name: t.clone() for name, t in flow.items() if name not in _FIXED}

        def value() -> Tensor:
            law = Flow({**fixed, **learned})
            drawn, logs = law.pushed(z)
            ours = torch.cat((at_data, -model.energy(drawn.to(data)).double()))
            return self.value(ours - c - torch.cat((law.log_density(data), logs)), len(data))

        found = slopes(learned, value)
        moved = {**after, **named(learned)}
        for name, slope in found.items():
            mean, square = (memory[f"{kind}.{name}"].clone() for kind in ("mean", "square"))
            adam.ascend(learned[name], mean, square, -slope, self.flow_rate, draws.step + 1)
            moved |= {f"mean.{name}": mean, f"square.{name}": square}
        return gradient, moved
