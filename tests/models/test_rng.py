"""Draws are Philox4x32-10 to the bit, on every path, and depend on (seed, chain, sweep, stream, unit) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from models import rng
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
    return {
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
    # Four bits of either draw in a 16 x 16 table, chi-square against uniformity: 21 tables in all, each at 1e-6, so a
    # correct generator fails with probability 2.1e-5 over seeds. At least 256 draws are expected in a cell.
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
