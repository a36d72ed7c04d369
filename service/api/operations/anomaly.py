"""Anomaly scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from service.api.errors import invalid
from service.api.operation import Answer, Call, Fields, Operation
from service.core.card import values_of

DEFAULT_FALSE_POSITIVE_RATE = 0.05


class AnomalyFields(Fields):
    """Beside `inputs`: at most one of threshold and rate."""

    score: str | None = Field(
        None,
        description="One of the card's `anomaly_scores`; the first where absent. `energy`: -log p(x) up to log Z; "
        "`max_softmax`: 1 - max p(y | x); `score_norm`: the norm of the gradient of log p(x), small where mass lies "
        "around x; `score_norms`: the sum over noise levels of sigma times the norm of the gradient at sigma.",
    )
    threshold: float | None = Field(None, description="Anomalous is what scores above it.")
    false_positive_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Anomalous is what has a p-value at or below it. Needs a reference; "
        f"{DEFAULT_FALSE_POSITIVE_RATE} where neither is sent.",
    )

    @model_validator(mode="after")
    def _one(self) -> AnomalyFields:
        if self.threshold is not None and self.false_positive_rate is not None:
            raise ValueError("send either threshold or false_positive_rate, not both")
        return self


class AnomalyAnswer(Answer):
    """How strange each input is to the model."""

    score: list[float | None] = Field(description="Higher is stranger; comparable within one model and version.")
    of: str = Field(description="Which score it is.")
    p_value: list[float | None] | None = Field(
        description="Share of the reference that is at least as strange; null where the model keeps no reference."
    )
    anomalous: list[bool] | None = Field(description="null where there is neither a threshold nor a reference.")
    threshold: float | None
    reference: dict[str, Any] | None = Field(description="What the p-values are measured against.")


class Anomaly(Operation):
    """`run(..., score: str, threshold | false_positive_rate: float, or neither)` -> `score` (n,), `of`, `p_value` (n,)
    or None, `anomalous` (n,) or None, `threshold`, `reference`.

    `false_positive_rate` is passed only where the model keeps a reference of the score, and there always unless a
    threshold is sent.
    """

    name: ClassVar[str] = "anomaly"
    summary: ClassVar[str] = "How strange each input is, with p-values against the training data."
    fields: ClassVar[type[Fields]] = AnomalyFields
    answer: ClassVar[type[Answer]] = AnomalyAnswer
    main: ClassVar[str] = "score"

    def arguments(self, call: Call) -> dict[str, Any]:
        """A score that the model has; a false-positive rate needs a reference of it."""
        given, card = super().arguments(call), call.card
        score = _score(call)
        if score not in card.anomaly_scores:
            known = ", ".join(card.anomaly_scores)
            raise invalid(("body", "score"), f"score is {score!r}; {card.name} has these: {known}.")
        if card.keeps_reference(score) and "threshold" not in given:
            return {"false_positive_rate": DEFAULT_FALSE_POSITIVE_RATE, **given}
        if "false_positive_rate" in given and not card.keeps_reference(score):
            raise invalid(
                ("body", "false_positive_rate"),
                f"{card.name} keeps no reference {values_of(score)} to take a false-positive rate from; "
                "send a threshold.",
            )
        return given

    def finish(self, call: Call, result: Mapping[str, Any]) -> dict[str, Any]:
        """Says why p-values or verdicts are missing, where they are."""
        body, score = super().finish(call, result), _score(call)
        if not call.card.keeps_reference(score):
            body["reason"] = f"the model keeps no reference {values_of(score)}, so there are no p-values" + (
                "" if "threshold" in call.arguments else "; without a threshold there are no verdicts either"
            )
        return body


def _score(call: Call) -> str:
    return str(call.fields.score or next(iter(call.card.anomaly_scores), "none"))
