"""What enumeration says of small layered machines: the law in place of chains, and what training climbs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.layered_family import LayeredModel
from tests.models import cases
from tests.models.cases import BINARY, ONE_HOT, Case
from training.objective import Batch
from training.phases import Phases, expected

LAYERED = cases.names(lambda of: isinstance(of.model, LayeredModel))
"""Names of the cases that are layered machines."""
MEAN_FIELD_SWEEPS = 40
"""Enough for the small cases to reach the fixed point, to 1e-10 and better."""


def layered(of: Case) -> LayeredModel:
    """The case's model."""
    assert isinstance(of.model, LayeredModel)
    return of.model


def with_tensors(of: Case, tensors: dict[str, Tensor]) -> LayeredModel:
    """The case's model with other parameters."""
    model = type(of.model).from_tensors(of.manifest, tensors)
    assert isinstance(model, LayeredModel)
    return model


def batch_of(of: Case, n: int = 6, seed: int = 5) -> Batch:
    """Examples that the model does not particularly like, with labels where it has some."""
    classes = layered(of).class_count
    labels = torch.arange(n) % classes if classes else None
    return Batch(cases.some_visibles(of, n, seed), labels)


def law(model: LayeredModel) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of all blocks and their probabilities: weighted, they have the model's expectations of all statistics.

    Every state of the odd layers, each with the even layers at their means given it: what is odd and what is even enter
    the statistics as products of two. Real visibles, which enter squared too, are at the mean plus and minus s.
    """
    machine = model.machine
    values = {b: ONE_HOT if b == "label" else BINARY for b in machine.side(True)}
    odd = cases.product({b: cases.states(v, machine.units(b)) for b, v in values.items()})
    biases = dict(zip(machine.layers, machine.biases, strict=True)) | (
        {} if machine.d is None else {"label": machine.d}
    )
    log_p = sum((odd[b] @ biases[b] for b in odd), torch.zeros((), dtype=torch.float64))
    for block in machine.side(False):
        log_p = log_p + machine.log_sum(block, odd)
    even = {b: machine.inputs(b, odd) for b in machine.side(False)}
    if machine.log_sigma is None:
        return odd | expected(even), torch.softmax(log_p, 0)
    mean, s = even.pop("visible"), machine.log_sigma.exp()
    rows = {b: torch.cat((x, x)) for b, x in (odd | expected(even)).items()}
    return rows | {"visible": torch.cat((mean - s, mean + s))}, torch.softmax(torch.cat((log_p, log_p)), 0)


def gradient(of: Case, batch: Batch) -> dict[str, Tensor]:
    """The plain contrast of `Phases` with the model's law in place of chains: linear in the chains' rows."""
    phases = Phases(layered(of), MEAN_FIELD_SWEEPS)
    data = phases.data(batch)
    rows, p = law(layered(of))
    total: dict[str, Tensor] = {}
    for k, weight in enumerate(p):
        found, _ = phases.contrast(data, {b: x[k : k + 1] for b, x in rows.items()}, {}, "none")
        total = {name: total.get(name, 0.0) + weight * g for name, g in found.items()}
    return total


def climbed(model: LayeredModel, batch: Batch) -> float:
    """What the two phases climb: the mean of log p(v), of log p(v, y) where there are labels, or, with more than one
    hidden layer, of its variational bound at the fixed point of mean-field."""
    machine, v = model.machine, batch.visible
    label = None if batch.labels is None else one_hot(batch.labels, machine.classes).to(v)
    if machine.depth > 1:
        means = machine.mean_field(v, sweeps=MEAN_FIELD_SWEEPS, label=label)
        return float(machine.bound(v, means).mean()) - model.log_partition()
    energy = model.energy(v) if batch.labels is None else model.class_energy(v, batch.labels)
    return -float(energy.mean()) - model.log_partition()


def crowd(model: LayeredModel, n: int = 4000) -> dict[str, Tensor]:
    """About n rows, each of the law's as often as it is likely."""
    rows, p = law(model)
    times = torch.round(p * n).long()
    return {b: x.repeat_interleave(times, 0) for b, x in rows.items()}
