"""Boltzmann machines with any couplings against sums over all of their states, written as loops over pairs."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models import checkpoint
from models.catalog import build
from models.conditionals import Bernoulli, Conditional, Spin
from models.errors import CapabilityError, CheckpointError
from models.estimator import Effort
from models.estimators.ais import AIS
from models.estimators.reverse_ais import ReverseAIS
from models.families.bm import BM
from models.families.bm_hidden import BMHidden
from models.family import HasConditionals, Part
from models.pairwise import symmetric
from models.quadratic import QuadraticSum, colouring
from models.rng import ChainKeys
from models.samplers.gibbs import Gibbs
from tests.models import cases
from tests.models.cases import bm, bm_hidden, couplings, manifest_of, states
from tests.models.kernels import Delegating, Space, clamp_row
from tests.models.test_sampler_laws import Defect, after_sweeps, assert_law_holds_and_defects_are_seen
from tests.service.servers import serving

PAGE = (Path(__file__).parents[2] / "docs" / "families" / "bm.md").read_text()
W3 = torch.tensor([[0.0, -1.0, -1.0], [-1.0, 0.0, 2.0], [-1.0, 2.0, 0.0]], dtype=torch.float64)
GOLDEN = BM(W3, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), "spin")
GOLDEN_H = {
    (-1, -1, -1): -1.0,
    (-1, -1, 1): -3.0,
    (-1, 1, -1): -1.0,
    (-1, 1, 1): 5.0,
    (1, -1, -1): 3.0,
    (1, -1, 1): -3.0,
    (1, 1, -1): -1.0,
    (1, 1, 1): 1.0,
}


# --- the golden case ---


def test_the_golden_case_has_its_published_numbers() -> None:
    x = torch.tensor(list(GOLDEN_H), dtype=torch.float64)
    np.testing.assert_allclose(GOLDEN.energy(x), [-h for h in GOLDEN_H.values()], atol=1e-12)
    np.testing.assert_allclose(GOLDEN.joint_energy({"visible": x}), GOLDEN.energy(x), atol=1e-12)
    z = math.exp(GOLDEN.log_partition())
    assert z == pytest.approx(sum(math.exp(h) for h in GOLDEN_H.values()), abs=1e-9)
    assert z == pytest.approx(172.420, abs=5e-4)
    p = dict(zip(GOLDEN_H, (torch.exp(-GOLDEN.energy(x)) / z).tolist(), strict=True))
    assert p[-1, 1, 1] == pytest.approx(0.8608, abs=5e-5)
    assert p[1, -1, -1] == pytest.approx(0.1165, abs=5e-5)
    assert sum(p[s] for s in p if s[0] == 1) == pytest.approx(0.1347, abs=5e-5)
    down = {s: p[s] for s in p if s[1] == -1}
    assert sum(down[s] for s in down if s[0] == 1) / sum(down.values()) == pytest.approx(0.9797, abs=5e-5)


def test_the_documented_example_prints_what_the_page_says_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def block(language: str) -> str:
        (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
        return str(found)

    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "bm.md", "exec"), {})
    assert capsys.readouterr().out == block("text")
    line = re.fullmatch(r"curl -s http://127.0.0.1:8000(\S+) -H 'Content-Type: (\S+)' \\\n  -d '(.*)'\n", block("sh"))
    assert line is not None
    with serving(tmp_path / "checkpoints", tmp_path / "data") as server:
        answer = server.client.post(line[1], headers={"Content-Type": line[2]}, content=line[3])
    assert answer.json() == json.loads(block("json"))


# --- against loops over all pairs of all states ---

MACHINES: Mapping[str, Callable[[], BM | BMHidden]] = {
    "bm": lambda: bm(8, seed=1),
    "bm spin": lambda: bm(8, seed=2, domain="spin", scale=0.7),
    "bm chain": lambda: bm(9, seed=3, reach=1),
    "bm_hidden": lambda: bm_hidden(5, 4, seed=4),
    "bm_hidden spin": lambda: bm_hidden(5, 4, seed=5, domain="spin", scale=0.7),
    "bm_hidden coupled": lambda: bm_hidden(5, 4, seed=6, reach=(None, None)),
    "bm_hidden coupled spin": lambda: bm_hidden(4, 5, seed=7, domain="spin", scale=0.7, reach=(None, 2)),
    "bm_hidden like an rbm": lambda: bm_hidden(4, 5, seed=8, reach=(0, 0)),
}


class Brute:
    """All states of a machine and E of each, by loops; the hidden units' states vary fastest."""

    def __init__(self, model: BM | BMHidden) -> None:
        t = {name: tensor.tolist() for name, tensor in model.tensors().items()}
        low = -1.0 if model.domain == "spin" else 0.0
        self.D, self.F = len(t["b"]), len(t.get("c", []))
        self.v = list(itertools.product((low, 1.0), repeat=self.D))
        self.h = list(itertools.product((low, 1.0), repeat=self.F))
        self.energies = np.array([[self.energy(t, v, h) for h in self.h] for v in self.v])
        self.visible, self.hidden = np.array(self.v), np.array(self.h).reshape(len(self.h), self.F)
        weights = np.exp(-self.energies)
        self.log_z = math.log(weights.sum())
        self.p = weights / weights.sum()

    @staticmethod
    def energy(t: Mapping[str, list], v: tuple[float, ...], h: tuple[float, ...]) -> float:  # type: ignore[type-arg]
        H: float = sum(bias * x for bias, x in zip(t["b"], v, strict=True))
        H += sum(bias * x for bias, x in zip(t.get("c", []), h, strict=True))
        for i, j in itertools.combinations(range(len(v)), 2):
            H += t["R" if h else "W"][i][j] * v[i] * v[j]
        for i, j in itertools.combinations(range(len(h)), 2):
            H += t["S"][i][j] * h[i] * h[j]
        for i, j in itertools.product(range(len(v)), range(len(h))):
            H += t["W"][i][j] * v[i] * h[j]
        return -H

    def joint(self) -> dict[str, Tensor]:
        """Every joint state, in the order of `energies.ravel()`."""
        found = {"visible": torch.from_numpy(np.repeat(self.visible, len(self.h), 0))}
        if self.F:
            found["hidden"] = torch.from_numpy(np.tile(self.hidden, (len(self.v), 1)))
        return found


