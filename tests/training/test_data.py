from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.manifest import Preprocessing
from training.config import DataSettings
from training.data import Dataset, load
from training.errors import DataError

_LEVELS = np.array([0, 0.1, 0.3, 0.5, 0.9, 1])


def _settings(
    dataset: str | Path,
    binarization: str = "threshold",
    validation: int | None = 100,
    test: int | None = 100,
    **more: Any,
) -> DataSettings:
    return DataSettings.model_validate(
        {"dataset": str(dataset), "binarization": binarization, "validation": validation, "test": test, **more}
    )


def _save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def _preprocessed(raw: np.ndarray, how: Preprocessing | None) -> np.ndarray:
    """What a server makes of raw values (n, ...)."""
    rows: np.ndarray = raw.reshape(len(raw), -1).astype(np.float64)
    if how is None:
        return rows
    if how.scale is not None:
        return rows * how.scale
    return (rows - np.asarray(how.mean or 0.0)) / np.asarray(1.0 if how.std is None else how.std)


def test_unsplit_data_are_split_always_alike_and_every_example_is_in_one_part() -> None:
    a, b = load(_settings("digits")), load(_settings("digits"))
    assert a.fingerprint() == b.fingerprint()
    assert [len(part) for part in (a.train, a.validation, a.test)] == [1597, 100, 100]
    together = torch.cat((a.train, a.validation, a.test)).sum(0)
    from sklearn.datasets import load_digits

    expected = (load_digits().images.reshape(1797, 64) > 8).sum(0)
    np.testing.assert_array_equal(together.numpy(), expected)


def test_labels_stay_with_their_examples() -> None:
    data = load(_settings("digits", domain="real", preprocessing="none"))
    from sklearn.datasets import load_digits

    label = {
        image.astype(np.float32).tobytes(): target for image, target in zip(*load_digits(return_X_y=True), strict=True)
    }
    assert data.train_labels is not None
    assert data.classes == list(range(10))
    for part, labels in (
        (data.train, data.train_labels),
        (data.validation, data.validation_labels),
        (data.test, data.test_labels),
    ):
        assert labels is not None
        assert labels.tolist() == [label[example.numpy().tobytes()] for example in part]
    rows = torch.tensor([7, 3, 1500])
    torch.testing.assert_close(data.labels_of(rows), data.train_labels[rows], rtol=0, atol=0)


def test_data_without_labels_say_so(tmp_path: Path, images: np.ndarray) -> None:
    data = load(_settings(_save(tmp_path / "d.npz", x=images), validation=5, test=5))
    assert data.classes is None
    with pytest.raises(DataError, match="d has no labels"):
        data.labels_of(torch.tensor([0]))


def test_split_data_keep_their_test_part_and_their_order(tmp_path: Path, images: np.ndarray) -> None:
    data = load(_settings(_save(tmp_path / "d.npz", x_train=images, x_test=images[:6]), validation=10))
    cut = images.max() / 2
    np.testing.assert_array_equal(data.train.numpy(), images[:30].reshape(30, 12) > cut)
    np.testing.assert_array_equal(data.validation.numpy(), images[30:].reshape(10, 12) > cut)
    np.testing.assert_array_equal(data.test.numpy(), images[:6].reshape(6, 12) > cut)
    assert data.shape == (4, 3)


def test_a_validation_part_of_the_datas_own_is_kept_as_found(tmp_path: Path, images: np.ndarray) -> None:
    path = _save(tmp_path / "d.npz", train=images, valid=images[:7], test=images[:3])
    for validation in (None, 5):
        data = load(_settings(path, validation=validation, test=None))
        assert [len(part) for part in (data.train, data.validation, data.test)] == [40, 7, 3]
    path = _save(tmp_path / "e.npz", train=images, valid=images[:7])
    data = load(_settings(path, validation=None, test=4))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [36, 7, 4]


def test_splits_that_leave_nothing_or_are_not_told_are_refused(tmp_path: Path, images: np.ndarray) -> None:
    unsplit = _save(tmp_path / "d.npz", x=images)
    split = _save(tmp_path / "s.npz", x_train=images, x_test=images)
    frames = _save(tmp_path / "frey_faces.npz", x=images)
    for path, validation, test, expected in (
        (unsplit, 30, 10, "data.validation = 30"),
        (unsplit, 1, 40, "data.test = 40"),
        (unsplit, 1, None, "unsplit: set data.test"),
        (split, None, None, "s has no validation part: set data.validation"),
        (frames, 20, 20, "data.validation = 20 and data.test = 20, but there are only 40"),
    ):
        with pytest.raises(DataError, match=expected):
            load(_settings(path, validation=validation, test=test))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(n=st.integers(30, 80), validation=st.integers(1, 9), test=st.integers(1, 9))
