"""Every way in which a checkpoint can be wrong gets its own clear refusal; nothing in it is ever run."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from models import checkpoint
from models.errors import CheckpointError, ModelError
from models.families.grbm import GRBM
from models.families.rbm import RBM

MANIFEST: dict[str, Any] = {
    "format": "ebm-checkpoint",
    "format_version": 1,
    "name": "m",
    "version": 1,
    "family": "rbm",
    "visible": {"shape": [2], "domain": "binary"},
}
TENSORS = {"W": torch.ones(2, 3), "b": torch.zeros(2), "c": torch.zeros(3)}
HEADER: dict[str, Any] = {
    "W": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
    "c": {"dtype": "F32", "shape": [3], "data_offsets": [32, 44]},
}


def raw(header: dict[str, Any] | bytes, data: bytes = bytes(44), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that is right."""
    place = tmp_path / "m" / "1"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(json.dumps(MANIFEST))
    (place / "weights.safetensors").write_bytes(save(TENSORS))
    return place


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        checkpoint.read(folder)
    for word in words:
        assert word in str(error.value)


def test_it_is_right_before_it_is_broken(folder: Path) -> None:
    assert isinstance(checkpoint.read(folder).model, RBM)


# --- manifest.json ---


def test_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    refused(folder, "manifest.json cannot be read: No such file")


def test_no_folder(folder: Path) -> None:
    refused(folder.parent / "2", "manifest.json cannot be read: No such file")


def test_a_folder_for_a_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    refused(folder, "manifest.json cannot be read: Is a directory")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b'"x"', b"{}", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' * 5000, b"\x80\x04K\x01."],
)
def test_a_manifest_that_is_not_a_json_object(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    refused(folder, "manifest.json:")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("key", ["note", "training", "config"])
def test_a_constant_that_json_does_not_have(folder: Path, constant: str, key: str) -> None:
    text = json.dumps(MANIFEST | {key: {"metrics": {"nll": "HERE"}}}).replace('"HERE"', constant)
    (folder / "manifest.json").write_text(text)
    refused(folder, "manifest.json:", constant)


def test_a_number_beyond_all_bounds(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps(MANIFEST)[:-1] + ', "n": ' + "9" * 10_000 + "}")
    refused(folder, "manifest.json:")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", "onnx", "format: Input should be 'ebm-checkpoint'"),
        ("format_version", 2, "format_version: Input should be 1"),
        ("name", "../../etc", "name: String should match pattern"),
        ("name", "..", "name: String should match pattern"),
        ("name", "a\n", "name: String should match pattern"),
        ("name", 3, "name: Input should be a valid string"),
        ("version", 0, "version: Input should be greater than or equal to 1"),
        ("version", "latest", "version: Input should be a valid integer"),
        ("family", None, "family: Input should be a valid string"),
        ("family", "transformer", "family 'transformer' is unknown; known: "),
        ("visible", {"shape": [2]}, "visible.domain: Field required"),
        ("visible", {"shape": [2], "domain": "ternary"}, "visible.domain: Input should be 'binary', 'spin', 'real' or"),
        ("visible", {"shape": [2], "domain": "spin"}, "family 'rbm' has no visible domain 'spin'; it has binary, unit"),
        ("visible", {"shape": [], "domain": "binary"}, "visible.shape: List should have at least 1 item"),
        ("visible", {"shape": [2, 0], "domain": "binary"}, "visible.shape: Value error, every size must be at least 1"),
        ("visible", {"shape": [2, -1], "domain": "binary"}, "every size must be at least 1"),
        ("visible", {"shape": [3], "domain": "binary"}, "tensor W has shape [2, 3]; expected [3, 3]"),
        ("visible", {"shape": [10**30], "domain": "binary"}, "tensor W has shape [2, 3]; expected [1"),
        (
            "log_partition",
            {"value": "much", "stderr": 0, "method": "x"},
            "log_partition.value: Input should be a valid",
        ),
        ("log_partition", {"value": 1, "stderr": -1, "method": "x"}, "log_partition.stderr: Input should be greater"),
        ("log_partition", 3, "log_partition: "),
        ("preprocessing", {}, "either mean and std, or scale"),
        ("preprocessing", {"scale": 2, "mean": 0}, "either mean and std, or scale"),
        ("preprocessing", {"mean": 0, "std": 0}, "every standard deviation must be above 0"),
        ("preprocessing", {"mean": [0, 0], "std": [1, -1]}, "every standard deviation must be above 0"),
        ("config", [], "config: Input should be an object"),
        ("digest", 5, "digest: Input should be a valid string"),
        ("training", {"seed": "x"}, "training.seed: Input should be a valid integer"),
    ],
)
def test_a_key_with_a_wrong_value_is_named(folder: Path, key: str, value: object, said: str) -> None:
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | {key: value}))
    refused(folder, said)


