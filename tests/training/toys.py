"""Data sets so small that everything about a model of them can be enumerated."""

from __future__ import annotations

import torch
from torch import Tensor

from models.families.grbm import GRBM
from models.manifest import Domain
from models.numerics import all_binary_states
from training.data import Dataset


def bars() -> Tensor:
    """The bars and stripes of 3 x 3 (MacKay 2003), 8 of each: the two blank images come twice."""
    rows = all_binary_states(3, 0, 8, torch.device("cpu")).byte()
    return torch.cat((rows.repeat_interleave(3, 1), rows.repeat(1, 3)))


def dataset(examples: Tensor, domain: Domain = "binary", labels: Tensor | None = None) -> Dataset:
    """The same examples as every part; nine units are an image of 3 x 3."""
    two_valued = domain in ("binary", "spin")
    return Dataset(
        name="toy",
        shape=(3, 3) if examples.shape[1] == 9 else (examples.shape[1],),
        binarization="threshold" if two_valued else None,
        train=examples,
        validation=examples,
        test=examples,
        grey=None,
        train_means=examples.double().mean(0),
        domain=domain,
        train_labels=labels,
        validation_labels=labels,
        test_labels=labels,
        classes=None if labels is None else [f"class {k}" for k in range(int(labels.max()) + 1)],
    )


def labelled_bars() -> Dataset:
    """Bars and stripes whose class says whether the first corner is ink."""
    return dataset(bars(), labels=bars()[:, 0].long())


def grbm() -> GRBM:
    """Four overlapping clouds in three dimensions."""
    W = torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, -1.0]]).double()
    b, c, log_sigma = torch.tensor([-1.0, 0.5, 0.0]), torch.tensor([0.0, -6.2]), torch.tensor([-0.5, 0.2, 0.0])
    return GRBM(W, b.double(), c.double(), log_sigma.double())


def clouds(n: int = 1000) -> Dataset:
    """Exact draws of that GRBM, float32."""
    model, generator = grbm(), torch.Generator().manual_seed(1)
    h = all_binary_states(2, 0, 4, torch.device("cpu"))
    p = torch.softmax(h @ model.c + model.machine.log_sum("visible", {"hidden": h}), 0)
    drawn = h[torch.multinomial(p, n, replacement=True, generator=generator)]
    s = model.log_sigma.exp()
    v = model.b + s * (drawn @ model.W.T) + s * torch.randn((n, 3), generator=generator).double()
    return dataset(v.float(), "real")