@pytest.fixture(scope="module", params=sorted(MACHINES))
def machine(request: pytest.FixtureRequest) -> tuple[BM | BMHidden, Brute]:
    model = MACHINES[request.param]()
    return model, Brute(model)


def test_energies_are_those_of_the_loops(machine: tuple[BM | BMHidden, Brute]) -> None:
    model, brute = machine
    np.testing.assert_allclose(model.joint_energy(brute.joint()), brute.energies.ravel(), atol=1e-9)
    np.testing.assert_allclose(
        model.energy(torch.from_numpy(brute.visible)), -np.log(np.exp(-brute.energies).sum(1)), atol=1e-9
    )
    assert (model.energy_kind, model.score_kind, model.score_is_relaxed) == ("exact", "exact", True)


def test_log_z_and_marginals_are_those_of_the_loops(machine: tuple[BM | BMHidden, Brute]) -> None:
    model, brute = machine
    assert model.log_partition() == pytest.approx(brute.log_z, abs=1e-9)
    p = np.exp(-model.energy(torch.from_numpy(brute.visible)).numpy() - model.log_partition())
    np.testing.assert_allclose(p, brute.p.sum(1), atol=1e-9)
    np.testing.assert_allclose(p @ brute.visible, brute.p.sum(1) @ brute.visible, atol=1e-9)


def test_the_conditional_of_every_unit_is_that_of_the_loops(machine: tuple[BM | BMHidden, Brute]) -> None:
    model, brute = machine
    at = brute.joint()
    p = brute.p.ravel()
    every = np.concatenate([at[block].numpy() for block in sorted(at, reverse=True)], 1)
    for part in model.parts:
        means = model.conditional(part.name, at).mean().numpy()
        positions = range(model.block_units(part.block)) if part.units is None else part.units.tolist()
        for column, unit in enumerate(positions):
            place = unit + (brute.D if part.block == "hidden" else 0)
            rest = np.delete(every, place, 1)
            _, groups = np.unique(rest, axis=0, return_inverse=True)
            groups = groups.ravel()
            expected = np.bincount(groups, p * every[:, place]) / np.bincount(groups, p)
            np.testing.assert_allclose(means[:, column], expected[groups], atol=1e-9)


