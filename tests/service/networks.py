"""Networks as energies, in numpy alone: their weights, forward passes, and laws by quadrature."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray
Pass = Callable[[Array], Array]

ACTIVATIONS: dict[str, Pass] = {"tanh": np.tanh, "swish": lambda x: x / (1 + np.exp(-x))}


@dataclass(frozen=True)
class Net:
    """A model: what its checkpoint holds, and what its network makes of examples (n, *shape)."""

    family: str
    arrays: dict[str, Array]
    shape: list[int]
    domain: str
    manifest: dict[str, Any]
    body: Pass
    prior_std: float | None = None
    classes: list[str] = field(default_factory=list)
    prefix: str = ""
    """What the names of the energy's arrays begin with."""
    draw: Callable[[np.random.Generator, int], Array] | None = None
    """Draws of the model's generator, (n, D), where it has one."""

    def features(self, x: Array) -> Array:
        """(n, F)."""
        return self.body(x.reshape(-1, *self.shape))

    def outputs(self, x: Array) -> Array:
        """(n, outputs)."""
        weight, bias = (self.arrays[f"{self.prefix}head.{name}"] for name in ("weight", "bias"))
        return self.features(x) @ weight.T + bias

    def energy(self, x: Array, labels: Array | int | None = None) -> Array:
        """E(x), or E(x, y)."""
        found = self.outputs(x)
        if not self.classes:
            energy = found[:, 0]
        elif labels is None:
            energy = -np.logaddexp.reduce(found, axis=1)
        else:
            energy = -found[np.arange(len(found)), labels]
        prior = 0.0 if self.prior_std is None else (x.reshape(len(x), -1) ** 2).sum(1) / (2 * self.prior_std**2)
        return energy + prior

    def score(self, x: Array, step: float = 1e-5) -> Array:
        """-grad E(x), flat, by central differences."""
        flat = x.reshape(len(x), -1)
        moves = step * np.eye(flat.shape[1])
        up, down = ((flat[:, None] + sign * moves).reshape(-1, flat.shape[1]) for sign in (1, -1))
        return -((self.energy(up) - self.energy(down)) / (2 * step)).reshape(flat.shape)

    def class_probabilities(self, x: Array) -> Array:
        """softmax f(x)."""
        found = self.outputs(x)
        return np.exp(found - np.logaddexp.reduce(found, axis=1, keepdims=True))


def on_grid(units: int, points: int = 40) -> Array:
    """Midpoints of a grid over [0, 1]^units, (points^units, units)."""
    middles = (np.arange(points) + 0.5) / points
    return np.array(list(itertools.product(middles, repeat=units)))


def means(energies: Array, grid: Array) -> Array:
    """E[x] under exp(-energies) on the grid."""
    p = np.exp(energies.min() - energies)
    return p @ grid / p.sum()


def _weights(rng: np.random.Generator, *size: int, scale: float = 1.0) -> Array:
    return rng.normal(size=size, scale=scale / np.sqrt(np.prod(size[1:], initial=1)))


def mlp(
    family: str,
    shape: list[int],
    hidden: list[int],
    seed: int,
    activation: str = "tanh",
    domain: str = "real",
    classes: list[str] | None = None,
    prior_std: float | None = None,
    scale: float = 2.0,
) -> Net:
    """A multilayer perceptron with normal weights of the size of nats."""
    rng, act, below = np.random.default_rng(seed), ACTIVATIONS[activation], int(np.prod(shape))
    arrays = {}
    for n, width in enumerate(hidden):
        arrays[f"body.{2 * n + 1}.weight"] = _weights(rng, width, below, scale=scale)
        arrays[f"body.{2 * n + 1}.bias"] = rng.normal(size=width)
        below = width
    outputs = len(classes or [0])
    arrays |= {"head.weight": _weights(rng, outputs, below, scale=scale), "head.bias": rng.normal(size=outputs)}

    def body(x: Array) -> Array:
        x = x.reshape(len(x), -1)
        for n in range(len(hidden)):
            x = act(x @ arrays[f"body.{2 * n + 1}.weight"].T + arrays[f"body.{2 * n + 1}.bias"])
        return x

    config: dict[str, Any] = {"architecture": {"name": "mlp", "hidden": hidden, "activation": activation}}
    manifest = {"config": config | ({} if prior_std is None else {"prior_std": prior_std})}
    manifest |= {"classes": classes} if classes else {}
    return Net(family, arrays, shape, domain, manifest, body, prior_std, classes or [])


@dataclass(frozen=True)
class Tilt:
    """A generator of latents (n, latent) and a network on what it makes: `energy` is `sign` times that one's output."""

    family: str
    own: Net
    made: Net
    sign: float = 1.0

    @property
    def arrays(self) -> dict[str, Array]:
        """Both networks' tensors, as in a checkpoint."""
        part = "energy" if self.family == "tilted" else "discriminator"
        own = {f"{part}.{name}": array for name, array in self.own.arrays.items()}
        return own | {f"generator.{name}": array for name, array in self.made.arrays.items()}

    @property
    def manifest(self) -> dict[str, Any]:
        """Its config."""
        part = "energy" if self.family == "tilted" else "discriminator"
        networks = {part: self.own, "generator": self.made}
        architecture = {name: net.manifest["config"]["architecture"] for name, net in networks.items()}
        return {"config": {"latent": self.made.shape[0], "architecture": architecture}}

    def generate(self, z: Array) -> Array:
        """G(z), (n, *shape)."""
        x = self.made.outputs(z).reshape(len(z), *self.own.shape)
        return 1 / (1 + np.exp(-x)) if self.own.domain == "unit" else x

    def energy(self, x: Array) -> Array:
        """E(x)."""
        return self.sign * self.own.outputs(x)[:, 0]

    def expected(self, points: int = 300) -> tuple[Array, float]:
        """E[x] under p_g(x) exp(-E(x)), and log Z, by a sum over a grid of two latents."""
        axis = -8 + 16 * (np.arange(points) + 0.5) / points
        z = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        x = self.generate(z)
        log = -0.5 * (z**2).sum(1) - self.energy(x)
        p = np.exp(log - log.max())
        log_z = log.max() + np.log(p.sum() * (16 / points) ** 2 / (2 * np.pi))
        return np.tensordot(p / p.sum(), x, 1), float(log_z)


