"""Convergence of chains: rank-normalised split R-hat and effective sample sizes (Vehtari et al. 2021; MATH 12).

Input is one quantity in every draw of every chain, (chains, draws); results are floats, None where the chains
are too short to tell, or where the quantity never changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Draws = NDArray[np.float64]
MIN_DRAWS = 4


def r_hat(draws: Draws) -> float | None:
    """The larger of the rank-normalised split R-hats of the draws and of their distances from the median."""
    if not _usable(draws):
        return None
    split = _split(draws)
    folded = np.abs(split - np.median(split))
    return max(_plain_r_hat(_z_scale(split)), _plain_r_hat(_z_scale(folded)))


def ess_bulk(draws: Draws) -> float | None:
    """Effective sample size of the rank-normalised draws, all chains together."""
    return _ess(_z_scale(_split(draws))) if _usable(draws) else None


def ess_tail(draws: Draws) -> float | None:
    """The smaller of the effective sample sizes of the 5 % and the 95 % quantile."""
    if not _usable(draws):
        return None
    split = _split(draws)
    return min(_ess((split <= quantile).astype(np.float64)) for quantile in np.quantile(draws, (0.05, 0.95)))


def _usable(draws: Draws) -> bool:
    return (
        draws.ndim == 2
        and draws.shape[0] > 0
        and draws.shape[1] >= MIN_DRAWS
        and bool(np.isfinite(draws).all())
        and float(np.ptp(draws)) > 0.0
    )


def _split(draws: Draws) -> Draws:
    half = draws.shape[1] // 2
    return np.concatenate((draws[:, :half], draws[:, -half:]))


def _z_scale(draws: Draws) -> Draws:
    ranks = rankdata(draws, method="average").reshape(draws.shape)
    scaled: Draws = norm.ppf((ranks - 0.375) / (draws.size + 0.25))
    return scaled


def _plain_r_hat(draws: Draws) -> float:
    n = draws.shape[1]
    within = draws.var(axis=1, ddof=1).mean()
    between = n * draws.mean(axis=1).var(ddof=1)
    if within == 0.0:
        return float("inf") if between > 0.0 else 1.0
    return float(np.sqrt((between / within + n - 1) / n))


def _autocovariance(draws: Draws) -> Draws:
    n = draws.shape[1]
    centred = draws - draws.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, n=2 * n, axis=1)
    covariance: Draws = np.fft.irfft(spectrum * np.conj(spectrum), n=2 * n, axis=1)[:, :n] / n
    return covariance


def _ess(draws: Draws) -> float:
    """Geyer's initial monotone sequence over the chains' combined autocorrelation."""
    chains, n = draws.shape
    covariance = _autocovariance(draws)
    within = covariance[:, 0].mean() * n / (n - 1.0)
    pooled = within * (n - 1.0) / n
    if chains > 1:
        pooled += draws.mean(axis=1).var(ddof=1)
    if pooled == 0.0:
        return float(draws.size)
    rho = 1.0 - (within - covariance.mean(axis=0)) / pooled
    rho[0] = 1.0
    # Sums of neighbouring pairs count while positive and are never allowed to grow; of the pair after them, which is
    # the last one there is at most, the even lag counts once (as in the authors' reference implementation).
    last = (n - 4 + n % 2) // 2 if n > 4 else 0
    pairs = rho[: 2 * last + 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0.0)
    stop = int(negative[0]) if len(negative) else last
    tail = max(float(rho[2 * stop]), 0.0) if len(negative) else float(rho[2 * stop])
    kept = np.minimum.accumulate(pairs[:stop])
    tau = max(-1.0 + 2.0 * float(kept.sum()) + tail, 1.0 / np.log10(draws.size))
    return float(draws.size / tau)
