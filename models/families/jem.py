"""A joint energy-based model: a classifier's logits as energies (MATH 10; Grathwohl et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.errors import CheckpointError
from models.family import HasClasses
from models.manifest import Manifest
from models.network_family import NetworkEnergy


@dataclass(frozen=True, eq=False)
class JEM(NetworkEnergy, HasClasses):
    """E(x, y) = -f(x)[y], E(x) = -logsumexp_y f(x)[y], p(y | x) = softmax f(x), for any architecture f."""

    name: ClassVar[str] = "jem"

    @classmethod
    def kinds(cls) -> None:
        """All."""

    @classmethod
    def outputs_of(cls, manifest: Manifest) -> int:
        """One for each class.

        Raises:
            CheckpointError: the manifest names no classes.
        """
        if not manifest.classes:
            raise CheckpointError("a jem has classes, which the manifest must name: `classes` is missing")
        return len(manifest.classes)

    def energy_of(
        self, outputs: Float[Tensor, "n outputs"], label: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """-f(x)[y], or -logsumexp over the classes."""
        free = -outputs.logsumexp(1)
        if label is None:
            return free
        joint = -outputs.gather(1, label.clamp(min=0)[:, None])[:, 0]
        return torch.where(label >= 0, joint, free)

    @property
    def class_count(self) -> int:
        """K."""
        return self.classes

    def class_log_probs(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n classes"]:
        """log softmax f(x)."""
        return torch.log_softmax(self.network.outputs(x), 1)

    def class_energy(self, x: Float[Tensor, "n visible"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """-f(x)[y]; with `prior_std` also |x|^2 / (2 s^2)."""
        return self.labelled_energy(x, labels)
