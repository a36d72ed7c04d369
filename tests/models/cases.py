"""Small models of every family for the contract suites, and exact enumeration of their states.

A new family needs a function and a line in `FACTORIES` for each of its variants; the contract suites run on all of
them, selecting by what the built model can do, and fail while a family has none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.catalog import families
from models.families.bm import BM
from models.families.bm_hidden import BMHidden
from models.families.dbm import DBM
from models.families.dbn import DBN
from models.families.grbm import GRBM
from models.families.rbm import RBM
from models.family import EnergyModel, HasConditionals
from models.generator import LOG_STD
from models.manifest import Domain, Manifest, Visible

ONE_HOT: Literal["one-hot"] = "one-hot"
Values = tuple[float, ...] | Literal["one-hot"] | None
"""What a unit of a block can be; one-hot blocks have one unit at 1; None: real units, which cannot be enumerated."""
BINARY: Values = (0.0, 1.0)
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """A model, the manifest it could be written with, and the values that units can take, by block of the model."""

    model: EnergyModel
    manifest: Manifest
    values: Mapping[str, Values]
    directed: bool = False
    """Has layers whose sweep leaves the model's law unchanged only as a whole: conditionals are not differences of the
    joint energy."""

    @property
    def enumerable(self) -> bool:
        """Whether all joint states of the model's blocks can be listed."""
        return isinstance(self.model, HasConditionals) and None not in self.values.values()

    @property
    def sweeping(self) -> HasConditionals:
        """The model, where it has conditionals."""
        assert isinstance(self.model, HasConditionals)
        return self.model

    @property
    def visibles(self) -> int:
        """How many visible units there are."""
        return self.manifest.visible.units


