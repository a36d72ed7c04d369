"""Anomaly scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from service.api.errors import invalid
from service.api.operation import Answer, Call, Fields, Operation

DEFAULT_FALSE_POSITIVE_RATE = 0.05


class AnomalyFields(Fields):
    """Beside `inputs`: at most one of the two."""

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
    p_value: list[float | None] | None = Field(
        description="Share of the reference that is at least as strange; null where the model keeps no reference."
    )
    anomalous: list[bool] | None = Field(description="null where there is neither a threshold nor a reference.")
    threshold: float | None
    reference: dict[str, Any] | None = Field(description="What the p-values are measured against.")


class Anomaly(Operation):
    """`run(..., threshold | false_positive_rate: float, or neither)` -> `score` (n,), `p_value` (n,) or None,
    `anomalous` (n,) or None, `threshold`, `reference`.

    `false_positive_rate` is passed only to models with a reference, and always to those where no threshold is sent.
    """

    name: ClassVar[str] = "anomaly"
    summary: ClassVar[str] = "How strange each input is, with p-values against the training data."
    fields: ClassVar[type[Fields]] = AnomalyFields
    answer: ClassVar[type[Answer]] = AnomalyAnswer
    main: ClassVar[str] = "score"

    def arguments(self, call: Call) -> dict[str, Any]:
        """A false-positive rate needs a reference."""
        given, card = super().arguments(call), call.card
        if card.has_reference and not given:
            return {"false_positive_rate": DEFAULT_FALSE_POSITIVE_RATE}
        if "false_positive_rate" in given and not card.has_reference:
            raise invalid(
                ("body", "false_positive_rate"),
                f"{card.name} keeps no reference energies to take a false-positive rate from; send a threshold.",
            )
        return given

    def finish(self, call: Call, result: Mapping[str, Any]) -> dict[str, Any]:
        """Says why p-values or verdicts are missing, where they are."""
        body = super().finish(call, result)
        if not call.card.has_reference:
            body["reason"] = "the model keeps no reference energies, so there are no p-values" + (
                "" if call.arguments else "; without a threshold there are no verdicts either"
            )
        return body
