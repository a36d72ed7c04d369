"""What can go wrong between a request and its answer besides the request itself.

ServiceError
├── UnknownModel   no model of that name or version
├── NotReady       it exists, but cannot answer now
└── Overloaded     it could answer, but too much is waiting
"""

from __future__ import annotations


class ServiceError(Exception):
    """Base of the service's own errors. The message is meant for the user."""


class UnknownModel(ServiceError):  # noqa: N818 - named for the answer it becomes
    """No model of that name (or that version of it) is served."""


class NotReady(ServiceError):  # noqa: N818
    """The model, or what a request needs of the service, cannot answer yet."""

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(ServiceError):  # noqa: N818
    """More synchronous work is waiting than the model may queue."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
