"""Outputs and slopes of a multilayer perceptron in float32 on the CPU, without a tape (MATH 6).

Automatic differentiation passes over a layer's units some eight times. Here one compiled pass takes what a product has
made of them, adds the bias, and leaves the activation and its derivative; backwards there is one multiplication. What a
unit gets is made of singly rounded operations, so it has the same bits wherever it lies in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from llvmlite import ir
from torch import Tensor

from models.compiled import jit

_F = np.float32
_ZERO, _ONE, _TWO, _LEAK = _F(0), _F(1), _F(2), _F(0.2)
# exp(-a), 0 <= a <= 80: a = k ln 2 + r with |r| <= ln 2 / 2, then Taylor to r^7 (truncation below 1e-8), times 2^-k.
_SATURATION, _LOG2E, _LN2_HI, _LN2_LO = _F(80), _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)
_SHIFT, _EXPONENT = _F(1.5 * 2**23), np.int32(127)
_T7, _T6, _T5, _T4, _T3, _T2 = (_F(1 / n) for n in (5040, 720, 120, 24, 6, 2))
# log(1 + e) = 2 artanh(e / (2 + e)), 0 <= e <= 1: the series in s^2 <= 1/9 (truncation below 1e-8).
_L13, _L11, _L9, _L7, _L5, _L3 = (_F(2 / n) for n in (13, 11, 9, 7, 5, 3))


class Perceptron:
    """Layers of weights (out, in) and biases with an activation after each but the last. It holds no copies of them."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str) -> None:
        self._weights = tuple(weight.detach() for weight in weights)
        self._biases = tuple(bias.detach() for bias in biases)
        self._activation = activation

    def __call__(
        self, x: Float[Tensor, "n visible"]
    ) -> tuple[Float[Tensor, "n outputs"], Callable[[Float[Tensor, "n outputs"]], Float[Tensor, "n visible"]]]:
        """The outputs, and what takes slopes by the outputs to slopes by x. All float32."""
        activate, derivatives, h = _activation(self._activation), [], x
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            h = torch.mm(h, weight.T)
            derivative = torch.empty_like(h)
            activate(h.numpy(), bias.numpy(), derivative.numpy())
            derivatives.append(derivative)
        outputs = torch.mm(h, self._weights[-1].T).add_(self._biases[-1])

        def pull(slope: Tensor) -> Tensor:
            for weight, derivative in zip(self._weights[:0:-1], reversed(derivatives), strict=True):
                slope = torch.mm(slope, weight).mul_(derivative)
            return torch.mm(slope, self._weights[0])

        return outputs, pull


@cache
def _activation(name: str) -> Any:
    """A kernel that adds biases to numbers, puts their activations in their place, and stores the derivatives."""
    function = jit(_FUNCTIONS[name])

    @jit
    @no_type_check
    def kernel(units: Any, bias: Any, derivative: Any) -> None:  # pragma: no cover - compiled
        for row in range(units.shape[0]):
            for unit in range(units.shape[1]):
                units[row, unit], derivative[row, unit] = function(units[row, unit] + bias[unit])

    return kernel


@jit
@no_type_check
def _exp_minus(a: Any) -> Any:  # pragma: no cover - compiled
    """exp(-a) of a >= 0; NaN counts as the largest."""
    a = a if a < _SATURATION else _SATURATION
    k = (a * _LOG2E + _SHIFT) - _SHIFT
    r = k * _LN2_HI - a + k * _LN2_LO
    e = ((((((_T7 * r + _T6) * r + _T5) * r + _T4) * r + _T3) * r + _T2) * r + _ONE) * r + _ONE
    return e * _power(_EXPONENT - np.int32(k))


@numba.extending.intrinsic
def _power(context: Any, exponent: Any) -> Any:  # noqa: ARG001 - numba's own signature
    """2^(exponent - 127) as float32, from its bit pattern."""

    def make(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        shifted = builder.shl(arguments[0], ir.Constant(ir.IntType(32), 23))
        return builder.bitcast(shifted, ir.FloatType())

    return numba.float32(numba.int32), make


@no_type_check
def _swish(x: Any) -> Any:  # pragma: no cover - compiled
    e = _exp_minus(abs(x))
    s = (_ONE if x >= _ZERO else e) / (_ONE + e)
    y = x * s
    return y, s + y * (_ONE - s)


@no_type_check
def _softplus(x: Any) -> Any:  # pragma: no cover - compiled
    e = _exp_minus(abs(x))
    q = e / (_TWO + e)
    z = q * q
    log = q * (((((((_L13 * z + _L11) * z + _L9) * z + _L7) * z + _L5) * z + _L3) * z) + _TWO)
    return (x if x > _ZERO else _ZERO) + log, (_ONE if x >= _ZERO else e) / (_ONE + e)


@no_type_check
def _tanh(x: Any) -> Any:  # pragma: no cover - compiled
    e = _exp_minus(_TWO * abs(x))
    size = (_ONE - e) / (_ONE + e)
    return size if x >= _ZERO else -size, (_ONE - size) * (_ONE + size)


@no_type_check
def _elu(x: Any) -> Any:  # pragma: no cover - compiled
    e = _exp_minus(abs(x))
    return (x, _ONE) if x > _ZERO else (e - _ONE, e)


@no_type_check
def _relu(x: Any) -> Any:  # pragma: no cover - compiled
    return (x, _ONE) if x > _ZERO else (_ZERO, _ZERO)


@no_type_check
def _leaky_relu(x: Any) -> Any:  # pragma: no cover - compiled
    return (x, _ONE) if x > _ZERO else (_LEAK * x, _LEAK)


_FUNCTIONS = {
    "swish": _swish,
    "softplus": _softplus,
    "tanh": _tanh,
    "elu": _elu,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
}
