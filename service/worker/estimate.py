"""Jobs of kind `log_partition`: an estimator in a thread of its own, beside the chains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from models import checkpoint
from models.catalog import estimators, estimators_of
from models.errors import CapabilityError
from models.estimator import Effort, LogPartition
from service.core.job import Claim, LogPartitionSpec, Progress
from service.runtime.library import Served

_log = structlog.get_logger(__name__)


class _Cancelled(Exception):  # noqa: N818
    pass


class Estimate:
    """One running estimate. It is not checkpointed: whoever takes the job over begins again, with the same result."""

    def __init__(
        self,
        claim: Claim,
        served: Served,
        on_done: Callable[[Estimate, LogPartition | Exception], None],
    ) -> None:
        self.claim = claim
        self._served = served
        self._spec = LogPartitionSpec.model_validate(claim.payload)
        self._on_done = on_done
        self._cancelled = threading.Event()
        self._fraction = 0.0
        model = served.checkpoint.model
        if self._spec.method not in estimators_of(model):
            raise CapabilityError(f"family {model.name!r} has no {self._spec.method!r} estimate of log Z")
        self._estimator = estimators()[self._spec.method]()
        self._thread = threading.Thread(target=self._run, name=f"estimate-{claim.id[:8]}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Stop at the next temperature; `on_done` is not called."""
        self._cancelled.set()

    def progress(self) -> Progress:
        """Temperatures passed, times chains."""
        total = self._spec.chains * self._spec.temperatures
        return Progress(int(self._fraction * total), total, "chain-temperatures")

    def result(self, estimate: LogPartition) -> dict[str, Any]:
        """The job's result; the estimate is put on the model's card."""
        folder: Path = self._served.checkpoint.folder
        try:
            checkpoint.set_log_partition(folder, estimate.value, estimate.stderr, estimate.method)
            on_card = True
        except OSError as error:
            _log.warning("estimate not written to the checkpoint", folder=str(folder), reason=str(error))
            on_card = False
        return {
            "log_partition": {"value": estimate.value, "stderr": estimate.stderr, "method": estimate.method},
            "on_card": on_card,
            "media_types": ["application/json"],
        }

    def _run(self) -> None:
        try:
            effort = Effort(self._spec.chains, self._spec.temperatures, self._spec.seed)
            outcome: LogPartition | Exception = self._estimator.estimate(
                self._served.checkpoint.model, effort, self._advance
            )
        except _Cancelled:
            return
        except Exception as error:
            outcome = error
        self._on_done(self, outcome)

    def _advance(self, done: int, total: int) -> None:
        if self._cancelled.is_set():
            raise _Cancelled
        self._fraction = done / total
