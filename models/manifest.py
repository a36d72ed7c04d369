"""`manifest.json`: what a checkpoint says of itself. Reads and checks; imports no torch."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import CheckpointError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

Domain = Literal["binary", "spin", "real", "unit"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Visible(_Record):
    """The visible units: the shape of one example, and the values that a unit can take."""

    shape: list[int] = Field(min_length=1)
    domain: Domain

    @field_validator("shape")
    @classmethod
    def _positive(cls, shape: list[int]) -> list[int]:
        if any(size < 1 for size in shape):
            raise ValueError("every size must be at least 1")
        return shape

    @property
    def units(self) -> int:
        """D, the number of visible units."""
        return math.prod(self.shape)


class LogPartitionRecord(_Record):
    """A known log Z (nats), its standard error and how it was had."""

    value: float
    stderr: float = Field(ge=0)
    method: str


class Training(_Record):
    """Where the weights came from."""

    objective: str | None = None
    dataset: str | None = None
    steps: int | None = None
    epochs: int | None = None
    seed: int | None = None
    metrics: dict[str, Any] | None = None
    command: str | None = None
    created_at: str | None = None
    library_versions: dict[str, str] | None = None


class Preprocessing(_Record):
    """What is done to inputs before the model sees them: (x - mean) / std, or x * scale."""

    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    scale: float | None = None

    @field_validator("std")
    @classmethod
    def _divides(cls, std: float | list[float] | None) -> float | list[float] | None:
        if std is not None and any(s <= 0 for s in (std if isinstance(std, list) else [std])):
            raise ValueError("every standard deviation must be above 0")
        return std

    @model_validator(mode="after")
    def _one_way(self) -> Preprocessing:
        if (self.scale is None) == (self.mean is None and self.std is None):
            raise ValueError("give either mean and std, or scale")
        return self


class Manifest(_Record):
    """The whole of `manifest.json`. Unknown keys are kept."""

    format: Literal["ebm-checkpoint"] = "ebm-checkpoint"
    format_version: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    family: str
    visible: Visible
    classes: list[str | int] | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    log_partition: LogPartitionRecord | None = None
    training: Training | None = None
    digest: str | None = None
    preprocessing: Preprocessing | None = None

    @property
    def layers(self) -> list[int]:
        """`config.layers` of a model of several layers: [D, H1, .., Hk].

        Raises:
            CheckpointError: it is missing, or no such list, or does not begin with the visible units.
        """
        sizes = self.config.get("layers")
        if not isinstance(sizes, list) or len(sizes) < 2 or not all(type(s) is int and s > 0 for s in sizes):
            raise CheckpointError(f"config.layers must be a list [D, H1, .., Hk] of positive integers; found {sizes!r}")
        if sizes[0] != self.visible.units:
            raise CheckpointError(f"config.layers begins with {sizes[0]}, but there are {self.visible.units} visibles")
        return sizes

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Manifest:
        """Parse and check. `source` names the file in errors.

        Raises:
            CheckpointError: not JSON, or a key is missing or has the wrong form; all of them are named.
        """
        try:
            manifest = cls.model_validate_json(text)
            json.loads(text, parse_constant=_refuse)  # pydantic's parser lets NaN through under keys it does not know
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()
            )
            raise CheckpointError(f"{source}: {faults}") from error
        except ValueError as error:
            raise CheckpointError(f"{source}: {error}") from error
        return manifest


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON; write null for a number that is not known")


def check_name(name: str) -> str:
    """`name` if it can name a model.

    Raises:
        CheckpointError: it cannot.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise CheckpointError(
            f"model name {name!r}: use letters, digits, '.', '_' and '-', at most 128, starting with a letter or digit"
        )
    return name
