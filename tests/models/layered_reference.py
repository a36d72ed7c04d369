"""RBM, GRBM and DBM a second time, in numpy and from MATH 2, 3 and 5: sums over every state of what is summed out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from tests.models.cases import Case

FAMILIES = ("rbm", "grbm", "dbm")


@dataclass(frozen=True)
class Reference:
    """E = -x_0'W_1 x_1 - .. - x_k'U'y - sum_l b_l'x_l - d'y; with real x_0: x_0 / s in the product with x_1, and
    sum_i (x_0i - b_0i)^2 / 2 s_i^2 in the place of -b_0'x_0."""

    W: list[np.ndarray]
    b: list[np.ndarray]
    s: np.ndarray | None
    U: np.ndarray | None
    d: np.ndarray | None

    @classmethod
    def of(cls, of: Case) -> Reference:
        """The case's parameters, float64."""
        t = {name: tensor.double().numpy() for name, tensor in of.model.tensors().items()}
        if "W" in t:
            t |= {"W1": t["W"], "b0": t["b"], "b1": t["c"]}
        depth = sum(f"W{n}" in t for n in range(1, 10))
        s = np.exp(t["log_sigma"]) if "log_sigma" in t else None
        return cls(
            [t[f"W{n}"] for n in range(1, depth + 1)],
            [t[f"b{n}"] for n in range(depth + 1)],
            s,
            t.get("U"),
            t.get("d"),
        )

    @cached_property
    def layers(self) -> list[np.ndarray]:
        """Every joint state of the hidden layers (and of the labels, last): an array (states, units) each."""
        each = [list(itertools.product((0.0, 1.0), repeat=len(b))) for b in self.b[1:]]
        if self.d is not None:
            each.append([tuple(row) for row in np.eye(len(self.d))])
        return [np.array(column) for column in zip(*itertools.product(*each), strict=True)]

    def joint_energy(self, visible: np.ndarray, *upper: np.ndarray) -> np.ndarray:
        """E(x_0, x_1, .., x_k[, y]) of each row; one visible state for all rows, or one each."""
        hidden = upper[: len(self.W)]
        pull = hidden[0] @ self.W[0].T
        if self.s is None:
            total = -(visible * (pull + self.b[0])).sum(1)
        else:
            total = (0.5 * ((visible - self.b[0]) / self.s) ** 2 - visible / self.s * pull).sum(1)
        return np.asarray(total + self._above(upper))

    def _above(self, upper: tuple[np.ndarray, ...] | list[np.ndarray]) -> np.ndarray:
        """The terms of E without visibles."""
        hidden = upper[: len(self.W)]
        total = np.zeros(len(hidden[0]))
        for below, above, W in zip(hidden[:-1], hidden[1:], self.W[1:], strict=True):
            total -= ((below @ W) * above).sum(1)
        for layer, b in zip(hidden, self.b[1:], strict=True):
            total -= layer @ b
        if self.U is not None and self.d is not None:
            total -= ((hidden[-1] @ self.U.T) * upper[-1]).sum(1) + upper[-1] @ self.d
        return total

    def log_weights(self, x: np.ndarray) -> np.ndarray:
        """-E(x, h, y) for each visible state and all states of `layers`, (n, states)."""
        return np.stack([-self.joint_energy(row[None], *self.layers) for row in x])

    def energy(self, x: Tensor) -> np.ndarray:
        """-log of the sum over all that is hidden."""
        return np.asarray(-logsumexp(self.log_weights(x.numpy()), axis=1))

    def class_energy(self, x: Tensor) -> np.ndarray:
        """E(x, y) for every class, (n, K)."""
        log_weights, labels = self.log_weights(x.numpy()), self.layers[-1].argmax(1)
        each = [-logsumexp(log_weights[:, labels == k], axis=1) for k in range(self.layers[-1].shape[1])]
        return np.stack(each, 1)

    def means(self, x: Tensor) -> list[np.ndarray]:
        """Expected states of the hidden layers (and labels) given x."""
        log_weights = self.log_weights(x.numpy())
        p = np.exp(log_weights - logsumexp(log_weights, axis=1, keepdims=True))
        return [p @ layer for layer in self.layers]

    @cached_property
    def log_marginals(self) -> np.ndarray:
        """log of exp(-E) with the visibles summed out, or integrated, for all states of `layers`."""
        pull = self.layers[0] @ self.W[0].T
        if self.s is None:
            visible = np.logaddexp(0.0, pull + self.b[0])
        else:
            # exp(-(v - b)^2 / 2 s^2 + v a / s) integrates to sqrt(2 pi) s exp(a b / s + a^2 / 2).
            visible = 0.5 * np.log(2 * np.pi) + np.log(self.s) + pull * self.b[0] / self.s + 0.5 * pull**2
        return np.asarray(visible.sum(1) - self._above(self.layers))

    def log_z(self) -> float:
        """log Z."""
        return float(logsumexp(self.log_marginals))

    def samples(self, n: int, seed: int) -> dict[str, Tensor]:
        """n independent draws of all blocks."""
        generator = np.random.default_rng(seed)
        p = np.exp(self.log_marginals - self.log_z())
        chosen = generator.choice(len(p), n, p=p / p.sum())
        upper = [layer[chosen] for layer in self.layers]
        pull = upper[0] @ self.W[0].T
        if self.s is None:
            visible = (generator.random(pull.shape) < 1 / (1 + np.exp(-pull - self.b[0]))).astype(np.float64)
        else:
            visible = self.b[0] + self.s * (pull + generator.normal(size=pull.shape))
        names = ["hidden"] if len(self.W) == 1 else [f"hidden{n}" for n in range(1, len(self.W) + 1)]
        blocks = dict(zip([*names, "label"], upper, strict=False)) | {"visible": visible}
        return {block: torch.from_numpy(states) for block, states in blocks.items()}
