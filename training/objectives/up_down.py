"""The up-down algorithm: contrastive wake-sleep (Hinton, Osindero & Teh 2006, appendix B; MATH 4)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from models.families.dbn import DBN
from models.families.rbm import RBM
from models.family import Base, EnergyModel
from training.objective import Batch, Draws, Memory, Objective
from training.phases import Centring, Phases

_UP, _DOWN = 32, 48
"""First streams of the passes up and down, after those of the top RBM's blocks."""


class UpDown(Objective):
    """Refines a DBN whose layers were trained one after the other.

    Wake: a pass up the recognition weights; each layer below the top RBM learns to generate what the recognition found.
    The top RBM learns by contrastive divergence from there. Sleep: a pass down from the chains' end; the recognition
    weights learn to find what was generated.
    """

    name: ClassVar[str] = "up_down"

    steps: int = Field(10, ge=1, description="Gibbs sweeps of the top RBM.")
    chains: int = Field(0, ge=0, description="Persistent chains of the top RBM; 0: chains start from the wake phase.")
    centring: Centring = "none"

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """DBNs."""
        return isinstance(model, DBN)

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:
        """Persistent chains, and the top RBM's offsets: from the data's means passed up."""
        assert isinstance(model, DBN)
        phases, tensors = Phases(_top(model)), model.tensors()
        layer = {"visible": base["visible"].to(tensors["b0"])}
        for n in range(1, model.depth):
            layer = {"visible": _up(tensors, n, torch.sigmoid(layer["visible"])[None])[0]}
        if "label" in base and model.class_count:
            layer["label"] = base["label"]
        memory = dict(phases.offsets(layer, self.centring))
        return memory | {f"chains.{b}": s for b, s in phases.first(layer, self.chains, seed).items() if self.chains}

    def gradient(
        self, model: EnergyModel, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], Memory]:
        """Of generative weights (wake), top RBM, and recognition weights (sleep)."""
        assert isinstance(model, DBN)
        tensors, k, first = model.tensors(), model.depth, draws.step * (self.steps + 1)
        layers = [batch.visible]
        for n in range(1, k):
            layers.append(draws.bernoulli(_up(tensors, n, layers[-1]), first, _UP + n))
        gradient: dict[str, Tensor] = {}
        for n in range(1, k):
            missed = layers[n - 1] - torch.sigmoid(_down(tensors, n, layers[n]))
            gradient[f"W{n}"] = missed.T @ layers[n] / len(missed)
            gradient[f"b{n - 1}"] = missed.mean(0)
        top, seen, memory = self._contrast(model, Batch(layers[-1], batch.labels), draws, memory)
        generated = seen["visible"]
        for n in range(k - 1, 0, -1):
            below = draws.bernoulli(_down(tensors, n, generated), first, _DOWN + n)
            if f"V{n}" in tensors:
                found = torch.sigmoid(_up(tensors, n, below))
                gradient[f"V{n}"] = below.T @ (generated - found) / len(below)
                gradient[f"a{n}"] = (generated - found).mean(0)
            generated = below
        return gradient | top, memory

    def _contrast(
        self, model: DBN, batch: Batch, draws: Draws, memory: Memory
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Memory]:
        phases = Phases(_top(model))
        hidden, first = phases.machine.layers[1], draws.step * (self.steps + 1)
        if self.chains:
            chains = {hidden: memory[f"chains.{hidden}"]}
            data, seen, odd = phases.both(batch, chains, draws, first + 1, self.steps)
        else:
            data, odd = phases.from_data(batch, draws, first)
            seen, odd = phases.advance(odd, draws, first + 1, self.steps)
        gradient, kept = phases.contrast(data, seen, memory, self.centring)
        k = model.depth
        names = {"W": f"W{k}", "b": f"b{k - 1}", "c": f"b{k}"}
        if self.chains:
            kept = {**kept, f"chains.{hidden}": odd[hidden]}
        return {names.get(name, name): g for name, g in gradient.items()}, seen, kept


def _top(model: DBN) -> RBM:
    p, k = model.tensors(), model.depth
    return RBM(p[f"W{k}"], p[f"b{k - 1}"], p[f"b{k}"], "binary", p.get("U"), p.get("d"))


def _up(tensors: dict[str, Tensor], n: int, below: Tensor) -> Tensor:
    return torch.addmm(tensors.get(f"a{n}", tensors[f"b{n}"]), below, tensors.get(f"V{n}", tensors[f"W{n}"]))


def _down(tensors: dict[str, Tensor], n: int, above: Tensor) -> Tensor:
    return torch.addmm(tensors[f"b{n - 1}"], above, tensors[f"W{n}"].T)