def test_features_and_scores_are_those_of_the_loops(machine: tuple[BM | BMHidden, Brute]) -> None:
    model, brute = machine
    x = torch.from_numpy(brute.visible)
    posterior = brute.p / brute.p.sum(1, keepdims=True)
    if isinstance(model, BMHidden):
        np.testing.assert_allclose(model.features(x), posterior @ brute.hidden, atol=1e-9)
    inside = 0.8 * x + 0.1
    step = 1e-3

    def difference(width: float) -> Tensor:
        units = torch.eye(brute.D, dtype=torch.float64)
        return torch.stack([model.energy(inside - width * e) - model.energy(inside + width * e) for e in units], 1) / (
            2 * width
        )

    # Five points: truncation h^4 |E'''''| / 30 and rounding 1e-15 |E| / h are both below 1e-10.
    np.testing.assert_allclose(model.score(inside), (4 * difference(step) - difference(2 * step)) / 3, atol=1e-9)


def test_completion_posteriors_are_those_of_the_loops(machine: tuple[BM | BMHidden, Brute]) -> None:
    model, brute = machine
    known = {0: 1.0, 3: float(brute.visible[0, 0])}
    fits = np.all([brute.visible[:, i] == value for i, value in known.items()], 0)
    x = torch.from_numpy(brute.visible[fits])
    exact = brute.p[fits].sum(1) / brute.p[fits].sum()
    np.testing.assert_allclose(torch.softmax(-model.energy(x), 0), exact, atol=1e-9)


@pytest.mark.parametrize("name", ["bm", "bm spin", "bm chain", "bm_hidden", "bm_hidden coupled spin"])
def test_clamped_sweeps_leave_the_posterior_unchanged(name: str) -> None:
    of = cases.case(name, 4, 2)
    space, clamp = Space(of.sweeping, of.values), clamp_row(4, {1: 1.0})
    law = space.law(clamp=clamp)
    transitions = space.transitions(Gibbs(), clamp=clamp)
    np.testing.assert_allclose(law @ transitions, law, atol=1e-11)
    assert float(transitions[:, ~space.allowed(clamp)].abs().max()) == 0.0


# --- parts ---


def test_a_chessboard_has_two_colours_and_a_dense_machine_one_for_each_unit() -> None:
    side = 5
    place = torch.arange(side * side)
    row, column = place // side, place % side
    near = ((row[:, None] - row).abs() + (column[:, None] - column).abs()) == 1
    board = BM(near.double(), torch.zeros(side * side).double(), "spin")
    assert [part.name for part in board.parts] == ["visible/0", "visible/1"]
    for part, parity in zip(board.parts, (0, 1), strict=True):
        assert part.units is not None
        assert torch.equal(part.units, place[(row + column) % 2 == parity])
    dense = bm(6).parts
    assert [(part.name, part.units.tolist()) for part in dense if part.units is not None] == [
        (f"visible/{i}", [i]) for i in range(6)
    ]
    assert [(part.name, part.units) for part in bm(6, reach=0).parts] == [("visible", None)]


def test_parts_never_mix_blocks_or_hold_units_that_are_coupled() -> None:
    model = bm_hidden(20, 15, seed=5, reach=(3, 1))
    names = [part.name for part in model.parts]
    assert names == ["hidden/0", "hidden/1", "visible/0", "visible/1", "visible/2", "visible/3"]
    for part in model.parts:
        within = (model.S if part.block == "hidden" else model.R)[part.units][:, part.units]
        assert not bool(within.any())
    assert [part.name for part in bm_hidden(5, 4).parts][:2] == ["hidden", "visible/0"]


@pytest.mark.parametrize("seed", range(5))
def test_a_colouring_of_any_graph_separates_neighbours(seed: int) -> None:
    graph = couplings(30, seed) * (couplings(30, seed + 50).abs() > 1.0)
    sets = colouring(graph)
    assert sorted(torch.cat(sets).tolist()) == list(range(30))
    assert not any(bool(graph[units][:, units].any()) for units in sets)
    degree = int((graph != 0).sum(1).max())
    assert len(sets) <= degree + 1
    assert all(torch.equal(a, b) for a, b in zip(sets, colouring(graph), strict=True))


# --- sums over more states than a piece holds ---