@pytest.mark.parametrize("key", ["name", "version", "family", "visible"])
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    (folder / "manifest.json").write_text(json.dumps({k: v for k, v in MANIFEST.items() if k != key}))
    refused(folder, f"manifest.json: {key}: Field required")


def test_all_faults_are_named_at_once(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | {"version": 0, "family": 1}))
    refused(folder, "version:", "family:")


# --- weights.safetensors ---


def test_no_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    refused(folder, "weights.safetensors cannot be read: No such file")


@pytest.mark.parametrize("digest", ["0" * 64, "", "sha256:", "sha512:" + "0" * 128])
def test_weights_that_are_not_those_the_digest_is_of(folder: Path, digest: str) -> None:
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | {"digest": digest}))
    refused(folder, "weights.safetensors has SHA-256", "changed or damaged")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 50, 100, 200, -45, -44, -1])
def test_truncated_weights(folder: Path, kept: int) -> None:
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[:kept])
    refused(folder, "weights.safetensors is not a valid safetensors file")


def edited(name: str, **changes: Any) -> dict[str, Any]:
    return HEADER | {name: HEADER[name] | changes}


@pytest.mark.parametrize(
    "content",
    [
        raw(HEADER, length=2**63),
        raw(HEADER, length=100_000_001),
        raw(HEADER, length=0),
        raw(HEADER, length=10),
        raw(b"not json at all   "),
        raw(b"\xff" * 16),
        raw(b"[" * 5000),
        raw(edited("W", shape=[2, 4])),
        raw(edited("W", shape=[2**62, 2**62])),
        raw(edited("W", shape=[-2, -3])),
        raw(edited("W", data_offsets=[0, 28])),
        raw(edited("W", data_offsets=[24, 0])),
        raw(edited("b", data_offsets=[0, 8])),
        raw(edited("c", data_offsets=[36, 48]), bytes(48)),
        raw(edited("c", data_offsets=[2**62, 2**62 + 12])),
        raw(edited("W", dtype="F64")),
        raw(edited("W", dtype="Q7")),
        raw(HEADER, bytes(48)),
        raw(HEADER | {"x": 3}),
        pickle.dumps(TENSORS["W"].numpy()),
        b"PK\x03\x04" + bytes(200),
    ],
)
def test_a_header_that_lies(folder: Path, content: bytes) -> None:
    (folder / "weights.safetensors").write_bytes(content)
    refused(folder, "weights.safetensors is not a valid safetensors file")


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("file", ["weights.safetensors", "reference.safetensors", "manifest.json"])
def test_a_pickle_is_refused_and_not_run(folder: Path, file: str, tmp_path: Path) -> None:
    (folder / file).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refused(folder, file)
    torch.save(Trap(tmp_path / "sprung"), folder / file)
    refused(folder, file)
    assert not (tmp_path / "sprung").exists()


def write_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    (folder / "weights.safetensors").write_bytes(save(tensors))


@pytest.mark.parametrize("name", ["W", "b", "c"])
def test_a_missing_tensor_is_named_with_the_shape_expected(folder: Path, name: str) -> None:
    write_weights(folder, {n: t for n, t in TENSORS.items() if n != name})
    refused(folder, f"tensor {name} is missing; expected shape {list(TENSORS[name].shape)}")


