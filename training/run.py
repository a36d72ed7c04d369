"""A training run from recipe to checkpoint, which may be stopped anywhere and continued."""

from __future__ import annotations

import json
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from models import checkpoint
from models.anomaly import scores_of
from models.catalog import samplers_of
from models.family import EnergyModel, HasConditionals, HasGenerator, HasStates
from models.latent_family import LatentModel
from models.manifest import LogPartitionRecord, Manifest, Training, check_name
from training import data, pictures, plane, runfolder, state
from training.config import Recipe
from training.data import Dataset
from training.errors import Interrupted, RecipeError, ResumeError
from training.fit import FitState, manifest, model_of, steps_per_epoch, train, watch
from training.likelihood import Evaluation, Progress, energies, evaluate, has_energy, monitor, scored, wide
from training.objective import Objective, Sum, build
from training.progress import Stages
from training.stages import Stage, check, names, stage
from training.state import Origin
from training.team import Team, joined, own_gpu

_REFERENCE_ENERGIES, _REFERENCE_SCORES, _REFERENCE_EXAMPLES = 10_000, 2000, 256
_ONE_THREAD_PRODUCT = 1 << 23
"""Multiplications in a step's products below which a second thread costs more than it saves."""
_AGREE = 16
"""Steps between two times that processes ask each other whether to stop."""
_LIBRARIES = ("torch", "numpy", "numba", "ebm-server")


@dataclass(frozen=True)
class Job:
    """What to train, and where everything goes."""

    recipe: Recipe
    models_dir: Path
    run_dir: Path
    device: str = "auto"
    resume: bool = False
    command: str | None = None


@dataclass(frozen=True)
class Result:
    """What a finished run left."""

    checkpoint: Path
    metrics: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Run:
    job: Job
    origin: Origin
    dataset: Dataset
    structure: Manifest
    objective: Objective
    stages: Stages
    stop: Stop
    team: Team


class Stop:
    """Whether SIGINT or SIGTERM came. The first asks; a second one acts as it would without us."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals while inside."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, _frame: FrameType | None) -> None:
            self.requested = True
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise if asked to stop.

        Raises:
            Interrupted: asked to.
        """
        if self.requested:
            raise Interrupted("stopped on request")


def run(job: Job, console: Console) -> Result | None:
    """Train, estimate the test log-likelihood, draw the pictures, write the checkpoint.

    Under `torchrun` the processes train together, and all but the first return nothing.

    Raises:
        TrainingError: anything wrong with recipe, data or run folder; divergence; or stopped on request.
        CheckpointError: the name is no model name.
    """
    check_name(job.recipe.name)
    with joined() as team:
        return _run(job, console if team.leads else Console(quiet=True), team)


def _run(job: Job, console: Console, team: Team) -> Result | None:
    device = _device(job.device)
    objective = build(job.recipe.objective)
    dataset = data.load(job.recipe.data).to(device)
    check(job.recipe, dataset, team)
    structure = manifest(job.recipe, dataset)
    largest = dataset.units * max(job.recipe.model.layers or [dataset.units])
    if largest * job.recipe.fit.batch_size < _ONE_THREAD_PRODUCT:
        torch.set_num_threads(1)
    origin = Origin(
        recipe=job.recipe,
        data=dataset.fingerprint(),
        device=device.type,
        threads=torch.get_num_threads(),
        processes=team.size,
    )
    stop = Stop()
    folder_is_ours = runfolder.owned(job.run_dir, job.resume, console) if team.leads else nullcontext()
    with folder_is_ours, stop.listening(), Stages(console) as stages:
        team.any(False)  # the others wait until the folder is the leading one's
        here = _Run(job, origin, dataset, structure, objective, stages, stop, team)
        fitted, seconds = _fit(here, device)
        if not team.leads:
            return None
        model = model_of(structure, fitted.result)
        own = fitted.result is fitted.parameters
        known = objective.log_partition(model, fitted.memory) if own and job.recipe.finetuning is None else None
        evaluation = evaluate(structure, model, dataset, job.recipe.likelihood, job.recipe.seed, _progress(here), known)
        drawn = _pictures(here, fitted, model, evaluation)
        pictures.write(job.run_dir, drawn)
        metrics = {**evaluation.metrics, "train_examples": len(dataset.train), "train_seconds": round(seconds, 1)}
        folder = checkpoint.write(
            job.models_dir,
            _manifest(here, fitted, evaluation, metrics),
            model,
            _reference(structure, model, dataset),
            drawn.get("samples", drawn.get("density")),
        )
        runfolder.finish(job.run_dir, folder, metrics)
    return Result(folder, metrics)


