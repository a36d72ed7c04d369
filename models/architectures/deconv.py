"""A convolutional network that doubles an image layer by layer (Radford et al. 2016, without normalisation)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from models.architecture import ACTIVATIONS, Activation, Architecture, Network
from models.errors import CheckpointError

Size = Annotated[int, Field(ge=1, le=4096)]


class Deconv(Architecture):
    """From any numbers, flattened, to an image: a linear layer to small planes, then a transposed convolution of 4 x 4
    and stride 2 for each further number of channels; the head is a convolution of 3 x 3.

    Sides that no doubling leads to are made larger and cut. The outputs are the image's numbers in the order of flat
    visibles: channels last.
    """

    name: ClassVar[str] = "deconv"

    image: list[Size] = Field(min_length=3, max_length=3, description="Height, width and channels of what is made.")
    channels: list[Size] = Field([64, 32, 16], min_length=1, max_length=8)
    activation: Activation = "swish"

    def network(self, shape: tuple[int, ...], outputs: int) -> Network:
        """For examples of any shape.

        Raises:
            CheckpointError: so many outputs are not the image.
        """
        height, width, colours = self.image
        if outputs != height * width * colours:
            raise CheckpointError(
                f"architecture deconv: image {height} x {width} x {colours} has {height * width * colours} numbers; "
                f"expected {outputs}"
            )
        doublings = len(self.channels) - 1
        below, act = self.channels[0], ACTIVATIONS[self.activation]
        small = (math.ceil(height / 2**doublings), math.ceil(width / 2**doublings))
        layers: list[nn.Module] = [
            nn.Flatten(),
            nn.Linear(math.prod(shape), below * math.prod(small)),
            nn.Unflatten(1, (below, *small)),
            act(),
        ]
        for channels in self.channels[1:]:
            layers += [nn.ConvTranspose2d(below, channels, 4, 2, 1), act()]
            below = channels
        layers.append(nn.Flatten())
        plane = (below, small[0] * 2**doublings, small[1] * 2**doublings)
        return Network(nn.Sequential(*layers), _Head(plane, colours, height, width))


class _Head(nn.Conv2d):
    """Flat features to flat images of so many rows and columns, channels last."""

    def __init__(self, plane: tuple[int, int, int], colours: int, height: int, width: int) -> None:
        super().__init__(plane[0], colours, 3, 1, 1)
        self.plane, self.height, self.width = plane, height, width

    def forward(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n outputs"]:
        made: Tensor = super().forward(torch.unflatten(x, 1, self.plane))
        return made[:, :, : self.height, : self.width].movedim(1, -1).flatten(1)
