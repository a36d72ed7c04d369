"""This folder's README.md, put together from what the scripts measured and stored beside it."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import fit, gibbs, jem_fashion, langevin, score_matching, score_matching_tables

HERE = Path(__file__).parent

PAGE = """# Benchmarks

`make bench` measures the first four tables anew and writes `results.json` and this page. Ratios count, not absolute
times: the engines run in turn, in one process, on as many threads as each table says. Machine: `{machine}`.

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
time; median of {langevin_rounds} rounds; quartiles of the rounds' own ratios. Conditions: {langevin_conditions}.

{langevin}

The float32 products of matrices are the same in all three. Timed by themselves they are 36 % of torch eager's step in
the network 2-128-128-1 with 1000 chains and 43 % in 784-256-256-1 with 64, on the machine above: no step with such
products is more than 2.8 and 2.3 times as fast.

## Score matching by dimension

The gradient of one minibatch of {matching_batch} by an energy's parameters, two hidden layers of swish units, as a
multiple of what the gradient of a plain loss (the mean square of the energy) takes: one projection for `SSM` (sliced
score matching) and `SSM-VR` (with |s|^2 as it is), which draw their directions anew. `exact` takes a product with the
Hessian for each dimension, and is measured up to {matching_exact}: it keeps a graph for each. One thread's CPU time;
medians of {matching_rounds} rounds (`exact`: 3). Conditions: {matching_conditions}.

{matching}

![Cost by dimension](score-matching.png)

A perceptron's second derivative along a direction takes one pass ahead, for values and changes together, and one back.
Counted in products of matrices, SSM is 2 plain losses in the first layer and 3 in the others; |s|^2 adds three products
with the first layer's weights, so that SSM-VR nears 3.5 as the dimension grows. What is above that is passes over the
units and, in small networks, the calls themselves.

## Training, 784x500 RBM, minibatches of 100

An epoch of 60,000 examples, binary and random, of MNIST's density: `training.fit.train` with the objectives `cd` and
`pcd` (one sweep, 100 chains, no centring) against `BernoulliRBM.fit`, whose algorithm is PCD-1. Ours keeps parameters
and sums in float32 and multiplies in bfloat16 (`objective.products`), theirs is float32 throughout. Median of 15
rounds: with 5, ratios from 2.0 to 3.1 were seen on this virtual machine, whose neighbours are unknown. Both BLAS
libraries keep idle threads spinning: a pause comes before each engine, and figures taken on a machine that does other
work are worth nothing.

{fit}

## Completion of MNIST digits through the service

`python -m benchmarks.complete_mnist PATH/mnist.npz out.png` asks a running service of `rbm-mnist` for the lower
halves of 16 test digits and draws them: the digit, its clamped upper half, four completions, the posterior mean.
Training with `ebm train rbm-mnist` (10 epochs, 784-500); of the unknown pixels the mean got 92.3 % right, where
always guessing "off" gets 84.4 %.

![completions](mnist-completions.png)

## Sliced against denoising score matching on tables

`python -m benchmarks.score_matching_tables --data PATH` trains the same network (64-64, `mlp_energy`) on the normal
rows of tables of ADBench by `sliced` and by `denoising`. "Score matching" is E[1/2 |s|^2 + tr(ds/dx)] of normal test
rows, exact: less is better, and two figures of a table differ as the Fisher divergences from its law do. The scale of
`denoising` is the best of {sigmas} by that figure on validation rows, chosen for each seed. AUROC is how well
energies tell the anomalies among the test rows. Features are standardised, and then have noise of standard deviation
{noise:g} added: recorded values are rounded, and laws on points have no score. Mean and standard deviation of {seeds}
seeds.

{tables}

{tables_verdict}

## A classifier as an energy: Fashion-MNIST

`python -m benchmarks.jem_fashion --data PATH` trains the network of `jem-fashion` for the same number of epochs as a
classifier (`cross_entropy` alone) and as the recipe has it, and compares both on the test images. AUROC is how well a
score tells images of MNIST and notMNIST from the Fashion-MNIST test images, 2,000 of each; `energy` is -log p(x) up to
log Z.

{jem}

Three epochs are far from the published effort, a hundred and more: these are figures of a short run of one seed, and
the accuracies are the same but for chance. As energies both networks are the same function of the logits: it is the
Langevin negatives that make the energy tell other images. Softmax and norm of the score do not tell them here.
"""


def _kept(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text())


def keep(name: str, found: Any) -> None:
    """Store what was measured and where, and write the page anew."""
    (HERE / f"{name}.json").write_text(json.dumps({"machine": machine(), "runs": found}, indent=2) + "\n")
    write()


def machine() -> dict[str, object]:
    """Where the figures were measured."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cpu": cpu.partition(": ")[2] or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "numba", "scikit-learn")},
    }


def write() -> str:
    """README.md, from the stored figures; returns it."""
    found = _kept("results")
    page = PAGE.format(
        machine=json.dumps(found["machine"]),
        gibbs=gibbs.table(found["gibbs"]),
        fit=fit.table(found["fit"]),
        langevin_rounds=langevin.ROUNDS,
        langevin=langevin.table(found["langevin"]),
        langevin_conditions=found["conditions"]["langevin"],
        matching_batch=score_matching.BATCH,
        matching_exact=score_matching.EXACT_UP_TO,
        matching=score_matching.table(found["score_matching"]),
        matching_rounds=score_matching.ROUNDS,
        matching_conditions=found["conditions"]["score_matching"],
        sigmas=", ".join(f"{sigma:g}" for sigma in score_matching_tables.SIGMAS),
        noise=score_matching_tables.NOISE,
        seeds=len(score_matching_tables.SEEDS),
        tables=score_matching_tables.table(_kept("score_matching_tables")["runs"]),
        tables_verdict=score_matching_tables.VERDICT,
        jem=jem_fashion.table(_kept("jem_fashion")["runs"]),
    )
    (HERE / "README.md").write_text(page)
    return page
