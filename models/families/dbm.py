"""The deep Boltzmann machine of any depth (MATH 5; Salakhutdinov & Hinton 2009; Salakhutdinov & Larochelle 2010)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import CapabilityError
from models.layered import Layered, check_log_sigma
from models.layered_family import LayeredModel
from models.manifest import Manifest


@dataclass(frozen=True, eq=False)
class DBM(LayeredModel):
    """E = -v'W1h1 - h1'W2h2 - .. - b0'v - b1'h1 - .., binary or real visibles, one-hot labels above the top layer.

    The energy, features and classes are exact where the hidden units of one parity can be enumerated (up to 20), and
    mean-field otherwise: the energy then is an upper bound, -energy a lower bound on the unnormalized log-density. A
    recognition net (V, a) starts mean-field; where classes are not exact, p(y | v) is the recognition net's, if there
    is one: a feed-forward classifier (MATH 5: discriminative fine-tuning).
    """

    name: ClassVar[str] = "dbm"
    domains: ClassVar[frozenset[str]] = frozenset({"binary", "unit", "real"})

    parameters: Mapping[str, Tensor]
    """By their names in a checkpoint."""
    depth: int
    domain: str = "binary"

    @classmethod
    def tensor_shapes(cls, manifest: Manifest, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """`W1..Wk` (below, above), `b0..bk`; `log_sigma` (D) for real visibles; recognition `V1..Vk`, `a1..ak` where
        there is any of them; `U` (K, Hk), `d` (K) where there are classes. The sizes are `layers` in the config."""
        sizes = manifest.layers
        shapes: dict[str, tuple[int, ...]] = {"b0": (sizes[0],)}
        for n in range(1, len(sizes)):
            shapes |= {f"W{n}": (sizes[n - 1], sizes[n]), f"b{n}": (sizes[n],)}
        if manifest.visible.domain == "real":
            shapes["log_sigma"] = (sizes[0],)
        if any(name[:1] in "Va" and name[1:].isdecimal() for name in found):
            for n in range(1, len(sizes)):
                shapes |= {f"V{n}": (sizes[n - 1], sizes[n]), f"a{n}": (sizes[n],)}
        if manifest.classes is not None or "U" in found or "d" in found:
            K = len(manifest.classes) if manifest.classes is not None else (*found.get("d", ()), 1)[0]
            shapes |= {"U": (K, sizes[-1]), "d": (K,)}
        return shapes

    @classmethod
    def from_tensors(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> DBM:
        """The DBM with these parameters.

        Raises:
            CheckpointError: `log_sigma` is beyond +-40.
        """
        check_log_sigma(tensors)
        return cls(dict(tensors), len(manifest.layers) - 1, manifest.visible.domain)

    def tensors(self) -> dict[str, Tensor]:
        """All parameters."""
        return dict(self.parameters)

    @cached_property
    def machine(self) -> Layered:
        """k hidden layers."""
        p, levels = self.parameters, range(1, self.depth + 1)
        return Layered(
            tuple(p[f"W{n}"] for n in levels),
            tuple(p[f"b{n}"] for n in (0, *levels)),
            self.domain,
            p.get("log_sigma"),
            p.get("U"),
            p.get("d"),
        )

    @property
    def has_recognition(self) -> bool:
        """Whether there is a recognition net."""
        return "V1" in self.parameters

    def recognise(self, x: Float[Tensor, "n visible"]) -> dict[str, Float[Tensor, "n _"]]:
        """Means of the hidden layers from one pass up the recognition net: q(h_l = 1) = sigmoid(a_l + V_l'q_(l-1)).

        Raises:
            CapabilityError: the checkpoint has none.
        """
        if not self.has_recognition:
            raise CapabilityError("this model has no recognition net", self.capabilities())
        means, below = {}, x
        for n, name in enumerate(self.layers, start=1):
            below = torch.sigmoid(torch.addmm(self.parameters[f"a{n}"], below, self.parameters[f"V{n}"]))
            means[name] = below
        return means

    @property
    def class_kind(self) -> str:
        """`exact`, else `recognition` where there is a recognition net, else `mean_field`."""
        if self.machine.exact:
            return "exact"
        return "recognition" if self.has_recognition else "mean_field"

    def class_log_probs(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n classes"]:
        """log p(y | x), nats; `class_kind` says how."""
        if self.class_kind != "recognition" or not self.class_count:
            return super().class_log_probs(x)
        return torch.log_softmax(self.machine.inputs("label", self.recognise(x)), 1)
