from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import DataSettings
from training.data import load
from training.errors import DataError


def _settings(
    dataset: str, binarization: str = "threshold", validation: int = 100, test: int | None = 100
) -> DataSettings:
    return DataSettings.model_validate(
        {"dataset": dataset, "binarization": binarization, "validation": validation, "test": test}
    )


def test_unsplit_data_are_split_always_alike_and_every_example_is_in_one_part() -> None:
    a, b = load(_settings("digits")), load(_settings("digits"))
    assert a.fingerprint() == b.fingerprint()
    assert [len(part) for part in (a.train, a.validation, a.test)] == [1597, 100, 100]
    together = torch.cat((a.train, a.validation, a.test)).sum(0)
    from sklearn.datasets import load_digits

    expected = (load_digits().images.reshape(1797, 64) > 8).sum(0)
    np.testing.assert_array_equal(together.numpy(), expected)


def test_split_data_keep_their_test_part_and_their_order(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "d.npz", x_train=images, x_test=images[:6])
    data = load(_settings(str(tmp_path / "d.npz"), validation=10))
    cut = images.max() / 2
    np.testing.assert_array_equal(data.train.numpy(), images[:30].reshape(30, 12) > cut)
    np.testing.assert_array_equal(data.validation.numpy(), images[30:].reshape(10, 12) > cut)
    np.testing.assert_array_equal(data.test.numpy(), images[:6].reshape(6, 12) > cut)
    assert data.shape == (4, 3)


def test_splits_that_leave_nothing_are_refused(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "d.npz", x=images)
    for validation, test, expected in (
        (30, 10, "data.validation = 30"),
        (1, 40, "data.test = 40"),
        (1, None, "unsplit"),
    ):
        with pytest.raises(DataError, match=expected):
            load(_settings(str(tmp_path / "d.npz"), validation=validation, test=test))


def test_data_without_any_ink_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((9, 2, 2)))
    with pytest.raises(DataError, match="every training value is 0"):
        load(_settings(str(tmp_path / "d.npz"), validation=1, test=1))


@pytest.fixture
def constant(tmp_path: Path) -> Path:
    """4,000 training examples whose 6 units have the grey levels 0, .1, .3, .5, .9, 1."""
    np.savez(tmp_path / "c.npz", x_train=np.tile([0, 0.1, 0.3, 0.5, 0.9, 1], (4001, 1)), x_test=np.ones((1, 6)))
    return tmp_path / "c.npz"


@pytest.mark.parametrize("binarization", ["stochastic", "fixed-stochastic"])
def test_a_drawn_unit_is_one_as_often_as_its_level_says(constant: Path, binarization: str) -> None:
    data = load(_settings(str(constant), binarization, validation=1))
    level = np.array([0, 0.1, 0.3, 0.5, 0.9, 1])
    mean = data.batch(torch.arange(4000), epoch=3, seed=1).double().numpy().mean(0)
    assert mean[0] == 0
    assert mean[-1] == 1
    # |z| < 5.2 at four units: a false alarm once in a million.
    z = (mean - level)[1:-1] / np.sqrt(level * (1 - level) / 4000)[1:-1]
    assert np.abs(z).max() < 5.2


def test_fresh_draws_differ_between_epochs_and_seeds_and_not_between_batches(constant: Path) -> None:
    data = load(_settings(str(constant), "stochastic", validation=1))
    rows = torch.tensor([5, 17, 3999])
    whole = data.batch(torch.arange(4000), epoch=2, seed=7)
    torch.testing.assert_close(data.batch(rows, epoch=2, seed=7), whole[rows], rtol=0, atol=0)
    assert not torch.equal(data.batch(torch.arange(4000), epoch=3, seed=7), whole)
    assert not torch.equal(data.batch(torch.arange(4000), epoch=2, seed=8), whole)
    torch.testing.assert_close(data.train_means, torch.tensor([0, 0.1, 0.3, 0.5, 0.9, 1]).double())


def test_fixed_draws_are_the_same_for_every_epoch_and_seed(constant: Path) -> None:
    data = load(_settings(str(constant), "fixed-stochastic", validation=1))
    rows = torch.arange(100)
    torch.testing.assert_close(data.batch(rows, 0, 0), data.batch(rows, 5, 9), rtol=0, atol=0)


def test_an_epoch_reads_every_example_once_in_an_order_of_its_own() -> None:
    data = load(_settings("digits"))
    first, second = data.order(0, seed=1), data.order(1, seed=1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(len(data.train)))
    assert not torch.equal(first, second)
    assert torch.equal(first, data.order(0, seed=1))
