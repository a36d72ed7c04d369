"""Stateless randomness: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

Key = seed of the job; counter = (unit // 4, sweep, chain, stream + 2^16 replica); word unit % 4 is the unit's number.
A draw depends on nothing else, so a chain's trajectory is the same in any batch, at any position, on any worker,
resumed or not. On the CPU compiled kernels do the work; on other devices the same integer and IEEE double operations
run as torch operations, each rounded on its own. Both give the same bits, on any number of threads.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.compiled import jit
from models.errors import InputError

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10

# exp(-a) for 0 <= a <= 40: a = k ln 2 + r with |r| <= ln 2 / 2, then Taylor to r^13 (truncation below 1 ulp), then
# an exact multiplication by 2^-k. Written as single additions and multiplications: library exponentials differ
# in their last bits between vector lanes, libraries and devices.
_LOG2E = 1.4426950408889634
_LN2_HI = 6.93147180369123816490e-01
_LN2_LO = 1.90821492927058770002e-10
_SATURATION = 40.0
_TAYLOR = np.array([1.0 / float(np.prod(np.arange(1, n + 1, dtype=np.float64))) for n in range(13, -1, -1)])
_POWERS = 2.0 ** -np.arange(0, 64, dtype=np.float64)
_TO_UNIT = 2.0**-32

# For deciding most Bernoulli units in float32, of which a vector holds twice as many.
_F = np.float32
_LOG2E32, _LN2_HI32, _LN2_LO32 = _F(_LOG2E), _F(0.693359375), _F(-2.12194440e-4)
_SHIFT32, _ONE32, _SATURATION32 = _F(1.5 * 2**23), np.int32(127 << 23), _F(_SATURATION)
_UNIT32, _ZERO32, _TO_UNIT32, _MARGIN32 = _F(1), _F(0), _F(_TO_UNIT), _F(1e-5)
_TAYLOR32 = _TAYLOR[-7:].astype(np.float32)

_MAX_STATES, _WEIGHT_UNITS = 1 << 12, 2.0**40  # 2^12 weights of at most 2^40 units each: their sum is exact

# log(x) of a normal x > 0: x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), s = f / (2 + f), and the polynomial of
# fdlibm's e_log.c (Sun Microsystems 1993) in s^2 for log(1 + f) = 2 artanh(s), Horner throughout. Below 1 ulp.
_SQRT_HALF, _LOG_MANTISSA = 0x3FE6A09E00000000, 0x000FFFFFFFFFFFFF
_LOG_OFFSET = 0x3FF0000000000000 - _SQRT_HALF
_LOG = (
    1.479819860511658591e-01,
    1.531383769920937332e-01,
    1.818357216161805012e-01,
    2.222219843214978396e-01,
    2.857142874366239149e-01,
    3.999999999940941908e-01,
    6.666666666666735130e-01,
)

# PPND16 of AS 241 (Wichura 1988), highest powers first. Its third interval begins at sqrt(-log u) = 5; here u >= 2^-33.
# Square roots are taken by four of Heron's steps from a line within 8 % (0.69 <= x < 22.9, -log of the uniforms, where
# they count): torch's own round differently from device to device.
_HERON = (0.168, 1.3)
_PPND_A = (
    2.5090809287301226727e3,
    3.3430575583588128105e4,
    6.7265770927008700853e4,
    4.5921953931549871457e4,
    1.3731693765509461125e4,
    1.9715909503065514427e3,
    1.3314166789178437745e2,
    3.3871328727963666080e0,
)
_PPND_B = (
    5.2264952788528545610e3,
    2.8729085735721942674e4,
    3.9307895800092710610e4,
    2.1213794301586595867e4,
    5.3941960214247511077e3,
    6.8718700749205790830e2,
    4.2313330701600911252e1,
    1.0,
)
_PPND_C = (
    7.74545014278341407640e-4,
    2.27238449892691845833e-2,
    2.41780725177450611770e-1,
    1.27045825245236838258e0,
    3.64784832476320460504e0,
    5.76949722146069140550e0,
    4.63033784615654529590e0,
    1.42343711074968357734e0,
)
_PPND_D = (
    1.05075007164441684324e-9,
    5.47593808499534494600e-4,
    1.51986665636164571966e-2,
    1.48103976427480074590e-1,
    6.89767334985100004550e-1,
    1.67638483018380384940e0,
    2.05319162663775882187e0,
    1.0,
)

_HALF, _TAIL = np.uint32(1 << 31), np.uint32(322_122_547)
"""In a tail, |u - 1/2| > 0.425, are the words whose distance from 0 or 2^32 - 1 is below the latter."""

# The same in float32 by PPND7 of AS 241, good to 1e-7, and by the logarithm of fdlibm's e_logf.c.
_PPND7_A = tuple(_F(c) for c in (59.109374720, 159.29113202, 50.434271938, 3.3871327179))
_PPND7_B = tuple(_F(c) for c in (67.187563600, 78.757757664, 17.895169469))
_PPND7_C = tuple(_F(c) for c in (0.17023821103, 1.3067284816, 2.7568153900, 1.4234372777))
_PPND7_D = tuple(_F(c) for c in (0.12021132975, 0.73700164250))
_LOG32 = tuple(_F(c) for c in (0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693))
_LOG_LN2_HI32, _LOG_LN2_LO32 = _F(6.9313812256e-01), _F(9.0580006145e-06)
_SQRT_HALF32, _LOG_MANTISSA32 = np.int32(0x3F3504F3), np.int32(0x007FFFFF)
_LOG_OFFSET32 = np.int32(0x3F800000 - 0x3F3504F3)
_HERON32, _NEAR32, _FAR32, _HALF32, _TWO32 = (_F(0.168), _F(1.3)), _F(0.180625), _F(1.6), _F(0.5), _F(2)

_TOGETHER = 1 << 10
"""Numbers that are worked on at once: they stay in a core's nearest memory."""

