"""Block Gibbs sweeps of a 784x500 RBM on one thread: ours against torch eager and scikit-learn, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.neural_network import BernoulliRBM
from threadpoolctl import threadpool_limits

from models.families.rbm import RBM
from models.rng import ChainKeys
from models.samplers.gibbs import Gibbs

D, F, SWEEPS, ROUNDS = 784, 500, 10, 7
CHAINS = (64, 256, 1024)


def _engines(chains: int) -> dict[str, Callable[[], None]]:
    g = torch.Generator().manual_seed(0)
    w, b, c = 0.05 * torch.randn(D, F, generator=g), torch.zeros(D), torch.zeros(F)
    model, sampler, keys = RBM(w, b, c), Gibbs(), ChainKeys.of(1, chains)
    state = sampler.init(model, keys, None, None)
    start = (torch.rand(chains, D, generator=g) < 0.5).float()
    theirs = BernoulliRBM(n_components=F, random_state=0).fit(start[:2].numpy())
    theirs.components_ = w.T.numpy().copy()
    theirs.intercept_hidden_, theirs.intercept_visible_ = c.numpy(), b.numpy()

    def ours() -> None:
        nonlocal state
        for _ in range(SWEEPS):
            state, _ = sampler.step(model, state, keys)

    def torch_eager() -> None:
        v = start
        with torch.inference_mode():
            for _ in range(SWEEPS):
                h = torch.bernoulli(torch.sigmoid(torch.addmm(c, v, w)))
                v = torch.bernoulli(torch.sigmoid(torch.addmm(b, h, w.T)))

    def scikit_learn() -> None:
        v = start.numpy()
        for _ in range(SWEEPS):
            v = theirs.gibbs(v).astype(np.float32)

    return {"ebm-server": ours, "torch eager": torch_eager, "scikit-learn": scikit_learn}


def measure() -> list[dict[str, float | int | str]]:
    """Median microseconds of one sweep of one chain."""
    torch.set_num_threads(1)
    rows: list[dict[str, float | int | str]] = []
    for chains in CHAINS:
        engines = _engines(chains)
        times: dict[str, list[float]] = {name: [] for name in engines}
        for run in engines.values():
            run()
        for _ in range(ROUNDS):
            for name, run in engines.items():
                began = time.perf_counter()
                with threadpool_limits(1):  # numpy's BLAS, which torch's own setting does not reach
                    run()
                times[name].append((time.perf_counter() - began) / (SWEEPS * chains) * 1e6)
        ours = statistics.median(times["ebm-server"])
        rows += [
            {"chains": chains, "engine": name, "us": statistics.median(t), "ratio": statistics.median(t) / ours}
            for name, t in times.items()
        ]
    return rows


def table(rows: list[dict[str, float | int | str]]) -> str:
    """Markdown."""
    lines = ["| chains | engine | us per chain-sweep | its time / ours |", "|---|---|---|---|"]
    lines += [f"| {r['chains']} | {r['engine']} | {r['us']:.1f} | {r['ratio']:.2f} |" for r in rows]
    return "\n".join(lines)
