"""Every objective on the shelf, and the gradients of the two that are there, against exact enumeration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.families.rbm import RBM
from models.numerics import all_binary_states
from training.centring import Centring, contrast, offsets
from training.objective import Draws, Objective, build, objectives

CENTRINGS: list[Centring] = ["none", "centred", "enhanced"]
_CPU = torch.device("cpu")

# |z| beyond 6.2 at any of 29 parameters: a false alarm less often than once in 10^7 tests of independent normal means.
_Z = 6.2


def _states(units: int) -> Tensor:
    return all_binary_states(units, 0, 1 << units, _CPU)


def _data(model: RBM) -> Tensor:
    """Six examples, far from what the model likes."""
    return all_binary_states(model.W.shape[0], 3, 9, _CPU)


def _log_likelihood(model: RBM) -> float:
    return -float(model.energy(_data(model)).mean()) - model.log_partition()


def _exact_gradient(model: RBM, centring: Centring) -> dict[str, Tensor]:
    """The objective's own arithmetic with the model's law in place of chains: linear in the chains' states."""
    data, states = _data(model), _states(model.W.shape[0])
    p = torch.softmax(-model.energy(states), 0)
    memory = offsets(model, data.mean(0), centring)
    total = {name: torch.zeros_like(t) for name, t in model.tensors().items()}
    for v, weight in zip(states.split(1), p, strict=True):
        found, _ = contrast((data, model.features(data)), (v, model.features(v)), memory, centring)
        for name in total:
            total[name] += weight * found[name]
    return total


def test_with_the_exact_law_the_gradient_is_that_of_the_log_likelihood(tiny_rbm: RBM) -> None:
    gradient = _exact_gradient(tiny_rbm, "none")
    step = 1e-6
    for name, tensor in tiny_rbm.tensors().items():
        for index in range(tensor.numel()):
            moved = []
            for sign in (1, -1):
                tensors = {k: t.clone() for k, t in tiny_rbm.tensors().items()}
                tensors[name].view(-1)[index] += sign * step
                moved.append(_log_likelihood(RBM(tensors["W"], tensors["b"], tensors["c"])))
            assert float(gradient[name].reshape(-1)[index]) == pytest.approx(
                (moved[0] - moved[1]) / (2 * step), abs=1e-8
            )


def _centred_energy(tensors: dict[str, Tensor], mu: Tensor, lam: Tensor, v: Tensor, h: Tensor) -> Tensor:
    v, h = v - mu, h - lam
    return -((v @ tensors["W"]) * h).sum(1) - v @ tensors["b"] - h @ tensors["c"]


