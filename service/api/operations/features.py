"""Features."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from service.api.operation import Answer, Fields, Operation


class FeaturesFields(Fields):
    """Beside `inputs`."""

    layer: int | str | None = Field(
        None, description="Which of the card's `layers`, by name or by position from 1; the topmost where absent."
    )


class FeaturesAnswer(Answer):
    """Hidden representations."""

    features: list[Any] = Field(description="(n, H): hidden activations, or a network's penultimate layer.")
    layer: str = Field(description="The name of the layer that they are of.")


class Features(Operation):
    """`run(..., layer: int | str)` -> `features` (n, H), `layer`: its name."""

    name: ClassVar[str] = "features"
    summary: ClassVar[str] = "Hidden representation of each input."
    fields: ClassVar[type[Fields]] = FeaturesFields
    answer: ClassVar[type[Answer]] = FeaturesAnswer
    main: ClassVar[str] = "features"
