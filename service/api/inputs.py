"""From what a client sent as `inputs`, mask or start values to arrays inside the model's shape and domain.

Every refusal names the field, the place, what was found and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.domain import DESCRIPTION, inside
from models.manifest import Domain, Visible
from service.api.errors import Problem, invalid
from service.core.card import Card
from service.core.units import chain_values

FILL: dict[Domain, float] = {"binary": 0.0, "spin": -1.0, "unit": 0.0, "real": 0.0}
"""What stands at an unknown unit: a value of the domain, the same whatever was sent there."""

_MAX_DEPTH = 32
_NUMBERS_AND_NULL = frozenset((int, float, bool, type(None)))


@dataclass(frozen=True)
class Inputs:
    """Examples: `values` (n, *shape), C-contiguous; `known` (n, *shape), or None where all units are."""

    values: NDArray[np.floating[Any]]
    known: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return int(self.values.shape[0])


def _place(field: str, index: Sequence[int | np.integer[Any]]) -> str:
    return field + "".join(f"[{int(i)}]" for i in index)


def _refuse(field: str, index: Sequence[int | np.integer[Any]], message: str) -> Problem:
    return invalid(("body", *field.split("."), *(int(i) for i in index)), f"{_place(field, index)} {message}")


def to_array(value: Any, field: str) -> NDArray[Any]:
    """Nested lists, or an array, as a numeric array; `null` becomes NaN (JSON has no other NaN).

    Raises:
        Problem: ragged lists, strings, objects, and non-finite numbers of a binary body.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            index = np.argwhere(~np.isfinite(value))[0]
            raise _refuse(field, index, f"is {value[tuple(index)]}; finite numbers are expected.")
        return value
    if not isinstance(value, list):
        raise invalid(("body", *field.split(".")), f"{field} is {_describe(value)}; an array of numbers is expected.")
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind in "biuf":
        return array
    if array.ndim == 0 or array.dtype.kind != "O" or not _NUMBERS_AND_NULL.issuperset(map(type, array.ravel())):
        _check_nested(value, field)
    return np.array(value, dtype=np.float64)


def _describe(value: Any) -> str:
    match value:
        case None:
            return "null"
        case str():
            return f"the string {value[:40]!r}"
        case dict():
            return "an object"
        case list():
            return f"an array of {len(value)}"
    return f"the number {value}"


def _check_nested(value: list[Any], field: str) -> None:
    """Raises for the first thing in nested lists that is no number or null, or that breaks the shape."""
    shape: list[int] = []
    first: Any = value
    while isinstance(first, list):
        shape.append(len(first))
        if len(shape) > _MAX_DEPTH:
            raise invalid(("body", *field.split(".")), f"{field} is nested deeper than {_MAX_DEPTH} arrays.")
        first = first[0] if first else None

    def visit(item: Any, index: tuple[int, ...]) -> None:
        depth = len(index)
        if depth < len(shape):
            if not isinstance(item, list):
                raise _refuse(field, index, f"is {_describe(item)}; an array of {shape[depth]} is expected.")
            if len(item) != shape[depth]:
                beside = _place(field, (0,) * depth)
                raise _refuse(field, index, f"has {len(item)} entries where {beside} has {shape[depth]}.")
            for place, entry in enumerate(item):
                visit(entry, (*index, place))
        elif not (item is None or isinstance(item, int | float)):
            raise _refuse(field, index, f"is {_describe(item)}; a number is expected.")

    visit(value, ())


