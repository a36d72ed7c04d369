"""`ebm train` and `ebm recipes`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.errors import DivergenceError, Interrupted, RecipeError, TrainingError

if TYPE_CHECKING:
    from rich.console import Console

    from training.config import Recipe
    from training.run import Result

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_INTERRUPTED = 130
_METHODS = {"ais": "AIS", "reverse_ais": "reverse AIS", "raise": "RAISE"}


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `ebm recipes`), or a TOML or YAML file.")],
    data: Annotated[str | None, typer.Option(help="A data set's name or path, or the folder it lies in.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Models directory. [default: $EBM_MODELS_DIR, else ./checkpoints]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. [default: the recipe's]")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. fit.epochs=5.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder for metrics, pictures and the resumable state. [default: ./runs/NAME]")
    ] = None,
) -> None:
    """Train a model and write its checkpoint. Ctrl-C leaves a state that --resume goes on from."""
    from rich.console import Console

    from training import compose

    models_dir = out or Path(os.environ.get("EBM_MODELS_DIR") or "checkpoints")
    console = Console()

    def trained(chosen: Recipe, folder: Path, again: bool) -> Path:
        from training.run import Job, run

        command = [*_launcher(), "ebm", *(argument for argument in sys.argv[1:] if argument != "--resume")]
        try:
            result = run(Job(chosen, models_dir, folder, device, again, shlex.join(command)), console)
        except Interrupted:
            if os.environ.get("RANK", "0") == "0":  # all processes stop together, and one says so
                how = f"interrupted; all is saved in {folder}. To go on:\n  {shlex.join(command)} --resume"
                typer.echo(how, err=True)
            raise typer.Exit(_INTERRUPTED) from None
        if result is None:  # another process of the team has it
            raise typer.Exit
        _print_result(console, result, folder)
        return result.checkpoint

    with _told():
        composed = compose.find(recipe)
        if composed is None:
            chosen = _chosen(recipe, data, name, overrides or [])
            trained(chosen, run_dir or Path("runs") / chosen.name, resume)
            return
        if overrides:
            raise RecipeError(f"{composed.name} is a sum of other recipes' models: --set is for training these")

        def term(own: str) -> Path:
            from training.state import STATE

            folder = (run_dir or Path("runs")) / own
            return trained(_chosen(own, data, None, []), folder, resume and (folder / STATE).exists())

        folder = compose.compose(composed.model_copy(update={"name": name or composed.name}), models_dir, term)
        console.print(f"checkpoint  {folder}")


def _chosen(recipe: str, data: str | None, name: str | None, overrides: list[str]) -> Recipe:
    from training import config
    from training.sources import located

    settings = config.load(recipe, overrides).model_dump()
    settings["name"] = name or settings["name"]
    if data:
        settings["data"]["dataset"], settings["data"]["place"] = located(data, settings["data"]["dataset"])
    return config.validated(settings, recipe)


@contextmanager
def _told() -> Iterator[None]:
    """What went wrong goes to stderr in one line, and ends the command."""
    from models.errors import ModelError

    try:
        yield
    except DivergenceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except (TrainingError, ModelError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _launcher() -> list[str]:
    """What started this process together with others, if it did not start alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    return ["torchrun", "--standalone", f"--nproc-per-node={os.environ['WORLD_SIZE']}", "--no-python"]


@app.command()
def recipes() -> None:
    """List the shipped recipes: data set, size, expected figure."""
    from rich.console import Console
    from rich.table import Table

    from training import compose
    from training.config import shipped

    table = Table("recipe", "data set", "size", "objective", "expected", title="shipped recipes", title_justify="left")
    for recipe in shipped().values():
        table.add_row(
            recipe.name,
            f"{recipe.data.dataset} ({_states(recipe)})",
            _size(recipe),
            " + ".join(str(term["name"]) for term in recipe.objective.get("terms", [recipe.objective])),
            recipe.expected,
        )
    for composed in compose.shipped().values():
        terms = [f"{t.weight:g} {t.recipe}" + ("" if t.label is None else f" ({t.label})") for t in composed.terms]
        table.add_row(composed.name, "as its terms", " + ".join(terms), "none: a sum", composed.expected)
    Console().print(table)


