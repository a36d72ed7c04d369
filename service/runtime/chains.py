"""A batch of chains of any number of jobs that advance together: the only code that runs a sampler in the service.

Which chains share a batch never shows in a chain: every row has its own seed, chain number, sweep counter, clamp and
temperature, and the arithmetic of conditionals does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family import Clamp, HasConditionals
from models.rng import ChainKeys, random_bits
from models.sampler import ChainState, Sampler

Chains = NDArray[np.int64]
Visibles = NDArray[np.float64]

_DATA_STREAM = 255
"""The stream that picks data rows to start from; the blocks' streams count from 0."""


def _ignore(*_: Any) -> None:
    return


@dataclass(frozen=True)
class ChainTask:
    """What one job's chains do: `burn_in + draws * thin` sweeps each; draw d is taken after burn_in + (d + 1) thin."""

    seed: int
    burn_in: int
    draws: int
    thin: int = 1
    temperature: float = 1.0
    start: Visibles | None = None
    """(chains or 1, D): where chains start; None: noise."""
    examples: NDArray[Any] | None = None
    """(m, D): data of which each chain starts from a row of its own choice."""
    clamp_mask: NDArray[np.bool_] | None = None
    """(groups or 1, D)."""
    clamp_value: Visibles | None = None
    chains_per_clamp: int = 1
    """Chain c is clamped by row c // chains_per_clamp."""
    average_from: int | None = None
    """First sweep whose conditional means of the visibles are averaged; None: no averages are kept."""
    peek_every: int | None = None
    on_draw: Callable[[Chains, Chains, Visibles], None] = _ignore
    """Told (chains, draw numbers, visibles (m, D))."""
    on_average: Callable[[Chains, Visibles], None] = _ignore
    """Told (chains, averages (m, D)) of chains that made their last sweep."""
    on_peek: Callable[[int, NDArray[np.float64]], None] = _ignore
    """Told (sweep, visibles (D,)) of chain 0, every `peek_every` sweeps."""

    @property
    def sweeps(self) -> int:
        """Sweeps of each chain."""
        return self.burn_in + self.draws * self.thin


@dataclass
class _Rows:
    """The batch, a row each chain."""

    tasks: list[ChainTask] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sweep: Chains = field(default_factory=lambda: np.zeros(0, np.int64))
    chain: Chains = field(default_factory=lambda: np.zeros(0, np.int64))


