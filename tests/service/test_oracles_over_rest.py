"""A checkpoint made by hand, served by a real process: every answer about it against brute force."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from tests.service.example import SHAPE, D, F, brute_force_log_unnormalized, states, write_by_hand
from tests.service.servers import Server, serving

FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oracles")


@pytest.fixture(scope="module")
def arrays(folder: Path) -> dict[str, np.ndarray]:
    return write_by_hand(folder / "checkpoints")


@pytest.fixture(scope="module")
def server(folder: Path, arrays: dict[str, np.ndarray]) -> Iterator[Server]:
    with serving(folder / "checkpoints", folder / "data") as running:
        yield running


@pytest.fixture(scope="module")
def every() -> np.ndarray:
    return states(D)


def ask(server: Server, operation: str, **body: object) -> dict:
    answer = server.client.post(f"/v1/models/hand/{operation}", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["model"], found["version"]) == ("hand", 1)
    return found


def test_energies_of_all_states_are_the_free_energies(server: Server, arrays, every: np.ndarray) -> None:
    found = ask(server, "energy", inputs=every.tolist())
    assert found["kind"] == "exact"
    np.testing.assert_allclose(found["energy"], -brute_force_log_unnormalized(arrays, every), rtol=0, atol=1e-9)


def test_shapes_may_be_flat_or_full_or_a_single_example(server: Server, every: np.ndarray) -> None:
    flat = ask(server, "energy", inputs=every[:7].tolist())["energy"]
    assert ask(server, "energy", inputs=every[:7].reshape(7, *SHAPE).tolist())["energy"] == flat
    assert ask(server, "energy", inputs=every[3].tolist())["energy"] == [flat[3]]


def test_log_density_sums_to_one_once_log_z_is_known(server: Server, arrays, every: np.ndarray) -> None:
    before = ask(server, "log-density", inputs=every.tolist())
    np.testing.assert_allclose(
        before["unnormalized_log_density"], brute_force_log_unnormalized(arrays, every), rtol=0, atol=1e-9
    )
    job = server.run({"kind": "log_partition", "model": "hand", "method": "exact"})
    assert job["status"] == "succeeded", job
    deadline = 100
    while (after := ask(server, "log-density", inputs=every.tolist()))["log_density"] is None:
        deadline -= 1
        assert deadline, "the estimate does not reach the card"

        time.sleep(0.1)
    assert after["log_partition"]["method"] == "exact"
    assert np.exp(after["log_density"]).sum() == pytest.approx(1.0, abs=1e-9)


def test_scores_are_finite_differences_of_the_continuous_extension(server: Server, arrays, every: np.ndarray) -> None:
    def relaxed(x: np.ndarray) -> np.ndarray:
        return x @ arrays["b"] + np.logaddexp(0.0, arrays["c"] + x @ arrays["W"]).sum(axis=-1)

    x, step = every[:50], 1e-6
    found = ask(server, "score", inputs=x.tolist())
    assert found["relaxed"] is True
    eye = step * np.eye(D)
    differences = (relaxed(x[:, None] + eye) - relaxed(x[:, None] - eye)) / (2 * step)
    np.testing.assert_allclose(np.reshape(found["score"], (50, D)), differences, atol=1e-8)


def test_features_are_the_hidden_units_conditional_means(server: Server, arrays, every: np.ndarray) -> None:
    h = states(F)
    log_joint = every @ arrays["W"] @ h.T + h @ arrays["c"]
    p = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
    expected = (p / p.sum(axis=1, keepdims=True)) @ h
    np.testing.assert_allclose(ask(server, "features", inputs=every.tolist())["features"], expected, atol=1e-9)


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """Survival probability of Pearson's statistic; cells expected below 5 are put together."""
    expected = counts.sum() * p
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    statistic = ((observed[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    return float(chi2.sf(statistic, keep.sum() - 1))


def posterior(arrays, every: np.ndarray, mask: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States that agree with the clamped units, and their probabilities."""
    agree = (every[:, mask] == value[mask]).all(axis=1)
    log_p = brute_force_log_unnormalized(arrays, every[agree])
    p = np.exp(log_p - log_p.max())
    return every[agree], p / p.sum()


def test_completions_follow_the_exact_posterior(server: Server, arrays, every: np.ndarray) -> None:
    mask = np.arange(D) % 2 == 0
    value = every[0b0110100101]
    inputs = [None if not m else float(v) for m, v in zip(mask, value, strict=True)]
    found = ask(server, "complete", inputs=[inputs], samples=8000, sweeps=80, seed=11)
    assert found["approximate"] is False
    assert found["seed"] == 11
    samples = np.reshape(found["samples"], (8000, D))
    np.testing.assert_array_equal(samples[:, mask], np.broadcast_to(value[mask], (8000, mask.sum())))
    support, p = posterior(arrays, every, mask, value)
    counts = np.array([(samples == state).all(axis=1).sum() for state in support])
    assert counts.sum() == 8000
    assert chi_square(counts, p) > FALSE_ALARM
    # 8000 chains averaged over 41 sweeps: a standard error of at most 0.5 / sqrt(8000) = 0.006, five of them.
    np.testing.assert_allclose(np.reshape(found["mean"], D), p @ support, atol=0.028)


def test_sample_jobs_follow_the_exact_law(server: Server, arrays, every: np.ndarray) -> None:
    job = server.run({"kind": "sample", "model": "hand", "chains": 20000, "burn_in": 100, "seed": 5})
    assert job["status"] == "succeeded", job
    assert job["result"]["shape"] == [20000, 1, *SHAPE]
    draws = np.load(io.BytesIO(server.result(job["id"])), allow_pickle=False).reshape(20000, D)
    counts = np.bincount((draws @ (1 << np.arange(D)[::-1])).astype(int), minlength=1 << D)
    _, p = posterior(arrays, every, np.zeros(D, bool), every[0])
    assert chi_square(counts, p) > FALSE_ALARM
    energies = -brute_force_log_unnormalized(arrays, draws.astype(float))
    assert job["diagnostics"]["energy_mean"] == pytest.approx(energies[: job["diagnostics"]["chains"]].mean(), abs=1e-9)


def test_a_clamped_sample_job_follows_the_conditional_law(server: Server, arrays, every: np.ndarray) -> None:
    mask = np.arange(D) < 4
    value = every[0b1011000000]
    clamp = {"values": value.tolist(), "mask": mask.astype(int).tolist()}
    job = server.run({"kind": "sample", "model": "hand", "chains": 8000, "burn_in": 100, "seed": 6, "clamp": clamp})
    draws = np.load(io.BytesIO(server.result(job["id"])), allow_pickle=False).reshape(8000, D)
    support, p = posterior(arrays, every, mask, value)
    counts = np.array([(draws == state).all(axis=1).sum() for state in support])
    assert counts.sum() == 8000
    assert chi_square(counts, p) > FALSE_ALARM


def test_a_complete_job_gives_what_the_operation_gives(server: Server, every: np.ndarray) -> None:
    request = {"inputs": every[[3, 500]].tolist(), "mask": [1, 0] * 5, "samples": 4, "sweeps": 30, "seed": 9}
    direct = ask(server, "complete", **request)
    job = server.run({"kind": "complete", "model": "hand", **request})
    assert job["status"] == "succeeded", job
    found = server.client.get(f"/v1/jobs/{job['id']}/result").json()
    assert found["samples"] == direct["samples"]
    assert found["mean"] == direct["mean"]


@pytest.mark.parametrize("method", ["ais", "reverse_ais"])
def test_estimates_of_log_z_agree_with_brute_force(server: Server, arrays, every: np.ndarray, method: str) -> None:
    job = server.run(
        {"kind": "log_partition", "model": "hand", "method": method, "chains": 500, "temperatures": 300, "seed": 4}
    )
    exact = np.logaddexp.reduce(brute_force_log_unnormalized(arrays, every))
    found = job["result"]["log_partition"]
    assert 0 < found["stderr"] < 0.05
    # Two-sided five standard errors of a nearly normal estimate: a false alarm below 1e-6.
    assert abs(found["value"] - exact) < 5 * found["stderr"]
