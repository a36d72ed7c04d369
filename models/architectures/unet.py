"""A network that sees an image at several resolutions and answers with an image (Ronneberger et al. 2015)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.architecture import ACTIVATIONS, Activation, Architecture, Network, Planes, image
from models.convolutions import ImageHead, Residual
from models.errors import CheckpointError

Width = Annotated[int, Field(ge=1, le=4096)]


class UNet(Architecture):
    """Stages of residual blocks down, each at half the resolution of the one before, and up again; the head is a
    convolution.

    On the way up a stage takes what is below it, its pixels repeated, beside what the stage of its own resolution made
    on the way down. The outputs are an image of as many numbers as the example, in the order of its flat units.
    """

    name: ClassVar[str] = "unet"

    channels: list[Width] = Field([32, 64, 128], min_length=1, max_length=8)
    blocks: int = Field(1, ge=1, le=64, description="Residual blocks in each stage, down and up.")
    patch: int = Field(1, ge=1, le=16, description="Pixels a side that are one place from the start: cheaper, coarser.")
    activation: Activation = "swish"

    def network(self, shape: tuple[int, ...], outputs: int) -> Network:
        """For images.

        Raises:
            CheckpointError: no images, or none of whole patches, or outputs that are none.
        """
        height, width, below = image(shape, self.name)
        if height % self.patch or width % self.patch:
            raise CheckpointError(
                f"architecture unet: images of {height} x {width} pixels are not made of patches of {self.patch} x "
                f"{self.patch}"
            )
        if outputs % (height * width):
            raise CheckpointError(
                f"architecture unet: its outputs are an image of {height} x {width}; {outputs} numbers are none"
            )
        body = nn.Sequential(
            Planes(),
            nn.PixelUnshuffle(self.patch),
            nn.Conv2d(below * self.patch**2, self.channels[0], 3, 1, 1),
            _Stages(self.channels, self.blocks, self.activation),
            ACTIVATIONS[self.activation](),
            nn.Flatten(),
        )
        head = ImageHead(self.channels[0], outputs // (height * width), height, width, self.patch)
        return Network(body, head)


class _Stages(nn.Module):
    def __init__(self, channels: list[int], blocks: int, activation: str) -> None:
        super().__init__()
        factor = (2 * len(channels) * blocks) ** -0.5

        def stage(below: int, width: int) -> nn.Module:
            return nn.Sequential(*(Residual(width if n else below, width, activation, factor) for n in range(blocks)))

        self.down = nn.ModuleList(stage(channels[max(n - 1, 0)], width) for n, width in enumerate(channels))
        self.up = nn.ModuleList(stage(channels[n] + channels[n + 1], channels[n]) for n in range(len(channels) - 1))
        self.halve = nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels h w"]:
        seen: list[Tensor] = []
        for stage in self.down:
            x = stage(self.halve(x) if seen else x)
            seen.append(x)
        for stage, beside in zip(reversed(self.up), reversed(seen[:-1]), strict=True):
            x = stage(torch.cat((beside, interpolate(x, beside.shape[2:])), 1))
        return x
