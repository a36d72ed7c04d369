"""An epoch of training a 784x500 RBM with minibatches of 100: our CD-1 and PCD-1 against scikit-learn, interleaved."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.neural_network import BernoulliRBM
from threadpoolctl import threadpool_limits

from training import data
from training.config import Recipe, validated
from training.data import Dataset
from training.fit import FitState, begin, steps_per_epoch, train
from training.objective import build

D, F, ROWS, BATCH, RATE, ROUNDS = 784, 500, 60_000, 100, 0.05, 15
_HELD_OUT = 100
_PAUSE = 0.5
"""Seconds between engines: a BLAS keeps idle threads spinning for a while, which takes a core from whoever is next."""


class _EpochOverError(Exception):
    pass


def _examples() -> Dataset:
    """As many as MNIST has, of its density of ones; dense products take the same time for any binary data."""
    states = np.random.default_rng(0).random((ROWS + 2 * _HELD_OUT, 28, 28)) < 0.13
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states.npy"
        np.save(path, states.astype(np.uint8))
        return data.load(_recipe("cd", str(path)).data)


def _recipe(objective: str, dataset: str = "digits") -> Recipe:
    settings = {"name": objective, "products": "bfloat16"} | ({"chains": BATCH} if objective == "pcd" else {})
    return validated(
        {
            "name": "benchmark",
            "data": {"dataset": dataset, "validation": _HELD_OUT, "test": _HELD_OUT},
            "model": {"hidden": F},
            "objective": settings,
            "fit": {"epochs": ROUNDS + 1, "batch_size": BATCH, "learning_rate": RATE, "schedule": "constant"},
        },
        "benchmark",
    )


def _ours(objective: str, examples: Dataset) -> Callable[[], None]:
    """Each call goes on for one epoch."""
    recipe = _recipe(objective)
    climbed = build(recipe.objective)
    state = begin(recipe, examples, climbed)
    in_epoch = steps_per_epoch(examples, recipe.fit)

    def after_step(now: FitState) -> None:
        if now.step % in_epoch == 0:
            raise _EpochOverError

    def epoch() -> None:
        try:
            train(recipe, examples, climbed, state, after_step)
        except _EpochOverError:
            return

    return epoch


def _scikit_learn(examples: Dataset) -> Callable[[], None]:
    rows = examples.train.numpy().astype(np.float32)  # which it computes in, too

    def epoch() -> None:
        BernoulliRBM(n_components=F, batch_size=BATCH, learning_rate=RATE, n_iter=1, random_state=0).fit(rows)

    return epoch


def measure(threads: int) -> list[dict[str, float | int | str]]:
    """Median seconds of an epoch, 600 steps, after one that is not counted. All engines may use `threads` cores."""
    torch.set_num_threads(threads)
    examples = _examples()
    engines = {
        "ebm-server, CD-1": _ours("cd", examples),
        "ebm-server, PCD-1": _ours("pcd", examples),
        "scikit-learn, PCD-1": _scikit_learn(examples),
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    with threadpool_limits(threads):  # numpy's BLAS, which torch's own setting does not reach
        for turn in range(ROUNDS + 1):
            for name, epoch in engines.items():
                time.sleep(_PAUSE)
                began = time.perf_counter()
                epoch()
                if turn:
                    times[name].append(time.perf_counter() - began)
    theirs = statistics.median(times["scikit-learn, PCD-1"])
    return [
        {"engine": name, "threads": threads, "s": statistics.median(t), "ratio": theirs / statistics.median(t)}
        for name, t in times.items()
    ]


def table(rows: list[dict[str, float | int | str]]) -> str:
    """Markdown."""
    lines = ["| engine | threads | s per epoch | scikit-learn's time / its |", "|---|---|---|---|"]
    lines += [f"| {r['engine']} | {r['threads']} | {r['s']:.2f} | {r['ratio']:.2f} |" for r in rows]
    return "\n".join(lines)
