"""Measures every table and writes this folder's README.md and results.json: `python -m benchmarks`."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import fit, gibbs, langevin, score_matching

HERE = Path(__file__).parent

PAGE = """# Benchmarks

`make bench` measures these tables anew and writes `results.json` and this page. Ratios count, not absolute times: the
engines run in turn, in one process, on as many threads as each table says. Machine: `{machine}`.

## Block Gibbs sampling, 784x500 RBM

One sweep draws all hidden and all visible units of a chain. Ours multiplies in float64, where sums are exact, so that a
chain has the same bits in every batch; the others multiply in float32 and have not. One thread; median of 7 rounds of
10 sweeps.

{gibbs}

## Langevin steps on a perceptron's energy

A step of all chains: x - (e^2 / 2) grad E(x) + e z, swish units, float32 networks. Ours keeps states in float64, draws
its noise from counters, so that a chain is the same in any batch and whenever it is resumed, and stays where it is when
a step leads to no finite place; the others have none of that. `torch eager` is the plain loop with `autograd.grad` and
`randn_like`; `torchebm` is `LangevinDynamics.sample` with the same step and network, without trajectory or diagnostics
(no dependency of the project: left out where it is not installed, `pip install --no-deps torchebm`). One thread's CPU
time; median of {rounds} rounds; quartiles of the rounds' own ratios. Conditions: {langevin_conditions}.

{langevin}

The float32 products of matrices are the same in all three. Timed by themselves they are 36 % of torch eager's step in
the network 2-128-128-1 with 1000 chains and 43 % in 784-256-256-1 with 64, on the machine above: no step with such
products is more than 2.8 and 2.3 times as fast.

## Score matching by dimension

The gradient of one minibatch of {batch} by an energy's parameters, two hidden layers of swish units, as a multiple of
what the gradient of a plain loss (the mean square of the energy) takes: one projection for `SSM` (sliced score
matching) and `SSM-VR` (with |s|^2 as it is), which draw their directions anew. `exact` takes a product with the Hessian
for each dimension, and is measured up to {exact}: it keeps a graph for each. One thread's CPU time; medians of
{matching_rounds} rounds (`exact`: 3). Conditions: {matching_conditions}.

{matching}

![Cost by dimension](score-matching.png)

A perceptron's second derivative along a direction takes one pass ahead, for values and changes together, and one back.
Counted in products of matrices, SSM is 2 plain losses in the first layer and 3 in the others; |s|^2 adds three products
with the first layer's weights, so that SSM-VR nears 3.5 as the dimension grows. What is above that is passes over the
units and, in small networks, the calls themselves.

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
    sweeps, steps, gradients = gibbs.measure(), langevin.measure(), score_matching.measure()
    found = {"machine": machine(), "gibbs": sweeps, "fit": epochs, "langevin": steps, "score_matching": gradients}
    found |= {"conditions": {"langevin": langevin.conditions(), "score_matching": score_matching.conditions()}}
    write(found)


def write(found: dict[str, Any]) -> None:
    """The page and the numbers behind it."""
    (HERE / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    score_matching.draw(found["score_matching"], HERE / "score-matching.png")
    page = PAGE.format(
        machine=json.dumps(found["machine"]),
        gibbs=gibbs.table(found["gibbs"]),
        fit=fit.table(found["fit"]),
        rounds=langevin.ROUNDS,
        langevin=langevin.table(found["langevin"]),
        langevin_conditions=found["conditions"]["langevin"],
        batch=score_matching.BATCH,
        exact=score_matching.EXACT_UP_TO,
        matching=score_matching.table(found["score_matching"]),
        matching_rounds=score_matching.ROUNDS,
        matching_conditions=found["conditions"]["score_matching"],
    )
    (HERE / "README.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
