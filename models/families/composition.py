"""A weighted sum of other models' energies: a product of experts (MATH 11; Hinton 2002; Du, Li & Mordatch 2020)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.conditionals import Conditional
from models.errors import CapabilityError, CheckpointError
from models.family import EnergyModel, HasClasses, HasGradient, HasScore, IsComposed, Term
from models.latent_family import LatentModel
from models.manifest import NAME_PATTERN, Manifest

MOST_TERMS = 64


@dataclass(frozen=True, eq=False)
class Composition(IsComposed, HasGradient):
    """E(x) = sum_i w_i E_i(x), E_i(x, y_i) where the term names a class.

    Its chains are run by gradient samplers, where all terms are smooth; it has a score where all terms have one.
    """

    name: ClassVar[str] = "composition"
    domains: ClassVar[frozenset[str]] = frozenset({"binary", "spin", "real", "unit"})
    terms: tuple[Term, ...]
    models: tuple[EnergyModel, ...]
    labels: tuple[int | None, ...]
    """Positions of the terms' classes."""
    unbounded: bool
    """Whether the visibles are real."""

    @classmethod
    def terms_of(cls, manifest: Manifest) -> tuple[Term, ...]:
        """`config.terms`."""
        found = manifest.config.get("terms")
        if not isinstance(found, list) or not 1 <= len(found) <= MOST_TERMS:
            raise CheckpointError(
                f"config.terms must be a list of 1 to {MOST_TERMS} terms {{model, version, weight, label}}"
            )
        return tuple(_term(each, n) for n, each in enumerate(found, 1))

    @classmethod
    def from_terms(cls, manifest: Manifest, models: Sequence[tuple[Manifest, EnergyModel]]) -> Composition:
        """The sum of these models, one a term.

        Raises:
            CheckpointError: a model does not go with the composition's visibles, or has no such class; or a lower bound
                would be subtracted, or added to an estimate.
        """
        terms, labels = cls.terms_of(manifest), []
        if len(models) != len(terms):
            raise CheckpointError("a composition is made of other models, which must lie in its models directory")
        for n, (term, (own, model)) in enumerate(zip(terms, models, strict=True), 1):
            where = _where(term, n)
            if (own.visible.shape, own.visible.domain) != (manifest.visible.shape, manifest.visible.domain):
                raise CheckpointError(
                    f"{where} has {own.visible.domain} visibles of shape {own.visible.shape}; the composition has "
                    f"{manifest.visible.domain} ones of shape {manifest.visible.shape}"
                )
            if isinstance(model, LatentModel):
                raise CheckpointError(f"{where} has energies relative to a generator's law: they do not add to others")
            if own.preprocessing != manifest.preprocessing:
                raise CheckpointError(f"{where} has another preprocessing than the composition: they must be the same")
            labels.append(_position(term, own, model, where))
        kinds = {model.energy_kind for _, model in models}
        bounds = [t for t, (_, m) in zip(terms, models, strict=True) if m.energy_kind == "lower_bound"]
        if bounds and ("estimate" in kinds or any(term.weight < 0 for term in bounds)):
            raise CheckpointError(
                "a term whose energy is a lower bound may be added to exact ones and to other bounds alone, with a "
                "positive weight: otherwise the sum would be no bound"
            )
        return cls(terms, tuple(model for _, model in models), tuple(labels), manifest.visible.domain == "real")

    @property
    def device(self) -> torch.device:
        """The terms'."""
        return self.models[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The widest of the terms'."""
        return torch.float64 if any(model.dtype == torch.float64 for model in self.models) else torch.float32

    @property
    def lacks(self) -> frozenset[str]:
        """`sample` and `complete`, unless all terms are smooth; `score`, unless all terms have one."""
        if self._smooth:
            return frozenset()
        scored = all(
            isinstance(model, HasScore) and "score" not in model.lacks and label is None
            for model, label in zip(self.models, self.labels, strict=True)
        )
        return frozenset({"sample", "complete"} if scored else {"sample", "complete", "score"})

    @property
    def _smooth(self) -> bool:
        return all(isinstance(model, HasGradient) and "sample" not in model.lacks for model in self.models)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of negative weights."""
        negative = [_where(term, n) for n, term in enumerate(self.terms, 1) if term.weight < 0]
        if not negative:
            return ()
        said = f"negative weight: what is unlikely to {', '.join(negative)} is likely here, whatever it is like"
        if self.unbounded:
            said += "; on real visibles the energy may then have no lower bound and Z be infinite: chains may run away"
        return (said,)

    def _parts(self, x: Tensor) -> Iterator[tuple[float, EnergyModel, Tensor, Tensor | None]]:
        for term, model, label in zip(self.terms, self.models, self.labels, strict=True):
            held = None if label is None else torch.full((len(x),), label, dtype=torch.int64, device=x.device)
            yield term.weight, model, x.to(model.dtype), held

    # --- energies ---

    @property
    def energy_kind(self) -> str:
        """`exact` where all terms are; else what those are that are not."""
        return next((model.energy_kind for model in self.models if model.energy_kind != "exact"), "exact")

    def energy(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, " n"]:
        """The weighted sum."""
        return self.energy_with_error(x)[0]

    def energy_with_error(
        self, x: Float[Tensor, "n visible"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
        """The weighted sum; standard errors add up in squares."""
        total, variance = x.new_zeros(len(x), dtype=self.dtype), None
        for weight, model, at, label in self._parts(x):
            error = None
            if label is None:
                energy, error = model.energy_with_error(at)
            else:
                assert isinstance(model, HasClasses)
                energy = model.class_energy(at, label)
            total = total + weight * energy.to(self.dtype)
            if error is not None:
                variance = (0.0 if variance is None else variance) + (weight * error.to(self.dtype)).square()
        return total, None if variance is None else variance.sqrt()

    @property
    def score_is_relaxed(self) -> bool:
        """Where any term's is."""
        return any(isinstance(model, HasScore) and model.score_is_relaxed for model in self.models)

    @property
    def score_kind(self) -> str:
        """`exact` where all terms' are."""
        kinds = [model.score_kind for model in self.models if isinstance(model, HasScore)]
        return next((kind for kind in kinds if kind != "exact"), "exact")

    def score(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n visible"]:
        """The weighted sum.

        Raises:
            CapabilityError: a term has none.
        """
        if "score" in self.lacks:
            raise CapabilityError("a term of this composition has no score", self.capabilities())
        total = torch.zeros_like(x, dtype=self.dtype)
        for weight, model, at, label in self._parts(x):
            assert isinstance(model, HasScore)
            if label is None:
                total = total + weight * model.score(at).to(self.dtype)
            else:
                assert isinstance(model, HasGradient)
                total = total - weight * model.energy_and_gradient(at, label)[1].to(self.dtype)
        return total

    # --- chains ---

    @property
    def blocks(self) -> tuple[str, ...]:
        """The visibles alone."""
        return ("visible",)

    def block_units(self, block: str) -> int:
        """D."""
        return self._first.block_units(block)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The terms'."""
        return self._first.bounds

    def noise(self, block: str, chains: int) -> Conditional:
        """The first term's."""
        return self._first.noise(block, chains)

    def energy_and_gradient(
        self, x: Float[Tensor, "n visible"], label: Int[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n visible"]]:
        """The weighted sums, float64."""
        if label is not None:
            raise CapabilityError("a composition has no classes of its own", self.capabilities())
        energy, gradient = x.new_zeros(len(x), dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64)
        for weight, model, at, held in self._parts(x):
            assert isinstance(model, HasGradient)
            own, slope = model.energy_and_gradient(at, held)
            energy, gradient = energy + weight * own, gradient + weight * slope
        return energy, gradient

    @property
    def _first(self) -> HasGradient:
        model = self.models[0]
        if not self._smooth or not isinstance(model, HasGradient):
            raise CapabilityError("not all terms of this composition have gradients", self.capabilities())
        return model


def _where(term: Term, n: int) -> str:
    return f"term {n} ({term.model} version {term.version})"


def _term(given: Any, n: int) -> Term:
    if not isinstance(given, Mapping):
        raise CheckpointError(f"config.terms: term {n} must be an object {{model, version, weight, label}}")
    unknown = sorted(set(given) - {"model", "version", "weight", "label"})
    if unknown:
        raise CheckpointError(f"config.terms: term {n} has an unknown key {unknown[0]!r}")
    model, version = given.get("model"), given.get("version")
    weight, label = given.get("weight", 1.0), given.get("label")
    if not isinstance(model, str) or not re.fullmatch(NAME_PATTERN, model):
        raise CheckpointError(f"config.terms: term {n}: model must be the name of a model; found {model!r}")
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f"config.terms: term {n}: version must be a version of {model!r}, a whole number from 1; found {version!r}"
        )
    if type(weight) not in (int, float) or not math.isfinite(weight) or weight == 0:
        raise CheckpointError(f"config.terms: term {n}: weight must be a finite number other than 0; found {weight!r}")
    if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
        raise CheckpointError(f"config.terms: term {n}: label must be a class, or null; found {label!r}")
    return Term(model, version, float(weight), label)


def _position(term: Term, manifest: Manifest, model: EnergyModel, where: str) -> int | None:
    """A class's position: it is named as in the manifest, or by its position where no class is itself a number."""
    if term.label is None:
        return None
    count = model.class_count if isinstance(model, HasClasses) else 0
    classes = manifest.classes or list(range(count))
    known = {name: place for place, name in enumerate(classes[:count])}
    if not any(isinstance(name, int) for name in classes):
        known |= {place: place for place in range(count)}
    if term.label not in known:
        has = f"its classes are {', '.join(map(str, classes))}" if count else "it has no classes"
        raise CheckpointError(f"{where} has no class {term.label!r}; {has}")
    return known[term.label]
