"""The random draws of `models.rng` written a second time, from the paper and in plain numpy: what they must equal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

MASK = np.uint64(0xFFFFFFFF)
LOW = np.uint64(32)


def philox4x32_10(counter: Any, key: Any) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011, section 3.3) of counters (.., 4) and keys (.., 2), as uint64 below 2^32."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, np.uint64), -1, 0)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> LOW) ^ c1 ^ k0, p1 & MASK, (p0 >> LOW) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & MASK, (k1 + np.uint64(0xBB67AE85)) & MASK
    return np.stack((c0, c1, c2, c3), axis=-1)


def bits(seeds: list[int], chains: list[int], sweeps: list[int], stream: int, units: int) -> np.ndarray:
    """Key (seed low, seed high), counter (unit // 4, sweep, chain, stream), word unit % 4: int64 (n, units)."""
    rows = []
    for seed, chain, sweep in zip(seeds, chains, sweeps, strict=True):
        key = (seed & 0xFFFFFFFF, seed >> 32)
        words = [philox4x32_10((group, sweep, chain, stream), key) for group in range(math.ceil(units / 4))]
        rows.append(np.concatenate(words)[:units])
    return np.stack(rows).astype(np.int64)


def exp_minus_abs(x: np.ndarray) -> np.ndarray:
    """exp(-min(|x|, 40)): reduced by k ln 2, Taylor to r^13 by Horner, scaled by 2^-k; every operation rounds once."""
    a = np.minimum(np.abs(x), 40.0)
    k = np.rint(a * 1.4426950408889634)
    r = -((a - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10)
    e = np.full_like(a, 1.0 / math.factorial(13))
    for n in range(12, -1, -1):
        e = e * r
        e = e + 1.0 / math.factorial(n)
    scaled: np.ndarray = np.ldexp(e, -k.astype(np.int64))
    return scaled


def bernoulli(logits: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """1 where u (1 + e) < 1 (logit >= 0) or < e (logit < 0), with u = (bits + 1/2) / 2^32 and e = exp(-|logit|)."""
    e = exp_minus_abs(logits)
    u = (bits.astype(np.float64) + 0.5) * 2.0**-32
    return (u * (1.0 + e) < np.where(logits >= 0, 1.0, e)).astype(np.float64)
