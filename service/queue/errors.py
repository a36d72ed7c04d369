"""What the queue refuses, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

UNREACHABLE = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ReadOnlyError)
"""A server that is down, restarting, loading its data or being replaced; a later call may well succeed."""


class QueueError(Exception):
    """Root of everything that the queue raises of its own."""


class QueueUnavailable(QueueError):  # noqa: N818
    """The server could not be reached, or does not take writes at the moment."""


class QueueFull(QueueError):  # noqa: N818
    """As many jobs as the limit allows already wait for the model."""

    def __init__(self, model: str, depth: int, retry_after_s: float) -> None:
        super().__init__(f"{depth} jobs already wait for model {model!r}; try again in {retry_after_s:g} s")
        self.model = model
        self.depth = depth
        self.retry_after_s = retry_after_s


class IdempotencyConflict(QueueError):  # noqa: N818
    """The idempotency key (or the job's id) already stands for another request."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the same key was sent before with another request body, which made job {job_id}")
        self.job_id = job_id


@contextmanager
def reachable() -> Iterator[None]:
    """Turns every way of not reaching the server into `QueueUnavailable`."""
    try:
        yield
    except UNREACHABLE as error:
        raise QueueUnavailable(f"the job queue's server cannot be reached: {error}") from error
