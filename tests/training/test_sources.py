from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import downloads, files
from training.errors import DataError
from training.sources import DENSITY, find, located

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
TRAIN_LABELS, TEST_LABELS = "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"
LABELS = np.arange(40) % 10


def _write_density(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Packed rows of 11 bits; returns the bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed).integers(0, 2, (3, 8, 11), dtype=np.uint8)
    parts = dict(zip(("train", "valid", "test"), draw, strict=True))
    np.savez(path, **{name: np.packbits(part, axis=1) for name, part in parts.items()}, n_vars=np.int64(11))
    return parts


def test_digits_come_without_a_download_in_their_own_levels_with_their_labels() -> None:
    digits = find("digits")
    assert (digits.train.examples.shape, digits.train.examples.max(), digits.test) == ((1797, 8, 8), 16, None)
    assert digits.train.labels is not None
    assert (digits.train.labels.dtype, digits.train.labels[:4].tolist()) == (np.int64, [0, 1, 2, 3])
    assert digits.classes == list(range(10))


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "mnist"])
def test_idx_files_are_found_in_the_folder_or_in_its_mnist(
    tmp_path: Path, images: np.ndarray, write_idx: Callable[..., Path], end: str, folder: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    write_idx(tmp_path / folder / f"{TRAIN}{end}", images)
    write_idx(tmp_path / folder / f"{TEST}{end}", images[:7])
    for source in (find(str(tmp_path)), find("mnist", str(tmp_path))):
        np.testing.assert_array_equal(source.train.examples, images)
        assert source.test is not None
        np.testing.assert_array_equal(source.test.examples, images[:7])
        assert source.train.labels is None


@pytest.mark.parametrize("where", ["file.npz", "mnist.npz", "mnist/mnist.npz"])
def test_an_npz_is_found_by_its_path_or_in_its_folder(tmp_path: Path, images: np.ndarray, where: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    np.savez(path, x_train=images, x_test=images[:5])
    source = find(str(path if where == "file.npz" else tmp_path))
    np.testing.assert_array_equal(source.train.examples, images)


@pytest.mark.parametrize("name", DENSITY)
@pytest.mark.parametrize("where", ["{name}/{name}.npz", "density/{name}.npz", "{name}.npz"])
def test_density_sets_are_found_by_name_and_unpacked(tmp_path: Path, name: str, where: str) -> None:
    expected = _write_density(tmp_path / where.format(name=name))
    source = find(name, str(tmp_path))
    assert source.name == name
    for part, key in ((source.train, "train"), (source.validation, "valid"), (source.test, "test")):
        assert part is not None
        np.testing.assert_array_equal(part.examples, expected[key])


def test_density_sets_are_read_from_the_text_files_they_are_published_as(tmp_path: Path) -> None:
    (tmp_path / "nltcs").mkdir()
    for word, text in (("train", "0,1,1\n1,0,0\n"), ("valid", "1,1,1\n"), ("test", "0,0,0\n0,0,1\n")):
        (tmp_path / "nltcs" / f"nltcs.{word}.data").write_text(text)
    for source in (find("nltcs", str(tmp_path)), find(str(tmp_path / "nltcs" / "nltcs.train.data"))):
        assert source.name == "nltcs"
        np.testing.assert_array_equal(source.train.examples, [[0, 1, 1], [1, 0, 0]])
        assert source.validation is not None
        assert source.test is not None
        assert (len(source.validation), len(source.test)) == (1, 2)


def test_binarized_mnist_is_unpacked_to_images(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, 5, 784), dtype=np.uint8)
    packed = {name: np.packbits(rows, axis=1) for name, rows in zip(("train", "valid", "test"), bits, strict=True)}
    (tmp_path / "binarized_mnist").mkdir()
    path = tmp_path / "binarized_mnist" / "binarized_mnist.npz"
    np.savez(path, **packed)
    for source in (find("binarized_mnist", str(tmp_path)), find(str(path)), find(str(path.parent))):
        np.testing.assert_array_equal(source.train.examples, bits[0].reshape(5, 28, 28))


def test_silhouettes_keep_their_split_and_the_names_of_their_classes(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (6, 784), dtype=np.uint8)
    (tmp_path / "caltech101_silhouettes").mkdir()
    np.savez(
        tmp_path / "caltech101_silhouettes" / "caltech101_silhouettes_28.npz",
        x=np.packbits(bits, axis=1),
        y=np.array([1, 1, 2, 2, 3, 3], np.uint8),
        split=np.array([0, 1, 2, 0, 0, 1], np.uint8),
        classnames=np.array(["ant", "bass", "cup"]),
    )
    source = find("caltech101_silhouettes", str(tmp_path))
    assert source.classes == ["ant", "bass", "cup"]
    for part, rows in ((source.train, [0, 3, 4]), (source.validation, [1, 5]), (source.test, [2])):
        assert part is not None
        assert part.labels is not None
        np.testing.assert_array_equal(part.examples, bits[rows].reshape(-1, 28, 28))
        np.testing.assert_array_equal(part.labels, np.array([0, 0, 1, 1, 2, 2])[rows])


def test_frey_faces_are_known_to_be_frames(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "frey_faces.npz", x=images)
    assert find("frey_faces", str(tmp_path)).frames
    assert find(str(tmp_path / "frey_faces.npz")).frames
    np.savez(tmp_path / "other.npz", x=images)
    assert not find(str(tmp_path / "other.npz")).frames


def test_cifar10_is_read_from_its_subset_or_its_binary_batches(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    rows = np.concatenate([labels[:, None], rgb.transpose(0, 3, 1, 2).reshape(12, -1)], axis=1)
    batches = tmp_path / "a" / "cifar-10-batches-bin"
    batches.mkdir(parents=True)
    for k in range(5):
        (batches / f"data_batch_{k + 1}.bin").write_bytes(rows[2 * k : 2 * k + 2].tobytes())
    (batches / "test_batch.bin").write_bytes(rows[10:].tobytes())
    (tmp_path / "b" / "cifar10_subset").mkdir(parents=True)
    np.savez(
        tmp_path / "b" / "cifar10_subset" / "cifar10_first4000_lossless.npz", x_train=rgb[:10], y_train=labels[:10]
    )
    for place in (tmp_path / "a", batches, tmp_path / "b"):
        source = find("cifar10_patches", str(place))
        np.testing.assert_array_equal(source.train.examples, rgb[:10])
        np.testing.assert_array_equal(source.train.labels, labels[:10])
        assert source.classes is not None
        assert source.classes[3] == "cat"
    np.testing.assert_array_equal(find("cifar10", str(tmp_path / "a")).train.examples, rgb[:10])
    with pytest.raises(DataError, match="no data set 'cifar10'"):  # a subset is not the data set
        find("cifar10", str(tmp_path / "b"))
    (batches / "data_batch_3.bin").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match=r"data_batch_3\.bin: expected rows of 3,073 bytes, found 100"):
        find("cifar10_patches", str(batches))


def test_fashion_mnist_has_named_classes_and_is_not_mnist_though_its_files_have_the_same_names(
    tmp_path: Path, images: np.ndarray, write_idx: Callable[..., Path]
) -> None:
    for name, content in ((TRAIN, images), (TEST, images), (TRAIN_LABELS, LABELS), (TEST_LABELS, LABELS)):
        write_idx(tmp_path / name, content)
    source = find("fashion_mnist", str(tmp_path))
    assert source.classes is not None
    assert source.classes[9] == "ankle boot"
    assert find("mnist", str(tmp_path)).name == tmp_path.stem


def test_mnist_is_known_by_its_pixels_whatever_its_file_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((60_000, 28, 28), np.uint8)  # stand in for the real ones
    monkeypatch.setattr(files, "_MNIST_PIXELS", hashlib.sha256(pixels.tobytes()).hexdigest())
    np.savez_compressed(tmp_path / "fashion_mnist.npz", x_train=pixels, x_test=pixels[:1])
    assert find(str(tmp_path / "fashion_mnist.npz")).name == "mnist"
    with pytest.raises(DataError, match="holds MNIST, not fashion_mnist"):
        find("fashion_mnist", str(tmp_path))


def test_the_data_folder_is_searched_before_the_cache_and_a_place_instead_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: _write_density(tmp_path / path, k) for k, (name, path) in enumerate(
        {"place": "place/nltcs.npz", "data": "data/nltcs.npz", "cache": "cache/ebm/nltcs.npz"}.items()
    )}  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.testing.assert_array_equal(find("nltcs").train.examples, found["cache"]["train"])
    monkeypatch.setenv("EBM_DATA_DIR", str(tmp_path / "data"))
    np.testing.assert_array_equal(find("nltcs").train.examples, found["data"]["train"])
    np.testing.assert_array_equal(find("nltcs", str(tmp_path / "place")).train.examples, found["place"]["train"])
    with pytest.raises(DataError, match=r"no data set 'plants' in .*place: looked for plants/plants\.npz, "):
        find("plants", str(tmp_path / "place"))


