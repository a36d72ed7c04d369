"""Everything that can be wrong with a model or with what it is asked.

ModelError
├── CheckpointError      a checkpoint that cannot be read or written as it stands
├── InputError           values outside the model's shape or domain, or a setting out of range
└── CapabilityError      something that this family cannot do
"""

from __future__ import annotations

from collections.abc import Iterable


class ModelError(Exception):
    """Base of the errors that `models` raises on purpose. The message is meant for the user."""


class CheckpointError(ModelError):
    """A checkpoint is missing, malformed or does not match its digest."""


class InputError(ModelError):
    """A value was outside what was expected; the message says what was expected. `field` names the request field."""

    def __init__(self, message: str, field: str = "inputs") -> None:
        super().__init__(message)
        self.field = field


class CapabilityError(ModelError):
    """The model cannot do what was asked; `available` says what it can."""

    def __init__(self, message: str, available: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.available = tuple(available)