def normal(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    """float64, decided by the seed."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def manifest_of(
    family: str, visible: int, domain: Domain = "binary", classes: int = 0, config: dict[str, Any] | None = None
) -> Manifest:
    """A manifest named `small`."""
    return Manifest(
        name="small",
        version=1,
        family=family,
        visible=Visible(shape=[visible], domain=domain),
        classes=list(range(classes)) or None,
        config=config or {},
    )


def split(hidden: int, layers: int) -> list[int]:
    """`hidden` units over so many layers, lower layers first, at least one each."""
    return [max(1, hidden // layers + (at < hidden % layers)) for at in range(layers)]


def rbm(
    visible: int,
    hidden: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    domain: str = "binary",
    scale: float = 1.0,
    classes: int = 0,
) -> RBM:
    """An RBM with normal parameters, strong enough that its units depend on each other."""
    W, b, c = normal((visible, hidden), seed, scale), normal((visible,), seed + 1), normal((hidden,), seed + 2)
    U = normal((classes, hidden), seed + 3, scale).to(dtype) if classes else None
    d = normal((classes,), seed + 4).to(dtype) if classes else None
    return RBM(W.to(dtype), b.to(dtype), c.to(dtype), domain, U, d)


def grbm(visible: int, hidden: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> GRBM:
    """A GRBM with normal parameters and standard deviations of their own."""
    W, b, c = normal((visible, hidden), seed, scale), normal((visible,), seed + 1), normal((hidden,), seed + 2)
    log_sigma = normal((visible,), seed + 3, 0.4)
    return GRBM(W.to(dtype), b.to(dtype), c.to(dtype), log_sigma.to(dtype))


def dbm(
    layers: list[int],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    domain: str = "binary",
    scale: float = 1.0,
    classes: int = 0,
    recognition: bool = False,
) -> DBM:
    """A DBM with normal parameters; `layers` has the visibles first."""
    made = {"b0": normal((layers[0],), seed)}
    for n in range(1, len(layers)):
        made[f"W{n}"] = normal((layers[n - 1], layers[n]), seed + 10 * n, scale)
        made[f"b{n}"] = normal((layers[n],), seed + 10 * n + 1)
        if recognition:
            made[f"V{n}"] = normal((layers[n - 1], layers[n]), seed + 10 * n + 2, scale)
            made[f"a{n}"] = normal((layers[n],), seed + 10 * n + 3)
    if domain == "real":
        made["log_sigma"] = normal((layers[0],), seed + 1, 0.4)
    if classes:
        made |= {"U": normal((classes, layers[-1]), seed + 2, scale), "d": normal((classes,), seed + 3)}
    return DBM({name: tensor.to(dtype) for name, tensor in made.items()}, len(layers) - 1, domain)


def couplings(units: int, seed: int, scale: float = 1.0, reach: int | None = None) -> Tensor:
    """A symmetric matrix with zero diagonal, float64; units further apart than `reach` are not coupled."""
    upper = normal((units, units), seed, scale).triu(1)
    return upper + upper.T if reach is None else (upper - upper.triu(reach + 1)) + (upper - upper.triu(reach + 1)).T


def bm(
    visible: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    domain: str = "binary",
    scale: float = 1.0,
    reach: int | None = None,
) -> BM:
    """A fully visible Boltzmann machine with normal parameters."""
    W, b = couplings(visible, seed, scale, reach), normal((visible,), seed + 1)
    return BM(W.to(dtype), b.to(dtype), domain)


def bm_hidden(
    visible: int,
    hidden: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    domain: str = "binary",
    scale: float = 1.0,
    reach: tuple[int | None, int | None] = (None, 0),
) -> BMHidden:
    """A Boltzmann machine with hidden units and normal parameters; `reach` is that of R and that of S."""
    R, S = couplings(visible, seed + 3, scale, reach[0]), couplings(hidden, seed + 4, scale, reach[1])
    W, b, c = normal((visible, hidden), seed, scale), normal((visible,), seed + 1), normal((hidden,), seed + 2)
    return BMHidden(R.to(dtype), W.to(dtype), S.to(dtype), b.to(dtype), c.to(dtype), domain)


def dbn(
    layers: list[int],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    domain: str = "binary",
    scale: float = 1.0,
    classes: int = 0,
    recognition: bool = False,
) -> DBN:
    """A DBN with normal parameters; `layers` has the visibles first. `recognition`: untied."""
    made = {"b0": normal((layers[0],), seed)}
    for n in range(1, len(layers)):
        made[f"W{n}"] = normal((layers[n - 1], layers[n]), seed + 10 * n, scale)
        made[f"b{n}"] = normal((layers[n],), seed + 10 * n + 1)
        if recognition and n < len(layers) - 1:
            made[f"V{n}"] = made[f"W{n}"] + normal((layers[n - 1], layers[n]), seed + 10 * n + 2, 0.5 * scale)
            made[f"a{n}"] = normal((layers[n],), seed + 10 * n + 3)
    if classes:
        made |= {"U": normal((classes, layers[-1]), seed + 2, scale), "d": normal((classes,), seed + 3)}
    return DBN({name: tensor.to(dtype) for name, tensor in made.items()}, len(layers) - 1, domain)


Factory = Callable[[int, int, int, torch.dtype, float], Case]
"""(visible, hidden, seed, dtype, scale). `hidden` is the number of all hidden units."""


def _rbm(domain: Domain, classes: int) -> Factory:
    def make(visible: int, hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
        model = rbm(visible, hidden, seed, dtype, domain, scale, classes)
        values = {"visible": BINARY, "hidden": BINARY} | ({"label": ONE_HOT} if classes else {})
        return Case(model, manifest_of("rbm", visible, domain, classes), values)

    return make


def _grbm(visible: int, hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
    values: dict[str, Values] = {"visible": None, "hidden": BINARY}
    return Case(grbm(visible, hidden, seed, dtype, scale), manifest_of("grbm", visible, "real"), values)


def _dbm(depth: int, domain: Domain, classes: int, recognition: bool = False) -> Factory:
    def make(visible: int, hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
        layers = [visible, *split(hidden, depth)]
        model = dbm(layers, seed, dtype, domain, scale, classes, recognition)
        values: dict[str, Values] = dict.fromkeys(model.layers, BINARY)
        values |= {"visible": None if domain == "real" else BINARY} | ({"label": ONE_HOT} if classes else {})
        return Case(model, manifest_of("dbm", visible, domain, classes, {"layers": layers}), values)

    return make


SPIN: Values = (-1.0, 1.0)


def _bm(domain: Domain, reach: int | None = None) -> Factory:
    def make(visible: int, hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
        values = {"visible": SPIN if domain == "spin" else BINARY}
        return Case(bm(visible, seed, dtype, domain, scale, reach), manifest_of("bm", visible, domain), values)

    return make


def _bm_hidden(domain: Domain, reach: tuple[int | None, int | None]) -> Factory:
    def make(visible: int, hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
        model = bm_hidden(visible, hidden, seed, dtype, domain, scale, reach)
        values = dict.fromkeys(model.blocks, SPIN if domain == "spin" else BINARY)
        return Case(model, manifest_of("bm_hidden", visible, domain), values)

    return make


def _dbn(depth: int, domain: Domain = "binary", classes: int = 0, recognition: bool = False) -> Factory:
    def make(visible: int, hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
        layers = [visible, *split(hidden, depth)]
        model = dbn(layers, seed, dtype, domain, scale, classes, recognition)
        values: dict[str, Values] = dict.fromkeys(("visible", *model.layers), BINARY)
        values |= {"label": ONE_HOT} if classes else {}
        manifest = manifest_of("dbn", visible, domain, classes, {"layers": layers})
        return Case(model, manifest, values, directed=depth > 1)

    return make


def _network(
    family: str,
    domain: Domain,
    shape: Callable[[int], list[int]],
    architecture: dict[str, Any],
    classes: int = 0,
    sigmas: list[float] | None = None,
    latent: int | None = None,
) -> Factory:
    """Normal weights of standard deviation `scale` / sqrt(inputs); there are no hidden units in the model's sense."""

    def make(visible: int, _hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
        config: dict[str, Any] = {"architecture": architecture}
        if sigmas is not None:
            config["sigmas"] = sigmas
        elif domain == "real":
            config["prior_std"] = 1.5
        if latent is not None:
            config["latent"] = latent
        manifest = manifest_of(family, visible, domain, classes, config)
        manifest = manifest.model_copy(update={"visible": Visible(shape=shape(visible), domain=domain)})
        kind = families()[family]
        tensors = {
            name: normal(size, seed + n, 2 * scale / math.sqrt(math.prod(size[1:]))).to(dtype)
            for n, (name, size) in enumerate(kind.tensor_shapes(manifest, {}).items())
        }
        return Case(kind.from_tensors(manifest, tensors), manifest, {"visible": None})

    return make


def _generating(family: str, part: str, domain: Domain, generator: Callable[[int], dict[str, Any]]) -> Factory:
    """A network of the family's own and a generator from two numbers; its noise has a standard deviation of 0.2."""

    def make(visible: int, hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
        architecture = {part: SMOOTH, "generator": generator(visible)}
        of = _network(family, domain, _flat, architecture, latent=2)(visible, hidden, seed, dtype, scale)
        tensors = of.model.tensors() | {LOG_STD: torch.tensor(math.log(0.2), dtype=dtype)}
        return Case(families()[family].from_tensors(of.manifest, tensors), of.manifest, of.values)

    return make


def _tilting(family: str, domain: Domain) -> Factory:
    """An energy of any visibles over a generator of two latents; normal weights as of other networks."""

    def make(visible: int, _hidden: int, seed: int, dtype: torch.dtype, scale: float) -> Case:
        kind = families()[family]
        part = "energy" if family == "tilted" else "discriminator"
        config = {"latent": 2, "architecture": {part: SMOOTH, "generator": {"name": "mlp", "hidden": [6]}}}
        manifest = manifest_of(family, visible, domain, config=config)
        tensors = {
            name: normal(size, seed + n, 2 * scale / math.sqrt(math.prod(size[1:]))).to(dtype)
            for n, (name, size) in enumerate(kind.tensor_shapes(manifest, {}).items())
        }
        return Case(kind.from_tensors(manifest, tensors), manifest, {"latent": None, "visible": None})

    return make


def _flat(visible: int) -> list[int]:
    return [visible]


def _row(visible: int) -> list[int]:
    return [1, visible]


SMOOTH = {"name": "mlp", "hidden": [8, 8], "activation": "tanh"}
SIGMAS = [1.5, 0.8, 0.4]

FACTORIES: Mapping[str, Factory] = {
    "bm": _bm("binary"),
    "bm spin": _bm("spin"),
    "bm chain": _bm("binary", reach=1),
    "bm_hidden": _bm_hidden("binary", (None, 0)),
    "bm_hidden coupled": _bm_hidden("binary", (None, None)),
    "bm_hidden coupled spin": _bm_hidden("spin", (1, 1)),
    "rbm": _rbm("binary", 0),
    "rbm labelled": _rbm("binary", CLASSES),
    "rbm unit": _rbm("unit", 0),
    "grbm": _grbm,
    "dbm": _dbm(2, "binary", 0),
    "dbm labelled": _dbm(2, "binary", CLASSES),
    "dbm unit recognition labelled": _dbm(2, "unit", CLASSES, recognition=True),
    "dbm deep": _dbm(3, "binary", 0),
    "dbm deep labelled": _dbm(3, "binary", CLASSES),
    "dbm real": _dbm(2, "real", 0),
    "dbm real labelled": _dbm(2, "real", CLASSES),
    "dbn": _dbn(2),
    "dbn labelled": _dbn(2, classes=CLASSES),
    "dbn recognition": _dbn(2, "unit", recognition=True),
    "dbn deep": _dbn(3, recognition=True),
    "dbn one layer labelled": _dbn(1, classes=CLASSES),
    "mlp_energy": _network("mlp_energy", "real", _flat, {"hidden": [8, 8], "activation": "tanh"}),
    "mlp_energy unit": _network("mlp_energy", "unit", _flat, {"name": "mlp", "hidden": [8]}),
    "conv_energy": _network("conv_energy", "unit", _row, {"channels": [4]}),
    "resnet_energy": _network("resnet_energy", "unit", _row, {"channels": [4, 4]}),
    "jem": _network("jem", "unit", _flat, {"name": "mlp", "hidden": [8, 8]}, CLASSES),
    "score_energy": _network("score_energy", "real", _flat, SMOOTH, sigmas=SIGMAS),
    "score_energy unit": _network("score_energy", "unit", _row, {"name": "resnet", "channels": [4]}, sigmas=SIGMAS),
    "tilted": _tilting("tilted", "real"),
    "tilted unit": _tilting("tilted", "unit"),
    "latent_discriminator": _tilting("latent_discriminator", "unit"),
    "score_network": _network("score_network", "real", _flat, SMOOTH, sigmas=SIGMAS),
    "score_network unit": _network("score_network", "unit", _row, {"name": "dilated", "channels": 4}, sigmas=SIGMAS),
    "adversarial": _generating("adversarial", "energy", "real", lambda _: {"name": "mlp", "hidden": [6]}),
    "adversarial unit": _generating(
        "adversarial", "energy", "unit", lambda d: {"name": "deconv", "image": [1, d, 1], "channels": [3, 2]}
    ),
}
"""By name: the family, and where it has several, the variant after a blank."""


def case(
    name: str,
    visible: int = 4,
    hidden: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
) -> Case:
    """The case of this name with so many units; `scale` is the standard deviation of its weights."""
    return FACTORIES[name](visible, hidden, seed, dtype, scale)


def names(choose: Callable[[Case], bool] = lambda of: True) -> list[str]:
    """Names of the cases that `choose` takes."""
    return [name for name in sorted(FACTORIES) if choose(case(name))]


def having(*capabilities: type) -> list[str]:
    """Names of the cases whose models have all of these capabilities."""
    return names(lambda of: all(isinstance(of.model, capability) for capability in capabilities))


def states(values: Values, units: int) -> Tensor:
    """Every state of `units` units, float64, the first unit slowest; of one-hot units the first class first."""
    assert values is not None, "real units cannot be enumerated"
    if values == ONE_HOT:
        return torch.eye(units, dtype=torch.float64)
    return torch.tensor(list(itertools.product(values, repeat=units)), dtype=torch.float64).reshape(-1, units)


def product(blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every combination of the blocks' rows, a row each, the first block slowest."""
    index = torch.cartesian_prod(*(torch.arange(len(s)) for s in blocks.values())).reshape(-1, len(blocks))
    return {block: s[index[:, i]] for i, (block, s) in enumerate(blocks.items())}


def joint_states(model: HasConditionals, values: Mapping[str, Values]) -> dict[str, Tensor]:
    """Every joint state, a row each, the model's first block slowest."""
    return product({block: states(values[block], model.block_units(block)) for block in model.blocks})


def some_states(of: Case, n: int, seed: int = 0) -> dict[str, Tensor]:
    """n random joint states, float64; real units are normal numbers of standard deviation 2."""
    generator = torch.Generator().manual_seed(seed)
    return {block: some(of.values[block], n, of.sweeping.block_units(block), generator) for block in of.sweeping.blocks}


def some(values: Values, n: int, units: int, generator: torch.Generator) -> Tensor:
    """n random states of a block, float64."""
    if values is None:
        return 2.0 * torch.randn((n, units), generator=generator, dtype=torch.float64)
    if values == ONE_HOT:
        return torch.eye(units, dtype=torch.float64)[torch.randint(units, (n,), generator=generator)]
    return torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), (n, units), generator=generator)]


def some_visibles(of: Case, n: int, seed: int = 0) -> Tensor:
    """n random visible states, float64."""
    return some(of.values["visible"], n, of.visibles, torch.Generator().manual_seed(seed))


def law(energies: Tensor) -> Tensor:
    """exp(-energies), normalised."""
    return torch.softmax(-energies.double(), 0)