def test_a_data_set_of_ones_own_is_found_by_name_in_a_place(tmp_path: Path, images: np.ndarray) -> None:
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "mine.npz", x=images)
    for dataset in ("mine", "mine/mine.npz"):
        source = find(dataset, str(tmp_path))
        assert source.name == "mine"
        np.testing.assert_array_equal(source.train.examples, images)


def test_data_option_names_a_data_set_a_file_or_a_folder_that_is_one_or_holds_the_recipes(
    tmp_path: Path, images: np.ndarray, write_idx: Callable[..., Path]
) -> None:
    _write_density(tmp_path / "density" / "nltcs.npz")
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "mine.npz", x=images)
    (tmp_path / "idx").mkdir()
    write_idx(tmp_path / "idx" / TRAIN, images)
    write_idx(tmp_path / "idx" / TEST, images)
    place, mine, idx = str(tmp_path), str(tmp_path / "mine"), str(tmp_path / "idx")
    assert located("plants", "nltcs") == ("plants", None)
    assert located(f"{mine}/mine.npz", "nltcs") == (f"{mine}/mine.npz", None)
    assert located(place, "nltcs") == ("nltcs", place)
    assert located(f"{place}/density", "nltcs") == ("nltcs", f"{place}/density")
    assert located(mine, "nltcs") == (mine, None)
    assert located(idx, "mnist") == ("mnist", idx)
    assert located(idx, "digits") == (idx, None)
    assert located(place, "digits") == ("digits", place)
    with pytest.raises(DataError, match=r"no data set 'plants' in .*: looked for plants/plants\.npz, plants/plants"):
        located(place, "plants")


