"""A step of Adam on one tensor (Kingma & Ba 2015, algorithm 1), upwards."""

from __future__ import annotations

import math

from torch import Tensor

BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def ascend(
    parameter: Tensor, mean: Tensor, square: Tensor, slope: Tensor, rate: float, number: int, beta1: float = BETA1
) -> None:
    """Step number `number`, from 1, along `slope`; the first three tensors are changed in place."""
    mean.lerp_(slope, 1 - beta1)
    square.lerp_(slope.square(), 1 - _BETA2)
    spread = square.sqrt().mul_(1 / math.sqrt(1 - _BETA2**number)).add_(_EPSILON)
    parameter.addcdiv_(mean, spread, value=rate / (1 - beta1**number))
