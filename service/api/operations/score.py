"""Scores: gradients of the log-density."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from service.api.operation import Answer, Fields, Operation


class ScoreFields(Fields):
    """Beside `inputs`."""

    sigma: float | None = Field(
        None,
        gt=0,
        description="Noise level, for models with `sigmas` on their card: the score of the law blurred by Gaussian "
        "noise of this standard deviation, in units of the model's visibles. Any value from the smallest to the "
        "largest of them; where absent, the score of the model itself.",
    )


class ScoreAnswer(Answer):
    """grad_x log p(x)."""

    score: list[Any] = Field(description="(n, *shape).")
    relaxed: bool = Field(description="True where units are discrete: the score of the energy's continuous extension.")
    kind: str = Field(description="exact, or the approximation that the score is made by: mean_field.")
    sigma: float | None = Field(None, description="The noise level; there where it was sent.")


class Score(Operation):
    """`run(..., sigma: float)` -> `score` (n, *shape), `relaxed`, `kind`, and where it was sent `sigma`."""

    name: ClassVar[str] = "score"
    summary: ClassVar[str] = "Gradient of the log-density at each input."
    fields: ClassVar[type[Fields]] = ScoreFields
    answer: ClassVar[type[Answer]] = ScoreAnswer
    main: ClassVar[str] = "score"
