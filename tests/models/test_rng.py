"""Draws are Philox4x32-10 to the bit, on every path, and depend on (seed, chain, sweep, stream, unit) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import special, stats

from models import rng
from models.errors import InputError
from models.rng import ChainKeys
from tests.models import philox

KNOWN_ANSWERS = [
    # kat_vectors of Random123 (Salmon et al.), lines "philox4x32 10": counter, key, result.
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SHAPES = [(1, 1), (1, 2), (2, 3), (3, 4), (1, 5), (4, 7), (5, 8), (2, 13), (9, 64), (3, 101), (2, 784)]
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**52 + 12345, 2**53 - 1]
CHAINS = [0, 1, 2, 1000, 2**31, 2**32 - 1]
SWEEPS = [0, 1, 7, 2**31, 2**32 - 1]
SPECIAL_LOGITS = [
    0.0,
    40.0,
    1e4,
    5e-324,
    1e-310,
    2.0**-53,
    1e308,
    np.nextafter(40.0, 0),
    22.18,
    np.log(2),
    np.log(2) / 2,
]
SPECIAL_LOGITS += [-logit for logit in SPECIAL_LOGITS]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def rows_of(n: int, generator: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
    return tuple([int(v) for v in generator.choice(values, n)] for values in (SEEDS, CHAINS, SWEEPS))  # type: ignore[return-value]


def tensors(*columns: list[int]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(column, dtype=torch.int64) for column in columns)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_oracle_gives_the_published_known_answers(counter: str, key: str, answer: str) -> None:
    assert philox.philox4x32_10(words(counter), words(key)).tolist() == words(answer)


def test_the_first_group_of_an_all_zero_draw_is_the_published_known_answer() -> None:
    zero = torch.zeros(1, dtype=torch.int64)
    assert rng.random_bits(ChainKeys(zero, zero), zero, 0, 4)[0].tolist() == words(KNOWN_ANSWERS[0][2])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stream", [0, 1, 2, 255])
def test_bits_equal_the_oracle_on_both_paths(shape: tuple[int, int], stream: int) -> None:
    n, units = shape
    rows = rows_of(n, np.random.default_rng(stream * 1000 + units))
    seed, chain, sweep = tensors(*rows)
    expected = philox.bits(*rows, stream, units)
    compiled = rng.random_bits(ChainKeys(seed, chain), sweep, stream, units)
    assert compiled.dtype == torch.int64
    assert np.array_equal(compiled.numpy(), expected)
    assert np.array_equal(rng._bits_torch(ChainKeys(seed, chain), sweep, stream, units).numpy(), expected)


@pytest.mark.parametrize("stream", [0, 1, 65535])
def test_replicas_count_in_the_upper_half_of_the_last_word_on_both_paths(stream: int) -> None:
    rows, replicas = rows_of(7, np.random.default_rng(stream)), [0, 1, 2, 3, 255, 2**16 - 1, 2**16]
    seed, chain, sweep, replica = tensors(*rows, replicas)
    keys, expected = ChainKeys(seed, chain, replica), philox.bits(*rows, stream, 9, replicas)
    assert np.array_equal(rng.random_bits(keys, sweep, stream, 9).numpy(), expected)
    assert np.array_equal(rng._bits_torch(keys, sweep, stream, 9).numpy(), expected)


def test_replica_zero_is_what_keys_without_replicas_draw() -> None:
    keys, sweep = ChainKeys.of(4, 5), torch.arange(5)
    numbered = ChainKeys(keys.seed, keys.chain, torch.zeros(5, dtype=torch.int64))
    assert torch.equal(rng.random_bits(keys, sweep, 3, 10), rng.random_bits(numbered, sweep, 3, 10))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_gives_its_own_numbers(seed: int) -> None:
    others = [s for s in SEEDS if s != seed]
    mine = rng.random_bits(ChainKeys.of(seed, 2), torch.ones(2, dtype=torch.int64), 0, 16)
    for other in others:
        assert not torch.equal(mine, rng.random_bits(ChainKeys.of(other, 2), torch.ones(2, dtype=torch.int64), 0, 16))


def logits_of(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    logits = generator.normal(scale=generator.choice([1e-3, 1.0, 8.0, 100.0], shape), size=shape)
    special = generator.random(shape) < 0.3
    logits[special] = generator.choice(SPECIAL_LOGITS, int(special.sum()))
    return logits


@pytest.mark.parametrize("shape", [*SHAPES, (1, len(SPECIAL_LOGITS))])
@pytest.mark.parametrize("stream", [0, 1])
def test_bernoulli_equals_the_oracle_bit_for_bit_on_both_paths(shape: tuple[int, int], stream: int) -> None:
    generator = np.random.default_rng(shape[1] + stream)
    rows = rows_of(shape[0], generator)
    seed, chain, sweep = tensors(*rows)
    logits = np.array([SPECIAL_LOGITS]) if shape[1] == len(SPECIAL_LOGITS) else logits_of(shape, generator)
    expected = philox.bernoulli(logits, philox.bits(*rows, stream, shape[1]))
    keys, x = ChainKeys(seed, chain), torch.from_numpy(logits)
    assert np.array_equal(rng.bernoulli(x, keys, sweep, stream).numpy(), expected)
    assert np.array_equal(rng._bernoulli_torch(x, keys, sweep, stream).numpy(), expected)


def test_bernoulli_paths_agree_where_uniform_and_probability_nearly_tie() -> None:
    # Logits whose probability is the drawn uniform itself, give or take a few units in the last place: here one
    # differently rounded bit of exp flips a state.
    keys, sweep = ChainKeys.of(77, 400), torch.arange(400)
    u = rng.uniforms(keys, sweep, 0, 50).numpy()
    ulps = np.random.default_rng(0).integers(-4, 5, u.shape)
    logits = np.log(u) - np.log1p(-u)
    logits = logits + ulps * np.spacing(logits)
    expected = philox.bernoulli(logits, rng.random_bits(keys, sweep, 0, 50).numpy())
    assert 0.2 < expected.mean() < 0.8
    assert np.array_equal(rng.bernoulli(torch.from_numpy(logits), keys, sweep, 0).numpy(), expected)
    assert np.array_equal(rng._bernoulli_torch(torch.from_numpy(logits), keys, sweep, 0).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bernoulli_is_exact_about_where_float32_stops_deciding(dtype: torch.dtype) -> None:
    # Probabilities that differ from the drawn uniform by 1e-9 to 1e-3, on either side. One unit to a row: one that
    # float32 leaves open has its whole row decided in float64.
    keys, sweep = ChainKeys.of(79, 200_000), torch.arange(200_000)
    generator = np.random.default_rng(0)
    u = rng.uniforms(keys, sweep, 0, 1).numpy()
    p = np.clip(u + 10.0 ** generator.uniform(-9, -3, u.shape) * generator.choice([-1, 1], u.shape), 1e-12, 1 - 1e-12)
    logits = torch.from_numpy(np.log(p) - np.log1p(-p)).to(dtype)
    expected = philox.bernoulli(logits.double().numpy(), rng.random_bits(keys, sweep, 0, 1).numpy())
    assert np.array_equal(rng.bernoulli(logits, keys, sweep, 0).double().numpy(), expected)


def test_exponential_and_logistic_equal_their_oracle_and_are_accurate() -> None:
    x = np.concatenate((np.linspace(-45, 45, 20011), np.array(SPECIAL_LOGITS)))
    e = philox.exp_minus_abs(x)
    assert np.array_equal(rng.exp_minus_abs(torch.from_numpy(x)[None])[0].numpy(), e)
    inside = np.abs(x) <= 40
    np.testing.assert_allclose(e[inside], np.exp(-np.abs(x[inside])), rtol=1e-15)
    p = rng.logistic(torch.from_numpy(x)[None])[0].numpy()
    assert np.array_equal(p, np.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e)))
    np.testing.assert_allclose(p[inside], 1.0 / (1.0 + np.exp(-x[inside])), rtol=1e-15)


def test_logits_that_are_no_number_neither_crash_nor_read_out_of_bounds() -> None:
    logits = torch.tensor([[np.nan, np.inf, -np.inf, 0.0]], dtype=torch.float64)
    keys, sweep = ChainKeys.of(5, 1), torch.zeros(1, dtype=torch.int64)
    states = rng.bernoulli(logits, keys, sweep, 0)
    assert states[0, 1:3].tolist() == [1.0, 0.0]
    assert torch.equal(states, rng._bernoulli_torch(logits, keys, sweep, 0))


@pytest.mark.parametrize("units", [1, 6, 16, 33])
def test_a_row_is_the_same_in_any_batch_at_any_position(units: int) -> None:
    generator = np.random.default_rng(units)
    n = 23
    rows = rows_of(n, generator)
    seed, chain, sweep = tensors(*rows)
    logits = torch.from_numpy(logits_of((n, units), generator))
    together = rng.bernoulli(logits, ChainKeys(seed, chain), sweep, 1)
    means = rng.logistic(logits)
    order = torch.from_numpy(generator.permutation(n))
    shuffled = rng.bernoulli(logits[order], ChainKeys(seed, chain).rows(order), sweep[order], 1)
    assert torch.equal(shuffled, together[order])
    for i in range(n):
        one = slice(i, i + 1)
        assert torch.equal(rng.bernoulli(logits[one], ChainKeys(seed[one], chain[one]), sweep[one], 1), together[one])
        assert torch.equal(rng.logistic(logits[one]), means[one])


def test_non_contiguous_and_expanded_inputs_give_the_same_draws() -> None:
    keys, sweep = ChainKeys.of(3, 6), torch.arange(12)[::2]
    logits = torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(5, 6).T
    expected = rng.bernoulli(logits.contiguous(), keys, sweep.contiguous(), 0)
    assert torch.equal(rng.bernoulli(logits, keys, sweep, 0), expected)
    same = torch.zeros(1, 5, dtype=torch.float64).expand(6, 5)
    assert torch.equal(rng.bernoulli(same, keys, sweep, 0), rng.bernoulli(same.clone(), keys, sweep, 0))


def test_uniforms_are_the_bits_centred_in_their_cells() -> None:
    keys, sweep = ChainKeys.of(9, 4), torch.arange(4)
    u, b = rng.uniforms(keys, sweep, 0, 9), rng.random_bits(keys, sweep, 0, 9)
    assert torch.equal(u * 2.0**32 - 0.5, b.double())
    assert float(u.min()) > 0.0
    assert float(u.max()) < 1.0


def neighbours() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of draws that differ in one coordinate only, none in two pairs: at least 2^16 of each."""
    n, units = 1 << 11, 64

    def block(seed: int = 11, first: int = 0, sweep: int = 1, stream: int = 0) -> np.ndarray:
        keys = ChainKeys.of(seed, n, first=first)
        return rng.random_bits(keys, torch.full((n,), sweep), stream, units).numpy()

    base = block()
    keys = ChainKeys.of(11, n)
    replica = ChainKeys(keys.seed, keys.chain, torch.ones(n, dtype=torch.int64))
    return {
        "replica": (base.ravel(), rng.random_bits(replica, torch.ones_like(keys.seed), 0, units).numpy().ravel()),
        "unit": (base[:, ::2].ravel(), base[:, 1::2].ravel()),
        "group": (base.reshape(n, 8, 2, 4)[:, :, 0].ravel(), base.reshape(n, 8, 2, 4)[:, :, 1].ravel()),
        "chain": (base[::2].ravel(), base[1::2].ravel()),
        "sweep": (base.ravel(), block(sweep=2).ravel()),
        "stream": (base.ravel(), block(stream=1).ravel()),
        "seed": (base.ravel(), block(seed=12).ravel()),
        "seed's high word": (base.ravel(), block(seed=11 + 2**32).ravel()),
    }