def _times(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def fit(array: NDArray[Any], visible: Visible, field: str) -> NDArray[Any]:
    """The array as (n, *shape): from that very shape, from flat (n, D), or from one example without the leading axis.

    Raises:
        Problem: any other shape, or no rows.
    """
    shape, size = tuple(visible.shape), visible.units
    found = array.shape
    if found in (shape, (size,)):
        return array.reshape(1, *shape)
    if len(found) >= 1 and found[0] > 0 and found[1:] in (shape, (size,)):
        return array.reshape(found[0], *shape)
    ways = [_times(("n", *shape)), _times(("n", size)), _times(shape)]
    expected = " or ".join(dict.fromkeys(ways))
    raise invalid(
        ("body", *field.split(".")), f"{field} has shape {_times(found)}; {expected} is expected, with n of at least 1."
    )


def check_domain(array: NDArray[Any], domain: Domain, field: str, where: NDArray[np.bool_] | None = None) -> None:
    """Raises a Problem that names the first value outside the domain (`where` it counts)."""
    good = inside(array, domain)
    if where is not None:
        good = good | ~where
    if good.all():
        return
    index = np.unravel_index(int(np.argmin(good)), good.shape)
    value = array[index]
    if array.dtype.kind == "f" and math.isnan(value):
        raise _refuse(field, index, f"is null; {DESCRIPTION[domain]} is expected: only completions take unknown units.")
    raise _refuse(field, index, f"is {value}; a {domain} model takes {DESCRIPTION[domain]}.")


def check_chain_values(array: NDArray[Any], card: Card, field: str, where: NDArray[np.bool_] | None = None) -> None:
    """Raises a Problem that names the first value that preprocessing brings to where the model has no states."""
    if card.preprocessing is None:
        return
    domain = card.visible.domain
    values = chain_values(np.nan_to_num(array).reshape(len(array), -1), card.preprocessing, domain)
    good = inside(values, domain).reshape(array.shape) | (False if where is None else ~where)
    if good.all():
        return
    index = np.unravel_index(int(np.argmin(good)), good.shape)
    made = values.reshape(array.shape)[index]
    raise _refuse(
        field,
        index,
        f"is {array[index]}, which the model's preprocessing makes {made:.6g}; a unit can be held or start at what "
        f"becomes {DESCRIPTION[domain]}.",
    )


def parse_inputs(value: Any, card: Card, max_rows: int, *, nulls: bool = False, field: str = "inputs") -> Inputs:
    """`inputs` as the model takes them. With `nulls`, JSON's null marks a unit as unknown, and the domain is left to be
    checked once the mask says what counts.

    Raises:
        Problem: `invalid-input`.
    """
    if isinstance(value, list) and len(value) > max(max_rows, card.visible.units):
        raise invalid(
            ("body", *field.split(".")), f"{field} has {len(value)} rows; at most {max_rows} are taken at once."
        )
    array = fit(to_array(value, field), card.visible, field)
    if len(array) > max_rows:
        raise invalid(
            ("body", *field.split(".")), f"{field} has {len(array)} rows; at most {max_rows} are taken at once."
        )
    known: NDArray[np.bool_] | None = None
    if not nulls:
        check_domain(array, card.input_domain, field)
    elif array.dtype.kind == "f" and (unknown := np.isnan(array)).any():
        known = ~unknown
    return Inputs(as_float(array), known)


def as_float(array: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """C-contiguous, native and writable: float32 where that holds every value of the dtype, else float64."""
    wide = array.dtype.itemsize > {"f": 4, "i": 2, "u": 2}.get(array.dtype.kind, 1)
    kept: NDArray[np.floating[Any]] = np.require(array, np.float64 if wide else np.float32, ("C", "A", "W"))
    return kept


def clamped(
    card: Card, inputs: Inputs, mask: Any, field: str = "inputs", mask_field: str = "mask"
) -> NDArray[np.bool_]:
    """Where units are clamped, (n, *shape): by the mask, and never where null was sent.

    Checks the clamped values, and puts a fixed one at all others, so that no answer can depend on what was sent there.

    Raises:
        Problem: `invalid-input`.
    """
    given = np.ones(inputs.values.shape, bool) if mask is None else parse_mask(mask, card, len(inputs), mask_field)
    kept = given if inputs.known is None else given & inputs.known
    check_domain(inputs.values, card.input_domain, field, kept)
    check_chain_values(inputs.values, card, field, kept)
    inputs.values[~kept] = FILL[card.input_domain]
    return kept


def parse_mask(value: Any, card: Card, rows: int, field: str = "mask") -> NDArray[np.bool_]:
    """A mask (1 = clamped) as (rows, *shape), from the shape of one example or of all.

    Raises:
        Problem: `invalid-input`.
    """
    array = fit(to_array(value, field), card.visible, field)
    check_domain(array, "binary", field)
    if len(array) not in (1, rows):
        raise invalid(
            ("body", *field.split(".")),
            f"{field} has {len(array)} rows; 1 or {rows} are expected, as there are inputs.",
        )
    return np.broadcast_to(array.astype(bool), (rows, *card.visible.shape))


def parse_labels(value: Any, card: Card, rows: int, field: str = "labels", of: str = "inputs") -> NDArray[np.int64]:
    """Labels as positions in the card's classes, (rows,): one for all, or one each, for as many as there are `of`.

    A class is named as on the card, or by its position where no class is itself a number.

    Raises:
        Problem: `invalid-input`.
    """
    if card.classes is None:
        raise invalid(("body", *field.split(".")), f"{card.name} has no classes, so {field} means nothing to it.")
    given = value if isinstance(value, list) else [value] * rows
    if len(given) != rows:
        raise invalid(
            ("body", *field.split(".")), f"{field} has {len(given)} entries; {rows} are expected, as there are {of}."
        )
    known = card.class_positions()
    for place, label in enumerate(given):
        if isinstance(label, bool) or label not in known:
            where = (place,) if isinstance(value, list) else ()
            raise _refuse(field, where, f"is {label!r}; the classes are {', '.join(map(str, card.classes))}.")
    return np.array([known[label] for label in given], dtype=np.int64)
