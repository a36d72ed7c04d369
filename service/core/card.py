"""A model's card: all that a client, and the API, need to know of a model without touching its weights."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.manifest import Domain, LogPartitionRecord, Preprocessing, Training, Visible

ModelState = Literal["loading", "ready", "failed", "unavailable"]


def values_of(score: str) -> str:
    """An anomaly score's values, in words."""
    return "energies" if score == "energy" else f"values of {score}"


class Card(BaseModel):
    """A model's card. Further fields are kept and shown."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    family: str
    visible: Visible
    classes: list[int | str] | None = Field(
        None, description="Names of the classes, in the order of the model's outputs; 0..K-1 where they have none."
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
    digest: str = Field(
        description="SHA-256 of the weights file; of a composition, of its terms' digests, weights and labels."
    )
    state: ModelState = "ready"
    loaded_at: datetime | None = None

    preprocessing: Preprocessing | None = Field(
        None, description="What is done to inputs before the model sees them; they may then be any finite numbers."
    )
    weights: dict[str, Any] | None = Field(
        None, description="Arithmetic of the samplers and the largest rounding of a weight."
    )
    samplers: list[str] = Field(
        default_factory=list, description="Samplers that run on this model; the first is the default."
    )
    sampler_settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Hyper-parameters of those samplers that have any: a JSON schema of each."
    )
    estimators: list[str] = Field(
        default_factory=list, description="What a `log_partition` job's `method` may be on this model."
    )
    terms: list[dict[str, Any]] | None = Field(
        None, description="What a composition is the sum of: model, version, weight, label; null for other models."
    )
    warnings: list[str] = Field(
        default_factory=list, description="What to know of this very model before trusting its answers."
    )
    layers: list[str] = Field(default_factory=list, description="Hidden layers that have `features`, lowest first.")
    sigmas: list[float] | None = Field(
        None, description="Noise levels that the model is conditioned on, the largest first; null where it is on none."
    )
    anomaly_scores: list[str] = Field(
        default_factory=lambda: ["energy"], description="What `anomaly` can score by; the first is the default."
    )
    has_reference: bool = Field(False, description="Whether energies of held-out data are kept, for p-values.")
    reference_scores: list[str] = Field(
        default_factory=list, description="Anomaly scores beside the energy that values of held-out data are kept of."
    )
    init_data: bool = Field(False, description='Whether a `sample` job may start from data (`init: "data"`).')

    @property
    def input_domain(self) -> Domain:
        """What an input may be: with preprocessing, raw values are in units of their own."""
        return self.visible.domain if self.preprocessing is None else "real"

    def draws_dtype(self, clamped: bool) -> str:
        """Of a job's stored draws: one byte for discrete units, else float32, or float64 where units are held: those
        come back bit for bit."""
        match self.input_domain:
            case "binary":
                return "uint8"
            case "spin":
                return "int8"
        return "float64" if clamped else "float32"

    def default_estimator(self) -> str:
        """What `method` is where none is named."""
        return "ais" if "ais" in self.estimators or not self.estimators else self.estimators[0]

    def keeps_reference(self, score: str) -> bool:
        """Whether an anomaly score of held-out data is kept, for p-values."""
        return self.has_reference if score == "energy" else score in self.reference_scores

    def class_positions(self) -> dict[int | str, int]:
        """Positions of the classes by what a client may call them.

        A class is named as on the card, or by its position where no class is itself a number.
        """
        classes = self.classes or []
        known = {name: place for place, name in enumerate(classes)}
        if not any(isinstance(name, int) for name in classes):
            known |= {place: place for place in range(len(classes))}
        return known
