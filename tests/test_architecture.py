"""The shape of the code: floors and walls between modules, an API without torch, nothing that is ever unpickled."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "training", "service")
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(root: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", LINT], cwd=root, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The Python files and the contracts, to be spoilt."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_module_stands_on_its_floor_and_imports_only_from_below() -> None:
    code, output = lint(ROOT)
    assert code == 0, output


@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_on_no_floor_is_an_error(copy: Path, package: str) -> None:
    (copy / package / "stray.py").touch()
    code, output = lint(copy)
    assert code != 0
    assert "stray" in output


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("models/numerics.py", "import models.family"),
        ("models/manifest.py", "import torch"),
        ("models/families/rbm.py", "import service.core.job"),
        ("models/samplers/gibbs.py", "import models.families.rbm"),
        ("training/errors.py", "import service.core.job"),
        ("service/core/job.py", "import service.settings"),
        ("service/api/errors.py", "import service.runtime.library"),
    ],
)
def test_an_import_from_above_or_across_is_an_error(copy: Path, file: str, line: str) -> None:
    with (copy / file).open("a") as module:
        module.write(f"\n{line}\n")
    code, output = lint(copy)
    assert code != 0
    assert "BROKEN" in output


TORCH_FREE = """
import importlib, pkgutil, sys
names = ["models.manifest", "models.errors", "models.domain"]
for package in ("service.core", "service.api"):
    found = importlib.import_module(package)
    names += [package] + [m.name for m in pkgutil.walk_packages(found.__path__, package + ".")]
for name in names:
    importlib.import_module(name)
    heavy = {"torch", "numba", "scipy", "sklearn"} & set(sys.modules)
    assert not heavy, f"{name} imports {heavy}"
print(len(names))
"""


def test_the_api_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TORCH_FREE], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def repository_files() -> list[Path]:
    """Every file that is or would be tracked."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    forbidden = ("/" + "work/").encode()
    assert [str(path.relative_to(ROOT)) for path in repository_files() if forbidden in path.read_bytes()] == []


UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}


def ways_to_run_what_is_read(source: str) -> list[str]:
    """Calls and imports in `source` that turn bytes or names into running code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [n.name for n in names if n.name.partition(".")[0] in UNPICKLERS]
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in UNPICKLERS:
                found.append(module)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                found.append("torch.load")
            case ast.Call(func=ast.Attribute(attr="read_pickle" | "import_module" as name)):
                found.append(name)
            case ast.Call(func=ast.Name(id="eval" | "exec" | "__import__" as name)):
                found.append(name)
            case ast.keyword(arg="allow_pickle", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.append("allow_pickle")
    return found


def test_nothing_is_unpickled_and_only_discovery_imports_by_name() -> None:
    found = {}
    for path in repository_files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests":
            ways = ways_to_run_what_is_read(path.read_text())
            if ways:
                found[str(path.relative_to(ROOT))] = ways
    assert found == {"models/discovery.py": ["import_module", "import_module"]}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib as j",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "flag = True\nload('x', allow_pickle=flag)",
        "eval('1')",
        "import pandas as pd\npd.read_pickle('x')",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert ways_to_run_what_is_read(source)
    assert ways_to_run_what_is_read("import numpy as np\nnp.load('x', allow_pickle=False)\nmodel.eval()") == []
