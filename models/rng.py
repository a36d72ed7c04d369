"""Stateless randomness: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

Key = seed of the job; counter = (unit // 4, sweep, chain, stream); word unit % 4 is the unit's number. A draw depends
on nothing else, so a chain's trajectory is the same in any batch, at any position, on any worker, resumed or not.
On the CPU compiled kernels do the work; on other devices the same integer and IEEE double operations run as torch
operations, each rounded on its own. Both give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

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


@dataclass(frozen=True)
class ChainKeys:
    """Who each row of a batch is: the seed of its job and its number among that job's chains, int64 (n,)."""

    seed: Int[Tensor, " n"]
    chain: Int[Tensor, " n"]

    @classmethod
    def of(cls, seed: int, chains: int, device: torch.device | str = "cpu", first: int = 0) -> ChainKeys:
        """Chains first..first+chains-1 of one job."""
        numbers = torch.arange(first, first + chains, dtype=torch.int64, device=device)
        return cls(torch.full_like(numbers, seed), numbers)

    def rows(self, index: Tensor) -> ChainKeys:
        """The keys of the rows that `index` selects."""
        return ChainKeys(self.seed[index], self.chain[index])

    def __len__(self) -> int:
        return len(self.seed)


def random_bits(keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int, units: int) -> Int[Tensor, "n units"]:
    """32 random bits for each unit of each chain, int64 in [0, 2^32)."""
    if keys.seed.device.type == "cpu":
        out = torch.empty((len(keys), units), dtype=torch.int64)
        _bits_kernel(keys.seed.numpy(), keys.chain.numpy(), sweep.numpy(), stream, out.numpy())
        return out
    return _bits_torch(keys, sweep, stream, units)


def uniforms(keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int, units: int) -> Float[Tensor, "n units"]:
    """Uniform numbers in (0, 1): (bits + 1/2) / 2^32, exact in float64."""
    return (random_bits(keys, sweep, stream, units).double() + 0.5) * _TO_UNIT


def bernoulli(
    logits: Float[Tensor, "n units"], keys: ChainKeys, sweep: Int[Tensor, " n"], stream: int
) -> Float[Tensor, "n units"]:
    """States 0.0 or 1.0 with P(1) = sigmoid(logits), to a resolution of 2^-32. Logits are float64 and finite.

    With e = exp(-|x|) and a uniform number u the state is 1 where u (1 + e) < 1 (x >= 0), or < e (x < 0).
    """
    if logits.device.type == "cpu":
        out = torch.empty(logits.shape, dtype=torch.float64)
        _bernoulli_kernel(
            logits.contiguous().numpy(),
            keys.seed.numpy(),
            keys.chain.numpy(),
            sweep.numpy(),
            stream,
            out.numpy(),
        )
        return out
    return _bernoulli_torch(logits, keys, sweep, stream)


def logistic(x: Float[Tensor, "n units"]) -> Float[Tensor, "n units"]:
    """1 / (1 + exp(-x)) in float64, the same bits at every position of every batch (torch.sigmoid's differ)."""
    e = exp_minus_abs(x)
    return torch.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


def exp_minus_abs(x: Float[Tensor, "n units"]) -> Float[Tensor, "n units"]:
    """exp(-|x|) in float64 from singly rounded operations; |x| beyond 40 counts as 40."""
    a = torch.where(x.abs() < _SATURATION, x.abs(), _SATURATION)
    k = torch.round(a * _LOG2E)
    r = -((a - k * _LN2_HI) - k * _LN2_LO)
    e = torch.full_like(a, float(_TAYLOR[0]))
    for coefficient in _TAYLOR[1:]:
        e = e * r
        e = e + float(coefficient)
    return e * torch.as_tensor(_POWERS, device=x.device)[k.long()]


def _bernoulli_torch(logits: Tensor, keys: ChainKeys, sweep: Tensor, stream: int) -> Tensor:
    e = exp_minus_abs(logits)
    uniform = (_bits_torch(keys, sweep, stream, logits.shape[1]).double() + 0.5) * _TO_UNIT
    return (uniform * (1.0 + e) < torch.where(logits >= 0, torch.ones_like(e), e)).double()


def _bits_torch(keys: ChainKeys, sweep: Tensor, stream: int, units: int) -> Tensor:
    n, groups = len(keys), (units + 3) // 4
    c0 = torch.arange(groups, device=keys.seed.device).expand(n, groups)
    c1 = (sweep & _MASK)[:, None].expand(n, groups)
    c2 = (keys.chain & _MASK)[:, None].expand(n, groups)
    c3 = torch.full_like(c0, stream)
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


def _jit(function: Any) -> Any:
    # No fastmath: contraction or reassociation would change bits. The kernels below are `no_type_check`: a checker of
    # shapes that wraps functions, as the tests install, would hand numba its wrapper.
    return numba.njit(nogil=True, fastmath=False, error_model="numpy")(function)


@_jit
@no_type_check
def _row_bits(
    seed: Any, chain: Any, sweep: Any, stream: Any, lanes: Any, words: Any
) -> None:  # pragma: no cover - compiled
    # The four words of a group go to four rows first: with contiguous stores the loop over groups is vectorised.
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    key0, key1 = np.uint64(seed) & mask, (np.uint64(seed) >> shift) & mask
    sweep_word, chain_word, stream_word = np.uint64(sweep) & mask, np.uint64(chain) & mask, np.uint64(stream)
    for group in range(lanes.shape[1]):
        c0, c1, c2, c3 = np.uint64(group), sweep_word, chain_word, stream_word
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


@_jit
@no_type_check
def _bits_kernel(seeds: Any, chains: Any, sweeps: Any, stream: int, out: Any) -> None:  # pragma: no cover - compiled
    rows, units = out.shape
    lanes = np.empty((4, (units + 3) // 4), np.uint32)
    words = np.empty(4 * lanes.shape[1], np.uint32)
    for row in range(rows):
        _row_bits(seeds[row], chains[row], sweeps[row], stream, lanes, words)
        for unit in range(units):
            out[row, unit] = np.int64(words[unit])


@_jit
@no_type_check
def _bernoulli_kernel(
    logits: Any, seeds: Any, chains: Any, sweeps: Any, stream: int, out: Any
) -> None:  # pragma: no cover - compiled
    rows, units = out.shape
    lanes = np.empty((4, (units + 3) // 4), np.uint32)
    words = np.empty(4 * lanes.shape[1], np.uint32)
    t = _TAYLOR
    for row in range(rows):
        _row_bits(seeds[row], chains[row], sweeps[row], stream, lanes, words)
        x_row, out_row = logits[row], out[row]
        for unit in range(units):
            x = x_row[unit]
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
            out_row[unit] = 1.0 if uniform * (1.0 + e) < top else 0.0
