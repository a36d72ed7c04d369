"""What a training step's gradient costs by objective and dimension, on one thread, against a plain loss's."""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.architectures.mlp import MLP
from models.families.mlp_energy import MLPEnergy
from training.objective import Batch, Draws, Objective, slopes
from training.objectives.denoising import Denoising
from training.objectives.finite_difference_sliced import FiniteDifferenceSliced
from training.objectives.implicit import Implicit
from training.objectives.sliced import Sliced

DIMENSIONS, WIDTHS, BATCH, ROUNDS = (10, 30, 100, 300, 1000, 3072), (128, 512), 128, 9
EXACT_UP_TO = 300
"""The exact trace keeps a graph for each dimension."""
PLAIN = "plain loss"
OBJECTIVES: dict[str, Objective] = {
    "SSM": Sliced(variance_reduced=False),
    "SSM-VR": Sliced(),
    "finite differences": FiniteDifferenceSliced(),
    "denoising": Denoising(),
    "exact": Implicit(),
}


def _engines(units: int, width: int) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    architecture = MLP(hidden=[width, width], activation="swish")
    parameters = {name: p.detach() for name, p in architecture.network((units,), 1).named_parameters()}
    model = MLPEnergy(architecture, (units,), "real", parameters)
    batch, draws = Batch(torch.randn(BATCH, units)), Draws(1, 1)

    def plain() -> object:
        return slopes(model.tensors(), lambda: model.energy(batch.visible).square().mean())

    def of(objective: Objective) -> Callable[[], object]:
        return lambda: objective.gradient(model, batch, draws, {})

    chosen = {name: of(o) for name, o in OBJECTIVES.items() if name != "exact" or units <= EXACT_UP_TO}
    return {PLAIN: plain, **chosen}


def measure() -> list[dict[str, float | int | str]]:
    """Median microseconds of CPU time of a gradient; ratios to the plain loss, median and quartiles over rounds."""
    torch.set_num_threads(1)
    rows: list[dict[str, float | int | str]] = []
    for width in WIDTHS:
        for units in DIMENSIONS:
            engines = _engines(units, width)
            times: dict[str, list[float]] = {name: [] for name in engines}
            repeats = {name: max(1, round(0.03 / _seconds(run, 1))) for name, run in engines.items() if run()}
            for turn in range(ROUNDS):
                for name, run in engines.items():
                    if name != "exact" or turn < 3:
                        times[name].append(_seconds(run, repeats[name]) / repeats[name] * 1e6)
            for name, found in times.items():
                ratios = [time / plain for time, plain in zip(found, times[PLAIN], strict=False)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                rows.append(
                    {
                        "width": width,
                        "dimension": units,
                        "objective": name,
                        "us": statistics.median(found),
                        "ratio": middle,
                        "ratio_low": low,
                        "ratio_high": high,
                    }
                )
    return rows


def _seconds(run: Callable[[], object], repeats: int) -> float:
    began = time.process_time()  # what else runs on the machine costs caches, but not turns
    for _ in range(repeats):
        run()
    return time.process_time() - began


def conditions() -> str:
    """What else there was to know."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def table(rows: list[dict[str, float | int | str]]) -> str:
    """Markdown: a row for each width and dimension, ratios to the plain loss."""
    names = list(OBJECTIVES)
    lines = [f"| width | dimension | {PLAIN}, us | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for width in WIDTHS:
        for units in DIMENSIONS:
            here = {r["objective"]: r for r in rows if r["width"] == width and r["dimension"] == units}
            ratios = [f"{here[name]['ratio']:.1f}" if name in here else "" for name in names]
            lines.append(f"| {width} | {units} | {here[PLAIN]['us']:.0f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, float | int | str]], path: Path) -> None:
    """The ratios over the dimension, a panel for each width."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(WIDTHS), sharey=True)
    for width, panel in zip(WIDTHS, panels, strict=True):
        for name in OBJECTIVES:
            points = [(r["dimension"], r["ratio"]) for r in rows if (r["width"], r["objective"]) == (width, name)]
            panel.loglog(*zip(*points, strict=True), marker="o", label=name)
        panel.axhline(3, color="grey", linestyle=":", label="3")
        panel.set(title=f"two hidden layers of {width}, batches of {BATCH}", xlabel="dimension")
    panels[0].set_ylabel("time of a gradient / that of a plain loss")
    panels[0].legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    path.write_bytes(picture.getvalue())
