"""Outputs, slopes and bends of a multilayer perceptron in float32 on the CPU (MATH 6, 7).

Automatic differentiation passes over a layer's units some eight times. Here one compiled pass takes what a product has
made of them, adds the bias, and leaves the activation and its derivative; backwards there is one multiplication. What a
unit gets is made of singly rounded operations, so it has the same bits wherever it lies in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
_ZERO, _ONE, _TWO, _THREE, _LEAK = _F(0), _F(1), _F(2), _F(3), _F(0.2)
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


@dataclass(frozen=True)
class Along:
    """An energy's derivatives along directions, of each example, differentiable by the parameters."""

    first: Float[Tensor, " n"]
    second: Float[Tensor, " n"]
    slope: Callable[[], Float[Tensor, "n visible"]]
    """In all directions: one more product with the first layer's weights."""


def along(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    x: Float[Tensor, "n visible"],
    v: Float[Tensor, "n visible"],
) -> Along:
    """The derivatives along v of a perceptron's single output E, float32 on the CPU.

    Only activations bend. With a layer's inputs p and what they change by along v, p', the second derivative is the sum
    over all units of (dE / d activation) activation''(p) p'^2: one pass ahead for values and changes together, one back
    for slopes, and none for second derivatives of their own.
    """
    n, h, layers = len(x), torch.cat((x, v)), []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h, derivative, bend = _Layer.apply(torch.mm(h, weight.T), bias, activation)  # type: ignore[no-untyped-call]
        layers.append((derivative, bend))
    head = weights[-1]
    first, slope, terms = torch.mv(h[n:], head[0]), head.expand(n, -1), []
    for depth in range(len(layers) - 1, -1, -1):
        derivative, bend = layers[depth]
        terms.append((slope * bend).sum(1))
        slope = slope * derivative
        if depth:
            slope = torch.mm(slope, weights[depth])
    return Along(first, torch.stack(terms).sum(0), lambda: torch.mm(slope, weights[0]))


class _Layer(torch.autograd.Function):
    """Of products p and changes p', one above the other: f(p + b) and f'(p + b) p'; f'; and f''(p + b) p'^2."""

    @staticmethod
    def forward(ctx: Any, products: Tensor, bias: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
        """In one pass, as backwards."""
        half = (len(products) // 2, products.shape[1])
        out, kept = torch.empty_like(products), torch.empty(2, *half)
        derivative, bend = torch.empty(half), torch.empty(half)
        _derivatives(activation)(*(t.detach().numpy() for t in (products, bias, out, derivative, bend, kept)))
        ctx.save_for_backward(products, derivative, kept)
        return out, derivative, bend

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None]:
        """By the products and by the bias."""
        products, derivative, kept = ctx.saved_tensors
        total = torch.empty_like(products)
        _pulled(*(t.detach().contiguous().numpy() for t in (products, derivative, kept, *slopes, total)))
        return total, total[: len(derivative)].sum(0), None


@cache
def _derivatives(name: str) -> Any:
    """What `_Layer` computes; it keeps the second and the third derivative."""
    function = jit(_FUNCTIONS[name])

    @jit
    @no_type_check
    def kernel(
        products: Any, bias: Any, out: Any, derivative: Any, bend: Any, kept: Any
    ) -> None:  # pragma: no cover - compiled
        rows = derivative.shape[0]
        for row in range(rows):
            for unit in range(products.shape[1]):
                zeroth, first, second, third = function(products[row, unit] + bias[unit])
                change = products[rows + row, unit]
                out[row, unit] = zeroth
                out[rows + row, unit] = first * change
                derivative[row, unit] = first
                bend[row, unit] = second * change * change
                kept[0, row, unit] = second
                kept[1, row, unit] = third

    return kernel


@jit
@no_type_check
def _pulled(
    products: Any, derivative: Any, kept: Any, by_out: Any, by_derivative: Any, by_bend: Any, total: Any
) -> None:  # pragma: no cover - compiled
    rows = derivative.shape[0]
    for row in range(rows):
        for unit in range(products.shape[1]):
            change, second, bent = products[rows + row, unit], kept[0, row, unit], by_bend[row, unit]
            along, slope = by_out[rows + row, unit], derivative[row, unit]
            total[row, unit] = (
                by_out[row, unit] * slope
                + (along * change + by_derivative[row, unit]) * second
                + bent * kept[1, row, unit] * change * change
            )
            total[rows + row, unit] = along * slope + _TWO * bent * second * change


@cache
def _activation(name: str) -> Any:
    """A kernel that adds biases to numbers, puts their activations in their place, and stores the derivatives."""
    function = jit(_FUNCTIONS[name])

    @jit
    @no_type_check
    def kernel(units: Any, bias: Any, derivative: Any) -> None:  # pragma: no cover - compiled
        for row in range(units.shape[0]):
            for unit in range(units.shape[1]):
                units[row, unit], derivative[row, unit], _, _ = function(units[row, unit] + bias[unit])

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


# An activation with its first three derivatives; what a kernel has no use for is not computed.


@no_type_check
def _swish(x: Any) -> Any:  # pragma: no cover - compiled
    e = _exp_minus(abs(x))
    s = (_ONE if x >= _ZERO else e) / (_ONE + e)
    y, bend, turn = x * s, s * (_ONE - s), _ONE - _TWO * s
    third = bend * (turn * (_THREE + x * turn) - _TWO * x * bend)
    return y, s + y * (_ONE - s), bend * (_TWO + x * turn), third


@no_type_check
def _softplus(x: Any) -> Any:  # pragma: no cover - compiled
    e = _exp_minus(abs(x))
    q = e / (_TWO + e)
    z = q * q
    log = q * (((((((_L13 * z + _L11) * z + _L9) * z + _L7) * z + _L5) * z + _L3) * z) + _TWO)
    s = (_ONE if x >= _ZERO else e) / (_ONE + e)
    bend = s * (_ONE - s)
    return (x if x > _ZERO else _ZERO) + log, s, bend, bend * (_ONE - _TWO * s)


@no_type_check
def _tanh(x: Any) -> Any:  # pragma: no cover - compiled
    e = _exp_minus(_TWO * abs(x))
    size = (_ONE - e) / (_ONE + e)
    y, slope = size if x >= _ZERO else -size, (_ONE - size) * (_ONE + size)
    return y, slope, -_TWO * y * slope, -_TWO * slope * (_ONE - _THREE * y * y)


@no_type_check
def _elu(x: Any) -> Any:  # pragma: no cover - compiled
    e = _exp_minus(abs(x))
    return (x, _ONE, _ZERO, _ZERO) if x > _ZERO else (e - _ONE, e, e, e)


@no_type_check
def _relu(x: Any) -> Any:  # pragma: no cover - compiled
    return (x, _ONE, _ZERO, _ZERO) if x > _ZERO else (_ZERO, _ZERO, _ZERO, _ZERO)


@no_type_check
def _leaky_relu(x: Any) -> Any:  # pragma: no cover - compiled
    return (x, _ONE, _ZERO, _ZERO) if x > _ZERO else (_LEAK * x, _LEAK, _ZERO, _ZERO)


_FUNCTIONS = {
    "swish": _swish,
    "softplus": _softplus,
    "tanh": _tanh,
    "elu": _elu,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
}
