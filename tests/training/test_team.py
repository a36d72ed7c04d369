"""Processes that train one model together: real ones, started by torchrun."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from models.rng import ChainKeys, random_bits
from training import data
from training.cli import app
from training.config import load
from training.errors import RecipeError
from training.stages import check
from training.team import ALONE, Team

_ROOT = Path(__file__).parents[2]
_SMALL = ("model.hidden=8", "monitor.ais_temperatures=0", "monitor.every=20", "likelihood.temperatures=20")


def _arguments(folder: Path, settings: tuple[str, ...], *more: str) -> list[str]:
    sets = [part for setting in (*_SMALL, *settings) for part in ("--set", setting)]
    places = ["--out", str(folder / "models"), "--run-dir", str(folder / "run")]
    return ["train", "rbm-digits", *places, "--device", "cpu", *sets, *more]


def _two(*arguments: str) -> subprocess.Popen[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", sys.executable)
    return subprocess.Popen(
        [sys.executable, *launcher, "-c", "from training.cli import app; app(prog_name='ebm')", *arguments],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def _parameters(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "models" / "rbm-digits" / "1").glob("*.safetensors")))


def _exact(output: str) -> float:
    found = re.search(r"exact\s+(-[\d.]+)", output)
    assert found, output
    return float(found[1])


def test_a_team_of_two_takes_the_steps_of_one_where_nothing_is_drawn(tmp_path: Path) -> None:
    settings = ("objective.name=maximum_likelihood", "fit.epochs=2")
    alone = CliRunner().invoke(app, _arguments(tmp_path / "one", settings))
    assert alone.exit_code == 0, alone.output
    _finished(_two(*_arguments(tmp_path / "two", settings)))
    one, two = _parameters(tmp_path / "one"), _parameters(tmp_path / "two")
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_a_team_learns_what_one_does_and_goes_on_bit_for_bit_where_it_was_stopped(tmp_path: Path) -> None:
    settings = ("fit.epochs=60",)
    output = _finished(_two(*_arguments(tmp_path / "whole", settings)))
    assert output.count("checkpoint  ") == 1
    assert [p.name for p in (tmp_path / "whole" / "models" / "rbm-digits").iterdir()] == ["1"]
    assert not list((tmp_path / "whole" / "run").glob("state*"))
    alone = CliRunner().invoke(app, _arguments(tmp_path / "one", settings))
    assert _exact(output) == pytest.approx(_exact(alone.output), abs=0.7)

    stopped = _two(*_arguments(tmp_path / "part", settings))
    metrics = tmp_path / "part" / "run" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert stopped.poll() is None
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=120)
    assert stopped.returncode != 0
    assert len(re.findall(r"To go on:\n  torchrun --standalone --nproc-per-node=2 --no-python ebm ", output)) == 1
    first, second = (load_file(tmp_path / "part" / "run" / f"state{n}.safetensors") for n in ("", "-1"))
    assert torch.equal(first["parameters.W"], second["parameters.W"])
    assert not torch.equal(first["memory.chains.hidden"], second["memory.chains.hidden"])

    alone = CliRunner().invoke(app, _arguments(tmp_path / "part", settings, "--resume"))
    assert alone.exit_code == 2
    assert "there were 2 processes, now 1" in alone.output

    _finished(_two(*_arguments(tmp_path / "part", settings, "--resume")))
    whole, part = _parameters(tmp_path / "whole"), _parameters(tmp_path / "part")
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_a_batch_that_does_not_divide_evenly_is_refused() -> None:
    recipe = load("rbm-digits", ["fit.batch_size=51"])
    with pytest.raises(RecipeError, match=r"fit\.batch_size: 51 examples do not divide evenly among 2 processes"):
        check(recipe, data.load(recipe.data), Team(0, 2))


def test_shares_are_the_whole_and_draws_are_apart() -> None:
    rows = torch.arange(12)
    team = [Team(rank, 3) for rank in range(3)]
    assert sorted(int(row) for one in team for row in one.share(rows)) == list(range(12))
    at = torch.zeros(4, dtype=torch.int64)
    bits = [random_bits(ChainKeys.of(one.seed(7), 4), at, 0, 64) for one in team]
    assert torch.equal(bits[0], random_bits(ChainKeys.of(ALONE.seed(7), 4), at, 0, 64))
    assert all(not torch.equal(bits[i], bits[j]) for i in range(3) for j in range(i))