def test_frames_are_held_out_in_stretches_of_time(tmp_path: Path, n: int, validation: int, test: int) -> None:
    frames = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    path = _save(tmp_path / "frey_faces.npz", x=frames)
    data = load(_settings(path, validation=validation, test=test, domain="real", preprocessing="none"))
    times = [part[:, 0].int().tolist() for part in (data.train, data.validation, data.test)]
    assert sorted(itertools.chain(*times)) == list(range(n))
    assert [len(part) for part in times] == [n - validation - test, validation, test]
    stretches = min(5, validation, test)
    for part in times:
        assert part == sorted(part)
        assert sum(b - a > 1 for a, b in itertools.pairwise(part)) <= stretches - 1


def test_data_without_any_ink_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "d.npz", x=np.zeros((9, 2, 2)))
    for domain in ("binary", "spin", "unit", "real"):
        with pytest.raises(DataError, match="every training value is"):
            load(_settings(path, validation=1, test=1, domain=domain))


@pytest.mark.parametrize("domain", ["binary", "spin", "unit"])
def test_negative_values_are_refused_where_grey_levels_are_needed(tmp_path: Path, domain: str) -> None:
    path = _save(tmp_path / "d.npz", x=np.array([[-2.0, 1.0]] * 9))
    with pytest.raises(DataError, match=r"negative values \(-2\); expected grey levels"):
        load(_settings(path, validation=1, test=1, domain=domain))


@pytest.fixture
def constant(tmp_path: Path) -> Path:
    """4,000 training examples whose 6 units have the grey levels 0, .1, .3, .5, .9, 1."""
    return _save(tmp_path / "c.npz", x_train=np.tile(_LEVELS, (4001, 1)), x_test=np.ones((1, 6)))


@pytest.mark.parametrize("binarization", ["stochastic", "fixed-stochastic"])
@pytest.mark.parametrize("domain", ["binary", "spin"])
def test_a_drawn_unit_is_one_as_often_as_its_level_says(constant: Path, binarization: str, domain: str) -> None:
    data = load(_settings(constant, binarization, validation=1, domain=domain))
    batch = data.batch(torch.arange(4000), epoch=3, seed=1).double().numpy()
    low = 0 if domain == "binary" else -1
    assert set(np.unique(batch)) == {low, 1}
    mean = (batch == 1).mean(0)
    assert mean[0] == 0
    assert mean[-1] == 1
    # |z| < 5.2 at four units: a false alarm once in a million.
    z = (mean - _LEVELS)[1:-1] / np.sqrt(_LEVELS * (1 - _LEVELS) / 4000)[1:-1]
    assert np.abs(z).max() < 5.2


@pytest.mark.parametrize(("domain", "low"), [("binary", 0), ("spin", -1)])
def test_fresh_draws_have_the_moments_of_their_levels(constant: Path, domain: str, low: int) -> None:
    data = load(_settings(constant, "stochastic", validation=1, domain=domain))
    np.testing.assert_allclose(data.train_means.numpy(), low + (1 - low) * _LEVELS, atol=1e-7)
    np.testing.assert_allclose(data.train_stds.numpy(), (1 - low) * np.sqrt(_LEVELS * (1 - _LEVELS)), atol=1e-3)


def test_fresh_draws_differ_between_epochs_and_seeds_and_not_between_batches(constant: Path) -> None:
    data = load(_settings(constant, "stochastic", validation=1))
    rows = torch.tensor([5, 17, 3999])
    whole = data.batch(torch.arange(4000), epoch=2, seed=7)
    torch.testing.assert_close(data.batch(rows, epoch=2, seed=7), whole[rows], rtol=0, atol=0)
    assert not torch.equal(data.batch(torch.arange(4000), epoch=3, seed=7), whole)
    assert not torch.equal(data.batch(torch.arange(4000), epoch=2, seed=8), whole)


def test_bytes_are_drawn_as_the_same_levels_in_fractions_are(tmp_path: Path, images: np.ndarray) -> None:
    images[0, 0, 0] = 255
    fractions = (images.astype(np.float32) / np.float32(255)).astype(np.float32)
    rows = torch.arange(30)
    both = [
        load(_settings(_save(tmp_path / "d.npz", x_train=x, x_test=x), "stochastic", validation=10))
        for x in (images, fractions)
    ]
    for batches in ([d.batch(rows, 3, 1) for d in both], [d.test for d in both]):
        torch.testing.assert_close(*batches, rtol=0, atol=0)
    assert both[0].grey is not None
    assert both[0].grey.dtype == torch.uint8


