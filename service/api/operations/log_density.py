"""Log-densities."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, Field

from service.api.operation import Answer, Operation


class LogPartition(BaseModel):
    """log Z, and how far it can be trusted."""

    value: float
    stderr: float | None
    method: str


class LogDensityAnswer(Answer):
    """log p(x), as far as log Z is known."""

    unnormalized_log_density: list[float | None] = Field(description="-E(x), nats.")
    kind: str = Field(description="What the unnormalized value is: exact, a lower_bound, or an estimate.")
    stderr: list[float | None] | None = Field(
        None, description="Standard error of each unnormalized value, nats; there where they are estimates."
    )
    log_density: list[float | None] | None = Field(description="-E(x) - log Z, nats; null where log Z is not known.")
    log_partition: LogPartition | None = Field(description="null where it has not been estimated.")


class LogDensity(Operation):
    """`run(...)` -> `unnormalized_log_density` (n,), `kind`, where it is an estimate `stderr` (n,), `log_density` (n,)
    or None, `log_partition` or None.
    """

    name: ClassVar[str] = "log-density"
    summary: ClassVar[str] = "Log-density of each input, normalized where log Z is known."
    answer: ClassVar[type[Answer]] = LogDensityAnswer
    main: ClassVar[str] = "unnormalized_log_density"
