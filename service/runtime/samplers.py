"""A sampler's hyper-parameters, and the sampler that a request names."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.catalog import samplers
from models.errors import CapabilityError, InputError
from models.sampler import Sampler
from service.core.card import Card
from service.core.job import SamplerSpec


def settings_schema(name: str) -> dict[str, Any]:
    """A sampler's hyper-parameters: a JSON schema of each, by its name."""
    found: dict[str, Any] = TypeAdapter(samplers()[name]).json_schema().get("properties", {})
    return found


def make_sampler(card: Card, spec: SamplerSpec | None) -> Sampler:
    """The sampler that a request names, by default the first that runs on the model.

    Raises:
        CapabilityError: it does not exist or does not run on this model.
        InputError: it has no such setting, or not with such a value.
    """
    available = card.samplers
    settings = dict(spec.model_extra or {}) if spec is not None else {}
    name = spec.name if spec is not None else (available[0] if available else "none")
    if name not in available:
        raise CapabilityError(f"sampler {name!r} does not run on {card.name!r}: {', '.join(available) or 'none'} do")
    known = list(settings_schema(name))
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise InputError(
            f"sampler {name!r} has no {unknown[0]!r}; its settings: {', '.join(known) or 'none'}", "sampler"
        )
    try:
        # Beside what the sampler itself refuses, this refuses settings of another type.
        return TypeAdapter(samplers()[name]).validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors())
        raise InputError(f"sampler {name!r}: {faults}", "sampler") from error
