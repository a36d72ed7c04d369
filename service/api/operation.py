"""The contract of an operation: a synchronous question about inputs. One file in `operations/` is one, and its route.

Reading bodies, checking inputs, finding the model and encoding the answer are the same for all:
`endpoints/operations.py`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from service.api.inputs import Inputs
from service.core.card import Card
from service.settings import Settings


class Fields(BaseModel):
    """What a request may hold beside `inputs`. Anything else is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """What every answer begins with. Non-finite numbers stand as null, and `reason` then says where and why."""

    model: str = Field(description="The model that answered.", examples=["digits"])
    version: int = Field(description="Its version.", examples=[1])
    reason: str | None = Field(None, description="Why something is null; absent where nothing is.")


@dataclass(frozen=True)
class Call:
    """A request whose inputs fit the model."""

    card: Card
    inputs: Inputs
    fields: Any
    """An instance of the operation's `fields`."""
    settings: Settings
    arguments: dict[str, Any] = field(default_factory=dict)
    """What the operation made of the fields, once it has."""


class Operation(ABC):
    """One operation on one model."""

    name: ClassVar[str]
    """In the path, in a card's `capabilities`, and as `Models.run` is asked."""
    summary: ClassVar[str]
    fields: ClassVar[type[Fields]] = Fields
    answer: ClassVar[type[Answer]]
    """What the JSON answer looks like."""
    main: ClassVar[str]
    """The array that `Accept: application/x-npy` gets."""
    nulls: ClassVar[bool] = False
    """Whether null in `inputs` is an unknown unit instead of an error."""

    def arguments(self, call: Call) -> dict[str, Any]:
        """What `Models.run` is given beside the inputs. Raises a Problem for fields that do not fit the model."""
        return dict(call.fields.model_dump(exclude_none=True))

    def finish(self, call: Call, result: Mapping[str, Any]) -> dict[str, Any]:
        """The answer's body, from what `Models.run` gave back."""
        return {"model": call.card.name, "version": call.card.version, **result}
