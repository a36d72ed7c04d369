"""A claimed job whose work is chains (`sample`, `complete`): its arrays on disk, its checkpoints and its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import diagnostics
from models.errors import InputError
from models.family import HasStates
from models.sampler import Sampler
from service.core.job import Claim, CompleteSpec, Progress, SampleSpec
from service.core.plan import Lane
from service.picture import image_size
from service.runtime.chains import ChainBatch, ChainTask
from service.runtime.library import Served
from service.runtime.operations import Held, chain_model, chain_values, completion_task, shown
from service.runtime.rows import energies
from service.runtime.samplers import make_sampler
from service.store.files import JobFiles, StoreError

Array = NDArray[Any]
Emit = Callable[[str, dict[str, Any]], None]

_DIAGNOSED_ROWS = 200_000


class ChainJob:
    """One job as this worker holds it.

    The result is an array on disk that draws are written into as they fall due. A checkpoint is the chains' state with
    the number of every chain that is done; draws made after it are made again by whoever resumes, with the same bits.
    """

    def __init__(self, claim: Claim, served: Served, files: JobFiles, emit: Emit) -> None:
        self.claim = claim
        self._served = served
        self._files = files
        self._emit = emit
        self.spec = _SPECS[claim.kind].model_validate(claim.payload)
        self.model: HasStates = chain_model(served)
        self.sampler: Sampler = make_sampler(served.card, self.spec.sampler)
        self.lane = Lane(claim.digest, json.dumps(self.spec.sampler.model_dump(), sort_keys=True))
        units = served.card.visible.units
        self._shape = (
            (self.spec.chains, self.spec.draws)
            if isinstance(self.spec, SampleSpec)
            else (self.spec.examples, self.spec.samples)
        )
        inputs = self._read_inputs()
        self._label = inputs.get("label")
        self._held: Held | None = None
        if "clamp_mask" in inputs:
            value, mask = (inputs[name].reshape(-1, units) for name in ("clamp_value", "clamp_mask"))
            self._held = Held(value, mask.astype(bool))
        dtype = served.card.draws_dtype(clamped=self._held is not None)
        self._draws = files.create_array(claim.id, "draws", (*self._shape, units), dtype)
        self._mean: np.memmap[Any, Any] | None = None
        if isinstance(self.spec, SampleSpec):
            self.task = self._sample_task(self.spec, inputs.get("init"))
        else:
            self._mean = files.create_array(claim.id, "chain-means", (*self._shape, units), np.float64)
            self.task = self._complete_task(self.spec)
        self._done = np.zeros(self.chains, bool)
        self._accepted = np.zeros(2)
        self._saved = self._restore()

    @property
    def chains(self) -> int:
        """Chains of the job, done or not."""
        return int(self._shape[0] * (1 if isinstance(self.spec, SampleSpec) else self._shape[1]))

    def remaining(self) -> list[tuple[int, int]]:
        """(chain, sweeps left) of every chain that is not done."""
        left = np.full(self.chains, self.task.sweeps)
        if self._saved:
            left[self._saved["chain"]] -= self._saved["sweep"]
        return [(int(c), int(left[c])) for c in np.flatnonzero(~self._done)]

    def join(self, batch: ChainBatch, chains: list[int]) -> None:
        """Put these chains into the batch, each from where its last checkpoint left it."""
        started = set(self._saved["chain"].tolist()) if self._saved else set()
        resumed = [c for c in chains if c in started]
        fresh = [c for c in chains if c not in started]
        if resumed and self._saved:
            position = {int(c): i for i, c in enumerate(self._saved["chain"])}
            rows = np.array([position[c] for c in resumed])
            batch.join(self.claim.id, self.task, resumed, {name: a[rows] for name, a in self._saved.items()})
        if fresh:
            batch.join(self.claim.id, self.task, fresh)

    def left(self, chains: list[int]) -> None:
        """These chains made their last sweep."""
        self._done[chains] = True

    def checkpoint(self, batch: ChainBatch | None) -> tuple[dict[str, Any], Progress]:
        """Flush the draws, store the chains' state, and return the pointer to it with the progress it stands for."""
        self._draws.flush()
        if self._mean is not None:
            self._mean.flush()
        state = batch.snapshot(self.claim.id) if batch is not None else {}
        if self._saved:  # chains that were resumed here but still wait for a place in the batch
            inside = set(state["chain"].tolist()) if state else set()
            waiting = [i for i, c in enumerate(self._saved["chain"].tolist()) if c not in inside and not self._done[c]]
            if waiting:
                kept = {name: a[waiting] for name, a in self._saved.items()}
                state = kept if not inside else {name: np.concatenate((state[name], kept[name])) for name in state}
        progress = self.progress(int(state["sweep"].sum()) if state else 0)
        of_done = {"done": np.flatnonzero(self._done), "accepted_of_done": self._accepted}
        pointer = self._files.write_state(self.claim.id, progress.done, {**state, **of_done})
        return pointer, progress

    def progress(self, under_way: int = 0) -> Progress:
        """Chain-sweeps made so far, `under_way` of them by chains that are not done."""
        done = int(self._done.sum()) * self.task.sweeps + under_way
        return Progress(done, self.chains * self.task.sweeps, "chain-sweeps")

    def finish(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Complete the result's files; returns the result's description and the diagnostics."""
        shape = [*self._shape, *self._served.card.visible.shape]
        result: dict[str, Any] = {
            "shape": shape,
            "dtype": str(self._draws.dtype),
            "media_types": _media_types(self._served),
            "approximate": self.sampler.approximate(
                self.model, clamped=self._held is not None and bool(self._held.mask.any())
            ),
        }
        found: dict[str, Any] | None = None
        if self._mean is not None and self._held is not None:
            mean = self._files.create_array(self.claim.id, "mean", (self._shape[0], self._draws.shape[-1]), np.float64)
            mean[:] = self._held.put_back(shown(self._served, self._mean.mean(axis=1)))
            mean.flush()
        else:
            found = self._diagnose()
        self._draws.flush()
        return result, found

    def _diagnose(self) -> dict[str, Any]:
        chains, draws = self._shape
        kept = max(1, min(chains, _DIAGNOSED_ROWS // draws))
        rows = self._draws[:kept].reshape(kept * draws, -1)
        known = "energy" in self._served.card.capabilities
        values = (energies(self._served, rows) if known else rows.mean(1)).astype(np.float64).reshape(kept, draws)
        found: dict[str, Any] = {
            "of": "energy" if known else "mean of the units",
            "chains": kept,
            "r_hat": diagnostics.r_hat(values),
            "ess_bulk": diagnostics.ess_bulk(values),
            "ess_tail": diagnostics.ess_tail(values),
            "acceptance_rate": float(self._accepted[0] / self._accepted[1]) if self._accepted[1] else None,
            "energy_mean": float(values.mean()) if known else None,
        }
        reasons = {} if known else {"energy_mean": "this model has no energy"}
        if found["acceptance_rate"] is None:
            reasons["acceptance_rate"] = "this sampler proposes nothing that it could reject"
        lost = int(np.count_nonzero(~np.isfinite(values)))
        if lost:
            why = f"{lost} of {values.size} draws looked at are not finite: chains ran away"
            found["energy_mean"] = None
            reasons |= dict.fromkeys(("energy_mean", "r_hat", "ess_bulk", "ess_tail"), why)
        elif found["r_hat"] == float("inf"):
            found["r_hat"], reasons["r_hat"] = None, "infinite: no chain's energy moves, and the chains differ"
        elif found["r_hat"] is None:
            why = f"needs at least {diagnostics.MIN_DRAWS} draws of each chain, and energies that differ"
            reasons |= dict.fromkeys(("r_hat", "ess_bulk", "ess_tail"), why)
        return {**found, "reasons": reasons}

    def _read_inputs(self) -> dict[str, Array]:
        inputs = self._files.read_inputs(self.claim.id) if self.spec.arrays else {}
        absent = set(self.spec.arrays) - set(inputs)
        if absent:
            raise StoreError(f"the job's input file lacks {', '.join(sorted(absent))}")
        return inputs

    def _sample_task(self, spec: SampleSpec, init: Array | None) -> ChainTask:
        reference = self._served.checkpoint.reference
        if spec.init == "data" and not self._served.card.init_data:
            raise InputError("this checkpoint holds no examples to start chains from", "init")
        return ChainTask(
            seed=spec.seed,
            burn_in=spec.burn_in,
            draws=spec.draws,
            thin=spec.thin,
            temperature=spec.temperature,
            start=None if init is None else chain_values(self._served, init),
            examples=reference.examples if spec.init == "data" and reference is not None else None,
            clamp_mask=None if self._held is None else self._held.mask,
            clamp_value=None if self._held is None else chain_values(self._served, self._held.value),
            label=self._label,
            peek_every=spec.stream_every,
            on_draw=self._on_draw,
            on_accepted=self._on_accepted,
            on_peek=self._on_peek,
        )

    def _complete_task(self, spec: CompleteSpec) -> ChainTask:
        if self._held is None:
            raise StoreError("the job's input file lacks what is to be completed")
        return completion_task(
            self._served,
            self._held,
            self._label,
            spec.samples,
            spec.sweeps,
            spec.seed,
            on_draw=self._on_draw,
            on_average=self._on_average,
        )

    def _on_draw(self, chains: Array, draws: Array, visible: Array) -> None:
        # A completion's chains have one draw each.
        flat = self._draws.reshape(self.chains, -1, self._draws.shape[-1])
        flat[chains, draws] = self._shown(chains, visible)

    def _on_average(self, chains: Array, averages: Array) -> None:
        if self._mean is not None:
            self._mean.reshape(self.chains, -1)[chains] = averages

    def _on_accepted(self, rates: float, sweeps: float) -> None:
        self._accepted += (rates, sweeps)

    def _on_peek(self, sweep: int, visible: Array) -> None:
        values = self._shown(np.zeros(1, np.int64), visible[None]).astype(self._draws.dtype)
        shape = self._served.card.visible.shape
        self._emit("sample", {"chain": 0, "sweep": sweep, "values": values.reshape(shape).tolist()})

    def _shown(self, chains: Array, visible: Array) -> Array:
        values = shown(self._served, visible)
        return values if self._held is None else self._held.put_back(values, chains // self.task.chains_per_clamp)

    def _restore(self) -> dict[str, Array] | None:
        if self.claim.checkpoint is None:
            return None
        saved = self._files.read_state(self.claim.id, self.claim.checkpoint)
        self._done[saved.pop("done")] = True
        self._accepted = saved.pop("accepted_of_done").copy()
        return saved if len(saved.get("chain", ())) else None


def _media_types(served: Served) -> list[str]:
    image = image_size(served.card.visible.shape) is not None
    return ["application/json", "application/x-npy", *(["image/png"] if image else [])]


_SPECS: dict[str, type[SampleSpec] | type[CompleteSpec]] = {"sample": SampleSpec, "complete": CompleteSpec}
CHAIN_KINDS = frozenset(_SPECS)
