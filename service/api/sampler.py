"""The choice of a sampler in a request."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from service.api.errors import invalid
from service.core.card import Card
from service.core.job import SamplerSpec

SamplerField = Annotated[
    str | SamplerSpec,
    Field(description="One of the card's `samplers`, by name or with its hyper-parameters; by default the first."),
]


def parse_sampler(sent: str | SamplerSpec | None, card: Card) -> SamplerSpec:
    """The sampler that was asked for, or the model's default.

    Raises:
        Problem: `invalid-input`, naming the samplers that run on this model.
    """
    if sent is None:
        return SamplerSpec(name=card.samplers[0]) if card.samplers else SamplerSpec()
    spec = SamplerSpec(name=sent) if isinstance(sent, str) else sent
    if card.samplers and spec.name not in card.samplers:
        raise invalid(
            ("body", "sampler"), f"sampler is {spec.name!r}; on {card.name} these run: {', '.join(card.samplers)}."
        )
    return spec
