"""Checkpoint folders: what is written can be read, appears whole or not at all, and is never given to two writers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import checkpoint
from models.checkpoint import Reference
from models.errors import CheckpointError
from models.families.rbm import RBM
from models.manifest import LogPartitionRecord, Manifest, Training, Visible, check_name
from tests.models import cases
from tests.models.cases import rbm

ROOT = Path(__file__).parents[2]

# Written byte by byte from the safetensors specification: an 8-byte length, a JSON header, little-endian data.
GOLDEN_WEIGHTS = base64.b64decode(
    "qAAAAAAAAAB7IlciOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzIsM10sImRhdGFfb2Zmc2V0cyI6WzAsMjRdfSwiYiI6eyJkdHlwZSI6IkYzMiIs"
    "InNoYXBlIjpbMl0sImRhdGFfb2Zmc2V0cyI6WzI0LDMyXX0sImMiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzNdLCJkYXRhX29mZnNldHMiOlsz"
    "Miw0NF19fSAAAAA/AACgvwAAAEAAAEBAAAAAvG8SgzoAAIA+AACAwAAAgD8AAAAAAAAgwA=="
)
GOLDEN_DIGEST = "e3580fe5f4bbd3e05fd5ec62f1bc711d2179cbfe2b85efb8cc0ee550efd53fdb"
GOLDEN_MANIFEST = """{
  "format": "ebm-checkpoint", "format_version": 1, "name": "golden", "version": 7, "family": "rbm",
  "visible": {"shape": [1, 2], "domain": "binary", "axis_names": ["row", "column"]},
  "classes": null, "config": {"note": "by hand"},
  "log_partition": {"value": 5.25, "stderr": 0.0, "method": "exact"},
  "training": {"objective": "cd", "dataset": "none", "steps": 3, "epochs": null, "seed": 1, "metrics": {"nll": 1.5},
               "command": "ebm train x", "created_at": "2026-11-23T00:00:00Z", "library_versions": {"torch": "2.13.0"}},
  "digest": "%s",
  "preprocessing": {"scale": 0.00392156862745098},
  "author": {"name": "someone", "orcid": [1, 2, 3]}
}"""


def manifest_of(model: RBM, name: str = "small", **more: object) -> Manifest:
    visible = Visible(shape=[model.W.shape[0]], domain=model.domain)
    return Manifest.model_validate({"name": name, "version": 1, "family": "rbm", "visible": visible, **more})


def golden(tmp_path: Path, manifest: str = GOLDEN_MANIFEST % GOLDEN_DIGEST) -> Path:
    folder = tmp_path / "golden" / "7"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(GOLDEN_WEIGHTS)
    (folder / "manifest.json").write_text(manifest)
    return folder


# --- reading ---


@pytest.mark.parametrize("digest", [GOLDEN_DIGEST, GOLDEN_DIGEST.upper(), "sha256:" + GOLDEN_DIGEST])
def test_golden_bytes_are_read_as_the_numbers_they_hold(tmp_path: Path, digest: str) -> None:
    read = checkpoint.read(golden(tmp_path, GOLDEN_MANIFEST % digest))
    tensors = read.model.tensors()
    assert tensors["W"].tolist() == [[0.5, -1.25, 2.0], [3.0, -0.0078125, float(np.float32(1e-3))]]
    assert tensors["b"].tolist() == [0.25, -4.0]
    assert tensors["c"].tolist() == [1.0, 0.0, -2.5]
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert read.digest == GOLDEN_DIGEST
    assert read.reference is None
    assert read.manifest.visible.units == 2
    assert read.manifest.log_partition == LogPartitionRecord(value=5.25, stderr=0.0, method="exact")
    assert read.manifest.training is not None
    assert read.manifest.training.steps == 3


def test_unknown_keys_are_kept_when_read_and_when_log_z_is_put_in(tmp_path: Path) -> None:
    folder = golden(tmp_path)
    checkpoint.set_log_partition(folder, -12.5, 0.25, "ais")
    now = json.loads((folder / "manifest.json").read_text())
    before = json.loads(GOLDEN_MANIFEST % GOLDEN_DIGEST)
    assert now.pop("log_partition") == {"value": -12.5, "stderr": 0.25, "method": "ais"}
    del before["log_partition"]
    for key, value in before.items():
        assert value == ({k: now[key][k] for k in value} if isinstance(value, dict) else now[key])
    assert checkpoint.read(folder).manifest.model_extra == {"author": before["author"]}
    assert sorted(os.listdir(folder)) == ["manifest.json", "weights.safetensors"]


def test_a_hand_made_checkpoint_needs_only_what_tells_what_it_is(tmp_path: Path) -> None:
    bare = {"format": "ebm-checkpoint", "format_version": 1, "name": "golden", "version": 7, "family": "rbm"}
    bare |= {"visible": {"shape": [2], "domain": "unit"}}
    read = checkpoint.read(golden(tmp_path, json.dumps(bare)))
    assert read.digest == GOLDEN_DIGEST
    assert read.manifest.digest is None
    assert isinstance(read.model, RBM)
    assert read.model.domain == "unit"


@pytest.mark.parametrize(
    ("stored", "read_as"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_every_floating_precision_is_read(tmp_path: Path, stored: torch.dtype, read_as: torch.dtype) -> None:
    folder = golden(tmp_path, GOLDEN_MANIFEST.replace('"digest": "%s",', ""))
    tensors = {n: t.to(stored) for n, t in rbm(2, 3, seed=4).tensors().items()}
    save_file(tensors, folder / "weights.safetensors")
    read = checkpoint.read(folder).model.tensors()
    for name, tensor in tensors.items():
        assert read[name].dtype == read_as
        assert torch.equal(read[name], tensor.to(read_as))


def test_mixed_precisions_are_read_as_the_widest(tmp_path: Path) -> None:
    folder = golden(tmp_path, GOLDEN_MANIFEST.replace('"digest": "%s",', ""))
    tensors = rbm(2, 3, seed=4).tensors()
    save_file(tensors | {"b": tensors["b"].bfloat16()}, folder / "weights.safetensors")
    assert checkpoint.read(folder).model.dtype == torch.float64


def test_a_copied_folder_is_read_under_the_place_it_lies_in(tmp_path: Path) -> None:
    # A tool may copy or rename folders: `versions` goes by the folder, and the manifest still says where it came from.
    golden(tmp_path)
    shutil.copytree(tmp_path / "golden" / "7", tmp_path / "copy" / "2")
    assert checkpoint.versions(tmp_path) == {"copy": [2], "golden": [7]}
    read = checkpoint.read(tmp_path / "copy" / "2")
    assert read.folder == tmp_path / "copy" / "2"
    assert (read.manifest.name, read.manifest.version) == ("golden", 7)
    checkpoint.set_log_partition(tmp_path / "copy" / "2", 1.0, 0.1, "ais")
    original = checkpoint.read_manifest(tmp_path / "golden" / "7").log_partition
    assert original is not None
    assert original.value == 5.25


# --- writing ---


@pytest.mark.parametrize("name", sorted(cases.FACTORIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_written_is_read_back(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    of = cases.case(name, 5, 3, dtype=dtype)
    reference = Reference(np.array([3.0, 1.0, 2.0]), np.eye(5, dtype=np.float32))
    folder = checkpoint.write(tmp_path, of.manifest, of.model, reference, b"not a picture")
    assert folder == tmp_path / of.manifest.name / "1"
    assert sorted(os.listdir(folder)) == [
        "manifest.json",
        "preview.png",
        "reference.safetensors",
        "weights.safetensors",
    ]
    read = checkpoint.read(folder)
    assert read.digest == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert read.manifest == of.manifest.model_copy(update={"version": 1, "digest": read.digest})
    written, found = of.model.tensors(), read.model.tensors()
    assert set(found) == set(written)
    assert all(torch.equal(found[tensor], written[tensor]) for tensor in written)
    x = cases.some_visibles(of, 20).to(dtype)
    assert torch.equal(read.model.energy(x), of.model.energy(x))
    assert read.reference is not None
    assert read.reference.energies.tolist() == [1.0, 2.0, 3.0]
    assert read.reference.examples is not None
    assert read.reference.examples.tolist() == np.eye(5).tolist()
    assert (folder / "preview.png").read_bytes() == b"not a picture"


def test_versions_count_up_and_the_manifests_own_is_ignored(tmp_path: Path) -> None:
    model = rbm(3, 2)
    for expected in (1, 2, 3):
        folder = checkpoint.write(tmp_path, manifest_of(model, version=99), model)
        assert folder.name == str(expected)
        assert checkpoint.read_manifest(folder).version == expected
    shutil.rmtree(tmp_path / "small" / "2")
    assert checkpoint.write(tmp_path, manifest_of(model), model).name == "4"
    assert checkpoint.versions(tmp_path) == {"small": [1, 3, 4]}


@pytest.mark.parametrize("junk", ["empty folder", "folder without manifest", "file"])
def test_a_place_that_is_taken_by_something_else_is_stepped_over(tmp_path: Path, junk: str) -> None:
    taken = tmp_path / "small" / "1"
    taken.parent.mkdir()
    if junk == "file":
        taken.write_text("notes")
    else:
        taken.mkdir()
    if junk == "folder without manifest":
        (taken / "weights.safetensors").write_bytes(GOLDEN_WEIGHTS)
    model = rbm(3, 2)
    assert checkpoint.write(tmp_path, manifest_of(model), model).name == "2"
    assert checkpoint.versions(tmp_path) == {"small": [2]}


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        folder = checkpoint.write(tmp_path, manifest_of(rbm(3, 2)), rbm(3, 2))
    finally:
        os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "manifest.json").stat().st_mode & 0o777 == 0o644


def test_a_metric_that_is_no_number_is_written_as_null(tmp_path: Path) -> None:
    model = rbm(3, 2)
    training = Training(metrics={"nll": float("nan"), "steps": 3})
    folder = checkpoint.write(tmp_path, manifest_of(model, training=training), model)
    written = checkpoint.read_manifest(folder).training
    assert written is not None
    assert written.metrics == {"nll": None, "steps": 3}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path, value: float) -> None:
    model = rbm(3, 2)
    broken = RBM(model.W, torch.full_like(model.b, value), model.c)
    with pytest.raises(CheckpointError, match="tensor b holds NaN or infinite values"):
        checkpoint.write(tmp_path, manifest_of(model), broken)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_its_manifest_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensor W has shape \[4, 2\]; expected \[3, 2\]"):
        checkpoint.write(tmp_path, manifest_of(rbm(3, 2)), rbm(4, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/abs", ".hidden", "-x", "a b", "a\n", "a\0", "ä", "x" * 129]
)
def test_a_name_that_is_no_plain_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="starting with a letter or digit"):
        check_name(name)
    model = rbm(3, 2)
    unchecked = manifest_of(model).model_copy(update={"name": name})
    with pytest.raises(CheckpointError, match="starting with a letter or digit"):
        checkpoint.write(tmp_path / "models", unchecked, model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "0", "Rbm-1.5_x", "x" * 128])
def test_a_plain_folder_name_is_a_model_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(("value", "stderr"), [(np.nan, 0.1), (np.inf, 0.1), (1.0, np.inf)])
def test_a_log_z_that_is_no_number_is_refused_and_the_manifest_stays(
    tmp_path: Path, value: float, stderr: float
) -> None:
    folder = golden(tmp_path)
    with pytest.raises(CheckpointError, match="both must be finite"):
        checkpoint.set_log_partition(folder, value, stderr, "ais")
    assert (folder / "manifest.json").read_text() == GOLDEN_MANIFEST % GOLDEN_DIGEST


def test_a_reader_sees_the_old_or_the_new_manifest_and_never_a_part(tmp_path: Path) -> None:
    # The reader holds the old file open across the replacement: it was renamed over, not written into.
    folder = golden(tmp_path)
    with (folder / "manifest.json").open() as held:
        checkpoint.set_log_partition(folder, 3.5, 0.1, "ais")
        assert held.read() == GOLDEN_MANIFEST % GOLDEN_DIGEST


# --- listing ---


def test_versions_lists_checkpoints_and_passes_over_junk(tmp_path: Path) -> None:
    for place in ("b/2", "b/10", "b/1", "a.b-c/3", ".hidden/1", "b/.writing-x", "b/01", "b/0", "b/-1", "b/1.5", "b/v4",
                  "b/ 5", "b/٣", "b/" + "9" * 30, "a b/1", "c/1/2"):  # fmt: skip
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    (tmp_path / "d" / "1").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "b" / "11").write_text("a file")
    assert checkpoint.versions(tmp_path) == {"a.b-c": [3], "b": [1, 2, 10]}


def test_versions_of_no_folder_are_none(tmp_path: Path) -> None:
    assert checkpoint.versions(tmp_path / "nowhere") == {}
    (tmp_path / "file").write_text("x")
    assert checkpoint.versions(tmp_path / "file") == {}


# --- several writers, and a writer that dies ---

PRELUDE = """
import os, signal, sys, traceback
from pathlib import Path
import torch
from models import checkpoint
from models.families.rbm import RBM
from models.manifest import Manifest, Visible
torch.set_num_threads(1)

