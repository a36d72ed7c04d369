"""The contract of an endpoint: one file in `endpoints/` is one group of routes, mounted by being there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from fastapi import APIRouter


class Endpoint(ABC):
    """A group of routes under full paths."""

    name: ClassVar[str]

    @abstractmethod
    def router(self) -> APIRouter:
        """The routes. What they need of the service comes with each request (`deps.services`)."""
