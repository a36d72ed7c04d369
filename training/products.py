"""Products of matrices in training: their precision, and those that are left undone until they meet a parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Products = Literal["float32", "bfloat16"]


@contextmanager
def multiplying(products: Products) -> Iterator[None]:
    """Where float32 matrices are multiplied in the process's lower precision, or not.

    `bfloat16`: factors are rounded to it and sums stay float32, on processors that multiply in it (on a GPU:
    TensorFloat-32, which has three bits more); others multiply in float32. PyTorch has one such setting for a process.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if products == "float32" else "medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True, eq=False)
class Outer:
    """scale x'y, a sum over n rows. Added to a parameter at once, it passes over memory once where a matrix of its own
    would three times: a tenth of the time of a training step."""

    x: Float[Tensor, "n below"]
    y: Float[Tensor, "n above"]
    scale: float
    products: Products = "float32"

    def dense(self) -> Float[Tensor, "below above"]:
        """The matrix."""
        with multiplying(self.products):
            return (self.x.T @ self.y).mul_(self.scale)

    def add_to(self, total: Float[Tensor, "below above"], factor: float) -> None:
        """Add so much of it, in place."""
        with multiplying(self.products):
            total.addmm_(self.x.T, self.y, alpha=factor * self.scale)

    def times(self, above: Float[Tensor, " above"]) -> Float[Tensor, " below"]:
        """Its product with a vector."""
        return (self.x.T @ (self.y @ above)).mul_(self.scale)

    def transposed(self) -> Outer:
        """(scale x'y)'."""
        return Outer(self.y, self.x, self.scale, self.products)


Gradient = dict[str, Tensor | Outer]
"""By parameter name."""


def dense(gradient: Mapping[str, Tensor | Outer]) -> dict[str, Tensor]:
    """All of it multiplied out."""
    return {name: change.dense() if isinstance(change, Outer) else change for name, change in gradient.items()}