@pytest.mark.parametrize("shift", [0, 14, 28])
def test_bits_are_uniform_and_neighbours_are_independent(shift: int) -> None:
    # Four bits of either draw in a 16 x 16 table, chi-square against uniformity: 24 tables in all, each at 1e-6, so a
    # correct generator fails with probability 2.4e-5 over seeds. At least 256 draws are expected in a cell.
    for name, (a, b) in neighbours().items():
        cells = ((a >> shift) & 15) * 16 + ((b >> shift) & 15)
        assert stats.chisquare(np.bincount(cells, minlength=256)).pvalue > 1e-6, name


def test_the_frequency_of_ones_is_the_logistic_function_of_the_logit() -> None:
    # 2^20 draws at each of 13 logits, exact binomial test at 1e-6 each: false alarm 1.3e-5. A probability that is off
    # by 0.0045 at 1/2 (9.2 standard errors) is found with power > 0.9999.
    n, logits = 1 << 14, np.linspace(-6, 6, 13)
    keys = ChainKeys.of(21, n)
    for stream, logit in enumerate(logits):
        states = rng.bernoulli(
            torch.full((n, 64), logit, dtype=torch.float64), keys, torch.zeros_like(keys.seed), stream
        )
        p = 1.0 / (1.0 + np.exp(-logit))
        assert stats.binomtest(int(states.sum()), n * 64, p).pvalue > 1e-6


