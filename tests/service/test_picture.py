"""Draws as pictures, in every domain."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.picture import grid


@pytest.mark.parametrize(
    ("domain", "values", "expected"),
    [
        ("binary", np.array([[0, 1]], np.uint8), [0, 255]),
        ("spin", np.array([[-1, 1]], np.int8), [0, 255]),
        ("unit", np.array([[0.0, 0.5]], np.float32), [0, 128]),
        ("real", np.array([[-3.0, 5.0]], np.float64), [0, 255]),
    ],
)
def test_the_ends_of_a_domain_are_black_and_white(domain, values: np.ndarray, expected: list[int]) -> None:
    image = Image.open(io.BytesIO(grid(values[None, None], domain)))
    tile = 56 // 2
    assert [image.getpixel((2 + tile * column, 2)) for column in (0, 1)] == expected
