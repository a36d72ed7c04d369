"""The contract of a network architecture: data in a manifest, from which a network is rebuilt (MATH 6)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from models.discovery import discover
from models.errors import CheckpointError
from models.perceptron import Along

Activation = Literal["swish", "softplus", "elu", "tanh", "relu", "leaky_relu"]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "swish": nn.SiLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}
"""By name. A network whose activation has no continuous slope has no continuous score: the first four have one."""


Pullback = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""Of flat examples, (n, visible): a network's outputs, (n, outputs), and the map from slopes by them to slopes by the
examples."""


class Network(nn.Module):
    """A body that turns examples into features, (n, F), and a head that turns features into outputs, (n, outputs)."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "n outputs"]:
        """Outputs of examples in their own shape."""
        outputs: Tensor = self.head(self.body(x))
        return outputs


class Architecture(BaseModel, ABC):
    """How a network is made: frozen settings, the `config.architecture` of a manifest, with the name of the kind.

    No two examples of a batch have to do with each other: no batch normalisation, no dropout. No buffers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]

    @abstractmethod
    def network(self, shape: tuple[int, ...], outputs: int) -> Network:
        """A network for examples of this shape, with PyTorch's own first weights.

        Raises:
            CheckpointError: the architecture is not for such a shape.
        """

    def shapes(self, shape: tuple[int, ...], outputs: int) -> dict[str, tuple[int, ...]]:
        """The parameters by name."""
        return {name: tuple(p.shape) for name, p in self._empty(shape, outputs).named_parameters()}

    def bind(self, shape: tuple[int, ...], outputs: int, parameters: Mapping[str, Tensor]) -> Bound:
        """The network with these parameters: not copies of them."""
        return Bound(self._empty(shape, outputs), shape, dict(parameters))

    def pullback(self, parameters: Mapping[str, Tensor]) -> Pullback | None:  # noqa: ARG002
        """Slopes by a faster way than automatic differentiation, where there is one. It copies no parameters.

        They are float32, on the CPU.
        """
        return None

    def along(self, parameters: Mapping[str, Tensor], x: Tensor, v: Tensor) -> Along | None:  # noqa: ARG002
        """Derivatives along v of a network's one output, faster than by differentiating twice, where there is a way.

        The same is asked of the parameters.
        """
        return None

    def _empty(self, shape: tuple[int, ...], outputs: int) -> Network:
        with torch.device("meta"):
            return self.network(shape, outputs)


class Bound:
    """A network with parameters from outside. Threads may share it: nothing in it changes."""

    def __init__(self, network: Network, shape: tuple[int, ...], parameters: Mapping[str, Tensor]) -> None:
        self._network, self._shape = network, shape
        for name, tensor in parameters.items():
            path, _, own = name.rpartition(".")
            owner = network.get_submodule(path)
            delattr(owner, own)  # a parameter's place takes no plain tensor; without it, the name is an attribute's
            setattr(owner, own, tensor)

    def features(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n features"]:
        """What the body makes of flat examples."""
        found: Tensor = self._network.body(x.reshape(-1, *self._shape))
        return found

    def outputs(self, x: Float[Tensor, "n visible"]) -> Float[Tensor, "n outputs"]:
        """What the network makes of flat examples."""
        found: Tensor = self._network(x.reshape(-1, *self._shape))
        return found


def architectures() -> dict[str, type[Architecture]]:
    """Every kind by name."""
    return discover("models.architectures", Architecture)  # type: ignore[type-abstract]


def read(config: Mapping[str, Any], kinds: tuple[str, ...] | None = None) -> Architecture:
    """The architecture that a manifest's config describes; `kinds`: those that the family may have.

    Raises:
        CheckpointError: there is none, or its kind is unknown, or a setting is wrong.
    """
    found = config.get("architecture")
    if not isinstance(found, dict):
        raise CheckpointError(f"config.architecture must say how the network is made; found {found!r}")
    known = {name: kind for name, kind in architectures().items() if kinds is None or name in kinds}
    kind = found.get("name", next(iter(known)) if len(known) == 1 else None)
    if kind not in known:
        raise CheckpointError(f"config.architecture.name is {kind!r}; expected one of {', '.join(known)}")
    try:
        return known[kind].model_validate({key: value for key, value in found.items() if key != "name"})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise CheckpointError(f"config.architecture: {faults}") from error


def image(shape: tuple[int, ...], kind: str) -> tuple[int, int, int]:
    """(height, width, channels) of examples of this shape.

    Raises:
        CheckpointError: they are no images.
    """
    if len(shape) == 2:
        return (*shape, 1)
    if len(shape) == 3:
        return shape
    raise CheckpointError(
        f"architecture {kind} needs images, (height, width) or (height, width, channels); found {shape}"
    )


class Planes(nn.Module):
    """Images (n, height, width[, channels]) as planes (n, channels, height, width), which convolutions take."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "n channels height width"]:
        """The same numbers in another order."""
        return x[:, None] if x.ndim == 3 else x.movedim(-1, 1)
