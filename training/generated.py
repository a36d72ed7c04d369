"""Data in two dimensions that are made and not read: laws whose shape can be seen. The same bits for everyone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.rng import ChainKeys, normals, uniforms
from training.files import Part, Source

_SEED = 0
_SIZES = {"train": 20_000, "validation": 5_000, "test": 5_000}
_UNIFORM, _NORMAL = 32, 33
"""Streams."""

Law = Callable[[Float[Tensor, "n 3"], Float[Tensor, "n 2"]], Float[Tensor, "n 2"]]
"""Uniform and normal numbers to points."""


def _rings(u: Tensor, z: Tensor) -> Tensor:
    """Three circles of radius 1, 2 and 3, equally likely, with noise of standard deviation 0.1 across them."""
    radius = 1 + (3 * u[:, 0]).floor() + 0.1 * z[:, 0]
    return radius[:, None] * _direction(u[:, 1])


def _checkerboard(u: Tensor, _z: Tensor) -> Tensor:
    """Uniform on the eight dark squares of a 4 x 4 board of side 8: an entropy of log 32 nats."""
    column, row = (4 * u[:, 0]).floor(), (2 * u[:, 1]).floor()
    x = 2 * (4 * u[:, 0]) - 4
    y = 2 * (2 * row + column % 2) - 4 + 2 * u[:, 2]
    return torch.stack((x, y), 1)


def _moons(u: Tensor, z: Tensor) -> Tensor:
    """Two half circles of radius 2 that reach into each other, with noise of standard deviation 0.2."""
    upper = (u[:, 0] < 0.5)[:, None]
    arc = 2 * _direction(u[:, 1] / 2)
    other = torch.tensor([2.0, 1.0], dtype=u.dtype) - arc
    return torch.where(upper, arc, other) - torch.tensor([1.0, 0.5], dtype=u.dtype) + 0.2 * z


def _gaussians(u: Tensor, z: Tensor) -> Tensor:
    """Eight Gaussians of standard deviation 0.3 on a circle of radius 3, equally likely."""
    return 3 * _direction((8 * u[:, 0]).floor() / 8) + 0.3 * z


def _direction(turns: Tensor) -> Tensor:
    angle = 2 * math.pi * turns
    return torch.stack((angle.cos(), angle.sin()), 1)


LAWS: dict[str, Law] = {
    "rings": _rings,
    "checkerboard": _checkerboard,
    "moons": _moons,
    "gaussians": _gaussians,
}


def made(name: str) -> Source:
    """The data set of that name, in three parts."""
    parts, first = dict[str, Part](), 0
    for part, size in _SIZES.items():
        keys = ChainKeys.of(_SEED, size, first=first)
        at, first = torch.zeros_like(keys.chain), first + size
        points = LAWS[name](uniforms(keys, at, _UNIFORM, 3), normals(keys, at, _NORMAL, 2))
        parts[part] = Part(points.numpy().astype(np.float32))
    return Source(name, parts["train"], parts["validation"], parts["test"])
