"""Models small enough to be computed exactly, behind the same port as the real ones."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError
from models.manifest import LogPartitionRecord, Preprocessing, Training, Visible
from service.core.card import Card
from service.core.errors import NotReady, Overloaded, UnknownModel
from service.core.job import SamplerSpec

CLASSES: list[int | str] = ["cat", "dog", "owl"]
ALL = ["energy", "log-density", "score", "classify", "features", "complete", "anomaly", "sample", "log_partition"]


def card(name: str, version: int = 1, **changes: Any) -> Card:
    fields: dict[str, Any] = {
        "name": name,
        "version": version,
        "family": "rbm",
        "visible": Visible(shape=[2, 3], domain="binary"),
        "capabilities": ALL,
        "energy_kind": "exact",
        "digest": "ab" * 32,
        "estimators": ["ais", "exact", "reverse_ais"],
    }
    return Card(**{**fields, **changes})


class SmallModels:
    """An RBM of 6 visible and 4 hidden units with 3 classes for every name; their cards differ."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.W, self.b, self.c = rng.normal(size=(6, 4)), rng.normal(size=6), rng.normal(size=4)
        self.U = rng.normal(size=(3, 4))
        self.states = np.array(list(itertools.product([0.0, 1.0], repeat=6)))
        self.log_z = float(np.logaddexp.reduce(-self.energy(self.states)))
        log_z = LogPartitionRecord(value=self.log_z, stderr=0.0, method="exact")
        known = [
            card("digits", 1, capabilities=[name for name in ALL if name != "classify"]),
            card(
                "digits",
                2,
                classes=CLASSES,
                log_partition=log_z,
                training=Training(objective="cd", dataset="digits", steps=10, seed=1, metrics={"loss": 1.0}),
                samplers=["gibbs", "tempering"],
                anomaly_scores=["energy", "max_softmax"],
                has_reference=True,
            ),
            card("joint", classes=CLASSES, samplers=["gibbs"], estimators=["ais"]),
            card("plain", visible=Visible(shape=[6], domain="real"), capabilities=["energy", "complete", "sample"]),
            card("spins", visible=Visible(shape=[6], domain="spin"), capabilities=["energy", "complete", "sample"]),
            card("unit", visible=Visible(shape=[3, 2, 1], domain="unit"), capabilities=["energy"]),
            card("scaled", preprocessing=Preprocessing(scale=1 / 255)),
            card("numbered", classes=[5, 6, 7], capabilities=["energy", "classify", "anomaly"]),
            card("slow", state="loading"),
            card("busy"),
            card("broken"),
        ]
        self.by_name: dict[str, dict[int, Card]] = {}
        for each in known:
            self.by_name.setdefault(each.name, {})[each.version] = each
        self.seen: dict[str, Any] = {}
        self.release = asyncio.Event()
        self.release.set()

    def cards(self) -> list[Card]:
        return [each for versions in self.by_name.values() for each in versions.values() if each.name != "slow"]

    def card(self, name: str, version: int | None) -> Card:
        versions = self.by_name.get(name)
        if versions is None:
            raise UnknownModel(f"There is no model {name!r}.")
        if version is not None and version not in versions:
            raise UnknownModel(f"{name} has no version {version}.")
        found = versions[version or max(versions)]
        if found.state == "loading":
            raise NotReady(f"{name} is still loading.", retry_after_s=2.5)
        return found

    def check_sampler(self, card: Card, spec: SamplerSpec) -> None:
        if "nonsense" in (spec.model_extra or {}):
            raise InputError(f"sampler {spec.name!r}: nonsense: Unexpected keyword argument", "sampler")

    async def run(
        self, card: Card, operation: str, inputs: NDArray[np.floating[Any]], **fields: Any
    ) -> Mapping[str, Any]:
        self.seen = {"operation": operation, "inputs": inputs, **fields}
        await self.release.wait()
        if card.name == "busy":
            raise Overloaded("64 requests are waiting.", retry_after_s=0.2)
        if card.name == "broken":
            raise RuntimeError("secret detail")
        flat = inputs.reshape(len(inputs), -1).astype(np.float64)
        result: Mapping[str, Any] = getattr(self, f"do_{operation.replace('-', '_')}")(card, flat, **fields)
        return result

    def energy(self, x: NDArray[Any], labels: NDArray[Any] | None = None) -> NDArray[Any]:
        hidden = x @ self.W + self.c + (0 if labels is None else self.U[labels])
        energy: NDArray[Any] = -(x @ self.b) - np.logaddexp(0, hidden).sum(1)
        return energy

    def do_energy(self, card: Card, x: NDArray[Any], labels: NDArray[Any] | None = None) -> dict[str, Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            return {"energy": self.energy(x, labels), "kind": card.energy_kind}

    def do_log_density(self, card: Card, x: NDArray[Any]) -> dict[str, Any]:
        known, unnormalized = card.log_partition, -self.energy(x)
        return {
            "unnormalized_log_density": unnormalized,
            "kind": card.energy_kind,
            "log_density": None if known is None else unnormalized - known.value,
            "log_partition": None if known is None else known.model_dump(),
        }

    def do_score(self, card: Card, x: NDArray[Any], sigma: float | None = None) -> dict[str, Any]:
        hidden = 1 / (1 + np.exp(-(x @ self.W + self.c)))
        score = (self.b + hidden @ self.W.T).astype(np.float32)
        return {"score": score.reshape(len(x), *card.visible.shape), "relaxed": True, "kind": "exact"}

    def do_classify(self, card: Card, x: NDArray[Any]) -> dict[str, Any]:
        joint = -np.stack([self.energy(x, np.full(len(x), k)) for k in range(3)], 1)
        return {"probabilities": np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True)), "kind": "exact"}

    def do_features(self, card: Card, x: NDArray[Any], layer: int | str | None = None) -> dict[str, Any]:
        return {"features": 1 / (1 + np.exp(-(x @ self.W + self.c))), "layer": "hidden"}

    def do_anomaly(
        self,
        card: Card,
        x: NDArray[Any],
        score: str = "energy",
        threshold: float | None = None,
        false_positive_rate: float | None = None,
    ) -> dict[str, Any]:
        values = self.energy(x)
        if score == "max_softmax":
            values = 1 - self.do_classify(card, x)["probabilities"].max(1)
        found = {"score": values, "of": score, "threshold": threshold}
        if not card.keeps_reference(score):
            verdict = None if threshold is None else values > threshold
            return {**found, "p_value": None, "anomalous": verdict, "reference": None}
        reference = np.sort(self.energy(self.states))
        if threshold is None:
            assert false_positive_rate is not None
            threshold = float(np.quantile(reference, 1 - false_positive_rate))
        p_value = 1 - np.searchsorted(reference, values, "left") / len(reference)
        found |= {"p_value": p_value, "anomalous": values > threshold, "threshold": threshold}
        return {**found, "reference": {"rows": len(reference)}}

    def do_complete(
        self, card: Card, x: NDArray[Any], *, mask: NDArray[Any], samples: int, seed: int, **_: Any
    ) -> dict[str, Any]:
        """By enumeration: exact draws, in float32 as from a sampler on a device."""
        drawn = np.empty((len(x), samples, 6), np.uint8 if card.visible.domain == "binary" else np.float32)
        states = self.states if card.visible.domain != "spin" else 2 * self.states - 1
        mean = np.empty((len(x), 6), np.float32)
        for row, (value, kept) in enumerate(zip(x, mask.reshape(len(x), 6), strict=True)):
            filled = np.where(kept, value, states)
            energy = self.energy(filled)
            weight = np.exp(energy.min() - energy)
            weight /= weight.sum()
            picked = np.random.default_rng((seed, row)).choice(len(filled), samples, p=weight)
            drawn[row], mean[row] = filled[picked], weight @ filled
        shape = card.visible.shape
        return {
            "samples": drawn.reshape(len(x), samples, *shape),
            "mean": mean.reshape(len(x), *shape),
            "approximate": False,
        }
