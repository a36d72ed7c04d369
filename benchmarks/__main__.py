"""Measures every table and writes this folder's README.md and results.json: `python -m benchmarks`."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from benchmarks import fit, gibbs

HERE = Path(__file__).parent

PAGE = """# Benchmarks

`make bench` measures these tables anew and writes `results.json` and this page. Ratios count, not absolute times: the
engines run in turn, in one process, on as many threads as each table says. Machine: `{machine}`.

## Block Gibbs sampling, 784x500 RBM

One sweep draws all hidden and all visible units of a chain. Ours multiplies in float64, where sums are exact, so that a
chain has the same bits in every batch; the others multiply in float32 and have not. One thread; median of 7 rounds of
10 sweeps.

{gibbs}

## Training, 784x500 RBM, minibatches of 100

An epoch of 60,000 examples, binary and random, of MNIST's density: `training.fit.train` with the objectives `cd` and
`pcd` (one sweep, 100 chains, no centring) against `BernoulliRBM.fit`, whose algorithm is PCD-1. Ours keeps parameters
and sums in float32 and multiplies in bfloat16 (`objective.products`), theirs is float32 throughout. Median of 5 rounds.
Both BLAS libraries keep idle threads spinning: a pause comes before each engine, and figures taken on a
machine that does other work are worth nothing.

{fit}

## Completion of MNIST digits through the service

`python -m benchmarks.complete_mnist PATH/mnist.npz out.png` asks a running service of `rbm-mnist` for the lower
halves of 16 test digits and draws them: the digit, its clamped upper half, four completions, the posterior mean.
Training with `ebm train rbm-mnist` (10 epochs, 784-500); of the unknown pixels the mean got 92.3 % right, where
always guessing "off" gets 84.4 %.

![completions](mnist-completions.png)
"""


def machine() -> dict[str, object]:
    """Where the figures were measured."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cpu": cpu.partition(": ")[2] or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "numba", "scikit-learn")},
    }


def main() -> None:
    """Run all, print and store."""
    epochs = [row for threads in sorted({1, os.cpu_count() or 1}) for row in fit.measure(threads)]
    sweeps = gibbs.measure()
    found = {"machine": machine(), "gibbs": sweeps, "fit": epochs}
    (HERE / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    page = PAGE.format(machine=json.dumps(found["machine"]), gibbs=gibbs.table(sweeps), fit=fit.table(epochs))
    (HERE / "README.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
