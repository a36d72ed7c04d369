"""A residual network that keeps an image's resolution, dilated to see far (Yu & Koltun 2016; Song & Ermon 2019)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from models.architecture import ACTIVATIONS, Activation, Architecture, Network, Planes, image
from models.convolutions import ImageHead, Residual
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
        layers += [
            Residual(self.channels, self.channels, self.activation, factor, dilation) for dilation in self.dilations
        ]
        layers += [ACTIVATIONS[self.activation](), nn.Flatten()]
        head = ImageHead(self.channels, outputs // (height * width), height, width)
        return Network(nn.Sequential(*layers), head)
