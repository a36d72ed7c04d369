"""This folder's README.md, put together from what the scripts measured and stored beside it."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import fit, gibbs, jem_fashion, score_matching_tables

HERE = Path(__file__).parent

PAGE = """# Benchmarks

`make bench` measures the first two tables anew and writes `results.json` and this page. Ratios count, not absolute
times: the engines run in turn, in one process, on as many threads as each table says. Machine: `{machine}`.

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
        sigmas=", ".join(f"{sigma:g}" for sigma in score_matching_tables.SIGMAS),
        noise=score_matching_tables.NOISE,
        seeds=len(score_matching_tables.SEEDS),
        tables=score_matching_tables.table(_kept("score_matching_tables")["runs"]),
        tables_verdict=score_matching_tables.VERDICT,
        jem=jem_fashion.table(_kept("jem_fashion")["runs"]),
    )
    (HERE / "README.md").write_text(page)
    return page
