"""A batch of chains of any number of jobs that advance together: the only code that runs a sampler in the service.

Which chains share a batch never shows in a chain: every row has its own seed, chain number, sweep counter, clamp and
temperature, and the arithmetic of conditionals and gradients does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family import Clamp, HasClasses, HasStates
from models.rng import ChainKeys, random_bits
from models.sampler import ChainState, Sampler, SweepInfo

Chains = NDArray[np.int64]
Visibles = NDArray[np.float64]

_DATA_STREAM = 0xFF01
"""The stream that picks data rows to start from; those of a model's parts count from 0."""


def _ignore(*_: Any) -> None:
    return


@dataclass(frozen=True)
class ChainTask:
    """What one job's chains do: `burn_in + draws * thin` sweeps each; draw d is taken after burn_in + (d + 1) thin.

    Visibles are as the model sees them, going in and coming out.
    """

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
    label: Chains | None = None
    """(groups or 1,): classes that chains are held at; -1: at none."""
    chains_per_clamp: int = 1
    """Chain c is held by row c // chains_per_clamp."""
    average_from: int | None = None
    """First sweep whose expected visibles are averaged; None: no averages are kept."""
    peek_every: int | None = None
    on_draw: Callable[[Chains, Chains, Visibles], None] = _ignore
    """Told (chains, draw numbers, visibles (m, D))."""
    on_average: Callable[[Chains, Visibles], None] = _ignore
    """Told (chains, averages (m, D)) of chains that made their last sweep."""
    on_accepted: Callable[[float, float], None] = _ignore
    """Told (sum of acceptance rates, sweeps that had one) of chains that made their last sweep."""
    on_peek: Callable[[int, NDArray[np.float64]], None] = _ignore
    """Told (sweep, visibles (D,)) of chain 0, every `peek_every` sweeps."""

    @property
    def sweeps(self) -> int:
        """Sweeps of each chain."""
        return self.burn_in + self.draws * self.thin


@dataclass
class _Rows:
    """Whose chains are in the batch, a row each, and how far they are."""

    tasks: list[ChainTask] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sweep: Chains = field(default_factory=lambda: np.zeros(0, np.int64))
    chain: Chains = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class _Tensors:
    """The batch on the device, a row each chain. `sums` and `accepted` grow in place."""

    state: ChainState
    keys: ChainKeys
    clamp: Clamp
    beta: Tensor
    sums: Tensor
    """Expected visibles added up, (n, D)."""
    accepted: Tensor
    """Acceptance rates added up, and the sweeps that had one, (n, 2)."""

    def rows(self, index: Tensor) -> _Tensors:
        """The rows that `index` selects."""
        return _Tensors(
            ChainState({block: v[index] for block, v in self.state.blocks.items()}, self.state.sweep[index]),
            self.keys.rows(index),
            self.clamp.rows(index),
            self.beta[index],
            self.sums[index],
            self.accepted[index],
        )

    def joined(self, other: _Tensors) -> _Tensors:
        """These rows, then the other ones."""
        mine, theirs = self.clamp, other.clamp
        labels = None if mine.label is None or theirs.label is None else torch.cat((mine.label, theirs.label))
        return _Tensors(
            ChainState(
                {block: torch.cat((v, other.state.blocks[block])) for block, v in self.state.blocks.items()},
                torch.cat((self.state.sweep, other.state.sweep)),
            ),
            ChainKeys(torch.cat((self.keys.seed, other.keys.seed)), torch.cat((self.keys.chain, other.keys.chain))),
            Clamp(torch.cat((mine.mask, theirs.mask)), torch.cat((mine.value, theirs.value)), labels),
            torch.cat((self.beta, other.beta)),
            torch.cat((self.sums, other.sums)),
            torch.cat((self.accepted, other.accepted)),
        )

    @property
    def holding(self) -> Clamp | None:
        """The clamp, or None where it holds nothing of any chain."""
        labels = self.clamp.label is not None and bool((self.clamp.label >= 0).any())
        return self.clamp if labels or bool(self.clamp.mask.any()) else None


