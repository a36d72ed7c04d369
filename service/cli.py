"""The service's part of the `ebm` command. Heavy imports wait until a command runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.settings import Settings

if TYPE_CHECKING:
    from service.core.card import Card
    from service.core.job import SamplerSpec
    from service.runtime.library import Served

app = typer.Typer()

ModelArgument = Annotated[str, typer.Argument(help="NAME, NAME:VERSION, or the folder of a checkpoint.")]
ModelsOption = Annotated[Path | None, typer.Option("--models", help="Models directory [EBM_MODELS_DIR].")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [EBM_DEVICE].")]


def _settings(**changes: Any) -> Settings:
    return Settings(**{name: value for name, value in changes.items() if value is not None})


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What the user did wrong is said in a line, with exit code 2, not in a traceback."""
    from models.errors import ModelError
    from service.core.errors import ServiceError
    from service.queue.embedded import EmbeddedServerError

    try:
        yield
    except (ModelError, ServiceError, EmbeddedServerError, OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


@app.command()
def serve(
    models: ModelsOption = None,
    host: Annotated[str | None, typer.Option(help="Address [EBM_HOST].")] = None,
    port: Annotated[int | None, typer.Option(help="Port [EBM_PORT].")] = None,
    device: DeviceOption = None,
) -> None:
    """Serve the models directory over REST, with a worker beside it."""
    from service.serve import serve as run
    from service.telemetry import configure_logging

    with _plain_errors():
        settings = _settings(models_dir=models, host=host, port=port, device=device)
        configure_logging(settings.log_level, json=settings.log_json)
        run(settings)


@app.command()
def worker(models: ModelsOption = None, device: DeviceOption = None) -> None:
    """Run a worker process; any number of them share the queue and the data folder."""
    from service.worker.__main__ import main

    with _plain_errors():
        main(_settings(models_dir=models, device=device))


@app.command("models")
def list_models(models: ModelsOption = None) -> None:
    """List the models directory."""
    from models import checkpoint
    from models.errors import CheckpointError

    settings = _settings(models_dir=models)
    for name, versions in checkpoint.versions(settings.models_dir).items():
        for version in versions:
            try:
                manifest = checkpoint.read_manifest(settings.models_dir / name / str(version))
                shape = "x".join(map(str, manifest.visible.shape))
                typer.echo(f"{name}:{version}\t{manifest.family}\t{shape} {manifest.visible.domain}")
            except CheckpointError as error:
                typer.echo(f"{name}:{version}\tunreadable: {error}")


@app.command()
def inspect(checkpoint: ModelArgument, models: ModelsOption = None) -> None:
    """Print a checkpoint's card; its digest is verified."""
    with _plain_errors():
        served = _open(checkpoint, _settings(models_dir=models))
        typer.echo(served.card.model_dump_json(indent=2))
        typer.echo("digest verified" if served.checkpoint.manifest.digest else "no digest in the manifest", err=True)


@app.command()
def score(
    model: ModelArgument,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Table: .csv, .parquet or .npy.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Table: .csv, .parquet or .npy.")],
    by: Annotated[str | None, typer.Option("--score", help="Anomaly score; by default the card's first.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Score above which a row is anomalous.")] = None,
    false_positive_rate: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of ordinary rows that may be called anomalous.")
    ] = None,
    models: ModelsOption = None,
    device: DeviceOption = None,
) -> None:
    """Score a table for anomalies: row, score (by default energy, nats), p-value, anomalous."""
    from service.runtime.tables import score_table

    with _plain_errors():
        if threshold is not None and false_positive_rate is not None:
            raise ValueError("give --threshold or --false-positive-rate, not both")
        served = _open(model, _settings(models_dir=models, device=device))
        with _progress("scoring", "rows") as advance:
            rows = score_table(
                served,
                source,
                target,
                score=by,
                threshold=threshold,
                false_positive_rate=false_positive_rate,
                progress=advance,
            )
        typer.echo(f"{rows} rows -> {target}")


