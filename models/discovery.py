"""Finding what stands on a shelf: the project's only dynamic import."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TypeVar

T = TypeVar("T")


def discover(package: str, base: type[T]) -> dict[str, type[T]]:
    """Concrete subclasses of `base` defined in the modules directly inside `package`, by their class attribute `name`.

    Raises:
        TypeError: two classes share a name, or one has none.
    """
    found: dict[str, type[T]] = {}
    folder = importlib.import_module(package)
    for entry in sorted(pkgutil.iter_modules(folder.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{package}.{entry.name}")
        for member in vars(module).values():
            if not (inspect.isclass(member) and issubclass(member, base)):
                continue
            if inspect.isabstract(member) or member.__module__ != module.__name__:
                continue
            name = getattr(member, "name", None)
            if not isinstance(name, str) or name in found:
                raise TypeError(
                    f"{module.__name__}.{member.__name__}: `name` must be a string of its own, not {name!r}"
                )
            found[name] = member
    return found