def _states(recipe: Recipe) -> str:
    two_valued = recipe.data.domain in ("binary", "spin")
    return recipe.data.binarization if two_valued else recipe.data.domain


def _size(recipe: Recipe) -> str:
    layers = "-".join(map(str, recipe.model.layers))
    parts = [recipe.model.family, f"{layers} hidden" if layers else "", "labels" if recipe.model.labels else ""]
    return ", ".join([*filter(None, parts), f"{recipe.fit.epochs} epochs"])


def _print_result(console: Console, result: Result, run_dir: Path) -> None:
    m = result.metrics
    lines = [f"checkpoint  {result.checkpoint}", f"run         {run_dir} (metrics.jsonl and pictures)"]
    if "test_classification_error" in m:
        error, kind = m["test_classification_error"], m["classification"]
        lines.append(f"test classification error: {error:.2%} of {m['test_examples']} examples ({kind})")
    if "test_calibration_error" in m:
        lines.append(f"test expected calibration error: {m['test_calibration_error']:.2%} (15 bins)")
    if "test_anomaly_auroc" in m:
        lines.append(f"test anomalies told by their energy: AUROC {m['test_anomaly_auroc']:.4f}")
    if "test_score_matching" in m:
        lines.append(f"test score matching: {m['test_score_matching']:.4f}")
    if "test_denoising" in m:
        lines.append(f"test denoising score matching: {m['test_denoising']:.4f}")
    if "test_log_ratio_to_generator" in m:
        ratio, stderr = m["test_log_ratio_to_generator"], m["log_partition_ais_hmc_stderr"]
        lines.append(f"test log-ratio to the generator's law: {ratio:.3f} +- {stderr:.3f} nats per example, optimistic")
    if any(key.startswith("test_log_likelihood_") for key in set(m) - {"test_log_likelihood_examples_stderr"}):
        lines += _likelihoods(m)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _likelihoods(m: dict[str, Any]) -> Iterator[str]:
    kind = {"exact": "", "lower_bound": ", lower bounds", "estimate": ", importance-weighted estimates"}[
        m["energy_kind"]
    ]
    how = f", {m['binarization']} binarization" if m["binarization"] else ""
    yield f"test log-likelihood{kind}, nats per example ({m['test_examples']} examples{how}):"
    learned = (("nce", "as learned"), ("flow_contrastive", "as learned"))
    for key, way in (("exact", "by enumeration"), ("quadrature", "on a grid"), *learned):
        if f"test_log_likelihood_{key}" in m:
            stderr = m.get(f"log_partition_{key}_stderr")
            found = "" if stderr is None else f": {m[f'log_partition_{key}']:.3f} +- {stderr:.3f}"
            yield f"  {key:<12} {m[f'test_log_likelihood_{key}']:9.3f}  log Z {way}{found}"
    yield from _estimates(m)
    if "annealed_examples" in m:
        effort = f"{m['annealed_examples']} examples x {m['annealed_runs']} runs x {m['ais_temperatures']} temperatures"
        above, stderr = m["annealed_above_bound"], m["annealed_above_bound_stderr"]
        yield f"  above bound  {above:9.3f}  +- {stderr:.3f}, AIS given v, {effort}"


def _estimates(m: dict[str, Any]) -> Iterator[str]:
    for key, method in (("optimistic", "ais"), ("pessimistic", "reverse_ais"), ("raise", "raise")):
        if f"test_log_likelihood_{key}" not in m:
            continue
        effort = f"{m['ais_chains']} chains x {m['ais_temperatures']} temperatures"
        if key == "raise":
            effort = f"{m['raise_examples']} examples x {m['raise_runs']} runs x {m['raise_temperatures']} temperatures"
        side, value = "optimistic" if key == "optimistic" else "pessimistic", m[f"test_log_likelihood_{key}"]
        z, stderr = m[f"log_partition_{method}"], m[f"log_partition_{method}_stderr"]
        yield f"  {side:<12} {value:9.3f}  {_METHODS[method]}, {effort}: log Z = {z:.3f} +- {stderr:.3f}"