_GRAIN = 1 << 16
"""Numbers below which a second thread costs more than it saves."""


@dataclass(frozen=True)
class ChainKeys:
    """Who each row of a batch is, int64 (n,): the seed of its job, its number among that job's chains, its replica.

    `replica` tells apart the copies of one chain that run side by side, as in parallel tempering; None: all are 0.
    """

    seed: Int[Tensor, " n"]
    chain: Int[Tensor, " n"]
    replica: Int[Tensor, " n"] | None = None

    @classmethod
    def of(cls, seed: int, chains: int, device: torch.device | str = "cpu", first: int = 0) -> ChainKeys:
        """Chains first..first+chains-1 of one job, replica 0."""
        numbers = torch.arange(first, first + chains, dtype=torch.int64, device=device)
        return cls(torch.full_like(numbers, seed), numbers)

    def rows(self, index: Tensor | slice) -> ChainKeys:
        """The keys of the rows that `index` selects."""
        return ChainKeys(self.seed[index], self.chain[index], None if self.replica is None else self.replica[index])

    def __len__(self) -> int:
        return len(self.seed)


def random_bits(keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int, units: int) -> Int[Tensor, "n units"]:
    """32 random bits for each unit of each chain, int64 in [0, 2^32). Streams are 0..65535, here and below."""
    if keys.seed.device.type != "cpu":
        return _bits_torch(keys, sweep, stream, units)
    out = torch.empty((len(keys), units), dtype=torch.int64)
    over_rows(_bits_kernel, keys, sweep, stream, out)
    return out


def uniforms(keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int, units: int) -> Float[Tensor, "n units"]:
    """Uniform numbers in (0, 1): (bits + 1/2) / 2^32, exact in float64."""
    return (random_bits(keys, sweep, stream, units).double() + 0.5) * _TO_UNIT