def test_keys_number_the_chains_of_a_job_from_the_first_that_is_asked_for() -> None:
    keys = ChainKeys.of(2**53 - 1, 3, first=5)
    assert keys.chain.tolist() == [5, 6, 7]
    assert keys.seed.tolist() == [2**53 - 1] * 3
    assert len(keys) == 3
    assert keys.rows(torch.tensor([2, 0])).chain.tolist() == [7, 5]
    assert keys.replica is None
    assert keys.rows(torch.tensor([2, 0])).replica is None
    rows = ChainKeys(keys.seed, keys.chain, torch.tensor([3, 4, 9])).rows(torch.tensor([2, 0]))
    assert rows.replica is not None
    assert rows.replica.tolist() == [9, 3]


# --- float32 and threads ---


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_logits_draw_the_states_of_their_float64_values(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(shape[1])
    seed, chain, sweep = tensors(*rows_of(shape[0], generator))
    keys, logits = ChainKeys(seed, chain), torch.from_numpy(logits_of(shape, generator)).float().clamp(-3e38, 3e38)
    states = rng.bernoulli(logits, keys, sweep, 0)
    assert states.dtype == torch.float32
    assert torch.equal(states.double(), rng.bernoulli(logits.double(), keys, sweep, 0))
    assert torch.equal(states, rng._bernoulli_torch(logits, keys, sweep, 0))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def all_draws(keys: ChainKeys, sweep: torch.Tensor, logits: torch.Tensor) -> list[torch.Tensor]:
    return [
        rng.random_bits(keys, sweep, 1, 37),
        rng.normals(keys, sweep, 2, 37),
        rng.single_normals(keys, sweep, 2, 37),
        rng.bernoulli(logits, keys, sweep, 3),
        rng.bernoulli(logits.float(), keys, sweep, 3),
        rng.categorical(logits, keys, sweep, 4),
    ]


@pytest.mark.parametrize("count", [2, 3, 7, 64])
def test_draws_do_not_depend_on_the_number_of_threads(
    count: int, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rng, "_GRAIN", 1)
    keys, sweep = ChainKeys.of(8, 11), torch.arange(11)
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(11, 37)))
    threads(1)
    alone = all_draws(keys, sweep, logits)
    threads(count)
    for one, many in zip(alone, all_draws(keys, sweep, logits), strict=True):
        assert torch.equal(one, many)


