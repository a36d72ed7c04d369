"""R-hat and effective sample sizes against arviz 0.23's, and what they must say of chains whose fate is known."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from models import diagnostics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

ARVIZ: Any = arviz

GENERATOR = np.random.default_rng(7)
SHAPES = [(int(c), int(n)) for c, n in zip(GENERATOR.integers(2, 9, 40), GENERATOR.integers(4, 400, 40), strict=True)]
SHAPES += [(2, 4), (2, 5), (3, 6), (2, 7), (4, 8), (2, 9), (20, 4), (2, 1000), (2, 1001)]
KINDS = ["white", "sluggish", "antithetic", "shifted", "scaled", "heavy tails", "counts", "binary", "trend"]


def draws(kind: str, chains: int, n: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(chains, n))
    if kind in {"sluggish", "antithetic"}:
        phi = 0.95 if kind == "sluggish" else -0.7
        for t in range(1, n):
            noise[:, t] += phi * noise[:, t - 1]
    columns = np.arange(chains)[:, None]
    return {
        "shifted": noise + columns,
        "scaled": noise * (1 + columns),
        "heavy tails": generator.standard_cauchy((chains, n)),
        "counts": generator.poisson(3.0, (chains, n)).astype(float),
        "binary": (noise > 0.8).astype(float),
        "trend": noise + np.linspace(0, 3, n),
    }.get(kind, noise)


def assert_equals_arviz(x: np.ndarray) -> None:
    pairs = [
        (diagnostics.ess_bulk(x), ARVIZ.ess(x, method="bulk")),
        (diagnostics.ess_tail(x), ARVIZ.ess(x, method="tail")),
    ]
    if len(x) > 1:
        pairs.append((diagnostics.r_hat(x), ARVIZ.rhat(x, method="rank")))
    for mine, theirs in pairs:
        assert mine == pytest.approx(float(theirs), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_all_three_equal_arviz(kind: str) -> None:
    told = 0
    for chains, n in SHAPES:
        x = draws(kind, chains, n, seed=chains * 1000 + n)
        if np.ptp(x) == 0.0:
            assert diagnostics.r_hat(x) is None
            continue
        told += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # arviz divides by zero where a half-chain never changes
            assert_equals_arviz(x)
    assert told > 40


@pytest.mark.parametrize("n", [4, 5, 6, 9, 50, 301])
def test_effective_sample_sizes_of_one_chain_equal_arviz(n: int) -> None:
    for seed in range(5):
        assert_equals_arviz(draws("sluggish", 1, n, seed))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((4, 100)),
        np.full((1, 4), 3.5),
        np.random.default_rng(0).normal(size=(4, 3)),
        np.random.default_rng(0).normal(size=(4, 0)),
        np.zeros((0, 10)),
        np.array([[0.0, 1.0, np.nan, 2.0], [1.0, 2.0, 3.0, 4.0]]),
        np.array([[0.0, 1.0, np.inf, 2.0], [1.0, 2.0, 3.0, 4.0]]),
    ],
)
def test_none_where_it_cannot_be_told(x: np.ndarray) -> None:
    assert diagnostics.r_hat(x) is None
    assert diagnostics.ess_bulk(x) is None
    assert diagnostics.ess_tail(x) is None


@pytest.mark.parametrize("kind", ["white", "sluggish", "binary", "heavy tails"])
@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (-1.0, 0.0), (0.5, -8.0), (1024.0, 64.0)])
def test_ranks_make_r_hat_and_bulk_size_independent_of_scale_and_origin(kind: str, scale: float, shift: float) -> None:
    # Powers of two, and draws on a grid, so that the transformed draws are exact and have exactly the same ranks.
    x = np.round(draws(kind, 4, 200, seed=3) * 2**20) / 2**20
    y = x * scale + shift
    assert diagnostics.ess_bulk(y) == pytest.approx(diagnostics.ess_bulk(x), rel=1e-9)
    assert diagnostics.r_hat(y) == pytest.approx(diagnostics.r_hat(x), rel=1e-9)
    if scale > 0:
        assert diagnostics.ess_tail(y) == pytest.approx(diagnostics.ess_tail(x), rel=1e-9)


def test_the_order_of_chains_does_not_matter() -> None:
    x = draws("sluggish", 5, 100, seed=1)
    for f in (diagnostics.r_hat, diagnostics.ess_bulk, diagnostics.ess_tail):
        assert f(x[::-1].copy()) == pytest.approx(f(x), rel=1e-12)


def test_chains_stuck_in_different_modes_have_a_large_r_hat_and_hardly_any_effective_draws() -> None:
    noise = 0.1 * np.random.default_rng(2).normal(size=(4, 250))
    apart = noise + np.array([[0.0], [0.0], [5.0], [5.0]])
    r_hat, size = diagnostics.r_hat(apart), diagnostics.ess_bulk(apart)
    assert r_hat is not None
    assert r_hat > 1.5
    assert size is not None
    assert size < 10


def test_chains_that_never_move_from_different_places_have_an_infinite_r_hat() -> None:
    assert diagnostics.r_hat(np.repeat([[0.0], [1.0]], 50, axis=1)) == float("inf")


def test_chains_of_different_spread_are_seen_by_the_folded_r_hat() -> None:
    generator = np.random.default_rng(4)
    x = generator.normal(size=(4, 500)) * np.array([[1.0], [1.0], [10.0], [10.0]])
    r_hat = diagnostics.r_hat(x)
    assert r_hat is not None
    assert r_hat > 1.1


def test_a_drifting_chain_is_seen_by_the_split() -> None:
    r_hat = diagnostics.r_hat(draws("trend", 4, 200, seed=5))
    assert r_hat is not None
    assert r_hat > 1.2


def test_independent_draws_count_in_full_and_sluggish_ones_by_their_autocorrelation_time() -> None:
    # AR(1) with coefficient phi: n (1 - phi) / (1 + phi) effective draws. 4 x 20,000 draws; over seeds the estimate of
    # the integrated time has a relative standard deviation of about 3 %, so a band of 20 % is beyond six of them.
    generator = np.random.default_rng(6)
    white = diagnostics.ess_bulk(generator.normal(size=(4, 20_000)))
    assert white == pytest.approx(80_000, rel=0.2)
    x = generator.normal(size=(4, 20_000))
    for t in range(1, x.shape[1]):
        x[:, t] = 0.5 * x[:, t - 1] + np.sqrt(0.75) * x[:, t]
    assert diagnostics.ess_bulk(x) == pytest.approx(80_000 / 3, rel=0.2)
    r_hat = diagnostics.r_hat(x)
    assert r_hat is not None
    assert r_hat < 1.01