def normals(keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int, units: int) -> Float[Tensor, "n units"]:
    """Standard normal numbers, float64: the inverse distribution function of `uniforms` (Wichura 1988, AS 241).

    Accurate to 1e-14 as the function of the uniform number. The numbers are quantiles of the centres of 2^32 cells of
    equal probability: none lies beyond 6.34, and the law is the normal one to a resolution of 2^-32 in probability.
    """
    if keys.seed.device.type != "cpu":
        return _normals_torch(keys, sweep, stream, units)
    out = torch.empty((len(keys), units), dtype=torch.float64)
    over_rows(_normals_kernel, keys, sweep, stream, out)
    return out


def single_normals(keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int, units: int) -> Float[Tensor, "n units"]:
    """`normals` in single precision, float32: to 1e-6, at a third of the cost (Wichura 1988, AS 241, PPND7)."""
    if keys.seed.device.type != "cpu":
        return _single_normals_torch(keys, sweep, stream, units)
    out = torch.empty((len(keys), units), dtype=torch.float32)
    over_rows(_single_normals_kernel, keys, sweep, stream, out)
    return out


def bernoulli(
    logits: Float[Tensor, "n units"], keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int
) -> Float[Tensor, "n units"]:
    """States 0.0 or 1.0 with P(1) = sigmoid(logits), to a resolution of 2^-32.

    Logits are finite, float64 or float32; the states have their precision, and do not depend on it.

    With e = exp(-|x|) and a uniform number u the state is 1 where u (1 + e) < 1 (x >= 0), or < e (x < 0).
    """
    if logits.device.type != "cpu":
        return _bernoulli_torch(logits, keys, sweep, stream)
    out = torch.empty(logits.shape, dtype=logits.dtype)
    over_rows(_bernoulli_kernel, keys, sweep, stream, logits, out)
    return out


def categorical(
    logits: Float[Tensor, "n states"], keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int
) -> Float[Tensor, "n states"]:
    """One state of K for each chain with P(k) = softmax(logits)_k, one-hot, float64, from the number of unit 0.

    Drawn by inversion: the first k whose cumulative weight exceeds u times the total weight. Weights are
    exp(logit - largest), float64, rounded to multiples of 2^-40, so that their sums are exact in any order, and a
    state 2^-41 times as probable as the likeliest, or less, never comes up. A logit may be -inf (NaN counts as that).
    A row whose largest logit is not finite is all zeros.

    Raises:
        InputError: more than 4096 states.
    """
    if logits.shape[1] > _MAX_STATES:
        raise InputError(f"expected at most {_MAX_STATES} states to draw one from, got {logits.shape[1]}")
    if logits.device.type != "cpu":
        return _categorical_torch(logits, keys, sweep, stream)
    out = torch.empty(logits.shape, dtype=torch.float64)
    over_rows(_categorical_kernel, keys, sweep, stream, logits.double(), out)
    return out


def accept(
    log_ratio: Float[Tensor, " n"], keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int
) -> Bool[Tensor, " n"]:
    """True with probability min(1, exp(log_ratio)), from the number of unit 0 (Metropolis et al. 1953).

    To a resolution of 2^-32: below -22.9 never. NaN and -inf are False.
    """
    return uniforms(keys, sweep, stream, 1)[:, 0] < exp_minus_abs(log_ratio.double().clamp(max=0.0))


def logistic(x: Float[Tensor, "n units"]) -> Float[Tensor, "n units"]:
    """1 / (1 + exp(-x)) in float64, the same bits at every position of every batch (torch.sigmoid's differ)."""
    e = exp_minus_abs(x)
    return torch.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