def test_large_draws_are_split_and_small_ones_are_not(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(rng, "_bits_kernel", lambda *arrays: calls.append(len(arrays[0])))
    threads(3)
    for rows in (8, 3 * rng._GRAIN // 1000 + 1):
        rng.random_bits(ChainKeys.of(1, rows), torch.zeros(rows, dtype=torch.int64), 0, 1000)
    assert calls[0] == 8
    assert len(calls[1:]) == 3
    assert sum(calls[1:]) == 3 * rng._GRAIN // 1000 + 1


def test_several_threads_draw_at_once(threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "_GRAIN", 1)
    threads(4)
    keys, sweep = [ChainKeys.of(seed, 50) for seed in range(8)], torch.arange(50)
    logits = torch.zeros(50, 64, dtype=torch.float64)
    expected = [rng.bernoulli(logits, key, sweep, 0) for key in keys]
    with ThreadPoolExecutor(8) as callers:
        for _ in range(20):
            found = list(callers.map(lambda key: rng.bernoulli(logits, key, sweep, 0), keys))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- normal numbers ---

EDGE_BITS = [0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
EDGE_BITS += [int(0.075 * 2**32) + d for d in range(-3, 4)] + [int(0.925 * 2**32) + d for d in range(-3, 4)]


@pytest.mark.parametrize("shape", [*SHAPES, (40, 999)])
@pytest.mark.parametrize("stream", [0, 255])
def test_normal_numbers_equal_the_oracle_bit_for_bit_on_both_paths(shape: tuple[int, int], stream: int) -> None:
    rows = rows_of(shape[0], np.random.default_rng(stream * 1000 + shape[1]))
    seed, chain, sweep = tensors(*rows)
    u = (philox.bits(*rows, stream, shape[1]) + 0.5) * 2.0**-32
    expected, keys = philox.normal_quantile(u), ChainKeys(seed, chain)
    assert np.array_equal(rng.normals(keys, sweep, stream, shape[1]).numpy(), expected)
    assert np.array_equal(rng._normals_torch(keys, sweep, stream, shape[1]).numpy(), expected)


def test_the_normal_quantile_is_accurate_and_antisymmetric_on_all_its_range() -> None:
    words = np.concatenate((EDGE_BITS, np.geomspace(1, 2**31, 20001), 2**32 - np.geomspace(1, 2**31, 20001)))
    u = (np.floor(words) + 0.5) * 2.0**-32
    z = rng._normal_quantile(torch.from_numpy(u)).numpy()
    assert np.array_equal(z, philox.normal_quantile(u))
    np.testing.assert_allclose(z, special.ndtri(u), rtol=1e-14)
    assert np.array_equal(rng._normal_quantile(torch.from_numpy(1.0 - u)).numpy(), -z)
    assert np.abs(z).max() < 6.34


@pytest.mark.parametrize("shape", [*SHAPES, (40, 999), (1100, 3), (3, 2050)])
@pytest.mark.parametrize("stream", [0, 255])
def test_single_normal_numbers_are_those_in_double_precision_to_1e_6_on_both_paths(
    shape: tuple[int, int], stream: int
) -> None:
    seed, chain, sweep = tensors(*rows_of(shape[0], np.random.default_rng(stream * 1000 + shape[1])))
    keys = ChainKeys(seed, chain)
    found = rng.single_normals(keys, sweep, stream, shape[1])
    assert found.dtype == torch.float32
    assert torch.equal(found, rng._single_normals_torch(keys, sweep, stream, shape[1]))
    exact = rng.normals(keys, sweep, stream, shape[1])
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-9)


def test_single_normal_numbers_are_accurate_and_antisymmetric_on_all_their_range() -> None:
    words = np.concatenate((EDGE_BITS, np.geomspace(1, 2**31, 20001), 2**32 - np.geomspace(1, 2**31, 20001)))
    words = np.floor(words).clip(0, 2**32 - 1).astype(np.int64)
    with patch.object(rng, "_bits_torch", lambda *_: torch.from_numpy(words)[None]):
        z = rng._single_normals_torch(ChainKeys.of(0, 1), torch.zeros(1, dtype=torch.int64), 0, len(words))[0].numpy()
    with patch.object(rng, "_bits_torch", lambda *_: torch.from_numpy(2**32 - 1 - words)[None]):
        other = rng._single_normals_torch(ChainKeys.of(0, 1), torch.zeros(1, dtype=torch.int64), 0, len(words))[0]
    np.testing.assert_allclose(z, special.ndtri((words + 0.5) * 2.0**-32), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(other.numpy(), -z, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("drawn", [rng.normals, rng.single_normals])
@pytest.mark.parametrize("units", [2, 33])
def test_normal_numbers_are_the_same_in_any_batch_at_any_position(
    drawn: Callable[[ChainKeys, torch.Tensor, int, int], torch.Tensor], units: int
) -> None:
    keys, sweep = ChainKeys.of(5, 30), torch.arange(30)
    together = drawn(keys, sweep, 0, units)
    order = torch.from_numpy(np.random.default_rng(0).permutation(30))
    assert torch.equal(drawn(keys.rows(order), sweep[order], 0, units), together[order])
    assert torch.equal(drawn(keys.rows(order[:1]), sweep[order[:1]], 0, 1), together[order[:1], :1])


def normality(z: np.ndarray) -> float:
    """Smallest p-value of: Kolmogorov-Smirnov; the chi-square law of the sum of squares; tails beyond 3 and 4."""
    n = z.size
    square = stats.chi2.cdf(float((z**2).sum()), n)
    tails = [stats.binomtest(int((np.abs(z) > t).sum()), n, 2 * stats.norm.sf(t)).pvalue for t in (3, 4)]
    return float(min(stats.kstest(z.ravel(), "norm").pvalue, 2 * min(square, 1 - square), *tails))


def test_normal_numbers_have_the_normal_law() -> None:
    # Four tests at 1e-6 each of 2^20 numbers: a correct generator fails with probability 4e-6 over seeds.
    keys, at = ChainKeys.of(31, 1 << 12), torch.zeros(1 << 12, dtype=torch.int64)
    assert normality(rng.single_normals(keys, at, 0, 256).double().numpy()) > 1e-6
    z, u = rng.normals(keys, at, 0, 256).numpy(), rng.uniforms(keys, at, 0, 256 * 12).numpy()
    assert normality(z) > 1e-6
    mutants = {
        "a sum of twelve uniforms": u.reshape(-1, 12).sum(1) - 6,
        "the logistic quantile": np.log(u / (1 - u))[:, :256] * np.sqrt(3) / np.pi,
        "tails folded at 4": np.where(np.abs(z) > 4, z / 2, z),
        "one per cent too wide": 1.01 * z,
        "mean shifted by 0.01": z + 0.01,
    }
    for name, mutant in mutants.items():
        assert normality(mutant) < 1e-6, name


# --- one of K states ---


def state_logits(n: int, states: int, generator: np.random.Generator) -> np.ndarray:
    logits = generator.normal(scale=generator.choice([0.1, 2.0, 30.0], (n, 1)), size=(n, states))
    return np.where((generator.random((n, states)) < 0.2) & (np.arange(states) > 0), -np.inf, logits)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (50, 3), (50, 10), (20, 101), (3, 4096)])
def test_one_of_k_states_equals_the_oracle_on_both_paths(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(shape[1])
    rows = rows_of(shape[0], generator)
    seed, chain, sweep = tensors(*rows)
    logits = state_logits(*shape, generator)
    expected, keys = philox.categorical(logits, philox.bits(*rows, 5, 1)), ChainKeys(seed, chain)
    assert (expected.sum(1) == 1).all()
    assert np.array_equal(rng.categorical(torch.from_numpy(logits), keys, sweep, 5).numpy(), expected)
    assert np.array_equal(rng._categorical_torch(torch.from_numpy(logits), keys, sweep, 5).numpy(), expected)


def test_the_paths_agree_where_the_uniform_number_nearly_ties_with_a_cumulative_weight() -> None:
    n = 4000
    keys, sweep = ChainKeys.of(78, n), torch.arange(n)
    u = rng.uniforms(keys, sweep, 0, 1)[:, 0].numpy()
    # Two states: the first has probability u, up to the grid of the weights.
    logits = np.stack((np.log(u) - np.log1p(-u), np.zeros(n)), axis=1)
    logits[:, 0] += np.random.default_rng(0).integers(-4, 5, n) * 2.0**-40
    expected = philox.categorical(logits, rng.random_bits(keys, sweep, 0, 1).numpy())
    assert 0.2 < expected[:, 0].mean() < 0.8
    assert np.array_equal(rng.categorical(torch.from_numpy(logits), keys, sweep, 0).numpy(), expected)
    assert np.array_equal(rng._categorical_torch(torch.from_numpy(logits), keys, sweep, 0).numpy(), expected)


def test_rows_of_states_are_the_same_in_any_batch_at_any_position() -> None:
    generator = np.random.default_rng(3)
    keys, sweep, logits = ChainKeys.of(6, 40), torch.arange(40), torch.from_numpy(state_logits(40, 7, generator))
    together, order = rng.categorical(logits, keys, sweep, 0), torch.from_numpy(generator.permutation(40))
    assert torch.equal(rng.categorical(logits[order], keys.rows(order), sweep[order], 0), together[order])
    one = order[:1]
    assert torch.equal(rng.categorical(logits[one], keys.rows(one), sweep[one], 0), together[one])
    assert torch.equal(rng.categorical(logits.T.contiguous().T, keys, sweep, 0), together)


def test_logits_of_states_that_are_no_number_neither_crash_nor_come_up() -> None:
    inf, nan = np.inf, np.nan
    logits = torch.tensor([[nan, 0.0, -inf], [nan, nan, nan], [-inf, -inf, -inf], [inf, 0.0, 1.0]], dtype=torch.float64)
    keys, sweep = ChainKeys.of(5, 4), torch.zeros(4, dtype=torch.int64)
    states = rng.categorical(logits, keys, sweep, 0)
    assert states.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert torch.equal(rng._categorical_torch(logits, keys, sweep, 0), states)


def test_more_states_than_weights_add_up_exactly_are_refused() -> None:
    with pytest.raises(InputError, match="at most 4096 states"):
        rng.categorical(torch.zeros(1, 4097).double(), ChainKeys.of(1, 1), torch.zeros(1, dtype=torch.int64), 0)


LAW = np.log([0.3, 1e-300, 0.05, 0.4, 1e-3, 0.249])


def law_of_states(states: np.ndarray) -> float:
    """p-value of states (n, 6) against softmax(LAW) by chi-square; 0 where an impossible one came up."""
    counts, p = states.sum(0), np.exp(LAW) / np.exp(LAW).sum()
    possible = p > 1e-12
    if counts[~possible].any():
        return 0.0
    return float(stats.chisquare(counts[possible], counts.sum() * p[possible] / p[possible].sum()).pvalue)


def test_the_frequencies_of_states_are_the_softmax_of_their_logits() -> None:
    # Chi-square of 2^20 draws at 1e-6; each mutant is one slip in drawing by inversion.
    n = 1 << 20
    keys, at = ChainKeys.of(41, n), torch.zeros(n, dtype=torch.int64)
    logits = torch.from_numpy(LAW).expand(n, -1)
    assert law_of_states(rng.categorical(logits, keys, at, 0).numpy()) > 1e-6
    u, cumulative = rng.uniforms(keys, at, 0, 1).numpy(), np.cumsum(np.exp(LAW))
    one_hot = np.eye(6)
    mutants = {
        "the state before": np.maximum(np.searchsorted(cumulative, u[:, 0]) - 1, 0),
        "uniform numbers beyond the total": np.minimum(np.searchsorted(cumulative, 1.01 * u[:, 0]), 5),
        "the likeliest state": np.full(n, 3),
        "a total from before normalising": np.searchsorted(cumulative / 0.98, u[:, 0]).clip(max=5),
    }
    for name, mutant in mutants.items():
        assert law_of_states(one_hot[mutant]) < 1e-6, name


# --- acceptance ---


def test_proposals_are_accepted_where_their_uniform_number_is_below_the_ratio() -> None:
    generator = np.random.default_rng(2)
    rows = rows_of(500, generator)
    seed, chain, sweep = tensors(*rows)
    ratio = generator.normal(scale=3, size=500)
    u = (philox.bits(*rows, 9, 1)[:, 0] + 0.5) * 2.0**-32
    expected = u < philox.exp_minus_abs(np.minimum(ratio, 0))
    keys, log_ratio = ChainKeys(seed, chain), torch.from_numpy(ratio)
    assert np.array_equal(rng.accept(log_ratio, keys, sweep, 9).numpy(), expected)
    assert torch.equal(
        rng.accept(log_ratio.float(), keys, sweep, 9), rng.accept(log_ratio.float().double(), keys, sweep, 9)
    )


def test_proposals_without_a_ratio_are_refused_and_certain_ones_accepted() -> None:
    ratio = torch.tensor([np.nan, -np.inf, -1e300, -40.0, -22.9, np.inf, 0.0, 1e300], dtype=torch.float64)
    for seed in range(50):
        accepted = rng.accept(ratio, ChainKeys.of(seed, 8), torch.zeros(8, dtype=torch.int64), 0)
        assert accepted.tolist() == [False] * 5 + [True] * 3


def test_the_rate_of_acceptance_is_the_ratio() -> None:
    # Exact binomial test of 2^20 draws at each of 4 ratios, at 1e-6 each.
    n = 1 << 20
    keys, at = ChainKeys.of(51, n), torch.zeros(n, dtype=torch.int64)
    for stream, ratio in enumerate((-3.0, -1.0, -0.7, -0.1)):
        log_ratio = torch.full((n,), ratio, dtype=torch.float64)
        count = int(rng.accept(log_ratio, keys, at, stream).sum())
        assert stats.binomtest(count, n, np.exp(ratio)).pvalue > 1e-6
        # Barker's rule, which is r / (1 + r), and a ratio that is 10 % off.
        for mutant in (-torch.log1p(torch.exp(-log_ratio)), log_ratio + np.log(0.9)):
            count = int(rng.accept(mutant, keys, at, stream).sum())
            assert stats.binomtest(count, n, np.exp(ratio)).pvalue < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_draws_the_same_bits() -> None:
    generator = np.random.default_rng(1)
    rows = rows_of(50, generator)
    seed, chain, sweep = tensors(*rows)
    logits = torch.from_numpy(logits_of((50, 101), generator))
    here = rng.bernoulli(logits, ChainKeys(seed, chain), sweep, 1)
    there = rng.bernoulli(logits.cuda(), ChainKeys(seed.cuda(), chain.cuda()), sweep.cuda(), 1)
    assert torch.equal(there.cpu(), here)
    assert torch.equal(rng.logistic(logits.cuda()).cpu(), rng.logistic(logits))
    cuda = ChainKeys(seed.cuda(), chain.cuda())
    assert torch.equal(
        rng.normals(cuda, sweep.cuda(), 1, 999).cpu(), rng.normals(ChainKeys(seed, chain), sweep, 1, 999)
    )
    here = rng.categorical(logits, ChainKeys(seed, chain), sweep, 1)
    assert torch.equal(rng.categorical(logits.cuda(), cuda, sweep.cuda(), 1).cpu(), here)
    here = rng.accept(logits[:, 0], ChainKeys(seed, chain), sweep, 1)
    assert torch.equal(rng.accept(logits[:, 0].cuda(), cuda, sweep.cuda(), 1).cpu(), here)
