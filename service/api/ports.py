"""What the API needs of the rest of the service. Whatever fits these shapes can stand behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.core.card import Card
from service.core.job import JobEvent, JobRecord, JobStatus, SamplerSpec, Submission

Array = NDArray[Any]

Page = tuple[list[JobRecord], str | None]
"""Records, and the cursor of the next page or None on the last one."""


class Models(Protocol):
    """The models that are served."""

    def cards(self) -> list[Card]:
        """Every model and version, also those that are not ready."""
        ...

    def card(self, name: str, version: int | None) -> Card:
        """The card of that version, or of the newest that is ready.

        Raises:
            UnknownModel: there is none of that name or version.
            NotReady: there is, but it cannot answer now.
        """
        ...

    def check_sampler(self, card: Card, spec: SamplerSpec) -> None:
        """Does nothing where the sampler runs on the model with these settings.

        Raises:
            InputError: it has no such setting, or not with such a value.
        """
        ...

    async def run(
        self, card: Card, operation: str, inputs: NDArray[np.floating[Any]], **fields: Any
    ) -> Mapping[str, Any]:
        """Computes one operation off the event loop.

        `inputs` is (n, *visible.shape), C-contiguous, float64 (as from JSON) or float32, inside the model's domain.
        `fields` and the keys of what comes back are those that each class in `service.api.operations` documents.

        Raises:
            InputError: something that only the family can check; its `field` names the request field.
            CapabilityError: something that this family cannot do.
            Overloaded: too much is waiting.
        """
        ...


class JobQueue(Protocol):
    """Where jobs wait, and what is known of them. Every call may raise `QueueUnavailable`."""

    async def submit(self, submission: Submission) -> tuple[JobRecord, bool]:
        """The job, and whether this call made it (False: the idempotency key was known).

        Raises:
            QueueFull: too many jobs wait for the model.
            IdempotencyConflict: the key was used for another request.
        """
        ...

    async def get(self, job_id: str) -> JobRecord | None:
        """The job, or None."""
        ...

    async def list(
        self,
        owner: str | None = None,
        status: JobStatus | None = None,
        model: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """The owner's jobs, newest first. Raises ValueError for a cursor that is none."""
        ...

    async def cancel(self, job_id: str) -> JobRecord | None:
        """Cancels: a queued job at once, a running one within a block; the job as it is then, or None."""
        ...

    def events(self, job_id: str, last_id: str = "0") -> AsyncIterator[JobEvent]:
        """Events after `last_id`, as they come; ends after `done`."""
        ...

    async def ping(self) -> None:
        """Raises `QueueUnavailable` unless the queue answers."""
        ...

    async def depth(self) -> Mapping[str, int]:
        """Jobs waiting, by model."""
        ...

    async def workers(self) -> Sequence[Mapping[str, Any]]:
        """What every live worker says of itself."""
        ...


class JobFiles(Protocol):
    """The arrays of a job. Calls block: use them from a thread."""

    def write_inputs(self, job_id: str, arrays: Mapping[str, Array]) -> None:
        """Stores the arrays that a job starts from, before it is submitted."""
        ...

    def open_array(self, job_id: str, name: str) -> Array:
        """A finished array, as a read-only memory map."""
        ...

    def remove(self, job_id: str) -> None:
        """Deletes all of a job's files."""
        ...
