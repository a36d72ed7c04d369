"""Energies."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from service.api.inputs import parse_labels
from service.api.operation import Answer, Call, Fields, Operation


class EnergyFields(Fields):
    """Beside `inputs`."""

    labels: list[int | str] | int | str | None = Field(
        None, description="Classes y, one for each input or one for all: then the joint energy E(x, y)."
    )


class EnergyAnswer(Answer):
    """E(x), or E(x, y)."""

    energy: list[float | None] = Field(description="In nats, one for each input; up to log Z, -log p(x).")
    kind: str = Field(
        description="exact; lower_bound: minus the energy is one, on the unnormalized log-density; or estimate."
    )
    stderr: list[float | None] | None = Field(
        None, description="Standard error of each energy, nats; there where they are estimates."
    )


class Energy(Operation):
    """`run(..., labels: (n,) int64 positions in the card's classes)` -> `energy` (n,), `kind`, and where it is an
    estimate `stderr` (n,)."""

    name: ClassVar[str] = "energy"
    summary: ClassVar[str] = "Energy of each input, in nats."
    fields: ClassVar[type[Fields]] = EnergyFields
    answer: ClassVar[type[Answer]] = EnergyAnswer
    main: ClassVar[str] = "energy"

    def arguments(self, call: Call) -> dict[str, Any]:
        """Labels as positions."""
        labels = call.fields.labels
        return {} if labels is None else {"labels": parse_labels(labels, call.card, len(call.inputs))}
