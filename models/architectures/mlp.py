"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from models.architecture import ACTIVATIONS, Activation, Architecture, Network
from models.perceptron import Along, Perceptron, along

Width = Annotated[int, Field(ge=1, le=65_536)]


class MLP(Architecture):
    """Layers of so many units, each with the activation; the head is linear."""

    name: ClassVar[str] = "mlp"

    hidden: list[Width] = Field([256, 256], min_length=1, max_length=32)
    activation: Activation = "swish"

    def network(self, shape: tuple[int, ...], outputs: int) -> Network:
        """For examples of any shape, flattened."""
        below = 1
        for size in shape:
            below *= size
        layers: list[nn.Module] = [nn.Flatten()]
        for width in self.hidden:
            layers += [nn.Linear(below, width), ACTIVATIONS[self.activation]()]
            below = width
        return Network(nn.Sequential(*layers), nn.Linear(below, outputs))

    def pullback(self, parameters: Mapping[str, Tensor]) -> Perceptron:
        """Compiled."""
        return Perceptron(*self._layers(parameters), self.activation)

    def along(self, parameters: Mapping[str, Tensor], x: Tensor, v: Tensor) -> Along:
        """With compiled activations."""
        return along(*self._layers(parameters), self.activation, x, v)

    def _layers(self, parameters: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        names = [*(f"body.{2 * n + 1}" for n in range(len(self.hidden))), "head"]
        return [parameters[f"{name}.weight"] for name in names], [parameters[f"{name}.bias"] for name in names]
