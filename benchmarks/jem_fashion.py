"""A network as classifier and as joint energy-based model of Fashion-MNIST (MATH 10; Grathwohl et al. 2020).

`python -m benchmarks.jem_fashion --data PATH`: the recipe `jem-fashion`, and the same with cross-entropy alone, for as
many epochs. Accuracy and calibration on the test images, and how well each anomaly score tells other images from them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.anomaly import scores_of
from models.family import EnergyModel, HasClasses
from training import config, data
from training.config import DataSettings, Recipe
from training.data import Dataset
from training.fit import begin, manifest, model_of, train
from training.likelihood import auroc, classification, scored, wide
from training.objective import build

OTHERS = ("MNIST", "notMNIST")
_SHOWN = 2000
"""Images of each data set that anomaly scores are compared on."""


def _trained(recipe: Recipe, examples: Dataset) -> tuple[EnergyModel, float]:
    """The model, and the seconds of processor time that it took."""
    objective, began = build(recipe.objective), time.process_time()
    state = begin(recipe, examples, objective)
    train(recipe, examples, objective, state, lambda _: None)
    return model_of(manifest(recipe, examples), state.result), time.process_time() - began


def _others(place: str) -> dict[str, Tensor]:
    mnist = data.load(DataSettings(dataset="mnist", place=place, domain="unit", validation=5000)).test
    letters = np.load(Path(place) / "notmnist" / "notmnist_t10k.npz")["x_test"].astype(np.float32) / 255
    return dict(zip(OTHERS, (mnist, torch.from_numpy(letters).flatten(1)), strict=True))


def _some(images: Tensor) -> Tensor:
    return images[torch.linspace(0, len(images) - 1, _SHOWN).long()]


def measure(place: str, settings: list[str]) -> list[dict[str, Any]]:
    """Both models."""
    torch.set_num_threads(1)
    recipe = config.load("jem-fashion", [f"data.place={place}", *settings])
    alone = recipe.model_copy(update={"objective": {"name": "cross_entropy"}})
    examples, others, found = data.load(recipe.data), _others(place), []
    for name, way in (("classifier", alone), ("JEM", recipe)):
        model, seconds = _trained(way, examples)
        exact = wide(manifest(way, examples), model)
        assert isinstance(exact, HasClasses)
        assert examples.test_labels is not None
        error, calibration = classification(exact, examples.test, examples.test_labels)
        run: dict[str, Any] = {
            "model": name,
            "epochs": way.fit.epochs,
            "seconds": round(seconds),
            "objective": way.objective,
        }
        run |= {"accuracy": 1 - error, "calibration_error": calibration, "auroc": {}}
        for score in scores_of(model):
            usual = scored(model, score, _some(examples.test))
            for other, images in others.items():
                both = torch.cat((usual, scored(model, score, _some(images))))
                run["auroc"][f"{score}, {other}"] = auroc(both, torch.arange(len(both)) >= len(usual))
        print(run, flush=True)
        found.append(run)
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown."""
    first, second = runs
    rows = [
        ("epochs", *(f"{run['epochs']}" for run in runs)),
        ("minutes of training, one thread", *(f"{run['seconds'] / 60:.1f}" for run in runs)),
        ("accuracy", *(f"{run['accuracy']:.2%}" for run in runs)),
        ("expected calibration error", *(f"{run['calibration_error']:.2%}" for run in runs)),
    ]
    rows += [(f"AUROC by {key}", *(f"{run['auroc'][key]:.3f}" for run in runs)) for key in first["auroc"]]
    lines = [f"| | {first['model']} | {second['model']} |", "|---|---|---|"]
    return "\n".join((*lines, *(f"| {what} | {one} | {other} |" for what, one, other in rows)))


def main() -> None:
    """Measure, print and store."""
    from benchmarks import page

    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder that has fashion_mnist, mnist and notmnist")
    parser.add_argument("--set", action="append", default=[], help="settings in place of the recipe's")
    asked = parser.parse_args()
    runs = measure(asked.data, asked.set)
    page.keep("jem_fashion", runs)
    print(table(runs))


if __name__ == "__main__":
    main()
