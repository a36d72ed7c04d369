"""Langevin steps on a perceptron's energy on one thread: ours against torch eager and torchebm, interleaved.

torchebm is no dependency of the project: `pip install --no-deps torchebm`. Where it is missing it is left out.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from models.architectures.mlp import MLP
from models.families.mlp_energy import MLPEnergy
from models.rng import ChainKeys
from models.samplers.langevin import Langevin

STEP, STEPS, ROUNDS = 0.01, 10, 21
SIZES = (
    (2, (64, 64), 1000),
    (2, (128, 128), 64),
    (2, (128, 128), 1000),
    (64, (256, 256), 256),
    (784, (256, 256), 64),
    (784, (256, 256), 256),
    (784, (256, 256), 1024),
)
"""Visible units, hidden ones, chains."""


class _Energy(nn.Module):
    """As one writes it: linear layers and SiLU, one output."""

    def __init__(self, units: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for below, width in zip((units, *hidden), hidden, strict=False):
            layers += [nn.Linear(below, width), nn.SiLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(hidden[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        energy: Tensor = self.head(self.body(x))
        return energy[:, 0]


def _torchebm(energy: _Energy, start: Tensor) -> Callable[[], None]:
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Wrapped(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.energy = energy

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.energy(x)
            return found

    # x - eta grad E(x) + sqrt(2 eta) z: the same step. Neither trajectory nor diagnostics are asked for.
    sampler, x = LangevinDynamics(Wrapped(), step_size=STEP**2 / 2, noise_scale=1.0), start

    def run() -> None:
        nonlocal x
        x = sampler.sample(x=x, n_steps=STEPS)

    return run


def _engines(units: int, hidden: tuple[int, ...], chains: int) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    energy, start = _Energy(units, hidden), torch.randn(chains, units)
    parameters = {
        (name if name.startswith("head") else f"body.{int(name.split('.')[1]) + 1}.{name.split('.')[2]}"): p.detach()
        for name, p in energy.named_parameters()
    }
    model = MLPEnergy(MLP(hidden=list(hidden), activation="swish"), (units,), "real", parameters)
    sampler, keys, x = Langevin(STEP), ChainKeys.of(1, chains), start
    state = sampler.init(model, keys, start.double(), None)

    def ours() -> None:
        nonlocal state
        with torch.inference_mode():
            for _ in range(STEPS):
                state, _ = sampler.step(model, state, keys)

    def torch_eager() -> None:
        nonlocal x
        for _ in range(STEPS):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(energy(x).sum(), x)
            x = x.detach() - 0.5 * STEP**2 * slope + STEP * torch.randn_like(x)

    ours()
    torch.testing.assert_close(
        model.energy_and_gradient(start)[1].float(), torch.func.grad(lambda at: energy(at).sum())(start)
    )
    engines = {"ebm-server": ours, "torch eager": torch_eager}
    if find_spec("torchebm") is not None:
        engines["torchebm"] = _torchebm(energy, start)
    return engines


def measure() -> list[dict[str, float | int | str]]:
    """Median microseconds of CPU time of a step of all chains; ratios to ours, median and quartiles over rounds."""
    torch.set_num_threads(1)
    rows: list[dict[str, float | int | str]] = []
    for units, hidden, chains in SIZES:
        engines = _engines(units, hidden, chains)
        times: dict[str, list[float]] = {name: [] for name in engines}
        for run in engines.values():
            run()
        repeats = max(1, round(0.05 / _seconds(engines["ebm-server"])))
        for _ in range(ROUNDS):
            for name, run in engines.items():
                times[name].append(_seconds(run, repeats) / repeats / STEPS * 1e6)
        for name, found in times.items():
            ratios = [theirs / own for theirs, own in zip(found, times["ebm-server"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rows.append(
                {
                    "network": "-".join(map(str, (units, *hidden, 1))),
                    "chains": chains,
                    "engine": name,
                    "us": statistics.median(found),
                    "ratio": middle,
                    "ratio_low": low,
                    "ratio_high": high,
                }
            )
    return rows


def _seconds(run: Callable[[], object], repeats: int = 1) -> float:
    began = time.process_time()  # what else runs on the machine costs caches, but not turns
    for _ in range(repeats):
        run()
    return time.process_time() - began


def conditions() -> str:
    """What else there was to know."""
    rival = f"torchebm {version('torchebm')}" if find_spec("torchebm") is not None else "torchebm was not installed"
    return f"{rival}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def table(rows: list[dict[str, float | int | str]]) -> str:
    """Markdown."""
    lines = ["| network | chains | engine | us per step | its time / ours (quartiles) |", "|---|---|---|---|---|"]
    for r in rows:
        spread = "" if r["engine"] == "ebm-server" else f" ({r['ratio_low']:.2f}-{r['ratio_high']:.2f})"
        lines.append(f"| {r['network']} | {r['chains']} | {r['engine']} | {r['us']:.0f} | {r['ratio']:.2f}{spread} |")
    return "\n".join(lines)
