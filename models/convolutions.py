"""What the convolutional architectures have in common."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.architecture import ACTIVATIONS


class Residual(nn.Module):
    """x + factor g(x), g two 3 x 3 convolutions, each after the activation; x through 1 x 1 where channels change."""

    def __init__(self, below: int, channels: int, activation: str, factor: float, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(below, channels, 3, 1, dilation, dilation)
        self.second = nn.Conv2d(channels, channels, 3, 1, dilation, dilation)
        self.skip = nn.Conv2d(below, channels, 1) if below != channels else nn.Identity()
        self.activation, self.factor = ACTIVATIONS[activation](), factor

    def forward(self, x: Float[Tensor, "n below h w"]) -> Float[Tensor, "n channels h w"]:
        """Planes of the same size."""
        inner = self.second(self.activation(self.first(self.activation(x))))
        total: Tensor = self.skip(x) + self.factor * inner
        return total


class ImageHead(nn.Conv2d):
    """Flat features of places to the flat units of an image, channels last, by a 3 x 3 convolution.

    A place has the features `channels` and makes patch x patch pixels of `above` units each.
    """

    def __init__(self, channels: int, above: int, height: int, width: int, patch: int = 1) -> None:
        super().__init__(channels, above * patch**2, 3, 1, 1)
        self.plane = (channels, height // patch, width // patch)
        self.spread = nn.PixelShuffle(patch)

    def forward(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n outputs"]:
        """The image's units in the order of an example's."""
        planes: Tensor = self.spread(super().forward(torch.unflatten(x, 1, self.plane)))
        return planes.movedim(1, -1).flatten(1)