def test_an_empty_weights_file_misses_its_first_tensor(folder: Path) -> None:
    write_weights(folder, {})
    refused(folder, "tensor W is missing; expected shape [2, 1]")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("W", (3, 2), "tensor W has shape [3, 2]; expected [2, 3]"),
        ("W", (6,), "tensor W has shape [6]; expected [2, 3]"),
        ("W", (2, 3, 1), "tensor W has shape [2, 3, 1]; expected [2, 3]"),
        ("b", (3,), "tensor b has shape [3]; expected [2]"),
        ("b", (), "tensor b has shape []; expected [2]"),
        ("c", (1, 3), "tensor W has shape [2, 3]; expected [2, 1]"),
        ("c", (4,), "tensor W has shape [2, 3]; expected [2, 4]"),
        ("c", (), "tensor c has shape []; expected [3]"),
    ],
)
def test_a_mis_shaped_tensor_is_named_with_both_shapes(
    folder: Path, name: str, shape: tuple[int, ...], said: str
) -> None:
    write_weights(folder, TENSORS | {name: torch.zeros(shape)})
    refused(folder, "weights.safetensors: ", said)


def test_no_hidden_units(folder: Path) -> None:
    write_weights(folder, TENSORS | {"W": torch.zeros(2, 0), "c": torch.zeros(0)})
    refused(folder, "tensor W has shape [2, 0]; expected [2, 1]")


def test_a_tensor_too_many_is_named(folder: Path) -> None:
    write_weights(folder, TENSORS | {"log_sigma": torch.zeros(2)})
    refused(folder, "tensor log_sigma is not part of family 'rbm', whose tensors are W, b, c")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["W", "b", "c"])
def test_a_tensor_with_a_value_that_is_no_number_is_named(folder: Path, name: str, value: float) -> None:
    broken = TENSORS[name].clone()
    broken.view(-1)[-1] = value
    write_weights(folder, TENSORS | {name: broken})
    refused(folder, f"tensor {name} holds NaN or infinite values")


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_a_tensor_that_is_not_of_a_floating_type_is_named(folder: Path, dtype: torch.dtype) -> None:
    write_weights(folder, TENSORS | {"W": TENSORS["W"].to(dtype)})
    found = str(dtype).removeprefix("torch.")
    refused(folder, f"tensor W has type {found}; expected float32, float64, float16, bfloat16")


# --- reference.safetensors ---


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "expected a floating-point vector `energies`, found []"),
        ({"energies": torch.zeros(2, 2)}, "expected a floating-point vector `energies`, found ['energies']"),
        ({"energies": torch.zeros(3).int()}, "expected a floating-point vector `energies`, found ['energies']"),
        ({"p": torch.zeros(3), "q": torch.zeros(3)}, "expected a floating-point vector `energies`, found ['p', 'q']"),
        ({"energies": torch.zeros(0)}, "tensor energies must hold at least one energy, all finite"),
        ({"energies": torch.tensor([1.0, torch.nan])}, "tensor energies must hold at least one energy, all finite"),
        ({"energies": torch.ones(3), "examples": torch.zeros(3)}, "tensor examples has shape [3]; expected [m, 2]"),
        ({"energies": torch.ones(3), "examples": torch.zeros(4, 3)}, "examples has shape [4, 3]; expected [m, 2]"),
        ({"energies": torch.ones(3), "examples": torch.full((1, 2), torch.nan)}, "examples holds NaN or infinite"),
    ],
)
def test_a_reference_that_is_none(folder: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    (folder / "reference.safetensors").write_bytes(save(tensors))
    refused(folder, "reference.safetensors", said)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["energies", "quantiles"])
def test_a_reference_is_read_in_every_precision_and_by_its_only_vector(
    folder: Path, dtype: torch.dtype, name: str
) -> None:
    tensors = {name: torch.tensor([2.0, -1.0, 0.5]).to(dtype), "examples": torch.eye(2).to(dtype)}
    (folder / "reference.safetensors").write_bytes(save(tensors))
    reference = checkpoint.read(folder).reference
    assert reference is not None
    assert reference.energies.tolist() == [-1.0, 0.5, 2.0]
    assert reference.examples is not None
    assert reference.examples.tolist() == [[1.0, 0.0], [0.0, 1.0]]