@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("reach", [None, 1, 0])
def test_sums_and_means_over_many_pieces_are_those_over_all_states_at_once(spin: bool, reach: int | None) -> None:
    J, fields = couplings(17, 1, 0.4, reach), cases.normal((3, 17), 2)
    everything = states((-1.0, 1.0) if spin else (0.0, 1.0), 17)
    terms = 0.5 * ((everything @ J) * everything).sum(1) + fields @ everything.T
    quadratic = QuadraticSum(J, spin)
    assert len(quadratic.enumerated) == {None: 17, 1: 8, 0: 0}[reach]
    np.testing.assert_allclose(quadratic.log_sum(fields), terms.logsumexp(1), atol=1e-10)
    np.testing.assert_allclose(quadratic.means(fields), torch.softmax(terms, 1) @ everything, atol=1e-10)


@pytest.mark.parametrize("hidden", [3, 600])
def test_many_rows_are_summed_as_each_alone(hidden: int) -> None:
    model = bm_hidden(6, hidden, seed=3, scale=0.1, reach=(None, 1 if hidden < 20 else 0))
    x = cases.normal((9000, 6), 1).sigmoid()
    np.testing.assert_allclose(model.energy(x)[::999], torch.cat([model.energy(row[None]) for row in x[::999]]))
    np.testing.assert_allclose(model.features(x)[::999], torch.cat([model.features(row[None]) for row in x[::999]]))


@pytest.mark.parametrize("spin", [False, True])
def test_log_z_of_25_units_that_are_all_coupled(spin: bool) -> None:
    # W_ij = w, b_i = b: the energy depends on the number k of units at 1 alone.
    D, w, b = 25, 0.13, -0.4
    model = BM(w * (1 - torch.eye(D).double()), torch.full((D,), b, dtype=torch.float64), "spin" if spin else "binary")
    terms = []
    for k in range(D + 1):
        total = 2 * k - D if spin else k
        pairs = (total**2 - (D if spin else k)) / 2
        terms.append(math.log(math.comb(D, k)) + w * pairs + b * total)
    assert model.log_partition() == pytest.approx(
        float(torch.tensor(terms, dtype=torch.float64).logsumexp(0)), abs=1e-9
    )


def test_log_z_of_a_long_chain_sums_every_other_unit_out() -> None:
    model = bm(40, seed=4, reach=1, domain="spin")
    passed = torch.zeros(2, dtype=torch.float64)
    spins = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    for i in range(40):
        passed = passed + model.b[i] * spins
        if i < 39:
            passed = (passed[:, None] + model.W[i, i + 1] * spins[:, None] * spins).logsumexp(0)
    assert model.log_partition() == pytest.approx(float(passed.logsumexp(0)), abs=1e-9)


def test_log_z_beyond_25_enumerated_units_is_refused() -> None:
    with pytest.raises(CapabilityError, match="at most 25 units; this one has 26"):
        bm(26).log_partition()
    with pytest.raises(CapabilityError, match="at most 25 units; this one has 26"):
        bm_hidden(26, 30).log_partition()
    assert math.isfinite(bm_hidden(60, 10, reach=(0, None)).log_partition())


# --- beyond enumeration: mean field ---


@pytest.mark.parametrize(("domain", "scale"), [("binary", 0.15), ("spin", 0.06)])
def test_beyond_20_coupled_hidden_units_the_energy_is_a_bound_and_says_so(domain: str, scale: float) -> None:
    assert bm_hidden(3, 20, reach=(None, None)).energy_kind == "exact"
    model = bm_hidden(3, 21, seed=3, domain=domain, scale=scale, reach=(None, None))
    assert (model.energy_kind, model.score_kind) == ("lower_bound", "mean_field")
    x = states((-1.0, 1.0) if domain == "spin" else (0.0, 1.0), 3)
    fields = torch.addmm(model.c, x, model.W)
    every = QuadraticSum(model.S, domain == "spin")
    exact = -((0.5 * x @ model.R + model.b) * x).sum(1) - every.log_sum(fields)
    gap = model.energy(x) - exact
    assert bool((gap > 0).all())
    assert float(gap.max()) < 0.25
    # The means are a stationary point of the bound: the score is its gradient.
    inside, step = 0.5 * x, 1e-4
    units = torch.eye(3, dtype=torch.float64)
    differences = [(model.energy(inside - step * e) - model.energy(inside + step * e)) / (2 * step) for e in units]
    np.testing.assert_allclose(model.score(inside), torch.stack(differences, 1), atol=1e-6)
    np.testing.assert_allclose(model.features(x), every.means(fields), atol=0.1)


