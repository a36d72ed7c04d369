"""A residual network without normalisation, as energies are made of (Du & Mordatch 2019; Grathwohl et al. 2020)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from models.architecture import ACTIVATIONS, Activation, Architecture, Network, Planes, image
from models.convolutions import Residual

Width = Annotated[int, Field(ge=1, le=4096)]


class ResNet(Architecture):
    """Stages of residual blocks, each stage but the first at half the resolution of the one before.

    The features are the sum over the last stage's places; the head is linear. Blocks begin as the identity but for a
    factor: the second convolution of each is scaled by 1 / sqrt(number of blocks).
    """

    name: ClassVar[str] = "resnet"

    channels: list[Width] = Field([32, 64, 128], min_length=1, max_length=8)
    blocks: int = Field(1, ge=1, le=64, description="Residual blocks in each stage.")
    activation: Activation = "swish"

    def network(self, shape: tuple[int, ...], outputs: int) -> Network:
        """For images."""
        _, _, below = image(shape, self.name)
        layers: list[nn.Module] = [Planes(), nn.Conv2d(below, self.channels[0], 3, 1, 1)]
        below, factor = self.channels[0], (len(self.channels) * self.blocks) ** -0.5
        for n, channels in enumerate(self.channels):
            if n:
                layers.append(nn.AvgPool2d(2, ceil_mode=True))
            for _ in range(self.blocks):
                layers.append(Residual(below, channels, self.activation, factor))
                below = channels
        layers += [ACTIVATIONS[self.activation](), _Sum()]
        return Network(nn.Sequential(*layers), nn.Linear(below, outputs))


class _Sum(nn.Module):
    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels"]:
        return torch.sum(x, (2, 3))