# --- anything at all ---


@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json"])
def test_no_damage_to_a_file_gives_anything_but_a_refusal_or_a_model(folder: Path, file: str) -> None:
    whole = (folder / file).read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(int(generator.integers(1, 4))):
            damaged[int(generator.integers(0, len(damaged)))] = int(generator.integers(0, 256))
        (folder / file).write_bytes(bytes(damaged))
        try:
            checkpoint.read(folder)
        except ModelError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
    assert outcomes == {"read", "refused"}


# --- the other layered machines ---


def layered(folder: Path, family: str, tensors: dict[str, torch.Tensor], **keys: Any) -> None:
    """What `folder` holds becomes a checkpoint of another family."""
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | {"family": family} | keys))
    write_weights(folder, tensors)


REAL = {"shape": [2], "domain": "real"}
GRBM_TENSORS = TENSORS | {"log_sigma": torch.zeros(2)}
DBM_TENSORS = {
    "W1": torch.ones(2, 3),
    "W2": torch.ones(3, 4),
    "b0": torch.zeros(2),
    "b1": torch.zeros(3),
    "b2": torch.zeros(4),
}
LABELS = {"U": torch.ones(5, 4), "d": torch.zeros(5)}
NET = {"V1": torch.ones(2, 3), "a1": torch.zeros(3), "V2": torch.ones(3, 4), "a2": torch.zeros(4)}
LAYERS = {"layers": [2, 3, 4]}


def test_they_are_right_before_they_are_broken(folder: Path) -> None:
    layered(folder, "grbm", GRBM_TENSORS, visible=REAL)
    assert checkpoint.read(folder).model.name == "grbm"
    for domain in ("binary", "unit"):
        layered(folder, "dbm", DBM_TENSORS, config=LAYERS, visible={"shape": [2], "domain": domain})
        assert checkpoint.read(folder).model.name == "dbm"
    everything = DBM_TENSORS | LABELS | NET | {"log_sigma": torch.zeros(2)}
    layered(folder, "dbm", everything, config=LAYERS, visible=REAL, classes=[*"abcde"])
    assert "classify" in checkpoint.read(folder).model.capabilities()
    layered(folder, "rbm", TENSORS | {"U": torch.ones(5, 3), "d": torch.zeros(5)})  # classes without names
    assert "classify" in checkpoint.read(folder).model.capabilities()


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("W2", "tensor W2 is missing; expected shape [3, 4]"),
        ("b0", "tensor b0 is missing; expected shape [2]"),
        ("b2", "tensor b2 is missing; expected shape [4]"),
        ("U", "tensor U is missing; expected shape [5, 4]"),
        ("d", "tensor d is missing; expected shape [5]"),
        ("V1", "tensor V1 is missing; expected shape [2, 3]"),
        ("a2", "tensor a2 is missing; expected shape [4]"),
        ("log_sigma", "tensor log_sigma is missing; expected shape [2]"),
    ],
)
def test_a_missing_tensor_of_a_deep_machine_is_named(folder: Path, left_out: str, said: str) -> None:
    tensors = DBM_TENSORS | LABELS | NET | {"log_sigma": torch.zeros(2)}
    del tensors[left_out]
    layered(folder, "dbm", tensors, config=LAYERS, visible=REAL, classes=[*"abcde"])
    refused(folder, said)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "config.layers must be a list [D, H1, .., Hk] of positive integers; found None"),
        ({"layers": []}, "config.layers must be a list"),
        ({"layers": [2]}, "config.layers must be a list"),
        ({"layers": [2, 3, 0]}, "config.layers must be a list"),
        ({"layers": [2, 3, -4]}, "config.layers must be a list"),
        ({"layers": [2, 3, 4.0]}, "config.layers must be a list"),
        ({"layers": [2, True, 4]}, "config.layers must be a list"),
        ({"layers": "2-3-4"}, "config.layers must be a list"),
        ({"layers": {"0": 2}}, "config.layers must be a list"),
        ({"layers": [3, 3, 4]}, "config.layers begins with 3, but there are 2 visibles"),
        ({"layers": [2, 4, 4]}, "tensor W1 has shape [2, 3]; expected [2, 4]"),
        ({"layers": [2, 3]}, "tensor W2 is not part of family 'dbm'"),
        ({"layers": [2, 3, 4, 5]}, "tensor W3 is missing; expected shape [4, 5]"),
    ],
)
def test_layers_that_do_not_fit_are_refused(folder: Path, config: dict[str, Any], said: str) -> None:
    layered(folder, "dbm", DBM_TENSORS, config=config)
    refused(folder, said)


