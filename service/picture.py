"""Samples as a picture: a grid of small images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.manifest import Domain

MAX_PIXELS = 4096
"""Of the picture's width and height; what does not fit is left out."""

_TILE = 56
_GAP = 2
_GREY = 128


def image_size(shape: Sequence[int]) -> tuple[int, int, int] | None:
    """(channels, height, width) of an example that is an image: (H, W), (C, H, W) or (H, W, C) with 1 or 3 channels."""
    match tuple(shape):
        case (height, width) if max(height, width) <= MAX_PIXELS:
            return 1, height, width
        case (1 | 3 as channels, height, width) if max(height, width) <= MAX_PIXELS:
            return channels, height, width
        case (height, width, 1 | 3 as channels) if max(height, width) <= MAX_PIXELS:
            return channels, height, width
    return None


def _tiles(samples: NDArray[Any], channels: int, height: int, width: int) -> NDArray[Any]:
    """(rows, columns, *shape) as (rows, columns, height, width, channels)."""
    rows, columns, *shape = samples.shape
    if len(shape) == 3 and shape[0] == channels:
        return np.moveaxis(samples, 2, -1)
    return samples.reshape(rows, columns, height, width, channels)


def _grey(samples: NDArray[Any], domain: Domain) -> NDArray[np.uint8]:
    values = np.nan_to_num(samples.astype(np.float32))
    if domain == "real":
        low, high = float(values.min()), float(values.max())
    else:
        low, high = (-1.0, 1.0) if domain == "spin" else (0.0, 1.0)
    scaled = (values - low) / max(high - low, 1e-30)
    grey: NDArray[np.uint8] = (255 * np.clip(scaled, 0, 1) + 0.5).astype(np.uint8)
    return grey


def grid(samples: NDArray[Any], domain: Domain) -> bytes:
    """PNG of (chains, draws, *shape): a row a chain, or a near-square grid where each chain has one draw.

    Small images are enlarged without smoothing; rows and columns beyond `MAX_PIXELS` are left out.
    """
    size = image_size(samples.shape[2:])
    assert size is not None, "checked where the media type was chosen"
    channels, height, width = size
    scale = max(1, _TILE // max(height, width))
    high, wide = height * scale + _GAP, width * scale + _GAP
    most_rows, most_columns = max(1, (MAX_PIXELS - _GAP) // high), max(1, (MAX_PIXELS - _GAP) // wide)
    if samples.shape[1] == 1:
        count = samples.shape[0]
        columns = min(math.ceil(math.sqrt(count)), most_columns)
        count = min(count, columns * most_rows)
        rows = math.ceil(count / columns)
        shown = samples[:count].reshape(1, count, *samples.shape[2:])
    else:
        rows, columns = min(samples.shape[0], most_rows), min(samples.shape[1], most_columns)
        shown = samples[:rows, :columns]
    tiles = _grey(_tiles(shown, channels, height, width), domain).reshape(-1, height, width, channels)
    canvas = np.full((rows * high + _GAP, columns * wide + _GAP, channels), _GREY, np.uint8)
    for place, tile in enumerate(tiles):
        top, left = (place // columns) * high + _GAP, (place % columns) * wide + _GAP
        canvas[top : top + height * scale, left : left + width * scale] = tile.repeat(scale, 0).repeat(scale, 1)
    out = io.BytesIO()
    Image.fromarray(canvas if channels == 3 else canvas[:, :, 0]).save(out, "PNG")
    return out.getvalue()