def tilt(family: str, shape: list[int], seed: int, domain: str = "real") -> Tilt:
    """Two perceptrons, two latents."""
    own = mlp(family, shape, [8], seed, domain=domain)
    made = mlp(family, [2], [6], seed + 1, "swish")
    wide = np.random.default_rng(seed + 2)
    made.arrays["head.weight"] = wide.normal(size=(int(np.prod(shape)), 6))
    made.arrays["head.bias"] = wide.normal(size=int(np.prod(shape)))
    return Tilt(family, own, made, 1.0 if family == "tilted" else -1.0)


def _convolve(x: Array, weight: Array, bias: Array, stride: int = 1, pad: int = 1) -> Array:
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    found: Array = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    return found


def conv(seed: int) -> Net:
    """Two convolutions of 4 x 4 grey images."""
    rng, act = np.random.default_rng(seed), ACTIVATIONS["swish"]
    sizes = {"body.1": (3, 1, 3, 3), "body.3": (4, 3, 4, 4), "head": (1, 16)}
    arrays = {f"{name}.weight": _weights(rng, *size, scale=2.0) for name, size in sizes.items()}
    arrays |= {f"{name}.bias": rng.normal(size=size[0]) for name, size in sizes.items()}

    def body(x: Array) -> Array:
        x = act(_convolve(x[:, None], arrays["body.1.weight"], arrays["body.1.bias"]))
        x = act(_convolve(x, arrays["body.3.weight"], arrays["body.3.bias"], stride=2))
        return x.reshape(len(x), -1)

    config = {"architecture": {"name": "conv", "channels": [3, 4]}}
    return Net("conv_energy", arrays, [4, 4], "unit", {"config": config}, body)


def resnet(seed: int, classes: list[str] | None = None) -> Net:
    """Two stages of one residual block, of 4 x 4 images in two colours."""
    rng, act = np.random.default_rng(seed), ACTIVATIONS["swish"]
    sizes: dict[str, tuple[int, ...]] = {
        "body.1": (3, 2, 3, 3),
        "body.2.first": (3, 3, 3, 3),
        "body.2.second": (3, 3, 3, 3),
        "body.4.first": (5, 3, 3, 3),
        "body.4.second": (5, 5, 3, 3),
        "body.4.skip": (5, 3, 1, 1),
        "head": (len(classes or [0]), 5),
    }
    arrays = {f"{name}.weight": _weights(rng, *size, scale=2.0) for name, size in sizes.items()}
    arrays |= {f"{name}.bias": rng.normal(size=size[0]) for name, size in sizes.items()}

    def layer(x: Array, name: str, pad: int = 1) -> Array:
        return _convolve(x, arrays[f"{name}.weight"], arrays[f"{name}.bias"], pad=pad)

    def block(x: Array, name: str) -> Array:
        skip = layer(x, f"{name}.skip", 0) if f"{name}.skip.weight" in arrays else x
        return skip + 2**-0.5 * layer(act(layer(act(x), f"{name}.first")), f"{name}.second")

    def body(x: Array) -> Array:
        x = block(layer(np.moveaxis(x, -1, 1), "body.1"), "body.2")
        halved = x.reshape(*x.shape[:2], 2, 2, 2, 2).mean((3, 5))
        return act(block(halved, "body.4")).sum((2, 3))

    manifest: dict[str, Any] = {"config": {"architecture": {"name": "resnet", "channels": [3, 5]}}}
    manifest |= {"classes": classes} if classes else {}
    family = "jem" if classes else "resnet_energy"
    return Net(family, arrays, [4, 4, 2], "unit", manifest, body, classes=classes or [])


def adversarial(seed: int) -> Net:
    """Three real units: a network as energy, and one that generates from two numbers with noise of 0.3."""
    energy, rng, std = mlp("adversarial", [3], [6], seed, prior_std=1.5), np.random.default_rng(seed + 1), 0.3
    made = {"body.1.weight": _weights(rng, 4, 2), "body.1.bias": rng.normal(size=4)}
    made |= {"head.weight": _weights(rng, 3, 4, scale=2.0), "head.bias": rng.normal(size=3)}
    arrays = {f"energy.{name}": array for name, array in energy.arrays.items()}
    arrays |= {f"generator.{name}": array for name, array in made.items()} | {
        "generator.log_std": np.array(np.log(std))
    }
    generator = {"name": "mlp", "hidden": [4], "activation": "tanh"}
    architecture = {"energy": energy.manifest["config"]["architecture"], "generator": generator}
    config = energy.manifest["config"] | {"architecture": architecture, "latent": 2}

    def draw(source: np.random.Generator, n: int) -> Array:
        hidden = np.tanh(source.normal(size=(n, 2)) @ made["body.1.weight"].T + made["body.1.bias"])
        return hidden @ made["head.weight"].T + made["head.bias"] + std * source.normal(size=(n, 3))

    return replace(energy, arrays=arrays, manifest={"config": config}, prefix="energy.", draw=draw)
