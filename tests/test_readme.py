"""The README's commands, run as they stand against a real service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.service.servers import Server, environment, serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(heading: str) -> str:
    """All shell blocks under a heading, together."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the commands read, beside a quickly trained `rbm-digits`."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
    quick = ["fit.epochs=5", "likelihood.temperatures=50", "likelihood.chains=20"]
    subprocess.run(
        [sys.executable, "-m", "ebm", "train", "rbm-digits", *(f"--set={change}" for change in quick)],
        cwd=folder,
        env=environment(folder / "checkpoints", folder / "data"),
        check=True,
        capture_output=True,
        timeout=200,
    )
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder / "checkpoints", folder / "data") as running:
        yield running


def shell(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, **environment(folder / "checkpoints", folder / "data")},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_curl_examples_work_as_they_stand(folder: Path, server: Server) -> None:
    script = blocks("Ask")
    assert script.count("curl") >= 9
    said = shell(script.replace("http://127.0.0.1:8000", str(server.client.base_url).rstrip("/")), folder)
    for expected in ('"energy":', '"log_density":', '"p_value":', '"samples":', "event: done", '"status":"succeeded"'):
        assert expected in said
    with Image.open(folder / "samples.png") as picture:
        assert min(picture.size) > 400


def test_the_commands_work_as_they_stand(folder: Path) -> None:
    script = blocks("On the command line").replace(".venv/bin/ebm", f"{sys.executable} -m ebm")
    said = shell(script, folder)
    assert "log Z = " in said
    assert '"family": "rbm"' in said
    assert len((folder / "scores.csv").read_text().splitlines()) == 21


def test_every_file_and_page_that_the_readme_names_is_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
