"""Sliced against denoising score matching on tables of ADBench.

`python -m benchmarks.score_matching_tables --data PATH`: the same network as energy, the same steps of Adam, learns the
normal rows of each table by both. Judged on rows that were not trained on: E[1/2 |s|^2 + tr(ds/dx)] of the normal ones,
exact, which is the Fisher divergence from their law but for a number that all models share; and how well energies tell
the anomalies. Denoising has a scale of noise, chosen for each seed by that figure on validation rows; which step is
kept is chosen so for both.

Recorded values are rounded, and laws on points have no score: every row, of all parts, has normal noise added, as usual
where densities are matched on such tables (Wenliang et al. 2019; Song et al. 2019).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.family import EnergyModel
from training import data
from training.config import Recipe, validated
from training.data import Dataset
from training.fit import FitState, begin, manifest, model_of, steps_per_epoch, train, watch
from training.likelihood import auroc, energies, wide
from training.objective import build
from training.smooth import score_along
from training.sources import find

TABLES = {"38_thyroid": 6, "44_Wilt": 5, "22_magic.gamma": 10, "40_vowels": 12}
"""Of continuous features, and how many those are."""
SIGMAS = (0.03, 0.1, 0.3)
SEEDS, STEPS, RECORDS = (0, 1, 2), 1500, 10
NOISE = 0.05
"""Standard deviation of what is added to standardised features."""
VERDICT = """By the figure of score matching itself sliced is the better on all four tables, by far: it climbs that very
figure, while denoising learns the law blurred further. By AUROC sliced is better on Wilt, the same within the
deviations on magic.gamma and vowels, and worse on thyroid: "at least as good as denoising" holds of the figure, and of
anomalies on three of four. The scale that matches scores best is not the one that tells anomalies best: with 0.3,
denoising has 0.987 on thyroid and 0.986 on vowels, above sliced, but 0.489 on Wilt."""
_VALIDATION, _TEST = 0.1, 0.4
"""Shares of the rows."""


def _recipe(table: str, rows: int, place: str, objective: dict[str, Any], seed: int) -> Recipe:
    return validated(
        {
            "name": "benchmark",
            "seed": seed,
            "data": {
                **{"dataset": f"adbench/{table}.npz", "place": place, "domain": "real", "anomaly": 1},
                **{"validation": int(_VALIDATION * rows), "test": int(_TEST * rows)},
            },
            "model": {"family": "mlp_energy", "architecture": {"hidden": [64, 64]}, "prior_std": 5.0},
            "objective": objective,
            "fit": {"epochs": 1, "batch_size": 100, "learning_rate": 2e-3, "optimizer": "adam"},
        },
        "benchmark",
    )


def _blurred(examples: Dataset) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    parts = (examples.train, examples.validation, examples.test)
    train, validation, test = (part + NOISE * torch.randn(part.shape, generator=generator) for part in parts)
    return replace(examples, train=train, validation=validation, test=test)


def exact_figure(model: EnergyModel, x: Tensor) -> float:
    """The mean of 1/2 |s(x)|^2 + tr(ds/dx)."""
    x, trace = x.to(model.dtype), torch.zeros((), dtype=model.dtype)
    for unit in range(x.shape[1]):
        v = torch.zeros_like(x)
        v[:, unit] = 1
        s, along = score_along(model, x, v)
        trace = trace + along[:, unit].detach().mean()
    return float(0.5 * s.detach().square().sum(1).mean() + trace)


def _fitted(recipe: Recipe, examples: Dataset) -> tuple[EnergyModel, float]:
    """The model in float64 at its best record, and its figure on validation rows."""
    in_epoch = steps_per_epoch(examples, recipe.fit)
    epochs = max(RECORDS, STEPS // in_epoch)
    fit = recipe.fit.model_copy(update={"epochs": epochs})
    monitored = recipe.monitor.model_copy(update={"watch": "score_matching_validation"})
    recipe = recipe.model_copy(update={"fit": fit, "monitor": monitored})
    of, objective = manifest(recipe, examples), build(recipe.objective)
    state = begin(recipe, examples, objective)

    def after_step(now: FitState) -> None:
        if now.step % (in_epoch * max(1, epochs // RECORDS)) == 0:
            watch(now, recipe, exact_figure(wide(of, model_of(of, now.parameters)), examples.validation[:500]))

    train(recipe, examples, objective, state, after_step)
    return wide(of, model_of(of, state.best)), min(state.watched)


def _found(table: str, place: str, seed: int) -> Iterator[dict[str, Any]]:
    rows = len(find(f"adbench/{table}.npz", place).train.examples)
    ways: list[dict[str, Any]] = [{"name": "sliced"}, *({"name": "denoising", "sigma": sigma} for sigma in SIGMAS)]
    for objective in ways:
        recipe = _recipe(table, rows, place, objective, seed)
        examples = _blurred(data.load(recipe.data))
        assert examples.test_anomalies is not None
        model, validation = _fitted(recipe, examples)
        odd = examples.test_anomalies
        yield {
            **{"table": table, "seed": seed, "objective": objective["name"], "sigma": objective.get("sigma")},
            "validation": validation,
            "score_matching": exact_figure(model, examples.test[~odd][:2000]),
            "auroc": auroc(energies(model, examples.test), odd),
        }


def measure(place: str) -> list[dict[str, Any]]:
    """Every run."""
    torch.set_num_threads(1)
    found = []
    for table in TABLES:
        for seed in SEEDS:
            for run in _found(table, place, seed):
                print(json.dumps(run), flush=True)
                found.append(run)
    return found


def chosen(runs: list[dict[str, Any]], table: str) -> dict[str, list[dict[str, Any]]]:
    """The runs that count, by objective, a seed each: of denoising the scale with the best validation figure."""
    own = [run for run in runs if run["table"] == table]
    seeds = sorted({run["seed"] for run in own})
    return {
        name: [
            min((r for r in own if r["objective"] == name and r["seed"] == seed), key=lambda r: float(r["validation"]))
            for seed in seeds
        ]
        for name in ("sliced", "denoising")
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| table (features) | score matching, sliced | denoising | scales chosen | AUROC, sliced | denoising |",
        "|---|---|---|---|---|---|",
    ]
    for name, features in TABLES.items():
        best = chosen(runs, name)
        figures = [
            _mean([run[key] for run in best[way]], digits)
            for key, digits in (("score_matching", 2), ("auroc", 3))
            for way in ("sliced", "denoising")
        ]
        scales = ", ".join(f"{sigma:g}" for sigma in sorted({run["sigma"] for run in best["denoising"]}))
        lines.append(f"| {name} ({features}) | {figures[0]} | {figures[1]} | {scales} | {figures[2]} | {figures[3]} |")
    return "\n".join(lines)


def _mean(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Measure, print and store."""
    from benchmarks import page

    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder that has adbench/")
    runs = measure(parser.parse_args().data)
    page.keep("score_matching_tables", runs)
    print(table(runs))


if __name__ == "__main__":
    main()