def write(d, n):
    model = RBM(torch.full((d, 2), float(n)), torch.zeros(d), torch.zeros(2))
    manifest = Manifest(name="m", version=1, family="rbm", visible=Visible(shape=[d], domain="binary"))
    return checkpoint.write(Path(sys.argv[1]), manifest, model)

def child(work, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid
"""

RACE = """
def work(writer):
    for _ in range(6):
        write(writer, writer)
children = [child(work, writer) for writer in range(1, 6)]
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""

DEATH = """
def work(stage):
    # The process is killed at its stage-th call to the operating system: each open, mkdir, chmod, rename, ..
    calls = [0]
    def fatal(event, arguments):
        calls[0] += event.partition(".")[0] in ("open", "os", "shutil", "tempfile")
        if calls[0] == stage:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(fatal)
    write(3, stage)

write(3, 0)  # what is imported or compiled at first use is so now
for stage in range(1, 1000):
    code = os.waitstatus_to_exitcode(os.waitpid(child(work, stage), 0)[1])
    listed = checkpoint.versions(Path(sys.argv[1]))["m"]
    checkpoint.read(Path(sys.argv[1]) / "m" / str(listed[-1]))
    print(code, len(listed), flush=True)
    if code == 0:
        break
"""


def run(script: str, models_dir: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(models_dir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_processes_that_write_at_once_get_versions_of_their_own(tmp_path: Path) -> None:
    run(RACE, tmp_path)
    assert checkpoint.versions(tmp_path) == {"m": list(range(1, 31))}
    assert sorted(os.listdir(tmp_path / "m")) == sorted(str(version) for version in range(1, 31))
    writers = []
    for version in range(1, 31):
        read = checkpoint.read(tmp_path / "m" / str(version))
        assert read.manifest.version == version
        weights = read.model.tensors()["W"]
        assert weights.shape[0] == int(weights[0, 0])  # a folder's weights and manifest are of one writer
        writers.append(int(weights[0, 0]))
    assert sorted(writers) == sorted([1, 2, 3, 4, 5] * 6)


def test_a_writer_killed_at_any_point_leaves_a_whole_version_or_none(tmp_path: Path) -> None:
    # Killed before the rename nothing new is listed; after it the whole checkpoint is, and can be read. The last writer
    # succeeds on top of the leftovers of all others.
    outcomes = [[int(word) for word in line.split()] for line in run(DEATH, tmp_path).splitlines()]
    codes, listed = zip(*outcomes, strict=True)
    assert codes == (-signal.SIGKILL,) * (len(codes) - 1) + (0,)
    new = np.diff((1, *listed)).tolist()
    unpublished = new.count(0)
    assert new == [0] * unpublished + [1] * (len(new) - unpublished)
    assert unpublished >= 5
    assert len(new) - unpublished >= 2
