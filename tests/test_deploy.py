"""What people install and run: packages, Makefile, image and stack, as far as it shows without a container."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from service.settings import Settings

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_FILES = [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy").glob("docker-compose*.yml"))]
STACK: dict[str, Any] = yaml.safe_load(COMPOSE_FILES[0].read_text())
SERVICES: dict[str, Any] = STACK["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == STACK["name"])
SETTINGS = {f"EBM_{name.upper()}" for name in Settings.model_fields}


# --- the packages


def test_the_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    for name in ("models", "training", "service"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "ebm.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    wanted = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/**/*") if path.is_file()} | {"ebm.py"}
    build = "-m pip wheel -q --no-deps --no-build-isolation --no-index -w out ."
    subprocess.run([sys.executable, *build.split()], cwd=tmp_path, check=True, timeout=120)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == wanted


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    # Nothing but exact public versions: no local build, no path, no address.
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", line)] == []
    pins = dict(line.split("==") for line in lines)
    project = PROJECT["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"], *PROJECT["build-system"]["requires"]]
    for requirement in map(Requirement, needed):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt has no {requirement.name}"
        assert requirement.specifier.contains(Version(pin)), f"{requirement} does not allow {pin}"


# --- make


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what `make install` looks at, and an environment that is installed already."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    script(tmp_path / ".venv/bin/ebm", 'echo "ebm $*"')
    (tmp_path / ".venv/.installed").touch()
    return tmp_path


def script(path: Path, line: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without what an outer make, which may run this test, would tell an inner one.
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "EBM_MODELS_DIR", "PYTHON", "PORT")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("target", ["install", "demo", "test", "lint", "bench", "clean", "help"])
def test_make_has_the_target(target: str, project: Path) -> None:
    done = make(project, "-n", target)
    assert done.returncode == 0, done.stderr


def test_a_second_install_does_nothing(project: Path) -> None:
    assert "Nothing to be done" in make(project, "install").stdout


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_again(project: Path, changed: str) -> None:
    later = (project / ".venv/.installed").stat().st_mtime + 10
    os.utime(project / changed, (later, later))
    assert "pip" in make(project, "-n", "install").stdout


def test_too_old_a_python_is_refused_in_words(project: Path) -> None:
    (project / ".venv/.installed").unlink()
    old = script(project / "python-old", '[ "$1" = --version ] && echo "Python 3.9.1" || exit 1')
    done = make(project, "install", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "Python 3.9.1" in done.stderr


def test_a_python_that_cannot_make_environments_is_refused_in_words(project: Path) -> None:
    (project / ".venv/.installed").unlink()
    bare = script(project / "python-bare", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    done = make(project, "install", f"PYTHON={bare}")
    assert done.returncode != 0
    assert "python3-venv" in done.stderr


def test_the_demo_trains_where_there_is_no_model_and_serves(project: Path) -> None:
    done = make(project, "demo", "PORT=8123")
    assert done.returncode == 0, done.stderr
    assert "ebm train rbm-digits --out checkpoints\n" in done.stdout
    assert done.stdout.endswith("ebm serve --models checkpoints --host 127.0.0.1 --port 8123\n")


def test_the_demo_serves_the_models_that_are_there(project: Path) -> None:
    manifest = project / "elsewhere/mine/3/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    done = make(project, "demo", "EBM_MODELS_DIR=elsewhere")
    assert done.returncode == 0, done.stderr
    assert "ebm train" not in done.stdout
    assert done.stdout.endswith("ebm serve --models elsewhere --host 127.0.0.1 --port 8000\n")


def test_the_demo_does_not_serve_after_a_failed_training(project: Path) -> None:
    script(project / ".venv/bin/ebm", 'echo "ebm $*"; [ "$1" != train ]')
    done = make(project, "demo")
    assert done.returncode != 0
    assert "ebm serve" not in done.stdout


# --- the image


def test_the_image_runs_as_an_ordinary_user() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")


def test_a_change_of_the_sources_does_not_install_the_dependencies_again() -> None:
    _, final = DOCKERFILE.rsplit("\nFROM ", 1)
    dependencies = final.index("pip install -r")
    sources = final.index("target=/src")
    assert dependencies < sources
    assert "pyproject.toml" not in final[:dependencies]  # its linters' settings change more often than its dependencies


def test_the_build_context_holds_what_the_image_is_made_of_and_nothing_secret() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    tools = PROJECT["tool"]["setuptools"]
    packages = {pattern.rstrip("*") for pattern in tools["packages"]["find"]["include"]}
    modules = {f"{module}.py" for module in tools["py-modules"]}
    files = {"pyproject.toml", "constraints.txt", "deploy/healthcheck.py", PROJECT["project"]["readme"]}
    assert allowed == packages | modules | files | set(PROJECT["project"]["license-files"])


# --- the stack


def test_the_stack_is_a_queue_a_trainer_an_api_and_workers() -> None:
    assert set(SERVICES) == {"redis", "trainer", "api", "worker"}
    assert OURS == ["api", "trainer", "worker"]


@pytest.mark.parametrize("name", OURS)
def test_a_container_can_write_nowhere_but_its_volumes_and_gain_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service  # the image's
    assert "privileged" not in service


@pytest.mark.parametrize("name", ["redis", "api", "worker"])
def test_what_keeps_running_has_a_health_check_and_comes_back(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["init"]


@pytest.mark.parametrize("name", ["api", "worker"])
def test_work_begins_once_there_are_a_queue_and_a_model(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {
        "redis": {"condition": "service_healthy"},
        "trainer": {"condition": "service_completed_successfully"},
    }


def test_jobs_outlive_the_queue_server_and_are_never_evicted() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]
    assert "redis" in STACK["volumes"]


def test_api_and_workers_share_queue_models_and_data() -> None:
    for name in OURS:
        volumes = [volume.removesuffix(":ro") for volume in SERVICES[name]["volumes"]]
        assert volumes == ["models:/models", "data:/data"]
        environment = SERVICES[name]["environment"]
        assert environment["EBM_REDIS_URL"] == "redis://redis:6379/0"
        assert (environment["EBM_MODELS_DIR"], environment["EBM_DATA_DIR"]) == ("/models", "/data")


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_ports_are_published_on_loopback_alone(path: Path) -> None:
    for service in yaml.safe_load(path.read_text())["services"].values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("path", COMPOSE_FILES[1:], ids=lambda path: path.name)
def test_an_override_names_services_that_the_stack_has_or_brings_its_own(path: Path) -> None:
    for name, service in yaml.safe_load(path.read_text())["services"].items():
        assert name in SERVICES or "image" in service


@pytest.mark.parametrize("path", [ROOT / "Dockerfile", *COMPOSE_FILES], ids=lambda path: path.name)
def test_every_variable_that_is_set_is_a_setting(path: Path) -> None:
    assert set(re.findall(r"\bEBM_[A-Z_]+\b", path.read_text())) <= SETTINGS


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    asked = {re.sub(r"_(count|bucket|sum|total)$", "", name) for name in re.findall(r"\bebm_\w+", queries)}
    sources = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    assert asked <= set(re.findall(r'"(ebm_\w+)"', sources))


# --- the documentation


def test_the_documentation_lists_every_setting_as_it_is() -> None:
    _, table = (ROOT / "docs/deployment.md").read_text().split("\n## Settings\n")
    found = [line for line in table.splitlines() if line.startswith("| `EBM_")]
    assert found == [row(name) for name in Settings.model_fields]


def row(name: str) -> str:
    field = Settings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, []) else f"`{int(default) if isinstance(default, bool) else default}`"
    return f"| `EBM_{name.upper()}` | {shown} | {field.description} |"
