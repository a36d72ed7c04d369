"""A residual network that keeps an image's resolution, dilated to see far (Yu & Koltun 2016; Song & Ermon 2019)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from models.architecture import ACTIVATIONS, Activation, Architecture, Network, Planes, image
from models.errors import CheckpointError

Dilation = Annotated[int, Field(ge=1, le=64)]


class Dilated(Architecture):
    """Residual blocks of two 3 x 3 convolutions, one for each dilation, at full resolution; the head is a convolution.

    The outputs are an image again, of as many numbers as the example or a multiple, in the order of its flat units.
    """

    name: ClassVar[str] = "dilated"

    channels: int = Field(32, ge=1, le=4096)
    dilations: list[Dilation] = Field([1, 2, 4], min_length=1, max_length=32)
    activation: Activation = "swish"

    def network(self, shape: tuple[int, ...], outputs: int) -> Network:
        """For images.

        Raises:
            CheckpointError: no images, or outputs that are none.
        """
        height, width, below = image(shape, self.name)
        if outputs % (height * width):
            raise CheckpointError(
                f"architecture dilated: its outputs are an image of {height} x {width}; {outputs} numbers are none"
            )
        layers: list[nn.Module] = [Planes(), nn.Conv2d(below, self.channels, 3, 1, 1)]
        factor = len(self.dilations) ** -0.5
        layers += [_Block(self.channels, dilation, self.activation, factor) for dilation in self.dilations]
        layers += [ACTIVATIONS[self.activation](), nn.Flatten()]
        head = _Head(self.channels, outputs // (height * width), height, width)
        return Network(nn.Sequential(*layers), head)


class _Block(nn.Module):
    def __init__(self, channels: int, dilation: int, activation: str, factor: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, dilation, dilation)
        self.second = nn.Conv2d(channels, channels, 3, 1, dilation, dilation)
        self.activation, self.factor = ACTIVATIONS[activation](), factor

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels h w"]:
        inner = self.second(self.activation(self.first(self.activation(x))))
        total: Tensor = x + self.factor * inner
        return total


class _Head(nn.Conv2d):
    """Flat features to flat images, channels last."""

    def __init__(self, channels: int, above: int, height: int, width: int) -> None:
        super().__init__(channels, above, 3, 1, 1)
        self.plane = (channels, height, width)

    def forward(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n outputs"]:
        planes: Tensor = super().forward(torch.unflatten(x, 1, self.plane))
        return planes.movedim(1, -1).flatten(1)
