"""How strange an example is to a model: scores of which the higher is the stranger (Grathwohl et al. 2020; MATH 10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from models.family import EnergyModel, HasClasses, HasNoiseScales, HasScore


@dataclass(frozen=True)
class AnomalyScore:
    """One way to score."""

    applies_to: Callable[[EnergyModel], bool]
    """Whether the model has what the score needs."""
    of: Callable[[Any, Float[Tensor, "n visible"]], Float[Tensor, " n"]]
    """The score of each row, float64; of a model that it applies to."""


def _energy(model: EnergyModel, x: Tensor) -> Tensor:
    return model.energy(x).double()


def _max_softmax(model: HasClasses, x: Tensor) -> Tensor:
    return -torch.expm1(model.class_log_probs(x).double().amax(1))


def _score_norm(model: HasScore, x: Tensor) -> Tensor:
    return _norm(model.score(x))


def _score_norms(model: HasNoiseScales, x: Tensor) -> Tensor:
    norms = [sigma * _norm(model.blurred_score(x, sigma)) for sigma in model.sigmas]
    return torch.stack(norms).sum(0)


def _norm(rows: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(rows.double(), dim=1)
    return found


def _has_classes(model: EnergyModel) -> bool:
    return isinstance(model, HasClasses) and model.class_count > 0


def _has_smooth_score(model: EnergyModel) -> bool:
    return isinstance(model, HasScore) and "score" not in model.lacks and not model.score_is_relaxed


SCORES: Mapping[str, AnomalyScore] = {
    "energy": AnomalyScore(lambda model: "energy" not in model.lacks, _energy),
    "max_softmax": AnomalyScore(_has_classes, _max_softmax),
    "score_norm": AnomalyScore(_has_smooth_score, _score_norm),
    "score_norms": AnomalyScore(lambda model: isinstance(model, HasNoiseScales), _score_norms),
}
"""By name. `energy`: E(x), -log p(x) up to log Z. `max_softmax`: 1 - max_y p(y | x). `score_norm`: |grad_x log p(x)|,
which is small where mass lies around x and not density alone (approximate mass); of continuous visibles. `score_norms`:
the sum over the noise levels of sigma |grad_x log p_sigma(x)|, the weights making the levels comparable."""


def scores_of(model: EnergyModel) -> list[str]:
    """Names of the scores that the model has, its default first."""
    if "anomaly" in model.lacks:
        return []
    return [name for name, score in SCORES.items() if score.applies_to(model)]
