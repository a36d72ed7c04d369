"""A model's card: all that a client, and the API, need to know of a model without touching its weights."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Domain = Literal["binary", "spin", "unit", "real"]
"""Values of one visible unit: {0, 1}, {-1, 1}, [0, 1] or any finite number."""

ModelState = Literal["loading", "ready", "failed", "unavailable"]


class Visible(BaseModel):
    """The visible units: the shape of one example and the values that a unit takes."""

    model_config = ConfigDict(frozen=True)

    shape: tuple[int, ...] = Field(min_length=1)
    domain: Domain

    @property
    def size(self) -> int:
        """D, the number of visible units."""
        return math.prod(self.shape)


class LogPartition(BaseModel):
    """An estimate of log Z in nats; `stderr` is 0 where it is exact."""

    model_config = ConfigDict(extra="allow")

    value: float
    stderr: float | None = None
    method: str


class Training(BaseModel):
    """How the weights came about."""

    model_config = ConfigDict(extra="allow")

    objective: str | None = None
    dataset: str | None = None
    steps: int | None = None
    seed: int | None = None
    metrics: dict[str, Any] | None = None


class Card(BaseModel):
    """A model's card. Further fields are kept and shown."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    family: str
    visible: Visible
    classes: list[int | str] | None = Field(None, description="Names of the classes, in the order of the model's outputs.")
    capabilities: list[str] = Field(
        description="What the model can be asked for: the operations `energy`, `log_density`, `score`, `classify`, "
        "`features`, `complete`, `anomaly`, and the job kinds `sample` and `log_partition`."
    )
    energy_kind: str
    log_partition: LogPartition | None = None
    training: Training | None = None
    backend: str = "torch"
    device: str = "cpu"
    digest: str = Field(description="SHA-256 of the weights file.")
    state: ModelState = "ready"
    loaded_at: datetime | None = None

    weights: dict[str, Any] | None = Field(None, description="Arithmetic of the sampler and the largest rounding of a weight.")
    samplers: list[str] = Field(
        default_factory=list, description="Samplers that run on this model; the first is the default."
    )
    has_reference: bool = Field(False, description="Whether training energies are kept, for p-values.")
    init_data: bool = Field(False, description='Whether a `sample` job may start from data (`init: "data"`).')
