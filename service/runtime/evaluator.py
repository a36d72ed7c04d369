"""Synchronous answers off the event loop: the API's `Models`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import CapabilityError
from models.rng import ChainKeys
from service.core.card import Card
from service.core.errors import Overloaded
from service.core.job import SamplerSpec
from service.runtime.library import ModelLibrary
from service.runtime.operations import OPERATIONS
from service.runtime.samplers import make_sampler

_MOST_WAITING = 256


class Evaluator:
    """Runs operations in two threads: completions, which take as long as their chains, never hold up the others."""

    def __init__(self, library: ModelLibrary) -> None:
        self._library = library
        self._quick = ThreadPoolExecutor(1, "evaluate")
        self._slow = ThreadPoolExecutor(1, "complete")
        self._waiting = 0

    def cards(self) -> list[Card]:
        """Every model and version that is ready."""
        return [served.card for served in self._library.all()]

    def card(self, name: str, version: int | None) -> Card:
        """The card of that version, or of the newest that is ready.

        Raises:
            UnknownModel, NotReady: see `ModelLibrary.get`.
        """
        return self._library.get(name, version).card

    def check_sampler(self, card: Card, spec: SamplerSpec) -> None:
        """Whether the sampler runs on the model, with these settings.

        Raises:
            InputError, CapabilityError: it does not.
        """
        served = self._library.get(card.name, card.version)
        sampler = make_sampler(card, spec)
        if spec.model_extra:  # some settings fit some models only, which a first chain's start tells
            model = served.checkpoint.model
            with torch.inference_mode():
                sampler.init(model, ChainKeys.of(0, 1, model.device), None, None)

    async def run(
        self, card: Card, operation: str, inputs: NDArray[np.floating[Any]], **fields: Any
    ) -> Mapping[str, Any]:
        """Compute one operation.

        Raises:
            InputError, CapabilityError: the request does not fit the model.
            Overloaded: too many requests wait.
        """
        compute = OPERATIONS.get(operation)
        if compute is None:
            raise CapabilityError(f"model {card.name!r} cannot answer {operation!r}", card.capabilities)
        if self._waiting >= _MOST_WAITING:
            raise Overloaded(f"{self._waiting} requests are waiting already")
        served = self._library.get(card.name, card.version)
        pool = self._slow if operation == "complete" else self._quick
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, partial(compute, served, inputs, **fields))
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let running requests finish and stop the threads."""
        self._quick.shutdown()
        self._slow.shutdown()