def test_fixed_draws_are_the_same_for_every_epoch_and_seed(constant: Path) -> None:
    data = load(_settings(constant, "fixed-stochastic", validation=1))
    rows = torch.arange(100)
    torch.testing.assert_close(data.batch(rows, 0, 0), data.batch(rows, 5, 9), rtol=0, atol=0)


@pytest.mark.parametrize("binarization", ["threshold", "stochastic", "fixed-stochastic", "fixed"])
@pytest.mark.parametrize(("domain", "dtype"), [("binary", torch.uint8), ("spin", torch.int8)])
def test_two_states_are_taken_as_they_are(tmp_path: Path, binarization: str, domain: str, dtype: torch.dtype) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (30, 5), dtype=np.uint8)
    states = bits.astype(np.int64) if domain == "binary" else 2 * bits.astype(np.int64) - 1
    for found in (bits, bits.astype(bool), bits.astype(float), *([states] if domain == "spin" else [])):
        path = _save(tmp_path / "d.npz", train=found[:20], valid=found[20:], test=found)
        data = load(_settings(path, binarization, None, None, domain=domain))
        assert (data.binarization, data.train.dtype, data.grey) == ("fixed", dtype, None)
        np.testing.assert_array_equal(data.train.numpy(), states[:20])
        np.testing.assert_array_equal(data.batch(torch.arange(20), 4, 2).numpy(), states[:20])
        np.testing.assert_allclose(data.train_means.numpy(), states[:20].mean(0), atol=1e-15)
        np.testing.assert_allclose(data.train_stds.numpy(), states[:20].std(0), atol=1e-15)


def test_fixed_refuses_data_of_more_than_two_states() -> None:
    with pytest.raises(
        DataError, match=r"data\.binarization = fixed, but values are not only 0 and 1 \(they reach 16\)"
    ):
        load(_settings("digits", "fixed"))


def test_spins_are_the_bits_as_minus_and_plus_one() -> None:
    bits, spins = load(_settings("digits")), load(_settings("digits", domain="spin"))
    assert spins.train.dtype == torch.int8
    for part in ("train", "validation", "test"):
        torch.testing.assert_close(getattr(spins, part), 2 * getattr(bits, part).char() - 1, rtol=0, atol=0)
    torch.testing.assert_close(spins.train_means, 2 * bits.train_means - 1)
    torch.testing.assert_close(spins.train_stds, 2 * bits.train_stds)


def test_unit_levels_are_what_the_scale_makes_of_raw_values(tmp_path: Path, images: np.ndarray) -> None:
    path = _save(tmp_path / "d.npz", x_train=images, x_test=images[:6])
    data = load(_settings(path, validation=10, domain="unit"))
    assert (data.train.dtype, data.binarization) == (torch.float32, None)
    assert data.preprocessing == Preprocessing(scale=1 / images[:30].max())
    np.testing.assert_allclose(data.train.numpy(), _preprocessed(images[:30], data.preprocessing), rtol=1e-6)
    assert float(data.validation.max()) <= 1
    fractions = images / 256.0
    path = _save(tmp_path / "f.npz", x_train=fractions, x_test=fractions)
    data = load(_settings(path, validation=10, domain="unit"))
    assert data.preprocessing is None
    np.testing.assert_array_equal(data.train.numpy(), fractions[:30].reshape(30, 12).astype(np.float32))


@pytest.mark.parametrize("statistics", ["per-unit", "global"])
@pytest.mark.parametrize("preprocessing", ["none", "standardise", "centre"])
def test_a_server_makes_of_raw_values_what_training_saw(
    tmp_path: Path, images: np.ndarray, preprocessing: str, statistics: str
) -> None:
    path = _save(tmp_path / "d.npz", x_train=images, x_test=images[:6])
    data = load(_settings(path, validation=10, domain="real", preprocessing=preprocessing, statistics=statistics))
    assert (data.train.dtype, data.binarization) == (torch.float32, None)
    assert (data.preprocessing is None) == (preprocessing == "none")
    sent = None
    if data.preprocessing is not None:  # as it is written and read
        sent = Preprocessing.model_validate_json(data.preprocessing.model_dump_json())
    for part, raw in ((data.train, images[:30]), (data.validation, images[30:]), (data.test, images[:6])):
        np.testing.assert_array_equal(part.numpy(), _preprocessed(raw, sent).astype(np.float32))
    seen = data.train.double()
    torch.testing.assert_close(data.train_means, seen.mean(0))
    torch.testing.assert_close(data.train_stds, seen.std(0, correction=0))
    if preprocessing == "standardise" and statistics == "per-unit":
        torch.testing.assert_close(data.train_stds, torch.ones(12).double(), atol=1e-6, rtol=0)
    if preprocessing != "none":
        assert abs(float(seen.mean())) < 1e-5  # values up to 255 in float32
    if preprocessing == "standardise":
        assert float(seen.square().mean()) == pytest.approx(1, abs=1e-6)


