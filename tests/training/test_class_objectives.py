"""Discriminative and hybrid learning against brute force, closed forms and back-propagation by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.family import HasClasses
from tests.models import cases
from tests.models.cases import Case
from tests.training.exact import layered, with_tensors
from training.errors import RecipeError
from training.objective import Batch, Draws, build

Found = dict[str, Tensor]
DISCRIMINATIVE = build({"name": "discriminative"})
_CLASSED = cases.names(lambda of: DISCRIMINATIVE.applies_to(of.model))


def _case(name: str) -> Case:
    return cases.case(name, visible=4, hidden=5 if "deep" in name else 4, seed=2, scale=0.7)


def _batch(of: Case, n: int = 5) -> Batch:
    return Batch(cases.some_visibles(of, n, 1), torch.arange(n) % cases.CLASSES)


def _joint(p: Found, v: Tensor) -> Tensor:
    """log sum_h exp(-E(v, h, y)) of an RBM or a DBM with labels, binary or real, for every class y: (n, K)."""
    depth = sum(name[0] == "W" for name in p)
    W = [p["W"]] if depth == 1 else [p[f"W{n}"] for n in range(1, depth + 1)]
    b = [p["b"], p["c"]] if depth == 1 else [p[f"b{n}"] for n in range(depth + 1)]
    x = cases.product({f"{n}": cases.states(cases.BINARY, len(b[n])) for n in range(1, depth + 1)})
    if "log_sigma" in p:
        s = p["log_sigma"].exp()
        own, v = -0.5 * ((v - b[0]) / s).square().sum(1), v / s
    else:
        own = v @ b[0]
    above = sum((x[f"{n}"] @ b[n] for n in range(1, depth + 1)), torch.zeros(len(x["1"])).double())
    above = above + sum((x[f"{n}"] @ W[n] * x[f"{n + 1}"]).sum(1) for n in range(1, depth))
    labels = x[f"{depth}"] @ p["U"].T + p["d"]
    return own[:, None] + ((v @ W[0] @ x["1"].T + above)[:, :, None] + labels).logsumexp(1)


def _log_p(of: Case, p: Found, batch: Batch) -> tuple[float, float]:
    """Mean log p(y | v) and, of binary visibles, mean log p(v), by brute force."""
    assert batch.labels is not None
    log_p = _joint(p, batch.visible)
    class_given_visible = torch.log_softmax(log_p, 1).gather(1, batch.labels[:, None]).mean()
    every = _joint(p, cases.states(cases.BINARY, of.visibles)).flatten().logsumexp(0)
    return float(class_given_visible), float(log_p.logsumexp(1).mean() - every)


def _slopes(of: Case, batch: Batch, name: str, generative: float, step: float = 1e-3) -> Tensor:
    """Derivatives of mean log p(y | v) + generative * log p(v), by finite differences of fourth order."""
    found = torch.zeros_like(of.model.tensors()[name])
    for at in range(found.numel()):

        def moved(by: float, at: int = at) -> float:
            tensors = {k: t.clone() for k, t in of.model.tensors().items()}
            tensors[name].view(-1)[at] += by
            classes, visibles = _log_p(of, tensors, batch)
            return classes + (generative * visibles if generative else 0.0)

        found.view(-1)[at] = (moved(-2 * step) - 8 * moved(-step) + 8 * moved(step) - moved(2 * step)) / (12 * step)
    return found


@pytest.mark.parametrize("name", _CLASSED)
def test_discriminative_learning_has_the_slopes_of_the_brute_force_class_probabilities(name: str) -> None:
    of = _case(name)
    found, memory = DISCRIMINATIVE.gradient(of.model, _batch(of), Draws(1, 0), {})
    assert not memory
    assert set(found) == {k for k in of.model.tensors() if k[0] not in "Va"}  # exact here: no use of a recognition net
    for parameter, g in found.items():
        torch.testing.assert_close(g, _slopes(of, _batch(of), parameter, 0.0), rtol=0, atol=1e-8)


def test_an_rbm_climbs_by_the_closed_form_of_larochelle_and_bengio() -> None:
    of = _case("rbm labelled")
    p, batch = of.model.tensors(), _batch(of)
    assert batch.labels is not None
    found, _ = DISCRIMINATIVE.gradient(of.model, batch, Draws(1, 0), {})
    y = one_hot(batch.labels, cases.CLASSES).double()
    o = p["c"] + p["U"] + (batch.visible @ p["W"])[:, None]  # (n, K, F)
    log_p = p["d"] + torch.log1p(torch.exp(o)).sum(2)
    missed = y - torch.softmax(log_p, 1)
    hidden = torch.einsum("nk,nkf->nf", missed, torch.sigmoid(o))
    n = len(y)
    expected = {
        "W": batch.visible.T @ hidden / n,
        "b": torch.zeros_like(p["b"]),
        "c": hidden.mean(0),
        "U": torch.einsum("nk,nkf->kf", missed, torch.sigmoid(o)) / n,
        "d": missed.mean(0),
    }
    for parameter, g in found.items():
        torch.testing.assert_close(g, expected[parameter], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["rbm labelled", "dbm labelled"])
def test_a_hybrid_climbs_the_weighted_sum_of_both_likelihoods(name: str) -> None:
    of = _case(name)
    hybrid = build({"terms": [{"name": "discriminative"}, {"name": "maximum_likelihood", "weight": 0.3}]})
    found, _ = hybrid.gradient(of.model, _batch(of), Draws(1, 0), {})
    assert set(found) == set(of.model.tensors())
    for parameter, g in found.items():
        torch.testing.assert_close(g, _slopes(of, _batch(of), parameter, 0.3), rtol=0, atol=1e-8)


# --- through the recognition net of a DBM too large to enumerate ---


def _large(layers: list[int]) -> Case:
    model = cases.dbm(layers, seed=3, scale=0.3, classes=cases.CLASSES, recognition=True)
    manifest = cases.manifest_of("dbm", layers[0], "binary", cases.CLASSES, {"layers": layers})
    return Case(model, manifest, dict.fromkeys(model.blocks, cases.BINARY))


@pytest.mark.parametrize("layers", [[4, 21, 22], [4, 21, 22, 3]])
def test_fine_tuning_is_back_propagation_through_the_recognition_net(layers: list[int]) -> None:
    of = _large(layers)
    assert layered(of).class_kind == "recognition"
    p, batch = of.model.tensors(), _batch(of)
    assert batch.labels is not None
    found, _ = DISCRIMINATIVE.gradient(of.model, batch, Draws(1, 0), {})
    q, depth = [batch.visible], len(layers) - 1
    for n in range(1, depth + 1):
        q.append(torch.sigmoid(q[-1] @ p[f"V{n}"] + p[f"a{n}"]))
    y = one_hot(batch.labels, cases.CLASSES).double()
    missed = (y - torch.softmax(q[-1] @ p["U"].T + p["d"], 1)) / len(y)
    expected = {"U": missed.T @ q[-1], "d": missed.sum(0)}
    back = missed @ p["U"]
    for n in range(depth, 0, -1):
        delta = back * q[n] * (1 - q[n])
        expected |= {f"V{n}": q[n - 1].T @ delta, f"a{n}": delta.sum(0)}
        back = delta @ p[f"V{n}"].T
    assert set(found) == set(expected)  # the weights and biases of the DBM itself are left alone
    for parameter, g in found.items():
        torch.testing.assert_close(g, expected[parameter], rtol=0, atol=1e-12)
    step = with_tensors(of, {k: t + 0.01 * found[k] if k in found else t for k, t in p.items()})
    rows = torch.arange(len(y))
    before, after = (m.class_log_probs(batch.visible)[rows, batch.labels].mean() for m in (layered(of), step))
    assert float(after) > float(before)


# --- refusals ---


def test_only_models_whose_class_probabilities_can_be_differentiated_learn_them() -> None:
    assert set(_CLASSED) == {n for n in cases.having(HasClasses) if "labelled" in n and "dbn" not in n}


@pytest.mark.parametrize("name", ["rbm labelled", "dbm labelled"])
def test_data_without_labels_are_refused(name: str) -> None:
    of = _case(name)
    with pytest.raises(RecipeError, match="discriminative learning needs labelled data"):
        DISCRIMINATIVE.gradient(of.model, Batch(cases.some_visibles(of, 3)), Draws(1, 0), {})
    assert not any(t.requires_grad for t in of.model.tensors().values())


def test_an_error_on_the_way_leaves_no_parameter_waiting_for_a_gradient() -> None:
    of = _case("rbm labelled")
    wrong = Batch(cases.some_visibles(of, 3), torch.tensor([0, 1, 99]))
    with pytest.raises((IndexError, RuntimeError)):
        DISCRIMINATIVE.gradient(of.model, wrong, Draws(1, 0), {})
    assert not any(t.requires_grad for t in of.model.tensors().values())
