"""A convolutional network that halves an image layer by layer (Nijkamp et al. 2019, without normalisation)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from models.architecture import ACTIVATIONS, Activation, Architecture, Network, Planes, image
from models.errors import CheckpointError

Width = Annotated[int, Field(ge=1, le=4096)]


class Conv(Architecture):
    """A 3 x 3 convolution, then one of 4 x 4 and stride 2 for each further number of channels; the head is linear."""

    name: ClassVar[str] = "conv"

    channels: list[Width] = Field([32, 64, 128, 128], min_length=1, max_length=8)
    activation: Activation = "swish"

    def network(self, shape: tuple[int, ...], outputs: int) -> Network:
        """For images.

        Raises:
            CheckpointError: no images, or too small ones.
        """
        height, width, below = image(shape, self.name)
        layers: list[nn.Module] = [Planes()]
        for n, channels in enumerate(self.channels):
            kernel = nn.Conv2d(below, channels, 3, 1, 1) if n == 0 else nn.Conv2d(below, channels, 4, 2, 1)
            layers += [kernel, ACTIVATIONS[self.activation]()]
            height, width = (height, width) if n == 0 else (height // 2, width // 2)
            below = channels
        if not height * width:
            raise CheckpointError(
                f"architecture conv: {len(self.channels) - 1} halvings leave nothing of images of "
                f"{shape[0]} x {shape[1]}; give fewer channels"
            )
        layers.append(nn.Flatten())
        return Network(nn.Sequential(*layers), nn.Linear(below * height * width, outputs))