def test_a_centred_step_is_a_step_of_the_centred_model_written_in_ordinary_parameters(tiny_rbm: RBM) -> None:
    data = _data(tiny_rbm)
    memory = offsets(tiny_rbm, data.mean(0), "centred")
    v_model = _states(5)[7:20]
    positive, negative = (data, tiny_rbm.features(data)), (v_model, tiny_rbm.features(v_model))
    gradient, after = contrast(positive, negative, memory, "centred")
    mu, lam = after["visible_offset"], after["hidden_offset"]
    # The same model with centred units has the biases b + W lambda and c + W'mu; its gradient are the covariances.
    step, w, b, c = 0.3, tiny_rbm.W, tiny_rbm.b, tiny_rbm.c
    product = [(v - mu).T @ (h - lam) / len(v) for v, h in (positive, negative)]
    centred = {
        "W": w + step * (product[0] - product[1]),
        "b": b + w @ lam + step * (positive[0].mean(0) - negative[0].mean(0)),
        "c": c + w.T @ mu + step * (positive[1].mean(0) - negative[1].mean(0)),
    }
    ordinary = RBM(*(t + step * gradient[name] for name, t in tiny_rbm.tensors().items()))
    v, h = _states(5).repeat_interleave(16, 0), _states(4).repeat(32, 1)
    law = torch.log_softmax(-_centred_energy(centred, mu, lam, v, h), 0)
    expected = torch.log_softmax(-ordinary.joint_energy({"visible": v, "hidden": h}), 0)
    torch.testing.assert_close(law, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("centring", CENTRINGS)
def test_every_form_of_the_gradient_climbs(tiny_rbm: RBM, centring: Centring) -> None:
    gradient = _exact_gradient(tiny_rbm, centring)
    moved = RBM(*(t + 1e-4 * gradient[name] for name, t in tiny_rbm.tensors().items()))
    assert _log_likelihood(moved) > _log_likelihood(tiny_rbm)


def _transition(model: RBM) -> Tensor:
    """p(v' | v) of one sweep hidden, visible: (32, 32)."""
    v, h = _states(5), _states(4)
    return _law(model.features(v), h) @ _law(torch.sigmoid(model.visible_logits(h)), v)


def _law(p: Tensor, states: Tensor) -> Tensor:
    """Probabilities of `states` for independent units with means `p`: (rows of p, states)."""
    return torch.exp(torch.log(p) @ states.T + torch.log1p(-p) @ (1 - states).T)


def _model_terms(model: RBM, law: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and variance, under a law over v, of the statistics v h', v and h with h at its mean given v."""
    v = _states(5)
    h = model.features(v)
    each = {"W": v[:, :, None] * h[:, None, :], "b": v, "c": h}
    mean = {name: torch.tensordot(law, t, 1) for name, t in each.items()}
    return mean, {name: torch.tensordot(law, t.square(), 1) - mean[name].square() for name, t in each.items()}


def _largest_z(model: RBM, gradient: dict[str, Tensor], data: Tensor, law: Tensor, n: int) -> float:
    """How far the gradient's model part is from its expectation under `law`, in standard errors of n independent v."""
    mean, variance = _model_terms(model, law)
    h = model.features(data)
    positive = {"W": data.T @ h / len(data), "b": data.mean(0), "c": h.mean(0)}
    z = [(positive[k] - gradient[k].double() - mean[k]) / torch.sqrt(variance[k] / n + 1e-14) for k in mean]
    return max(float(part.abs().max()) for part in z)


def _single(model: RBM) -> RBM:
    return RBM(model.W.float(), model.b.float(), model.c.float())


@pytest.mark.parametrize(("k", "wrong_k"), [(1, 2), (2, 1)])
def test_cd_makes_k_sweeps_from_the_data(tiny_rbm: RBM, k: int, wrong_k: int) -> None:
    n = 60_000
    start = all_binary_states(5, 3, 4, _CPU)
    gradient, _ = build({"name": "cd", "steps": k}).gradient(
        _single(tiny_rbm), start.float().expand(n, -1).contiguous(), Draws(5, 0), {}
    )
    laws = (torch.linalg.matrix_power(_transition(tiny_rbm), sweeps)[3] for sweeps in (k, wrong_k))
    right, wrong = (_largest_z(tiny_rbm, gradient, start, law, n) for law in laws)
    assert right < _Z
    # The named defect, one sweep more or less, lies beyond the threshold by more than a power of 0.999 takes.
    assert wrong > _Z + 3.1


def test_pcd_chains_reach_the_models_law_and_not_the_datas(tiny_rbm: RBM) -> None:
    n = 20_000
    model, data = _single(tiny_rbm), _data(tiny_rbm)
    objective = build({"name": "pcd", "chains": n, "steps": 10})
    memory = objective.start(model, data.mean(0), seed=5)
    for step in range(20):
        gradient, memory = objective.gradient(model, data.float(), Draws(5, step), memory)
    law = torch.softmax(-tiny_rbm.energy(_states(5)), 0)
    assert _largest_z(tiny_rbm, gradient, data, law, n) < _Z
    assert _largest_z(tiny_rbm, gradient, data, law @ _transition(_colder(tiny_rbm)), n) > _Z + 3.1


def _colder(model: RBM) -> RBM:
    """The named defect: a sweep at weights 10 % too large."""
    return RBM(model.W * 1.1, model.b, model.c)


def test_the_first_chains_of_pcd_have_the_datas_means(tiny_rbm: RBM) -> None:
    flat = RBM(torch.zeros(4, 3), torch.zeros(4), torch.tensor([0.0, 2.0, -1.0]))
    memory = build({"name": "pcd", "chains": 40_000}).start(flat, torch.full((4,), 0.25).double(), seed=1)
    expected = torch.sigmoid(flat.c)
    z = (memory["h"].mean(0) - expected) / torch.sqrt(expected * (1 - expected) / 40_000)
    assert float(z.abs().max()) < 5.2


def _settings() -> list[dict[str, Any]]:
    """Every objective on the shelf in every form that it has."""
    forms = [(name, kind.model_fields) for name, kind in objectives().items()]
    return [{"name": n, "centring": c} if "centring" in f else {"name": n} for n, f in forms for c in CENTRINGS]


@pytest.mark.parametrize("settings", _settings(), ids=lambda s: "-".join(s.values()))
def test_every_objective_is_a_function_of_seed_and_step(tiny_rbm: RBM, settings: dict[str, Any]) -> None:
    model, batch = _single(tiny_rbm), _data(tiny_rbm).float()
    objective: Objective = build(settings)

    def at(seed: int, step: int) -> tuple[dict[str, Tensor], Any]:
        memory = objective.start(model, batch.double().mean(0), 1)
        return objective.gradient(model, batch, Draws(seed, step), memory)

    (first, memory), (again, memory_again) = at(1, 3), at(1, 3)
    assert {name: t.shape for name, t in first.items()} == {name: t.shape for name, t in model.tensors().items()}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(memory[name], memory_again[name]) for name in memory)
    assert all(bool(torch.isfinite(t).all()) for t in first.values())
    for other in (at(2, 3)[0], at(1, 4)[0]):
        assert not torch.equal(first["W"], other["W"])


def test_the_draws_of_a_step_are_fair(tiny_rbm: RBM) -> None:
    logits = torch.full((1, 100_000), math.log(3.0))
    mean = float(Draws(9, 4).bernoulli(logits, 4, 1).mean())
    assert abs(mean - 0.75) / math.sqrt(0.75 * 0.25 / 100_000) < 5.2