def test_a_folder_with_half_of_the_files_or_none_is_refused(
    tmp_path: Path, images: np.ndarray, write_idx: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match="holds no data set: expected"):
        find(str(tmp_path))
    write_idx(tmp_path / TRAIN, images)
    with pytest.raises(DataError, match="holds one of"):
        find(str(tmp_path))


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        DataError, match=r"no data set 'nmist' \(did you mean mnist\?\): expected digits, mnist, .* path"
    ):
        find("nmist")


def test_a_known_data_set_that_is_nowhere_is_refused_with_what_was_looked_for_and_where() -> None:
    with pytest.raises(
        DataError,
        match=r"no data set 'dna' in .*no-cache/ebm: looked for dna/dna\.npz, .*density/dna\.npz, .*--data PATH",
    ):
        find("dna")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(params=["mnist", "fashion_mnist"])
def mirrored(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    images: np.ndarray,
    write_idx: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[str, Path]]:
    """Two mirrors on this machine, `bad/` and `good/`, with synthetic images; the good ones have the right SHA-256."""
    sums = {}
    contents = {TRAIN: images, TRAIN_LABELS: LABELS, TEST: images[:9], TEST_LABELS: LABELS[:9]}
    for name, part in ((f"{name}.gz", part) for name, part in contents.items()):
        for mirror in ("bad", "good"):
            (tmp_path / "web" / mirror).mkdir(parents=True, exist_ok=True)
            write_idx(tmp_path / "web" / mirror / name, part if mirror == "good" else part[::-1])
        sums[name] = hashlib.sha256((tmp_path / "web" / "good" / name).read_bytes()).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(downloads.MIRRORS, request.param, (f"{here}/none/", f"{here}/bad/", f"{here}/good/"))
    monkeypatch.setitem(downloads.SHA256, request.param, sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield request.param, tmp_path / "web"
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_is_downloaded_from_the_first_mirror_whose_checksum_is_right_and_kept(
    mirrored: tuple[str, Path], images: np.ndarray
) -> None:
    name, web = mirrored
    for _ in range(2):
        source = find(name)
        np.testing.assert_array_equal(source.train.examples, images)
        np.testing.assert_array_equal(source.train.labels, LABELS)
        for file in (web / "good").iterdir():
            file.unlink()  # the second time there is nothing to download


def test_a_cache_that_lacks_a_file_is_completed(mirrored: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = mirrored
    find(name)
    (tmp_path / "cache" / "ebm" / name / f"{TEST_LABELS}.gz").unlink()
    source = find(name)
    assert source.test is not None
    np.testing.assert_array_equal(source.test.labels, LABELS[:9])


def test_a_wrong_checksum_is_refused_and_nothing_of_it_is_kept(mirrored: tuple[str, Path], tmp_path: Path) -> None:
    name, web = mirrored
    for file in (web / "good").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"--data PATH or set EBM_DATA_DIR.*SHA-256 is [0-9a-f]{64}, expected"):
        find(name)
    assert not list((tmp_path / "cache").rglob("*.gz"))