def test_few_couplings_among_many_hidden_units_leave_the_energy_exact() -> None:
    S = torch.zeros(60, 60, dtype=torch.float64)
    S[3, 40] = S[40, 3] = 1.3
    free = bm_hidden(4, 60, seed=2)
    model = BMHidden(free.R, free.W, S, free.b, free.c)
    assert model.energy_kind == "exact"
    x = states((0.0, 1.0), 4)
    a = torch.addmm(free.c, x, free.W)
    one, other = a[:, 3], a[:, 40]
    pair = torch.stack([torch.zeros_like(one), one, other, one + other + 1.3], 1).logsumexp(1)
    apart = torch.nn.functional.softplus(one) + torch.nn.functional.softplus(other)
    np.testing.assert_allclose(model.energy(x), free.energy(x) + apart - pair, atol=1e-9)


# --- what a checkpoint may hold ---


def test_a_matrix_that_is_not_symmetric_is_refused_with_place_and_values() -> None:
    W = couplings(4, 0)
    W[1, 3] = 0.5
    W[3, 1] = 0.25
    with pytest.raises(CheckpointError, match=re.escape("tensor W must be symmetric; found W[1, 3] = 0.5 and W[3, 1]")):
        build(manifest_of("bm", 4), {"W": W, "b": torch.zeros(4).double()})


@pytest.mark.parametrize("name", ["R", "S"])
def test_a_diagonal_that_is_not_zero_is_refused_with_place_and_value(name: str) -> None:
    tensors = bm_hidden(4, 3, reach=(None, None)).tensors()
    tensors[name][2, 2] = 0.75
    expected = f"tensor {name} must have a zero diagonal; found {name}[2, 2] = 0.75"
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        build(manifest_of("bm_hidden", 4), tensors)


def test_rounding_in_single_precision_is_forgiven_and_more_is_not() -> None:
    W = couplings(5, 0)
    top = float(W.abs().max())
    for share, accepted in ((2.0**-21, True), (2.0**-19, False)):
        skew = W.clone()
        skew[0, 1] += share * top
        if accepted:
            found = symmetric("W", skew)
            assert torch.equal(found, found.T)
            assert float((found - W).abs().max()) == pytest.approx(share * top / 2)
        else:
            with pytest.raises(CheckpointError, match="symmetric"):
                symmetric("W", skew)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["bm spin", "bm_hidden coupled"])
def test_symmetric_matrices_of_every_precision_are_read_as_they_are(name: str, dtype: torch.dtype) -> None:
    of = cases.case(name, 7, 5)
    stored = {key: tensor.to(dtype) for key, tensor in of.model.tensors().items()}
    read = build(of.manifest, stored).tensors()
    for key, tensor in stored.items():
        assert torch.equal(read[key], tensor.to(read[key].dtype))


def test_both_families_are_written_and_read_back(tmp_path: Path) -> None:
    for name in ("bm spin", "bm_hidden coupled"):
        of = cases.case(name, 5, 4)
        read = checkpoint.read(checkpoint.write(tmp_path, of.manifest, of.model)).model
        x = cases.some_visibles(of, 10)
        assert torch.equal(read.energy(x), of.model.energy(x))
        assert type(read) is type(of.model)


# --- real draws ---


