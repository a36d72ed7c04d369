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


def bits(
    seeds: list[int], chains: list[int], sweeps: list[int], stream: int, units: int, replicas: list[int] | None = None
) -> np.ndarray:
    """Key (seed low, high), counter (unit // 4, sweep, chain, stream + 2^16 replica), word unit % 4; (n, units)."""
    rows = []
    for seed, chain, sweep, replica in zip(seeds, chains, sweeps, replicas or [0] * len(seeds), strict=True):
        key, last = (seed & 0xFFFFFFFF, seed >> 32), (stream + replica * 2**16) % 2**32
        words = [philox4x32_10((group, sweep, chain, last), key) for group in range(math.ceil(units / 4))]
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


def polynomial(x: np.ndarray, *coefficients: float) -> np.ndarray:
    """sum_k coefficients[k] x^k by Horner."""
    y = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        y = y * x
        y = y + c
    return y


def log(x: np.ndarray) -> np.ndarray:
    """log x of normal numbers after fdlibm's e_log.c, its polynomial in s^2 by Horner."""
    m, k = np.frexp(x)
    # fdlibm cuts at the high word of sqrt(1/2) / 2, and takes the low word as it comes.
    low = (m.view(np.int64) >> 32) < (np.float64(math.sqrt(0.5)).view(np.int64) >> 32)
    f, k = np.where(low, 2 * m, m) - 1.0, np.where(low, k - 1, k).astype(np.float64)
    s = f / (2.0 + f)
    z = s * s
    series = z * polynomial(
        z,
        6.666666666666735130e-01,
        3.999999999940941908e-01,
        2.857142874366239149e-01,
        2.222219843214978396e-01,
        1.818357216161805012e-01,
        1.531383769920937332e-01,
        1.479819860511658591e-01,
    )
    half = f * 0.5 * f
    return s * (half + series) + k * 1.90821492927058770002e-10 - half + f + k * 6.93147180369123816490e-01


def normal_quantile(u: np.ndarray) -> np.ndarray:
    """PPND16 of AS 241 (Wichura 1988) for 2^-33 <= u <= 1 - 2^-33, which needs two of its three intervals."""
    q = u - 0.5
    r = 0.180625 - q * q
    a = polynomial(
        r,
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    )
    b = polynomial(
        r,
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    )
    x = -log(np.minimum(u, 1.0 - u))
    y = x * 0.168 + 1.3
    for _ in range(4):  # Heron's steps to the square root
        y = (y + x / y) / 2
    r = y - 1.6
    c = polynomial(
        r,
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    )
    d = polynomial(
        r,
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    )
    return np.where(np.abs(q) <= 0.425, q * a / b, np.copysign(c / d, q))


def categorical(logits: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """One-hot of the first state whose cumulative weight, in units of 2^-40, exceeds u times the total. Integers."""
    states = np.zeros(logits.shape)
    for row, (a, word) in enumerate(zip(logits, bits[:, 0], strict=True)):
        weights = [int(w) for w in np.rint(exp_minus_abs(a.max() - a) * 2.0**40)]
        # u total = (2 word + 1) / 2^33 total, rounded to a double.
        target = (int(word) + 0.5) * 2.0**-32 * sum(weights)
        cumulative = 0
        for k, weight in enumerate(weights):
            cumulative += weight
            if cumulative > target:
                states[row, k] = 1.0
                break
    return states