@pytest.mark.parametrize(
    ("tensors", "keys", "said"),
    [
        (DBM_TENSORS | LABELS, {"classes": [*"abc"]}, "tensor U has shape [5, 4]; expected [3, 4]"),
        (DBM_TENSORS, {"classes": [*"abc"]}, "tensor U is missing; expected shape [3, 4]"),
        (DBM_TENSORS | {"U": torch.ones(5, 4)}, {}, "tensor U has shape [5, 4]; expected [1, 4]"),
        (DBM_TENSORS | {"U": torch.ones(5, 4), "d": torch.zeros(())}, {}, "expected [1, 4]"),
        (DBM_TENSORS | {"log_sigma": torch.zeros(2)}, {}, "tensor log_sigma is not part of family 'dbm'"),
        (DBM_TENSORS | {"V9": torch.zeros(2)}, {}, "tensor V1 is missing; expected shape [2, 3]"),
    ],
)
def test_labels_and_recognition_nets_that_do_not_fit_are_refused(
    folder: Path, tensors: dict[str, torch.Tensor], keys: dict[str, Any], said: str
) -> None:
    layered(folder, "dbm", tensors, config=LAYERS, **keys)
    refused(folder, said)


@pytest.mark.parametrize(
    ("family", "domain", "said"),
    [
        ("grbm", "binary", "family 'grbm' has no visible domain 'binary'; it has real"),
        ("grbm", "unit", "family 'grbm' has no visible domain 'unit'; it has real"),
        ("dbm", "spin", "family 'dbm' has no visible domain 'spin'; it has binary, real, unit"),
        ("rbm", "real", "family 'rbm' has no visible domain 'real'; it has binary, unit"),
    ],
)
def test_a_domain_of_another_family_is_refused(folder: Path, family: str, domain: str, said: str) -> None:
    layered(folder, family, GRBM_TENSORS, visible={"shape": [2], "domain": domain})
    refused(folder, said)


def test_a_gaussian_machine_needs_its_log_sigma(folder: Path) -> None:
    layered(folder, "grbm", TENSORS, visible=REAL)
    refused(folder, "tensor log_sigma is missing; expected shape [2]")


@pytest.mark.parametrize("value", [41.0, -41.0, 1e3, -1e3, 1e30])
def test_a_log_sigma_whose_exponential_is_no_number_is_refused(folder: Path, value: float) -> None:
    log_sigma = {"log_sigma": torch.tensor([0.0, value])}
    layered(folder, "grbm", TENSORS | log_sigma, visible=REAL)
    refused(folder, "tensor log_sigma holds logarithms of standard deviations beyond +-40")
    layered(folder, "dbm", DBM_TENSORS | log_sigma, visible=REAL, config=LAYERS)
    refused(folder, "tensor log_sigma holds logarithms of standard deviations beyond +-40")


@pytest.mark.parametrize("value", [40.0, -40.0])
def test_energies_and_scores_are_numbers_up_to_the_largest_and_smallest_sigma(folder: Path, value: float) -> None:
    layered(folder, "grbm", TENSORS | {"log_sigma": torch.full((2,), value)}, visible=REAL)
    model = checkpoint.read(folder).model
    x = torch.ones(1, 2)
    assert bool(torch.isfinite(model.energy(x)).all())
    assert isinstance(model, GRBM)
    assert bool(torch.isfinite(model.score(x)).all())