def exp_minus_abs(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp(-|x|) in float64 from singly rounded operations; |x| beyond 40 counts as 40."""
    a = torch.where(x.abs() < _SATURATION, x.abs(), _SATURATION)
    k = torch.round(a * _LOG2E)
    r = -((a - k * _LN2_HI) - k * _LN2_LO)
    return _horner(r, _TAYLOR.tolist()) * torch.as_tensor(_POWERS, device=x.device)[k.long()]


def _bernoulli_torch(logits: Tensor, keys: ChainKeys, sweep: Tensor, stream: int) -> Tensor:
    x = logits.double()
    e = exp_minus_abs(x)
    uniform = (_bits_torch(keys, sweep, stream, x.shape[1]).double() + 0.5) * _TO_UNIT
    return (uniform * (1.0 + e) < torch.where(x >= 0, torch.ones_like(e), e)).to(logits.dtype)


def _categorical_torch(logits: Tensor, keys: ChainKeys, sweep: Tensor, stream: int) -> Tensor:
    x = torch.where(torch.isnan(logits), -torch.inf, logits.double())
    weights = torch.round(exp_minus_abs(x.amax(1, keepdim=True) - x) * _WEIGHT_UNITS)
    cumulative = weights.cumsum(1)
    uniform = (_bits_torch(keys, sweep, stream, 1).double() + 0.5) * _TO_UNIT
    beyond = cumulative > uniform * cumulative[:, -1:]
    return (beyond & (cumulative - weights <= uniform * cumulative[:, -1:])).double()


def _normals_torch(keys: ChainKeys, sweep: Tensor, stream: int, units: int) -> Tensor:
    return _normal_quantile((_bits_torch(keys, sweep, stream, units).double() + 0.5) * _TO_UNIT)


def _single_normals_torch(keys: ChainKeys, sweep: Tensor, stream: int, units: int) -> Tensor:
    words = _bits_torch(keys, sweep, stream, units)
    q = ((words - (1 << 31)).float() + 0.5) * _TO_UNIT
    r = float(_NEAR32) - q * q
    near = q * _horner(r, _floats(_PPND7_A)) / _horner(r, [*_floats(_PPND7_B), 1.0])
    distance = torch.minimum(words, _MASK - words)
    x = (distance.float() + 0.5) * _TO_UNIT
    bits = x.view(torch.int32) + int(_LOG_OFFSET32)
    k = ((bits >> 23) - 127).float()
    f = ((bits & int(_LOG_MANTISSA32)) + int(_SQRT_HALF32)).view(torch.float32) - 1.0
    half_square = 0.5 * f * f
    s = f / (2.0 + f)
    z = s * s
    rest = z * _horner(z, _floats(_LOG32))
    log = s * (half_square + rest) + k * float(_LOG_LN2_LO32) - half_square + f + k * float(_LOG_LN2_HI32)
    root = -log * float(_HERON32[0]) + float(_HERON32[1])
    for _ in range(3):
        root = (root - log / root) * 0.5
    r = root - float(_FAR32)
    far = _horner(r, _floats(_PPND7_C)) / _horner(r, [*_floats(_PPND7_D), 1.0])
    return torch.where(distance >= int(_TAIL), near, torch.where(words < (1 << 31), -far, far))


def _floats(coefficients: Sequence[Any]) -> list[float]:
    return [float(c) for c in coefficients]


def _normal_quantile(u: Tensor) -> Tensor:
    q = u - 0.5
    r = 0.180625 - q * q
    near = q * _horner(r, _PPND_A) / _horner(r, _PPND_B)
    x = -_log_torch(torch.minimum(u, 1.0 - u))
    root = x * _HERON[0] + _HERON[1]
    for _ in range(4):
        root = (root + x / root) * 0.5
    r = root - 1.6
    far = _horner(r, _PPND_C) / _horner(r, _PPND_D)
    return torch.where(q.abs() <= 0.425, near, torch.where(q < 0, -far, far))


def _log_torch(x: Tensor) -> Tensor:
    bits = x.view(torch.int64) + _LOG_OFFSET
    k = ((bits >> 52) - 1023).double()
    f = ((bits & _LOG_MANTISSA) + _SQRT_HALF).view(torch.float64) - 1.0
    half_square = 0.5 * f * f
    s = f / (2.0 + f)
    z = s * s
    rest = z * _horner(z, _LOG)
    return s * (half_square + rest) + k * _LN2_LO - half_square + f + k * _LN2_HI


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The polynomial with these coefficients, the highest power's first, each operation rounded on its own."""
    y = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = y * x
        y = y + coefficient
    return y


def _last_word(keys: ChainKeys, stream: int) -> Tensor:
    if keys.replica is None:
        return torch.full_like(keys.seed, stream)
    return (stream + (keys.replica << 16)) & _MASK


def _bits_torch(keys: ChainKeys, sweep: Tensor, stream: int, units: int) -> Tensor:
    n, groups = len(keys), (units + 3) // 4
    c0 = torch.arange(groups, device=keys.seed.device).expand(n, groups)
    c1 = (sweep & _MASK)[:, None].expand(n, groups)
    c2 = (keys.chain & _MASK)[:, None].expand(n, groups)
    c3 = _last_word(keys, stream)[:, None].expand(n, groups)
    k0 = (keys.seed & _MASK)[:, None]
    k1 = ((keys.seed >> 32) & _MASK)[:, None]
    for _ in range(_ROUNDS):
        # int64 products wrap, but their 64 bits are those of the unsigned product.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1).reshape(n, 4 * groups)[:, :units]


# --- the same, compiled ---


def over_rows(kernel: Any, keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int, *blocks: Tensor) -> None:
    """Call a compiled `kernel` with the keys' columns and `blocks`, the last of which it fills, on parts of the rows.

    Rows are split over a pool of our own and not over numba's threads, which abort the process where two Python
    threads start them at once.
    """
    columns = (keys.seed, keys.chain, sweep, _last_word(keys, stream))
    arrays = [tensor.contiguous().numpy() for tensor in (*columns, *blocks)]
    parts = min(torch.get_num_threads(), blocks[-1].numel() // _GRAIN, len(keys))
    if parts < 2:
        kernel(*arrays)
        return
    cuts = [len(keys) * part // parts for part in range(parts + 1)]
    others = [_pool().submit(kernel, *(a[i:j] for a in arrays)) for i, j in itertools.pairwise(cuts[1:])]
    kernel(*(a[: cuts[1]] for a in arrays))
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="models-rng")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@jit
@no_type_check
def _row_bits(
    seed: Any, chain: Any, sweep: Any, last: Any, lanes: Any, words: Any
) -> None:  # pragma: no cover - compiled
    # The four words of a group go to four rows first: with contiguous stores the loop over groups is vectorised.
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    key0, key1 = np.uint64(seed) & mask, (np.uint64(seed) >> shift) & mask
    sweep_word, chain_word, last_word = np.uint64(sweep) & mask, np.uint64(chain) & mask, np.uint64(last)
    for group in range(lanes.shape[1]):
        c0, c1, c2, c3 = np.uint64(group), sweep_word, chain_word, last_word
        k0, k1 = key0, key1
        for _ in range(10):
            p0 = c0 * m0
            p1 = c2 * m1
            c0 = (p1 >> shift) ^ c1 ^ k0
            c1 = p1 & mask
            c2 = (p0 >> shift) ^ c3 ^ k1
            c3 = p0 & mask
            k0 = (k0 + w0) & mask
            k1 = (k1 + w1) & mask
        lanes[0, group] = c0
        lanes[1, group] = c1
        lanes[2, group] = c2
        lanes[3, group] = c3
    for group in range(lanes.shape[1]):
        for lane in range(4):
            words[4 * group + lane] = lanes[lane, group]


@jit
@no_type_check
def _bits_kernel(seeds: Any, chains: Any, sweeps: Any, lasts: Any, out: Any) -> None:  # pragma: no cover - compiled
    rows, units = out.shape
    lanes = np.empty((4, (units + 3) // 4), np.uint32)
    words = np.empty(4 * lanes.shape[1], np.uint32)
    for row in range(rows):
        _row_bits(seeds[row], chains[row], sweeps[row], lasts[row], lanes, words)
        for unit in range(units):
            out[row, unit] = np.int64(words[unit])


@jit
@no_type_check
def _exact_states(logits: Any, words: Any, out: Any) -> None:  # pragma: no cover - compiled
    t = _TAYLOR
    for unit in range(out.shape[0]):
        x = np.float64(logits[unit])
        # Written so that NaN saturates too: the table of powers is indexed by it, unchecked.
        a = abs(x) if abs(x) < _SATURATION else _SATURATION
        k = np.rint(a * _LOG2E)
        r = -((a - k * _LN2_HI) - k * _LN2_LO)
        # Unrolled by hand: an inner loop keeps the loop over units from being vectorised.
        e = t[0] * r + t[1]
        e = e * r + t[2]
        e = e * r + t[3]
        e = e * r + t[4]
        e = e * r + t[5]
        e = e * r + t[6]
        e = e * r + t[7]
        e = e * r + t[8]
        e = e * r + t[9]
        e = e * r + t[10]
        e = e * r + t[11]
        e = e * r + t[12]
        e = e * r + t[13]
        e = e * _POWERS[np.int64(k)]
        uniform = (np.float64(words[unit]) + 0.5) * _TO_UNIT
        top = 1.0 if x >= 0 else e
        out[unit] = 1.0 if uniform * (1.0 + e) < top else 0.0


@jit
@no_type_check
def _float32_states(logits: Any, words: Any, work: Any, out: Any) -> Any:  # pragma: no cover - compiled
    # The same inequality in float32, whose sides err by less than 1e-6 together. Returns how many units lie within
    # ten times that of equality: theirs may be wrong.
    x, shifted, rest = work
    pattern = shifted.view(np.int32)
    units = out.shape[0]
    t = _TAYLOR32
    for unit in range(units):
        x[unit] = np.float32(logits[unit])
        a = abs(x[unit]) if abs(x[unit]) < _SATURATION32 else _SATURATION32
        # The last bits of the sum are the integer k nearest to a / ln 2.
        shifted[unit] = a * _LOG2E32 + _SHIFT32
        k = shifted[unit] - _SHIFT32
        rest[unit] = k * _LN2_HI32 - a + k * _LN2_LO32
    for unit in range(units):
        pattern[unit] = _ONE32 - (pattern[unit] << np.int32(23))  # now `shifted` is 2^-k
    near = np.int32(0)
    for unit in range(units):
        r = rest[unit]
        e = t[0] * r + t[1]
        e = e * r + t[2]
        e = e * r + t[3]
        e = e * r + t[4]
        e = e * r + t[5]
        e = e * r + t[6]
        e = e * shifted[unit]
        top = _UNIT32 if x[unit] >= _ZERO32 else e
        excess = np.float32(words[unit]) * _TO_UNIT32 * (_UNIT32 + e) - top
        out[unit] = 1.0 if excess < _ZERO32 else 0.0
        near += np.int32(1) if abs(excess) < _MARGIN32 else np.int32(0)
    return near


@jit
@no_type_check
def _bernoulli_kernel(
    seeds: Any, chains: Any, sweeps: Any, lasts: Any, logits: Any, out: Any
) -> None:  # pragma: no cover - compiled
    rows, units = out.shape
    lanes = np.empty((4, (units + 3) // 4), np.uint32)
    words = np.empty(4 * lanes.shape[1], np.uint32)
    work = np.empty((3, units), np.float32)
    for row in range(rows):
        _row_bits(seeds[row], chains[row], sweeps[row], lasts[row], lanes, words)
        # One row in a hundred has a unit that float32 cannot decide.
        if _float32_states(logits[row], words, (work[0], work[1], work[2]), out[row]) > 0:
            _exact_states(logits[row], words, out[row])


@jit
@no_type_check
def _categorical_kernel(
    seeds: Any, chains: Any, sweeps: Any, lasts: Any, logits: Any, out: Any
) -> None:  # pragma: no cover - compiled
    rows, states = out.shape
    lanes, words = np.empty((4, 1), np.uint32), np.empty(4, np.uint32)
    weights = np.empty(states)
    t = _TAYLOR
    for row in range(rows):
        _row_bits(seeds[row], chains[row], sweeps[row], lasts[row], lanes, words)
        largest = -np.inf
        for state in range(states):
            if logits[row, state] > largest:  # noqa: PLR1730 - which ignores NaN
                largest = logits[row, state]
        total = 0.0
        for state in range(states):
            x = largest - logits[row, state]
            a = x if x < _SATURATION else _SATURATION
            k = np.rint(a * _LOG2E)
            r = -((a - k * _LN2_HI) - k * _LN2_LO)
            e = t[0]
            for power in range(1, 14):
                e = e * r + t[power]
            weights[state] = np.rint(e * _POWERS[np.int64(k)] * _WEIGHT_UNITS)
            total += weights[state]
        target = (np.float64(words[0]) + 0.5) * _TO_UNIT * total
        cumulative = 0.0
        for state in range(states):
            before = cumulative
            cumulative += weights[state]
            out[row, state] = 1.0 if before <= target and cumulative > target else 0.0


@jit
@no_type_check
def _horner8(x: Any, c: Any) -> Any:  # pragma: no cover - compiled
    return ((((((c[0] * x + c[1]) * x + c[2]) * x + c[3]) * x + c[4]) * x + c[5]) * x + c[6]) * x + c[7]


@jit
@no_type_check
def _in_tails(words: Any, units: Any) -> Any:  # pragma: no cover - compiled
    """Writes which words have normal numbers in a tail, three in twenty, and how many there are."""
    count = 0
    for unit in range(words.shape[0]):
        units[count] = unit  # the next one overwrites it, unless it counts: a branch would be mispredicted
        word = words[unit]
        count += np.int64((word if word < _HALF else ~word) < _TAIL)
    return count


@jit
@no_type_check
def _normals_kernel(seeds: Any, chains: Any, sweeps: Any, lasts: Any, out: Any) -> None:  # pragma: no cover - compiled
    rows, units = out.shape
    lanes = np.empty((4, (units + 3) // 4), np.uint32)
    words = np.empty(4 * lanes.shape[1], np.uint32)
    tails = np.empty(units + 1, np.int32)
    # Floats and integers that share their memory: for taking numbers apart and putting them together.
    number = np.empty(units)
    pattern = number.view(np.int64)
    exponent = np.empty(units)
    c = _LOG
    for row in range(rows):
        _row_bits(seeds[row], chains[row], sweeps[row], lasts[row], lanes, words)
        for unit in range(units):
            q = (np.float64(words[unit]) + 0.5) * _TO_UNIT - 0.5
            r = 0.180625 - q * q
            out[row, unit] = q * _horner8(r, _PPND_A) / _horner8(r, _PPND_B)
        count = _in_tails(words[:units], tails)
        for i in range(count):
            u = (np.float64(words[tails[i]]) + 0.5) * _TO_UNIT
            number[i] = u if u < 0.5 else 1.0 - u
        for i in range(count):
            bits = pattern[i] + _LOG_OFFSET
            exponent[i] = np.float64((bits >> 52) - 1023)
            pattern[i] = (bits & _LOG_MANTISSA) + _SQRT_HALF
        for i in range(count):
            f, k = number[i] - 1.0, exponent[i]
            half_square = 0.5 * f * f
            s = f / (2.0 + f)
            z = s * s
            rest = z * ((((((c[0] * z + c[1]) * z + c[2]) * z + c[3]) * z + c[4]) * z + c[5]) * z + c[6])
            log = s * (half_square + rest) + k * _LN2_LO - half_square + f + k * _LN2_HI
            root = -log * _HERON[0] + _HERON[1]
            root = (root - log / root) * 0.5
            root = (root - log / root) * 0.5
            root = (root - log / root) * 0.5
            root = (root - log / root) * 0.5
            r = root - 1.6
            number[i] = _horner8(r, _PPND_C) / _horner8(r, _PPND_D)
        for i in range(count):
            unit = tails[i]
            out[row, unit] = -number[i] if words[unit] < _HALF else number[i]


@jit
@no_type_check
def _few_bits(seeds: Any, chains: Any, sweeps: Any, lasts: Any, group: Any, lanes: Any) -> None:  # pragma: no cover
    # The loop over rows is what is vectorised here, for rows too short for `_row_bits`.
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    for row in range(seeds.shape[0]):
        k0, k1 = np.uint64(seeds[row]) & mask, (np.uint64(seeds[row]) >> shift) & mask
        c0, c1 = np.uint64(group), np.uint64(sweeps[row]) & mask
        c2, c3 = np.uint64(chains[row]) & mask, np.uint64(lasts[row])
        for _ in range(10):
            p0 = c0 * m0
            p1 = c2 * m1
            c0 = (p1 >> shift) ^ c1 ^ k0
            c1 = p1 & mask
            c2 = (p0 >> shift) ^ c3 ^ k1
            c3 = p0 & mask
            k0 = (k0 + w0) & mask
            k1 = (k1 + w1) & mask
        lanes[0, row] = c0
        lanes[1, row] = c1
        lanes[2, row] = c2
        lanes[3, row] = c3


@jit
@no_type_check
def _single_normals_kernel(
    seeds: Any, chains: Any, sweeps: Any, lasts: Any, out: Any
) -> None:  # pragma: no cover - compiled
    rows, units = out.shape
    groups = (units + 3) // 4
    together = max(1, _TOGETHER // units)  # rows, so that short ones cost no more than long ones
    lanes = np.empty((4, max(groups, together)), np.uint32)
    line = np.empty(4 * groups, np.uint32)
    words = np.empty(together * units, np.uint32)
    tails = np.empty(together * units + 1, np.int32)
    number, exponent = np.empty(together * units, np.float32), np.empty(together * units, np.float32)
    pattern = number.view(np.int32)
    flat = out.reshape(rows * units)
    a, b, c, d = _PPND7_A, _PPND7_B, _PPND7_C, _PPND7_D
    for first in range(0, rows, together):
        last = min(rows, first + together)
        if together < 8:
            for row in range(first, last):
                _row_bits(seeds[row], chains[row], sweeps[row], lasts[row], lanes, line)
                words[(row - first) * units : (row - first + 1) * units] = line[:units]
        else:
            for group in range(groups):
                _few_bits(seeds[first:last], chains[first:last], sweeps[first:last], lasts[first:last], group, lanes)
                for lane in range(min(4, units - 4 * group)):
                    for row in range(last - first):
                        words[row * units + 4 * group + lane] = lanes[lane, row]
        n = (last - first) * units
        z = flat[first * units : last * units]
        for unit in range(n):
            q = (np.float32(np.int32(words[unit] ^ _HALF)) + _HALF32) * _TO_UNIT32
            r = _NEAR32 - q * q
            top = ((a[0] * r + a[1]) * r + a[2]) * r + a[3]
            z[unit] = q * top / (((b[0] * r + b[1]) * r + b[2]) * r + _UNIT32)
        count = _in_tails(words[:n], tails)
        for i in range(count):
            word = words[tails[i]]
            number[i] = (np.float32(np.int32(word if word < _HALF else ~word)) + _HALF32) * _TO_UNIT32
        for i in range(count):
            bits = pattern[i] + _LOG_OFFSET32
            exponent[i] = np.float32((bits >> np.int32(23)) - np.int32(127))
            pattern[i] = (bits & _LOG_MANTISSA32) + _SQRT_HALF32
        for i in range(count):
            f, k = number[i] - _UNIT32, exponent[i]
            half_square = _HALF32 * f * f
            s = f / (_TWO32 + f)
            square = s * s
            rest = square * (((_LOG32[0] * square + _LOG32[1]) * square + _LOG32[2]) * square + _LOG32[3])
            log = s * (half_square + rest) + k * _LOG_LN2_LO32 - half_square + f + k * _LOG_LN2_HI32
            root = -log * _HERON32[0] + _HERON32[1]
            root = (root - log / root) * _HALF32
            root = (root - log / root) * _HALF32
            root = (root - log / root) * _HALF32
            r = root - _FAR32
            number[i] = (((c[0] * r + c[1]) * r + c[2]) * r + c[3]) / ((d[0] * r + d[1]) * r + _UNIT32)
        for i in range(count):
            unit = tails[i]
            z[unit] = -number[i] if words[unit] < _HALF else number[i]
