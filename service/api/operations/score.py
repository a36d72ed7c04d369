"""Scores: gradients of the log-density."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from service.api.operation import Answer, Fields, Operation


class ScoreFields(Fields):
    """Beside `inputs`."""

    sigma: float | None = Field(None, gt=0, description="Noise level, for models that are conditioned on it.")


class ScoreAnswer(Answer):
    """grad_x log p(x)."""

    score: list[Any] = Field(description="(n, *shape).")
    relaxed: bool = Field(description="True where units are discrete: the score of the energy's continuous extension.")
    kind: str = Field(description="exact, or the approximation that the score is made by: mean_field.")


class Score(Operation):
    """`run(..., sigma: float)` -> `score` (n, *shape), `relaxed`, `kind`."""

    name: ClassVar[str] = "score"
    summary: ClassVar[str] = "Gradient of the log-density at each input."
    fields: ClassVar[type[Fields]] = ScoreFields
    answer: ClassVar[type[Answer]] = ScoreAnswer
    main: ClassVar[str] = "score"
