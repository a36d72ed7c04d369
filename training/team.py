"""Processes that train one model together, each on its share of every minibatch, as `torchrun` starts them.

Data parallelism: all hold the same parameters, run chains of their own, and follow the mean of their gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

_T = TypeVar("_T")
_SEEDS = 48
"""Bits of a seed that tells processes apart: above those of recipes and of all that draws beside the chains."""


@dataclass(frozen=True)
class Team:
    """This process's place, `rank` of `size`. Everything but `share` and `seed` has to be called by all of them."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that looks, records, and writes the checkpoint."""
        return self.rank == 0

    def share(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
        """This process's rows of a minibatch."""
        return rows[self.rank :: self.size]

    def seed(self, seed: int) -> int:
        """The seed of this process's own draws."""
        return seed + (self.rank << _SEEDS)

    def mean(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean of all processes' gradients, the same bits for all."""
        if self.size == 1:
            return gradient
        flat = torch.cat([tensor.reshape(-1) for tensor in gradient.values()])  # one message instead of many
        dist.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in gradient.values()])  # type: ignore[no-untyped-call]
        return {name: part.view_as(gradient[name]) for name, part in zip(gradient, parts, strict=True)}

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says so."""
        if self.size == 1:
            return flag
        said = torch.tensor(float(flag))
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def told(self, figure: Callable[[], _T]) -> _T:
        """What the leading process finds, told to the others."""
        if self.size == 1:
            return figure()
        found = [figure() if self.leads else None]
        dist.broadcast_object_list(found)
        return cast(_T, found[0])


ALONE = Team()


@contextmanager
def joined() -> Iterator[Team]:
    """The processes that `torchrun` started together, of which this is one; without it, this process alone."""
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_gpu() -> torch.device:
    """The GPU that is this process's: one each on a machine."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
