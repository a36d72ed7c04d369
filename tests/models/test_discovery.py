"""Finding what stands on a shelf: by name, once each, and nothing that is not whole."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.discovery import discover


class Tool(ABC):
    """The contract of the shelves built here."""

    @abstractmethod
    def use(self) -> str: ...


HEAD = "from tests.models.test_discovery import Tool\n"
HAMMER = HEAD + "class Hammer(Tool):\n    name = 'hammer'\n    def use(self): return 'bang'\n"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An importable, empty package `shelf_<test>`."""
    folder = tmp_path / f"shelf_{request.node.name}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [m for m in sys.modules if m.partition(".")[0] == folder.name]:
        del sys.modules[name]


def found(shelf: Path) -> dict[str, type[Tool]]:
    return discover(shelf.name, Tool)  # type: ignore[type-abstract]


def test_a_new_file_is_all_it_takes(shelf: Path) -> None:
    assert found(shelf) == {}
    (shelf / "hammer.py").write_text(HAMMER)
    tools = found(shelf)
    assert list(tools) == ["hammer"]
    assert tools["hammer"]().use() == "bang"


def test_abstract_imported_and_unrelated_classes_are_passed_over(shelf: Path) -> None:
    (shelf / "hammer.py").write_text(HAMMER)
    (shelf / "saw.py").write_text(
        f"{HEAD}from {shelf.name}.hammer import Hammer\nclass Sharp(Tool):\n    name = 'sharp'\n"
        "class Saw(Sharp):\n    name = 'saw'\n    def use(self): return 'zzz'\n"
        "class Handle: name = 'handle'\nname = 3\n"
    )
    assert sorted(found(shelf)) == ["hammer", "saw"]


def test_two_classes_of_one_name_are_refused_and_named(shelf: Path) -> None:
    (shelf / "hammer.py").write_text(HAMMER)
    (shelf / "mallet.py").write_text(HAMMER.replace("class Hammer", "class Mallet"))
    with pytest.raises(TypeError, match=r"mallet\.Mallet: `name` must be a string of its own, not 'hammer'"):
        found(shelf)


@pytest.mark.parametrize("line", ["", "    name = None\n", "    name = 3\n", "    name = property(lambda self: 'x')\n"])
def test_a_class_without_a_name_is_refused(shelf: Path, line: str) -> None:
    (shelf / "hammer.py").write_text(HAMMER.replace("    name = 'hammer'\n", line))
    with pytest.raises(TypeError, match=r"hammer\.Hammer: `name` must be a string"):
        found(shelf)


def test_a_broken_file_on_the_shelf_is_an_error_and_not_a_gap(shelf: Path) -> None:
    (shelf / "hammer.py").write_text("import no_such_module_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        found(shelf)