class ChainBatch:
    """Chains on one (model, sampler)."""

    def __init__(self, model: HasStates, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        self._rows = _Rows()
        self._tensors: _Tensors | None = None

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
            accepted = torch.zeros((len(numbers), 2), dtype=torch.float64, device=device)
        else:
            # A sampler may keep more blocks than the model has.
            blocks = {
                key.removeprefix("block."): torch.from_numpy(array).to(device)
                for key, array in saved.items()
                if key.startswith("block.")
            }
            state = ChainState(blocks, torch.from_numpy(saved["sweep"]).to(device))
            sums = torch.from_numpy(saved["sums"]).to(device) if "sums" in saved else torch.zeros_like(state.visible)
            accepted = torch.from_numpy(saved["accepted"]).to(device)
        beta = torch.full((len(numbers),), 1.0 / task.temperature, dtype=torch.float64, device=device)
        entering = _Tensors(state, keys, clamp, beta, sums, accepted)
        self._tensors = entering if self._tensors is None else self._tensors.joined(entering)
        rows = self._rows
        rows.tasks += [task] * len(numbers)
        rows.names += [name] * len(numbers)
        rows.sweep = np.concatenate((rows.sweep, state.sweep.cpu().numpy()))
        rows.chain = np.concatenate((rows.chain, numbers))

    @torch.inference_mode()
    def advance(self, sweeps: int) -> None:
        """Every row makes `sweeps` sweeps; draws and averages are reported as they fall due; done rows leave."""
        assert self._tensors is not None
        rows, tensors = self._rows, self._tensors
        clamp = tensors.holding
        beta = tensors.beta if bool((tensors.beta != 1.0).any()) else None
        state = tensors.state
        burn_in = np.array([t.burn_in for t in rows.tasks])
        thin = np.array([t.thin for t in rows.tasks])
        never = np.iinfo(np.int64).max
        average_from = np.array([never if t.average_from is None else t.average_from for t in rows.tasks])
        peeks = [i for i, t in enumerate(rows.tasks) if t.peek_every and rows.chain[i] == 0]
        for _ in range(sweeps):
            state, info = self._sampler.step(self._model, state, tensors.keys, clamp, beta)
            rows.sweep = rows.sweep + 1
            self._add_up(tensors, info, np.flatnonzero(rows.sweep >= average_from))
            self._report_draws(state, np.flatnonzero((rows.sweep > burn_in) & ((rows.sweep - burn_in) % thin == 0)))
            for i in peeks:
                if rows.sweep[i] % (rows.tasks[i].peek_every or 1) == 0:
                    rows.tasks[i].on_peek(int(rows.sweep[i]), state.visible[i].cpu().numpy())
        self._tensors = _Tensors(state, tensors.keys, tensors.clamp, tensors.beta, tensors.sums, tensors.accepted)
        done = np.flatnonzero(rows.sweep >= np.array([t.sweeps for t in rows.tasks]))
        if len(done):
            self._report_done(self._tensors, done)
            self._keep(np.setdiff1d(np.arange(len(self)), done))

    def drop(self, name: str) -> None:
        """The chains of a job leave at once."""
        self._keep(np.array([i for i, other in enumerate(self._rows.names) if other != name], np.int64))

    def sweeps_of(self, name: str) -> int:
        """Sweeps that the job's chains in this batch have made, all together."""
        return sum(int(s) for other, s in zip(self._rows.names, self._rows.sweep, strict=True) if other == name)

    def snapshot(self, name: str) -> dict[str, NDArray[Any]]:
        """The state of a job's chains here: `chain`, `sweep`, `block.*`, `accepted`; `sums` where averages are kept."""
        mine = np.array([i for i, other in enumerate(self._rows.names) if other == name], np.int64)
        if not len(mine) or self._tensors is None:
            return {"chain": np.zeros(0, np.int64), "sweep": np.zeros(0, np.int64)}
        tensors = self._tensors.rows(self._index(mine))
        saved: dict[str, NDArray[Any]] = {"chain": self._rows.chain[mine], "sweep": self._rows.sweep[mine]}
        for block, values in tensors.state.blocks.items():
            saved[f"block.{block}"] = values.cpu().numpy()
        saved["accepted"] = tensors.accepted.cpu().numpy()
        if self._rows.tasks[int(mine[0])].average_from is not None:
            saved["sums"] = tensors.sums.cpu().numpy()
        return saved

    def _add_up(self, tensors: _Tensors, info: SweepInfo, averaged: Chains) -> None:
        if len(averaged):
            index = self._index(averaged)
            tensors.sums[index] += info.expected_visible()[index]
        if info.acceptance_rate is not None:
            proposed = torch.isfinite(info.acceptance_rate)  # in the same batch some chains may propose nothing
            rates = torch.where(proposed, info.acceptance_rate, 0.0)
            tensors.accepted.add_(torch.stack((rates.double(), proposed.double()), 1))

    def _report_draws(self, state: ChainState, due: Chains) -> None:
        if not len(due):
            return
        rows = self._rows
        visible = state.visible[self._index(due)].cpu().numpy()
        for task, at in self._by_task(due):
            picked = due[at]
            draw = (rows.sweep[picked] - task.burn_in) // task.thin - 1
            task.on_draw(rows.chain[picked], draw, visible[at])

    def _report_done(self, tensors: _Tensors, done: Chains) -> None:
        for task, at in self._by_task(done):
            mine = tensors.rows(self._index(done[at]))
            task.on_accepted(*mine.accepted.sum(0).tolist())
            if task.average_from is not None:
                averages = mine.clamp.apply(mine.sums / (task.sweeps - task.average_from + 1))
                task.on_average(self._rows.chain[done[at]], averages.cpu().numpy())

    def _by_task(self, rows: Chains) -> list[tuple[ChainTask, Chains]]:
        positions: dict[int, list[int]] = {}
        for position, row in enumerate(rows):
            positions.setdefault(id(self._rows.tasks[row]), []).append(position)
        return [(self._rows.tasks[rows[at[0]]], np.asarray(at, np.int64)) for at in positions.values()]

    def _keep(self, kept: Chains) -> None:
        if self._tensors is None:
            return
        rows = self._rows
        rows.tasks = [rows.tasks[i] for i in kept]
        rows.names = [rows.names[i] for i in kept]
        rows.sweep, rows.chain = rows.sweep[kept], rows.chain[kept]
        self._tensors = self._tensors.rows(self._index(kept))

    def _index(self, rows: Chains) -> Tensor:
        return torch.from_numpy(rows).to(self._model.device)

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
        group = chains // task.chains_per_clamp
        label = None
        if isinstance(self._model, HasClasses) and self._model.class_count:
            held = np.full(1, -1) if task.label is None else task.label
            label = torch.from_numpy(held[group if len(held) > 1 else np.zeros_like(group)].astype(np.int64)).to(device)
        if task.clamp_mask is None or task.clamp_value is None:
            free = torch.zeros(shape, dtype=torch.bool, device=device)
            return Clamp(free, torch.zeros(shape, dtype=torch.float64, device=device), label)
        rows = group if len(task.clamp_mask) > 1 else np.zeros_like(group)
        mask = torch.from_numpy(np.ascontiguousarray(task.clamp_mask[rows])).to(device)
        value = torch.from_numpy(np.where(task.clamp_mask[rows], task.clamp_value[rows], 0.0)).to(device)
        return Clamp(mask, value, label)
