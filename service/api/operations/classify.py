"""Classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, Field

from service.api.errors import invalid
from service.api.operation import Answer, Call, Fields, Operation


class ClassifyFields(Fields):
    """Beside `inputs`."""

    top_k: int | None = Field(None, ge=1, description="Adds the k likeliest classes of each input, likeliest first.")


class Candidate(BaseModel):
    """A class and its probability."""

    label: int | str
    probability: float | None


class ClassifyAnswer(Answer):
    """p(y | x)."""

    probabilities: list[list[float | None]] = Field(description="(n, K), in the order of `classes`.")
    labels: list[int | str] = Field(description="The likeliest class of each input.")
    classes: list[int | str]
    kind: str = Field(description="How the probabilities are had: exact, mean_field, recognition or estimate.")
    top: list[list[Candidate]] | None = Field(None, description="(n, top_k); there where `top_k` was sent.")


class Classify(Operation):
    """`run(...)` -> `probabilities` (n, K), `kind`."""

    name: ClassVar[str] = "classify"
    summary: ClassVar[str] = "Class probabilities of each input."
    fields: ClassVar[type[Fields]] = ClassifyFields
    answer: ClassVar[type[Answer]] = ClassifyAnswer
    main: ClassVar[str] = "probabilities"

    def arguments(self, call: Call) -> dict[str, Any]:
        """Nothing: `top_k` is the answer's own affair, but must not be beyond the classes."""
        classes = call.card.classes or []
        if (call.fields.top_k or 0) > len(classes):
            message = f"top_k is {call.fields.top_k}; the model has {len(classes)} classes."
            raise invalid(("body", "top_k"), message)
        return {}

    def finish(self, call: Call, result: Mapping[str, Any]) -> dict[str, Any]:
        """Adds labels, classes and the top k."""
        probabilities, classes = np.asarray(result["probabilities"]), call.card.classes or []
        order = np.argsort(-probabilities, axis=1, kind="stable")
        body = {
            **super().finish(call, result),
            "labels": [classes[place] for place in order[:, 0]],
            "classes": classes,
        }
        if call.fields.top_k is not None:
            body["top"] = [
                [{"label": classes[place], "probability": row[place]} for place in ranked]
                for ranked, row in zip(order[:, : call.fields.top_k].tolist(), probabilities.tolist(), strict=True)
            ]
        return body
