"""A model's card: all that a client, and the API, need to know of a model without touching its weights."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.manifest import Domain, LogPartitionRecord, Preprocessing, Training, Visible

ModelState = Literal["loading", "ready", "failed", "unavailable"]


class Card(BaseModel):
    """A model's card. Further fields are kept and shown."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    family: str
    visible: Visible
    classes: list[int | str] | None = Field(
        None, description="Names of the classes, in the order of the model's outputs."
    )
    capabilities: list[str] = Field(
        description="What the model can be asked for: the operations `energy`, `log-density`, `score`, `classify`, "
        "`features`, `complete`, `anomaly`, and the job kinds `sample` and `log_partition`."
    )
    energy_kind: str
    log_partition: LogPartitionRecord | None = None
    training: Training | None = None
    backend: str = "torch"
    device: str = "cpu"
    digest: str = Field(description="SHA-256 of the weights file.")
    state: ModelState = "ready"
    loaded_at: datetime | None = None

    preprocessing: Preprocessing | None = Field(
        None, description="What is done to inputs before the model sees them; they may then be any finite numbers."
    )
    weights: dict[str, Any] | None = Field(
        None, description="Arithmetic of the sampler and the largest rounding of a weight."
    )
    samplers: list[str] = Field(
        default_factory=list, description="Samplers that run on this model; the first is the default."
    )
    has_reference: bool = Field(False, description="Whether training energies are kept, for p-values.")
    init_data: bool = Field(False, description='Whether a `sample` job may start from data (`init: "data"`).')

    @property
    def input_domain(self) -> Domain:
        """What an input may be: with preprocessing, raw values are in units of their own."""
        return self.visible.domain if self.preprocessing is None else "real"
