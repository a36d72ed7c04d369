"""A recognition net for a DBM (Salakhutdinov & Larochelle 2010; MATH 5)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.families.dbm import DBM
from models.family import Base, EnergyModel
from training.objective import Batch, Draws, Memory, Objective, slopes


class Recognition(Objective):
    """Minus the cross-entropy between mean-field means and what one pass up the recognition net finds.

    Mean-field starts from that pass; labels are inferred, as where the net is used. A term beside an objective that
    trains the DBM itself.
    """

    name: ClassVar[str] = "recognition"

    mean_field_sweeps: int = Field(10, ge=1)

    @classmethod
    def applies_to(cls, model: EnergyModel) -> bool:
        """DBMs that have a recognition net."""
        return isinstance(model, DBM) and model.has_recognition

    def start(self, model: EnergyModel, base: Base, seed: int) -> Memory:  # noqa: ARG002
        """Nothing is kept."""
        return {}

    def gradient(
        self,
        model: EnergyModel,
        batch: Batch,
        draws: Draws,  # noqa: ARG002
        memory: Memory,
    ) -> tuple[dict[str, Tensor], Memory]:
        """Of V and a, by back-propagation."""
        assert isinstance(model, DBM)
        net = {name: t for name, t in model.tensors().items() if name[0] in "Va"}
        start = model.recognise(batch.visible)
        if model.class_count:
            start["label"] = torch.softmax(model.machine.inputs("label", start), 1)
        target = model.machine.mean_field(batch.visible, start, self.mean_field_sweeps)

        def fit() -> Tensor:
            below, total = batch.visible, batch.visible.new_zeros(())
            for n, name in enumerate(model.layers, start=1):
                logits = torch.addmm(net[f"a{n}"], below, net[f"V{n}"])
                total = total - binary_cross_entropy_with_logits(logits, target[name], reduction="sum")
                below = torch.sigmoid(logits)
            return total / len(batch.visible)

        return slopes(net, fit), memory
