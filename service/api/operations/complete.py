"""Completion of partly known inputs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.manifest import Domain
from service.api.errors import invalid
from service.api.inputs import clamped, parse_labels
from service.api.operation import Answer, Call, Fields, Operation
from service.api.sampler import SamplerField, parse_sampler
from service.core.job import MAX_SEED


class CompleteFields(Fields):
    """Beside `inputs`."""

    mask: list[Any] | None = Field(
        None,
        description="1 = clamped, 0 = unknown; the shape of one example or of all. Absent: what is not null.",
    )
    samples: int = Field(1, ge=1, description="Completions of each input.")
    sweeps: int = Field(100, ge=1, description="Sweeps of the sampler for each completion.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Drawn, and reported, where absent.")
    sampler: SamplerField | None = None
    label: list[int | str] | int | str | None = Field(
        None, description="Class to complete towards, where the model has classes: one for all, or one an input."
    )


class CompleteAnswer(Answer):
    """Completions. Clamped units are what was sent, bit for bit."""

    samples: list[Any] = Field(description="(n, samples, *shape).")
    mean: list[Any] = Field(description="(n, *shape): the expected value of each unit.")
    seed: int
    approximate: bool = Field(description="True where even the sampler's stationary law is not the exact posterior.")


class Complete(Operation):
    """`run(..., mask: (n, *shape) bool, samples, sweeps, seed: int, sampler: SamplerSpec, label: (n,) int64 positions)`
    -> `samples` (n, samples, *shape), `mean` (n, *shape), `approximate`.

    At unknown units the inputs hold a fixed value of the domain, so that no answer depends on what was sent there.
    """

    name: ClassVar[str] = "complete"
    summary: ClassVar[str] = "Samples of the unknown units given the known ones."
    fields: ClassVar[type[Fields]] = CompleteFields
    answer: ClassVar[type[Answer]] = CompleteAnswer
    main: ClassVar[str] = "samples"
    nulls: ClassVar[bool] = True

    def arguments(self, call: Call) -> dict[str, Any]:
        """Mask and nulls as one mask, and the cost within its bound."""
        fields, rows, most = call.fields, len(call.inputs), call.settings.max_complete_sweeps
        cost = rows * fields.samples * fields.sweeps
        if cost > most:
            raise invalid(
                ("body", "sweeps"),
                f"{rows} inputs x {fields.samples} samples x {fields.sweeps} sweeps are {cost} chain-sweeps; at most "
                f'{most} are run while a client waits. Submit it as a job: POST /v1/jobs with "kind": "complete".',
            )
        arguments: dict[str, Any] = {
            "mask": clamped(call.card, call.inputs, fields.mask),
            "samples": fields.samples,
            "sweeps": fields.sweeps,
            "seed": secrets.randbelow(MAX_SEED + 1) if fields.seed is None else fields.seed,
            "sampler": parse_sampler(fields.sampler, call.card),
        }
        if fields.label is not None:
            arguments["label"] = parse_labels(fields.label, call.card, rows, "label")
        return arguments

    def finish(self, call: Call, result: Mapping[str, Any]) -> dict[str, Any]:
        """Puts the clamped units back as they were sent, and reports the seed."""
        sent, mask, domain = call.inputs.values, call.arguments["mask"], call.card.visible.domain
        return {
            **super().finish(call, result),
            "samples": _restore(result["samples"], sent[:, None], mask[:, None], domain),
            "mean": _restore(result["mean"], sent, mask, domain),
            "seed": call.arguments["seed"],
        }


def _restore(sampled: Any, sent: NDArray[Any], mask: NDArray[np.bool_], domain: Domain) -> NDArray[Any]:
    """`sampled` with what was sent at the clamped units, in a dtype that holds it exactly."""
    array = np.asarray(sampled)
    discrete = array.dtype.kind in "iu" and domain in ("binary", "spin")
    return np.where(mask, sent.astype(array.dtype), array) if discrete else np.where(mask, sent, array)