def _device(name: str) -> torch.device:
    if name == "auto":
        return own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device {name!r}: expected auto, cpu or cuda") from None
    if device.type not in {"cpu", "cuda"}:
        raise RecipeError(f"device {name!r}: expected auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device cuda: this machine has no CUDA device that torch can use")
    return own_gpu() if name == "cuda" else device


def _fit(here: _Run, device: torch.device) -> tuple[FitState, float]:
    recipe, folder, before = here.job.recipe, here.job.run_dir, 0.0
    fitted: FitState | None = None
    if here.job.resume:
        saved = state.read(folder, device, here.team.rank)
        state.check_same(saved.origin, here.origin)
        at_step = (len(saved.fit.finished), saved.fit.step)
        if here.team.any(here.team.told(lambda: at_step) != at_step):
            raise ResumeError(f"the states of the processes in {folder} are of different steps: start anew")
        torch.set_num_threads(saved.origin.threads)
        here = replace(here, origin=saved.origin)
        fitted, before = saved.fit, saved.seconds
        here.stages.say(f"resumed after step {fitted.step:,} of {names(recipe)[len(fitted.finished)]}")
        if here.team.leads:
            runfolder.keep_records(folder, len(fitted.finished), fitted.step)
    began = time.monotonic() - before
    finished = [] if fitted is None else fitted.finished
    while True:
        at = stage(recipe, here.dataset, finished)
        if fitted is None:
            fitted = at.begin(here.team)
            fitted.finished = finished
            _record(here, at, fitted, before)
        _advance(here, at, fitted, began)
        if len(finished) == len(names(recipe)) - 1:
            return fitted, time.monotonic() - began
        finished, fitted = [*finished, fitted.result], None
        before = time.monotonic() - began


