"""Bring your own weights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import BernoulliRBM

from models import arrays, checkpoint
from models.errors import CheckpointError
from models.family import HasFeatures

RNG = np.random.default_rng(0)


def test_a_fitted_scikit_learn_rbm_becomes_a_checkpoint_with_its_energies_and_features(tmp_path: Path) -> None:
    x = load_digits().data / 16
    rbm = BernoulliRBM(n_components=20, n_iter=2, random_state=0).fit(x)
    loaded = checkpoint.read(arrays.write_scikit_learn(tmp_path, "digits", rbm, shape=[8, 8], reference=x[:300]))
    model = loaded.model
    assert loaded.manifest.visible.domain == "unit"
    assert loaded.manifest.visible.shape == [8, 8]
    assert isinstance(model, HasFeatures)
    np.testing.assert_allclose(model.energy(torch.from_numpy(x)), rbm._free_energy(x), atol=1e-9)
    np.testing.assert_allclose(model.features(torch.from_numpy(x)), rbm.transform(x), atol=1e-9)
    assert loaded.reference is not None
    np.testing.assert_allclose(loaded.reference.energies, np.sort(rbm._free_energy(x[:300])), atol=1e-9)
    assert loaded.reference.examples is not None
    assert loaded.reference.examples.shape == (256, 64)


def test_an_unfitted_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not fitted"):
        arrays.write_scikit_learn(tmp_path, "digits", BernoulliRBM())
    assert list(tmp_path.iterdir()) == []


def test_plain_arrays_become_models_of_any_family(tmp_path: Path) -> None:
    normal = RNG.normal
    deep = {"W1": normal(size=(4, 3)), "W2": normal(size=(3, 2)), "b0": [0.0] * 4, "b1": [0.0] * 3, "b2": [0.0] * 2}
    cases = {
        "rbm": {"W": normal(size=(4, 3)), "b": normal(size=4), "c": normal(size=3)},
        "grbm": {"W": normal(size=(4, 3)), "b": normal(size=4), "c": normal(size=3), "log_sigma": normal(size=4)},
        "dbm": deep,
        "dbn": deep,
        "bm": {"W": np.array([[0.0, 1.0], [1.0, 0.0]]), "b": [0.0, 1.0]},
    }
    for family, given in cases.items():
        loaded = checkpoint.read(arrays.write(tmp_path, family, family, given))
        assert loaded.manifest.family == family
        assert set(loaded.model.tensors()) == set(given)
        for name, array in given.items():
            np.testing.assert_array_equal(loaded.model.tensors()[name], np.asarray(array))
    assert checkpoint.read(tmp_path / "dbm" / "1").manifest.config == {"layers": [4, 3, 2]}
    assert checkpoint.read(tmp_path / "grbm" / "1").manifest.visible.domain == "real"


def test_float32_stays_float32_and_labels_come_with_their_names(tmp_path: Path) -> None:
    given = {name: RNG.normal(size=size).astype(np.float32) for name, size in
             {"W": (4, 3), "b": 4, "c": 3, "U": (2, 3), "d": 2}.items()}  # fmt: skip
    loaded = checkpoint.read(arrays.write(tmp_path, "pets", "rbm", given, shape=[2, 2], classes=["cat", "dog"]))
    assert loaded.model.dtype == torch.float32
    assert loaded.manifest.classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("family", "given", "fault"),
    [
        ("rbm", {"W": np.zeros((4, 3)), "c": np.zeros(3)}, "biases of the visible units are missing"),
        ("rbm", {"W": np.zeros((4, 3)), "b": np.zeros(4), "c": np.zeros(2)}, r"tensor W has shape \[4, 3\]"),
        ("rbm", {"W": np.full((4, 3), np.nan), "b": np.zeros(4), "c": np.zeros(3)}, "NaN"),
        ("bm", {"W": np.ones((2, 2)), "b": np.zeros(2)}, "zero diagonal"),
        ("rmb", {"W": np.zeros((4, 3))}, "family 'rmb' is unknown"),
    ],
)
def test_faulty_arrays_are_named_and_nothing_is_written(
    tmp_path: Path, family: str, given: dict[str, np.ndarray], fault: str
) -> None:
    with pytest.raises(CheckpointError, match=fault):
        arrays.write(tmp_path, "mine", family, given)
    assert list(tmp_path.iterdir()) == []


def test_reference_examples_must_fit_the_model(tmp_path: Path) -> None:
    given = {"W": np.zeros((4, 3)), "b": np.zeros(4), "c": np.zeros(3)}
    with pytest.raises(CheckpointError, match="reference has 5 values a row; expected 4"):
        arrays.write(tmp_path, "mine", "rbm", given, reference=np.zeros((10, 5)))


def test_the_example_in_the_documentation_runs(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    example = re.findall(r"```python\n(.*?)```", (root / "docs" / "families" / "rbm.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text("\n".join(example))
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert checkpoint.read(tmp_path / done.stdout.strip()).manifest.name == "my-digits"