@app.command()
def sample(
    model: ModelArgument,
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help=".npy, or .png for image-shaped models.")],
    chains: Annotated[int, typer.Option(min=1)] = 16,
    draws: Annotated[int, typer.Option(min=1)] = 1,
    burn_in: Annotated[int, typer.Option(min=0)] = 1000,
    thin: Annotated[int, typer.Option(min=1)] = 1,
    temperature: Annotated[float, typer.Option(min=1e-6)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    label: Annotated[str | None, typer.Option(help="Class to sample, by name or position.")] = None,
    sampler: Annotated[str | None, typer.Option(help="By default the first on the card.")] = None,
    settings: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Settings of the sampler.")] = [],  # noqa: B006
    models: ModelsOption = None,
    device: DeviceOption = None,
) -> None:
    """Sample without a server; the same seed gives the bits that a job gives."""
    import numpy as np

    from service.picture import grid, image_size
    from service.runtime.local import sample as run

    with _plain_errors():
        served = _open(model, _settings(models_dir=models, device=device))
        if target.suffix == ".png" and image_size(served.card.visible.shape) is None:
            raise ValueError(f"{model} is not image-shaped: its examples are {served.card.visible.shape}; write a .npy")
        if target.suffix not in (".npy", ".png"):
            raise ValueError(f"{target}: expected a name that ends in .npy or .png")
        with _progress("sampling", "chain-sweeps") as advance:
            found = run(
                served,
                chains=chains,
                draws=draws,
                burn_in=burn_in,
                thin=thin,
                temperature=temperature,
                seed=seed,
                sampler=_sampler(served.card, sampler, settings),
                label=None if label is None else _class(served.card, label),
                progress=advance,
            )
        if target.suffix == ".npy":
            np.save(target, found)
        else:
            target.write_bytes(grid(found, served.card.input_domain))
        typer.echo(f"{'x'.join(map(str, found.shape))} -> {target}")


@app.command()
def partition(
    model: ModelArgument,
    method: Annotated[str | None, typer.Option(help="One of the card's estimators; by default ais.")] = None,
    chains: Annotated[int, typer.Option(min=2)] = 100,
    temperatures: Annotated[int, typer.Option(min=2)] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    save: Annotated[bool, typer.Option(help="Write the estimate into the checkpoint's manifest.")] = True,
    models: ModelsOption = None,
    device: DeviceOption = None,
) -> None:
    """Estimate log Z."""
    from models.catalog import estimators
    from models.checkpoint import set_log_partition
    from models.estimator import Effort

    with _plain_errors():
        served = _open(model, _settings(models_dir=models, device=device))
        method = method or served.card.default_estimator()
        if method not in served.card.estimators:
            raise ValueError(
                f"method {method!r}: on {model} these apply: {', '.join(served.card.estimators) or 'none'}"
            )
        with _progress("annealing", "steps") as advance:
            found = estimators()[method]().estimate(
                served.checkpoint.model, Effort(chains, temperatures, seed), advance
            )
        typer.echo(f"log Z = {found.value:.4f} +- {found.stderr:.4f} nats ({found.method})")
        if save:
            set_log_partition(served.checkpoint.folder, found.value, found.stderr, found.method)


@app.command()
def config() -> None:
    """List every setting with its value and meaning."""
    settings = Settings()
    for name, field in Settings.model_fields.items():
        typer.echo(f"EBM_{name.upper()}={getattr(settings, name)}  # {field.description}")


def _sampler(card: Card, name: str | None, settings: list[str]) -> SamplerSpec | None:
    import json

    from service.core.job import SamplerSpec

    if name is None and not (settings and card.samplers):
        return None
    found: dict[str, Any] = {"name": name or card.samplers[0]}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key in ("", "name"):
            raise ValueError(f"--set {setting}: expected KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return SamplerSpec(**found)


def _class(card: Card, label: str) -> int:
    known = {str(name): place for name, place in card.class_positions().items()}
    if label not in known:
        classes = ", ".join(map(str, card.classes or [])) or "none"
        raise ValueError(f"--label {label}: {card.name} has these classes: {classes}")
    return known[label]


def _open(model: str, settings: Settings) -> Served:
    import torch

    from models import checkpoint
    from models.manifest import check_name
    from service.runtime.library import resolve_device, serve_folder

    torch.set_num_threads(settings.threads)
    folder = Path(model)
    if not (folder / checkpoint.MANIFEST).exists():
        name, _, version = model.partition(":")
        known = checkpoint.versions(settings.models_dir).get(check_name(name), [])
        if not known or (version and version not in map(str, known)):
            found = f"it has versions {', '.join(map(str, known))}" if known else "see `ebm models`"
            raise ValueError(f"no model {model!r} in {settings.models_dir}; {found}")
        folder = settings.models_dir / name / (version or str(max(known)))
    return serve_folder(folder, resolve_device(settings.device))


@contextmanager
def _progress(title: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(title, total=None, rate="")

        def advance(done: int, total: int | None) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield advance