def test_nearly_constant_pixels_are_not_blown_up_and_constant_columns_stay(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).normal(0, 100, (50, 2, 2))
    draw[:, 0, 0] = 7.0
    draw[:, 0, 1] *= 1e-4
    pixels = load(_settings(_save(tmp_path / "p.npz", x=draw), validation=5, test=5, domain="real"))
    assert pixels.preprocessing is not None
    assert isinstance(pixels.preprocessing.std, list)
    assert min(pixels.preprocessing.std) > 5
    columns = load(_settings(_save(tmp_path / "c.npz", x=draw.reshape(50, 4)), validation=5, test=5, domain="real"))
    assert columns.preprocessing is not None
    assert isinstance(columns.preprocessing.std, list)
    assert columns.preprocessing.std[0] == 1
    assert 0 < columns.preprocessing.std[1] < 0.02


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "d.npz", x=np.array([[1e300], [2.0], [3.0]]))
    with pytest.raises(DataError, match="beyond float32"):
        load(_settings(path, validation=1, test=1, domain="real", preprocessing="none"))


def _rgb(n: int = 20) -> np.ndarray:
    """Images whose pixels tell where they are: red the image, green the row, blue the column."""
    image, row, column = np.meshgrid(np.arange(n), np.arange(9), np.arange(7), indexing="ij")
    return np.stack((image, row, column), -1).astype(np.uint8)


def _patches(path: Path, **more: Any) -> Dataset:
    settings = {"validation": 4, "test": 5, "domain": "real", "preprocessing": "none", "patch": 3, **more}
    return load(_settings(path, **settings))


def test_patches_are_squares_of_images_and_those_held_out_are_of_other_images(tmp_path: Path) -> None:
    data = _patches(_save(tmp_path / "d.npz", x=_rgb(), y=np.arange(20)), patches=110)
    assert data.shape == (3, 3, 3)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [110, 40, 50]
    assert (data.train_labels, data.classes) == (None, None)
    sources = []
    for part in (data.train, data.validation, data.test):
        square = part.reshape(-1, 3, 3, 3)
        assert bool((square[..., 0] == square[:, :1, :1, 0]).all())
        for axis, colour in ((1, 1), (2, 2)):
            assert bool((square[..., colour].diff(dim=axis) == 1).all())
        sources.append(set(square[:, 0, 0, 0].tolist()))
    assert [len(images) for images in sources] == [11, 4, 5]
    assert not sources[0] & sources[1]
    assert not (sources[0] | sources[1]) & sources[2]
    places = [part.reshape(-1, 3, 3, 3)[:40, 0, 0, 1:] for part in (data.train, data.validation, data.test)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(places, 2))
    tops = data.train.reshape(-1, 3, 3, 3)[:, 0, 0, 1:]
    assert set(tops[:, 0].tolist()) == set(range(7))
    assert set(tops[:, 1].tolist()) == set(range(5))


def test_patches_are_a_function_of_their_seed(tmp_path: Path) -> None:
    path = _save(tmp_path / "d.npz", x=_rgb())
    assert _patches(path).fingerprint() == _patches(path).fingerprint() != _patches(path, patch_seed=1).fingerprint()
    assert len(_patches(path).train) == 110