class Halved(Delegating):
    """Log-odds of spins without the factor 2."""

    def conditional(self, part: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        half = torch.full((len(states["visible"]),), 0.5, dtype=torch.float64)
        return self.model.conditional(part, states, half if beta is None else half * beta)


class AllAtOnce(Delegating):
    """All visible units in one part, coupled as they are: each is drawn given the others' old states."""

    @property
    def parts(self) -> tuple[Part, ...]:
        hidden = tuple(part for part in self.model.parts if part.block != "visible")
        return (*hidden, Part("visible", "visible"))

    def conditional(self, part: str, states: Mapping[str, Tensor], beta: Tensor | None = None) -> Conditional:
        if part != "visible":
            return self.model.conditional(part, states, beta)
        logits = torch.empty(states["visible"].shape, dtype=torch.float64)
        kind: type[Bernoulli] | type[Spin] = Bernoulli
        for own in self.model.parts:
            if own.block == "visible":
                law = self.model.conditional(own.name, states, beta)
                assert isinstance(law, Bernoulli | Spin)
                kind = type(law)
                logits[:, slice(None) if own.units is None else own.units] = law.logits
        return kind(logits)


def defects_of(space: Space, models: Mapping[str, HasConditionals]) -> dict[str, Defect]:
    return {
        name: Defect(Gibbs(), model, after_sweeps(space, space.transitions(Gibbs(), model)))
        for name, model in models.items()
    }


@pytest.mark.parametrize("domain", ["binary", "spin"])
def test_states_of_the_visible_machine_follow_its_law(domain: str) -> None:
    model = bm(4, seed=17, domain=domain, scale=0.5)
    space = Space(model, {"visible": (-1.0, 1.0) if domain == "spin" else (0.0, 1.0)})
    wrong: dict[str, HasConditionals] = {
        "pairs counted twice": BM(2.0 * model.W, model.b, domain),
        "a colour of coupled units": AllAtOnce(model),
        "diagonal counted": BM(model.W + 0.5 * torch.eye(4).double(), model.b, domain),
    }
    if domain == "spin":
        wrong["log-odds of spins without the factor 2"] = Halved(model)
    real = after_sweeps(space, space.transitions(Gibbs()))
    assert_law_holds_and_defects_are_seen(space, space.law(), real, defects_of(space, wrong))


@pytest.mark.parametrize("domain", ["binary", "spin"])
def test_states_of_the_machine_with_hidden_units_follow_its_law(domain: str) -> None:
    model = bm_hidden(3, 2, seed=1, domain=domain, scale=0.5, reach=(None, None))
    R, W, S, b, c = model.tensors().values()
    space = Space(model, dict.fromkeys(model.blocks, (-1.0, 1.0) if domain == "spin" else (0.0, 1.0)))
    wrong: dict[str, HasConditionals] = {
        "pairs of visible units counted twice": BMHidden(2.0 * R, W, S, b, c, domain),
        "pairs of hidden units not counted": BMHidden(R, W, torch.zeros_like(S), b, c, domain),
        "a colour of coupled units": AllAtOnce(model),
    }
    real = after_sweeps(space, space.transitions(Gibbs()))
    assert_law_holds_and_defects_are_seen(space, space.law(), real, defects_of(space, wrong))


# --- estimators of log Z ---


@pytest.mark.parametrize(
    "model",
    [
        bm(14, seed=1, scale=0.6),
        bm(14, seed=2, scale=0.4, domain="spin"),
        bm(14, seed=3, reach=1, domain="spin"),
        bm_hidden(10, 8, seed=4, scale=0.5),
        bm_hidden(8, 6, seed=5, scale=0.4, domain="spin", reach=(2, 2)),
    ],
    ids=["dense", "spin", "chain", "hidden", "coupled"],
)
def test_annealing_brackets_the_exact_log_z(model: BM | BMHidden) -> None:
    exact = model.log_partition()
    effort = Effort(chains=200, temperatures=100, seed=3)
    below, above = AIS().estimate(model, effort), ReverseAIS().estimate(model, effort)
    # 4.9 standard errors: one false alarm in a million.
    assert abs(below.value - exact) < 4.9 * below.stderr
    assert abs(above.value - exact) < 4.9 * above.stderr
    assert below.stderr < 0.1
    assert above.stderr < 0.1


def test_the_summed_path_keeps_the_visibles_alone_and_the_coupled_one_all_units() -> None:
    assert bm(4).kept_blocks == ("visible",)
    assert bm_hidden(4, 3).kept_blocks == ("visible",)
    assert bm_hidden(4, 3, reach=(None, None)).kept_blocks == ("hidden", "visible")


def test_sweeps_of_a_dense_machine_use_new_values_at_once() -> None:
    # One sweep is the units in their order, each from its own stream: written out by hand here.
    model, n = bm(6, seed=9, domain="spin"), 50
    keys = ChainKeys.of(7, n)
    start = Gibbs().init(model, keys, None, None)
    x = start.visible.clone()
    for unit in range(6):
        logits = 2.0 * (x @ model.machine.couplings[:, [unit]] + model.b[unit])
        x[:, [unit]] = Spin(logits).sample(keys, start.sweep + 1, unit)
    after, info = Gibbs().step(model, start, keys)
    assert torch.equal(after.visible, x)
    assert info.expected_visible().shape == (n, 6)
