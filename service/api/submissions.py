"""From a job request to what queue and worker are handed: all is checked before anything is stored."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError

from models.errors import CapabilityError
from service.api.errors import Problem, from_pydantic, invalid
from service.api.inputs import (
    Inputs,
    check_chain_values,
    check_domain,
    clamped,
    fit,
    parse_inputs,
    parse_labels,
    to_array,
)
from service.api.sampler import parse_sampler
from service.api.schemas import JOB_KINDS, JOB_REQUEST, CompleteJob, LogPartitionJob, SampleJob
from service.core.card import Card
from service.core.job import MAX_SEED, CompleteSpec, JobSpec, LogPartitionSpec, SampleSpec, Submission
from service.settings import Settings

DEFAULT_CHAINS = 16
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Work:
    """What a job computes, the arrays it starts from, and its size."""

    spec: JobSpec
    arrays: Arrays
    chains: int
    total: int
    unit: str


def parse_request(parsed: dict[str, Any]) -> SampleJob | CompleteJob | LogPartitionJob:
    """The request, its fields checked as far as that needs no model.

    Raises:
        Problem: `invalid-input`.
    """
    kind = parsed.get("kind")
    if kind not in JOB_KINDS:
        found = "is missing" if kind is None else f"is {kind!r}"
        raise invalid(("body", "kind"), f"kind {found}; these kinds of job are run: {', '.join(JOB_KINDS)}.")
    try:
        return JOB_REQUEST.validate_python(parsed, strict=True)
    except ValidationError as error:
        # The union's tag stands first in every place; a client knows nothing of it.
        errors = [{**each, "loc": each["loc"][1:]} for each in error.errors()]
        raise from_pydantic(errors, ("body",)) from error


def request_hash(parsed: Mapping[str, Any]) -> str:
    """The same for the same request, however its fields are ordered and spaced."""
    return hashlib.sha256(orjson.dumps(parsed, option=orjson.OPT_SORT_KEYS)).hexdigest()


def plan(request: SampleJob | CompleteJob | LogPartitionJob, card: Card, settings: Settings) -> Work:
    """The work that the request asks of this model.

    Raises:
        Problem: `invalid-input`.
        CapabilityError: the model cannot do jobs of this kind.
    """
    if request.kind not in card.capabilities:
        raise CapabilityError(f"{card.name} version {card.version} cannot do {request.kind}.", card.capabilities)
    seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    match request:
        case SampleJob():
            work = _sample(request, card, settings, seed)
        case CompleteJob():
            work = _complete(request, card, settings, seed)
        case LogPartitionJob():
            _check_chains(request.chains, settings, "chains")
            method = request.method or card.default_estimator()
            if method not in card.estimators:
                ways = ", ".join(card.estimators) or "none"
                raise invalid(("body", "method"), f"method is {method!r}; on {card.name} these apply: {ways}.")
            spec = LogPartitionSpec(method=method, chains=request.chains, temperatures=request.temperatures, seed=seed)
            work = Work(spec, {}, request.chains, request.temperatures * request.chains, "chain-temperatures")
    if work.total > MAX_SEED:
        raise Problem(
            "invalid-input", f"The job would take {work.total} {work.unit}; at most {MAX_SEED} can be counted."
        )
    return work


def _check_chains(chains: int, settings: Settings, field: str) -> None:
    if chains > settings.max_job_chains:
        raise invalid(
            ("body", field), f"The job has {chains} chains; at most {settings.max_job_chains} are run in one."
        )


def _check_result(entries: int, card: Card, clamps: bool, settings: Settings, field: str) -> None:
    size = entries * card.visible.units * np.dtype(card.draws_dtype(clamps)).itemsize
    if size > settings.max_job_result_bytes:
        raise invalid(
            ("body", field),
            f"The result would be {size} bytes; at most {settings.max_job_result_bytes} are kept of one job.",
        )


def _sample(request: SampleJob, card: Card, settings: Settings, seed: int) -> Work:
    given = request.init if isinstance(request.init, list) else None
    start = None if given is None else fit(to_array(given, "init"), card.visible, "init")
    several = max(1 if start is None else len(start), len(request.label) if isinstance(request.label, list) else 1)
    chains = request.chains or (several if several > 1 else DEFAULT_CHAINS)
    _check_chains(chains, settings, "chains")
    _check_result(chains * request.draws, card, request.clamp is not None, settings, "draws")
    if "complete" not in card.capabilities and (start is not None or request.clamp is not None):
        field = "init" if start is not None else "clamp"
        raise CapabilityError(
            f"Chains of {card.name} do not run on visible units: they start from noise and hold none; send no {field}.",
            card.capabilities,
        )
    if request.init == "data" and not card.init_data:
        raise invalid(("body", "init"), f'{card.name} keeps no data to start from; send "noise" or start values.')
    arrays: Arrays = {}
    if start is not None:
        check_domain(start, card.input_domain, "init")
        check_chain_values(start, card, "init")
        arrays["init"] = _each_chain(start, chains, card, "init")
    if request.clamp is not None:
        inputs = parse_inputs(request.clamp.values, card, settings.max_job_chains, nulls=True, field="clamp.values")
        mask = clamped(card, inputs, request.clamp.mask, "clamp.values", "clamp.mask")
        arrays["clamp_value"] = _each_chain(inputs.values, chains, card, "clamp.values")
        arrays["clamp_mask"] = _each_chain(mask, chains, card, "clamp.mask")
    if request.label is not None:
        arrays["label"] = parse_labels(request.label, card, chains, "label", "chains")
    spec = SampleSpec(
        chains=chains,
        draws=request.draws,
        burn_in=request.burn_in,
        thin=request.thin,
        sampler=parse_sampler(request.sampler, card),
        init="values" if start is not None else request.init,
        temperature=request.temperature,
        seed=seed,
        stream_every=request.stream_every,
        arrays=tuple(arrays),
    )
    return Work(spec, arrays, chains, chains * (request.burn_in + request.draws * request.thin), "chain-sweeps")


def _each_chain(array: NDArray[Any], chains: int, card: Card, field: str) -> NDArray[Any]:
    """(chains, D), from one example for all or one a chain."""
    if len(array) not in (1, chains):
        raise invalid(("body", *field.split(".")), f"{field} has {len(array)} rows; 1 or {chains} are expected.")
    flat = array.reshape(len(array), card.visible.units)
    return np.ascontiguousarray(np.broadcast_to(flat, (chains, card.visible.units)))


def _complete(request: CompleteJob, card: Card, settings: Settings, seed: int) -> Work:
    inputs: Inputs = parse_inputs(request.inputs, card, settings.max_job_chains, nulls=True)
    mask = clamped(card, inputs, request.mask)
    rows = len(inputs)
    _check_chains(rows * request.samples, settings, "samples")
    _check_result(rows * request.samples, card, True, settings, "samples")
    flat = (rows, card.visible.units)
    arrays: Arrays = {
        "clamp_value": inputs.values.reshape(flat),
        "clamp_mask": np.ascontiguousarray(mask).reshape(flat),
    }
    if request.label is not None:
        arrays["label"] = parse_labels(request.label, card, rows, "label")
    spec = CompleteSpec(
        examples=rows,
        samples=request.samples,
        sweeps=request.sweeps,
        sampler=parse_sampler(request.sampler, card),
        seed=seed,
        arrays=tuple(arrays),
    )
    return Work(spec, arrays, rows * request.samples, rows * request.samples * request.sweeps, "chain-sweeps")


def submission(
    work: Work, card: Card, owner: str, hashed: str, idempotency_key: str | None, traceparent: str | None
) -> Submission:
    """The work on its way into the queue.

    Its id is new at each call, so that two requests never share files; it is the idempotency key that makes a repeated
    request the first job.
    """
    return Submission(
        id=uuid.uuid4().hex,
        kind=work.spec.kind,
        model=card.name,
        version=card.version,
        digest=card.digest,
        owner=owner,
        seed=work.spec.seed,
        payload=work.spec.model_dump(mode="json"),
        total=work.total,
        unit=work.unit,
        chains=work.chains,
        idempotency_key=idempotency_key,
        request_hash=hashed,
        traceparent=traceparent,
    )