def _advance(here: _Run, at: Stage, fitted: FitState, began: float) -> None:
    """One stage from where it is to its end."""
    folder, settings = here.job.run_dir, at.recipe.fit
    in_epoch = steps_per_epoch(at.data, settings)
    total = in_epoch * settings.epochs
    note = ""

    def after_step(fitted: FitState) -> None:
        nonlocal note
        seconds = time.monotonic() - began
        end_of_epoch = fitted.step % in_epoch == 0
        # Processes that train together stop after the same step, which they do not have to agree on at each.
        agree = end_of_epoch or fitted.step % _AGREE == 0 or here.team.size == 1
        asked = agree and here.team.any(here.stop.requested)
        if end_of_epoch and ((fitted.step // in_epoch) % at.recipe.monitor.every == 0 or fitted.step == total):
            note = _record(here, at, fitted, seconds)
        if end_of_epoch or asked:
            state.save(folder, here.origin, fitted, seconds, here.team.rank)
        here.stages.update(at.name, fitted.step, total, note)
        if asked:
            raise Interrupted("stopped on request")

    train(at.recipe, at.data, at.objective, fitted, after_step, here.team)


def _record(here: _Run, at: Stage, fitted: FitState, seconds: float) -> str:
    """One line of metrics.jsonl; returns what of it belongs beside the progress bar."""
    recipe, number = at.recipe, len(fitted.finished)
    model = model_of(at.structure, fitted.shown)
    known = None if fitted.average else at.objective.log_partition(model, fitted.memory)  # what memory has is another's
    found = here.team.told(
        lambda: monitor(at.structure, model, at.data, recipe.monitor, recipe.seed, fitted.step, known)
    )
    if recipe.fit.patience is not None:
        if recipe.monitor.watch not in found:
            raise RecipeError(f"fit.patience: there is no {recipe.monitor.watch} to wait for; set monitor.watch")
        watch(fitted, recipe, found[recipe.monitor.watch])
    epoch = fitted.step / steps_per_epoch(at.data, recipe.fit)
    line = {"stage": number, "step": fitted.step, "epoch": epoch, "seconds": round(seconds, 3), **found}
    if here.team.leads:
        runfolder.add_record(here.job.run_dir, line)
    shown = {
        "gap": "free_energy_gap",
        "PLL": "pseudo_log_likelihood",
        "SM": "score_matching_validation",
        "denoising": "denoising_validation",
        "LR": "log_ratio_to_generator_validation",
        "error": "classification_error_validation",
        "LL": "log_likelihood_validation",
    }
    return "  ".join(f"{short} {found[key]:.4g}" for short, key in shown.items() if key in found)


def _progress(here: _Run) -> Progress:
    def update(stage: str, done: int, total: int) -> None:
        here.stages.update(stage, done, total)
        here.stop.check()

    return update


def _pictures(here: _Run, fitted: FitState, model: EnergyModel, evaluation: Evaluation) -> dict[str, bytes]:
    chains = here.objective.ended(fitted.memory) if here.job.recipe.finetuning is None else None
    seed, last = here.job.recipe.seed, len(names(here.job.recipe)) - 1
    found = {"curves": pictures.curves([r for r in runfolder.records(here.job.run_dir) if r["stage"] == last])}
    if (filters := pictures.filters(model, here.dataset.shape)) is not None:
        found["filters"] = filters
    if isinstance(model, LatentModel):
        found["generator"] = pictures.untilted(model, here.dataset, seed)
    if plane.lies_in(model, here.dataset):
        seen = pictures.from_generator(model, 5000, seed) if isinstance(model, HasGenerator) else chains
        found["density"] = pictures.density(model, here.dataset, seen)
    elif isinstance(model, HasGenerator) and not isinstance(model, LatentModel):
        found["samples"] = pictures.generated(model, here.dataset, seed)
    elif chains is not None and not isinstance(model, HasConditionals):
        found["samples"] = pictures.states(chains, here.dataset)
    elif isinstance(model, HasStates) and samplers_of(model):
        start = None if evaluation.samples is None else evaluation.samples[:100]
        # In latent space a sweep passes both networks many times, and chains begin near their law.
        sweeps = 30 if isinstance(model, LatentModel) else 100
        found["samples"] = pictures.samples(model, start, here.dataset, seed, sweeps)
    if isinstance(model, HasConditionals):  # a network's would take longer than its training
        found["completions"] = pictures.completions(model, here.dataset, seed)
    return found


def _manifest(here: _Run, fitted: FitState, evaluation: Evaluation, metrics: dict[str, Any]) -> Manifest:
    recipe, estimate = here.job.recipe, evaluation.log_partition
    last = recipe.fit if recipe.finetuning is None else recipe.finetuning.fit
    record = (
        None
        if estimate is None
        else LogPartitionRecord(value=estimate.value, stderr=estimate.stderr, method=estimate.method)
    )
    return here.structure.model_copy(
        update={
            "log_partition": record,
            "training": Training(
                objective=_in_words(here.objective),
                dataset=here.dataset.name,
                steps=fitted.step,
                epochs=fitted.step // steps_per_epoch(here.dataset, last),
                seed=recipe.seed,
                metrics=metrics,
                command=here.job.command,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                library_versions={name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
                recipe=json.loads(recipe.model_dump_json()),
            ),
        }
    )


def _in_words(objective: Objective) -> str:
    if isinstance(objective, Sum):
        weighted = zip(objective.weights, objective.terms, strict=True)
        return " + ".join(f"{weight:g} {_in_words(term)}" for weight, term in weighted)
    settings = ", ".join(f"{key} {value}" for key, value in objective.model_dump().items())
    return f"{objective.name} ({settings})" if settings else objective.name


def _reference(of: Manifest, model: EnergyModel, dataset: Dataset) -> checkpoint.Reference:
    """Energies and other anomaly scores of examples that were not trained on, and a few that were, for chains that
    start at data."""
    names, held_out = scores_of(model), dataset.validation[:_REFERENCE_ENERGIES]
    known = energies(wide(of, model), held_out).cpu().numpy() if has_energy(model) and "energy" in names else None
    few = dataset.validation[:_REFERENCE_SCORES]
    others = {name: scored(model, name, few).cpu().numpy() for name in names if name != "energy"}
    return checkpoint.Reference(known, dataset.train[:_REFERENCE_EXAMPLES].cpu().numpy(), others)