class ChainBatch:
    """Chains on one (model, sampler)."""

    def __init__(self, model: HasConditionals, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        self._rows = _Rows()
        self._state: ChainState | None = None
        self._keys: ChainKeys | None = None
        self._clamp: Clamp | None = None
        self._beta: Tensor | None = None
        self._sums: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows.tasks)

    @torch.inference_mode()
    def join(
        self, name: str, task: ChainTask, chains: Sequence[int], saved: dict[str, NDArray[Any]] | None = None
    ) -> None:
        """Chains of the job `name` enter, from their start or from a `snapshot` that holds exactly these chains."""
        device = self._model.device
        numbers = np.asarray(chains, np.int64)
        keys = ChainKeys(torch.full((len(numbers),), task.seed, device=device), torch.from_numpy(numbers).to(device))
        clamp = self._clamp_of(task, numbers)
        if saved is None:
            state = self._sampler.init(self._model, keys, self._start_of(task, keys), clamp)
            sums = torch.zeros_like(state.visible)
        else:
            blocks = {b: torch.from_numpy(saved[f"block.{b}"]).double().to(device) for b in self._model.blocks}
            state = ChainState(blocks, torch.from_numpy(saved["sweep"]).to(device))
            sums = torch.from_numpy(saved["sums"]).to(device) if "sums" in saved else torch.zeros_like(state.visible)
        beta = torch.full((len(numbers),), 1.0 / task.temperature, dtype=torch.float64, device=device)
        rows = self._rows
        rows.tasks += [task] * len(numbers)
        rows.names += [name] * len(numbers)
        rows.sweep = np.concatenate((rows.sweep, state.sweep.cpu().numpy()))
        rows.chain = np.concatenate((rows.chain, numbers))
        if self._state is None or self._keys is None or self._clamp is None:
            self._state, self._keys, self._clamp, self._beta, self._sums = state, keys, clamp, beta, sums
            return
        self._state = ChainState(
            {b: torch.cat((self._state.blocks[b], state.blocks[b])) for b in self._model.blocks},
            torch.cat((self._state.sweep, state.sweep)),
        )
        self._keys = ChainKeys(torch.cat((self._keys.seed, keys.seed)), torch.cat((self._keys.chain, keys.chain)))
        self._clamp = Clamp(torch.cat((self._clamp.mask, clamp.mask)), torch.cat((self._clamp.value, clamp.value)))
        self._beta = torch.cat((self._beta, beta)) if self._beta is not None else beta
        self._sums = torch.cat((self._sums, sums)) if self._sums is not None else sums

    @torch.inference_mode()
    def advance(self, sweeps: int) -> None:
        """Every row makes `sweeps` sweeps; draws and averages are reported as they fall due; done rows leave."""
        assert self._state is not None
        assert self._keys is not None
        assert self._clamp is not None
        assert self._beta is not None
        assert self._sums is not None
        rows = self._rows
        clamp = self._clamp if bool(self._clamp.mask.any()) else None
        beta = self._beta if bool((self._beta != 1.0).any()) else None
        never = np.iinfo(np.int64).max
        burn_in = np.array([t.burn_in for t in rows.tasks])
        thin = np.array([t.thin for t in rows.tasks])
        average_from = np.array([never if t.average_from is None else t.average_from for t in rows.tasks])
        peeks = [i for i, t in enumerate(rows.tasks) if t.peek_every and rows.chain[i] == 0]
        for _ in range(sweeps):
            self._state, info = self._sampler.step(self._model, self._state, self._keys, clamp, beta)
            rows.sweep = rows.sweep + 1
            averaged = np.flatnonzero(rows.sweep >= average_from)
            if len(averaged):
                index = torch.from_numpy(averaged).to(self._model.device)
                self._sums[index] += info.conditionals["visible"].mean()[index]
            self._report_draws(np.flatnonzero((rows.sweep > burn_in) & ((rows.sweep - burn_in) % thin == 0)))
            for i in peeks:
                if rows.sweep[i] % (rows.tasks[i].peek_every or 1) == 0:
                    rows.tasks[i].on_peek(int(rows.sweep[i]), self._state.visible[i].cpu().numpy())
        done = np.flatnonzero(rows.sweep >= np.array([t.sweeps for t in rows.tasks]))
        if len(done):
            self._report_averages(done)
            self._keep(np.setdiff1d(np.arange(len(self)), done))

    def drop(self, name: str) -> None:
        """The chains of a job leave at once."""
        self._keep(np.array([i for i, other in enumerate(self._rows.names) if other != name], np.int64))

    def sweeps_of(self, name: str) -> int:
        """Sweeps that the job's chains in this batch have made, all together."""
        return sum(int(s) for other, s in zip(self._rows.names, self._rows.sweep, strict=True) if other == name)

    def snapshot(self, name: str) -> dict[str, NDArray[Any]]:
        """The state of a job's chains here: `chain`, `sweep`, `block.*`, and `sums` where averages are kept."""
        mine = np.array([i for i, other in enumerate(self._rows.names) if other == name], np.int64)
        if not len(mine) or self._state is None or self._sums is None:
            return {"chain": np.zeros(0, np.int64), "sweep": np.zeros(0, np.int64)}
        index = torch.from_numpy(mine).to(self._model.device)
        saved: dict[str, NDArray[Any]] = {"chain": self._rows.chain[mine], "sweep": self._rows.sweep[mine]}
        for block, values in self._state.blocks.items():
            saved[f"block.{block}"] = values[index].cpu().numpy()
        if self._rows.tasks[int(mine[0])].average_from is not None:
            saved["sums"] = self._sums[index].cpu().numpy()
        return saved

    def _report_draws(self, due: Chains) -> None:
        if not len(due) or self._state is None:
            return
        rows = self._rows
        visible = self._state.visible[torch.from_numpy(due).to(self._model.device)].cpu().numpy()
        for task, at in self._by_task(due):
            picked = due[at]
            draw = (rows.sweep[picked] - task.burn_in) // task.thin - 1
            task.on_draw(rows.chain[picked], draw, visible[at])

    def _report_averages(self, done: Chains) -> None:
        assert self._sums is not None
        assert self._clamp is not None
        for task, at in self._by_task(done):
            if task.average_from is None:
                continue
            picked = torch.from_numpy(done[at]).to(self._model.device)
            averages = self._sums[picked] / (task.sweeps - task.average_from + 1)
            averages = torch.where(self._clamp.mask[picked], self._clamp.value[picked], averages)
            task.on_average(self._rows.chain[done[at]], averages.cpu().numpy())

    def _by_task(self, rows: Chains) -> list[tuple[ChainTask, Chains]]:
        positions: dict[int, list[int]] = {}
        for position, row in enumerate(rows):
            positions.setdefault(id(self._rows.tasks[row]), []).append(position)
        return [(self._rows.tasks[rows[at[0]]], np.asarray(at, np.int64)) for at in positions.values()]

    def _keep(self, kept: Chains) -> None:
        if self._state is None or self._keys is None or self._clamp is None or self._beta is None:
            return
        rows = self._rows
        rows.tasks = [rows.tasks[i] for i in kept]
        rows.names = [rows.names[i] for i in kept]
        rows.sweep, rows.chain = rows.sweep[kept], rows.chain[kept]
        index = torch.from_numpy(kept).to(self._model.device)
        self._state = ChainState({b: v[index] for b, v in self._state.blocks.items()}, self._state.sweep[index])
        self._keys = self._keys.rows(index)
        self._clamp = Clamp(self._clamp.mask[index], self._clamp.value[index])
        self._beta = self._beta[index]
        self._sums = self._sums[index] if self._sums is not None else None

    def _start_of(self, task: ChainTask, keys: ChainKeys) -> Tensor | None:
        if task.examples is not None:
            pick = random_bits(keys, torch.zeros_like(keys.chain), _DATA_STREAM, 1)[:, 0] % len(task.examples)
            return torch.from_numpy(task.examples[pick.cpu().numpy()].astype(np.float64)).to(self._model.device)
        if task.start is None:
            return None
        rows = keys.chain.cpu().numpy() if len(task.start) > 1 else np.zeros(len(keys), np.int64)
        return torch.from_numpy(task.start[rows].astype(np.float64)).to(self._model.device)

    def _clamp_of(self, task: ChainTask, chains: Chains) -> Clamp:
        shape = (len(chains), self._model.block_units("visible"))
        device = self._model.device
        if task.clamp_mask is None or task.clamp_value is None:
            return Clamp(
                torch.zeros(shape, dtype=torch.bool, device=device),
                torch.zeros(shape, dtype=torch.float64, device=device),
            )
        rows = chains // task.chains_per_clamp if len(task.clamp_mask) > 1 else np.zeros_like(chains)
        mask = torch.from_numpy(np.ascontiguousarray(task.clamp_mask[rows])).to(device)
        value = torch.from_numpy(np.where(task.clamp_mask[rows], task.clamp_value[rows], 0.0)).to(device)
        return Clamp(mask, value)
