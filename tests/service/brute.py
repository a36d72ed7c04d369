"""Small models of the families, and all that is asked of them by summing over every hidden state, in numpy alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.service.example import states

Array = np.ndarray


@dataclass(frozen=True)
class Brute:
    """A model: what its checkpoint holds, and its joint log-density term by term."""

    family: str
    arrays: dict[str, Array]
    shape: list[int]
    domain: str
    manifest: dict[str, Any]
    hidden: dict[str, Array]
    """Every hidden state, a column block a layer, lowest first; all of the same length m."""
    terms: Callable[[Array], Array]
    """log p~(x, h, y) for x (n, D): (n, m, K), K = 1 where there are no labels."""
    slope: Callable[[Array, Array], Array] | None = None
    """grad_x log p~(x, h) from x (n, D) and the posterior mean of the first hidden layer."""

    def log_joint(self, x: Array) -> Array:
        """log p~(x, y), (n, K)."""
        return np.logaddexp.reduce(self.terms(x), axis=1)

    def log_density(self, x: Array) -> Array:
        """log p~(x), (n,)."""
        return np.logaddexp.reduce(self.log_joint(x), axis=1)

    def features(self, x: Array) -> dict[str, Array]:
        """E[h | x] of each layer."""
        weights = np.exp(np.logaddexp.reduce(self.terms(x), axis=2) - self.log_density(x)[:, None])
        return {layer: weights @ h for layer, h in self.hidden.items()}

    def score(self, x: Array) -> Array:
        """grad_x log p~(x)."""
        assert self.slope is not None
        return self.slope(x, next(iter(self.features(x).values())))

    @property
    def every(self) -> Array:
        """All visible states of a discrete model, in the order of a binary counter."""
        found = states(int(np.prod(self.shape)))
        return 2 * found - 1 if self.domain == "spin" else found

    def law(self, label: int | None = None, mask: Array | None = None, value: Array | None = None) -> Array:
        """Probabilities of `every`, given a label, and given what is held."""
        joint = self.log_joint(self.every)
        log_p = np.logaddexp.reduce(joint, axis=1) if label is None else joint[:, label]
        if mask is not None and value is not None:
            log_p = np.where((self.every[:, mask] == value[mask]).all(axis=1), log_p, -np.inf)
        p = np.exp(log_p - log_p.max())
        return p / p.sum()


def layered(
    sizes: list[int], seed: int, family: str, classes: int = 0, names: list[str] | None = None, sigma: bool = False
) -> Brute:
    """An RBM, GRBM or DBM with normal parameters; labels couple to the top layer."""
    manifest: dict[str, Any] = {"classes": names} if names else {}
    rng = np.random.default_rng(seed)
    W = [rng.normal(size=pair) for pair in itertools.pairwise(sizes)]
    b = [rng.normal(size=size) for size in sizes]
    U, d = rng.normal(size=(max(classes, 1), sizes[-1]), scale=3), rng.normal(size=max(classes, 1))
    if not classes:
        U, d = 0 * U, 0 * d
    log_sigma = rng.normal(size=sizes[0], scale=0.3) if sigma else np.zeros(sizes[0])
    s = np.exp(log_sigma)
    both = states(sum(sizes[1:]))
    h = np.split(both, np.cumsum(sizes[1:])[:-1], axis=1)

    def terms(x: Array) -> Array:
        own = -((x - b[0]) ** 2 / (2 * s**2)).sum(1) if sigma else x @ b[0]
        above = sum(layer @ bias for layer, bias in zip(h, b[1:], strict=True))
        above = above + sum(
            (low @ w * high).sum(1) for w, (low, high) in zip(W[1:], itertools.pairwise(h), strict=True)
        )
        found = own[:, None] + (x / s) @ W[0] @ h[0].T + above
        return found[:, :, None] + h[-1] @ U.T + d

    def slope(x: Array, mean: Array) -> Array:
        return -((x - b[0]) / s**2 if sigma else -b[0]) + mean @ W[0].T / s

    if len(sizes) == 2:
        arrays = {"W": W[0], "b": b[0], "c": b[1]}
    else:
        arrays = {f"W{n}": w for n, w in enumerate(W, 1)} | {f"b{n}": bias for n, bias in enumerate(b)}
        manifest["config"] = {"layers": sizes}
    arrays |= ({"log_sigma": log_sigma} if sigma else {}) | ({"U": U, "d": d} if classes else {})
    blocks = ["hidden"] if len(h) == 1 else [f"hidden{n}" for n in range(1, len(h) + 1)]
    shape = [2, 3] if sizes[0] == 6 else [sizes[0]]
    hidden = dict(zip(blocks, h, strict=True))
    return Brute(family, arrays, shape, "real" if sigma else "binary", manifest, hidden, terms, slope)


def belief_net(sizes: list[int], seed: int, classes: int) -> Brute:
    """A DBN of two hidden layers with labels on the top RBM."""
    rng = np.random.default_rng(seed)
    W1, W2 = (rng.normal(size=pair) for pair in itertools.pairwise(sizes))
    b0, b1, b2 = (rng.normal(size=size) for size in sizes)
    U, d = rng.normal(size=(classes, sizes[2]), scale=3), rng.normal(size=classes)
    h1, h2 = np.split(states(sizes[1] + sizes[2]), [sizes[1]], axis=1)

    def terms(x: Array) -> Array:
        inputs = h1 @ W1.T + b0
        down = x @ inputs.T - np.logaddexp(0, inputs).sum(1)
        top = (h1 @ W2 * h2).sum(1) + h1 @ b1 + h2 @ b2
        return (down + top)[:, :, None] + h2 @ U.T + d

    arrays = {"W1": W1, "W2": W2, "b0": b0, "b1": b1, "b2": b2, "U": U, "d": d}
    arrays |= {"V1": W1 + 0.1, "a1": b1 - 0.1}
    hidden = {"hidden1": h1, "hidden2": h2}
    return Brute("dbn", arrays, [sizes[0]], "binary", {"config": {"layers": sizes}}, hidden, terms)


def machine(visible: int, hidden: int, seed: int) -> Brute:
    """A Boltzmann machine of spins with hidden units, every pair coupled."""
    rng = np.random.default_rng(seed)

    def symmetric(size: int) -> Array:
        upper = np.triu(rng.normal(size=(size, size)), 1)
        return upper + upper.T

    R, S, W = symmetric(visible), symmetric(hidden), rng.normal(size=(visible, hidden))
    b, c = rng.normal(size=visible), rng.normal(size=hidden)
    h = 2 * states(hidden) - 1

    def terms(x: Array) -> Array:
        own = 0.5 * (x @ R * x).sum(1) + x @ b
        return (own[:, None] + x @ W @ h.T + 0.5 * (h @ S * h).sum(1) + h @ c)[:, :, None]

    def slope(x: Array, mean: Array) -> Array:
        return x @ R + b + mean @ W.T

    arrays = {"R": R, "W": W, "S": S, "b": b, "c": c}
    return Brute("bm_hidden", arrays, [visible], "spin", {}, {"hidden": h}, terms, slope)


def golden() -> Brute:
    """The worked example of MATH 1: three spins, w12 = w13 = -1, w23 = 2, b2 = 1."""
    W = np.array([[0.0, -1, -1], [-1, 0, 2], [-1, 2, 0]])
    b = np.array([0.0, 1, 0])

    def terms(x: Array) -> Array:
        return (0.5 * (x @ W * x).sum(1) + x @ b)[:, None, None]

    return Brute("bm", {"W": W, "b": b}, [3], "spin", {}, {}, terms)