def test_grey_levels_are_the_luma_of_rgb_images(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    for images, atol in ((rgb, 0.5001), (rgb / 256.0, 1e-6)):
        path = _save(tmp_path / "d.npz", x_train=images, x_test=images)
        data = load(_settings(path, validation=5, domain="real", preprocessing="none", grey=True))
        assert data.shape == (4, 4)
        expected = (luma if images is rgb else luma / 256).reshape(20, -1)
        np.testing.assert_allclose(data.test.numpy(), expected, atol=atol, rtol=0)


def test_images_that_cannot_be_cut_or_made_grey_are_refused(tmp_path: Path, images: np.ndarray) -> None:
    path = _save(tmp_path / "d.npz", x=images)
    with pytest.raises(DataError, match=r"data\.patch = 4, but an example is \(4, 3\)"):
        _patches(path, patch=4)
    with pytest.raises(DataError, match=r"data\.grey needs RGB images .* found \(\d+, 4, 3\)"):
        _patches(path, grey=True)
    with pytest.raises(DataError, match=r"data\.patch = 1, but an example is \(2,\)"):
        _patches(_save(tmp_path / "e.npz", x=np.ones((20, 2))), patch=1)


def test_settings_of_patches_need_their_size() -> None:
    for wrong in ({"dataset": "cifar10_patches"}, {"dataset": "digits", "patches": 5}):
        with pytest.raises(ValueError, match="needs patch"):
            DataSettings.model_validate(wrong)


def test_the_place_of_a_data_set_decides_nothing_else(tmp_path: Path, images: np.ndarray) -> None:
    prints = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        _save(tmp_path / folder / "mine.npz", x=images)
        prints.add(load(_settings("mine", validation=5, test=5, place=str(tmp_path / folder))).fingerprint())
    prints.add(load(_settings(tmp_path / "a" / "mine.npz", validation=5, test=5)).fingerprint())
    assert len(prints) == 1


def test_a_fingerprint_covers_labels_and_preprocessing(tmp_path: Path, images: np.ndarray) -> None:
    labels = np.arange(40) % 4
    changed = labels.copy()
    changed[-1] = 0
    found = {
        load(
            _settings(_save(tmp_path / "d.npz", x_train=images, x_test=images, **y), validation=5, **more)
        ).fingerprint()
        for y in ({}, {"y_train": labels, "y_test": labels}, {"y_train": labels, "y_test": changed})
        for more in (
            {},
            {"domain": "spin"},
            {"domain": "unit"},
            {"domain": "real"},
            {"domain": "real", "statistics": "global"},
        )
    }
    assert len(found) == 15


@pytest.mark.parametrize("domain", ["binary", "spin", "unit", "real"])
def test_every_format_is_read_to_the_same_data(
    tmp_path: Path, images: np.ndarray, write_idx: Callable[..., Path], domain: str
) -> None:
    labels = np.arange(40) % 10
    (tmp_path / "idx").mkdir()
    for part, rows in (("train", slice(0, 40)), ("t10k", slice(0, 6))):
        write_idx(tmp_path / "idx" / f"{part}-images-idx3-ubyte", images[rows])
        write_idx(tmp_path / "idx" / f"{part}-labels-idx1-ubyte.gz", labels[rows])
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:6], "y_test": labels[:6]}
    paths = tmp_path / "idx", _save(tmp_path / "d.npz", **arrays)
    prints = [load(_settings(path, "stochastic", 10, domain=domain)).fingerprint() for path in paths]
    assert prints[0] == prints[1]

    lines = ["label," + ",".join(f"p{k}" for k in range(12))]
    lines += [",".join(map(str, (label, *image.ravel()))) for image, label in zip(images, labels, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    paths = tmp_path / "t.csv", _save(tmp_path / "t.npz", x=images.reshape(40, 12), y=labels)
    prints = [load(_settings(path, "stochastic", 10, 5, domain=domain)).fingerprint() for path in paths]
    assert prints[0] == prints[1]


def test_all_that_training_reads_moves_to_a_device() -> None:
    data = load(_settings("digits", "stochastic")).to(torch.device("meta"))
    moved = (data.train, data.validation, data.test, data.grey, data.train_means, data.train_labels, data.test_labels)
    assert {tensor.device.type for tensor in moved if tensor is not None} == {"meta"}
    assert data.train_stds.device.type == "meta"


def test_every_example_has_a_draw_of_its_own(tmp_path: Path) -> None:
    levels = np.full((20_000, 32), 0.5)
    levels[:, 0] = 1
    data = load(_settings(_save(tmp_path / "d.npz", x_train=levels, x_test=levels[:99]), "fixed-stochastic", 100))
    drawn = torch.cat((data.train, data.validation, data.test))
    # 31 fair bits each: 20,099 examples have some 0.09 pairs alike; three or more come once in 7,000.
    assert len(drawn.unique(dim=0)) > len(drawn) - 3


def test_an_epoch_reads_every_example_once_in_an_order_of_its_own() -> None:
    data = load(_settings("digits"))
    first, second = data.order(0, seed=1), data.order(1, seed=1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(len(data.train)))
    assert not torch.equal(first, second)
    assert torch.equal(first, data.order(0, seed=1))
