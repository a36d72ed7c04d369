"""The files of jobs: whole or not there, checked when read, and never outside their folder."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from service.store.files import JobFiles, StoreError

ARRAYS = {
    "values": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "mask": np.array([[True, False]]),
    "scalar": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 5), dtype=np.uint8),
}
TRICKS = ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "a\0b", "a.b", "-a", "a\n", "ä", "a" * 129]


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", TRICKS)
def test_no_name_leads_out_of_the_folder(files: JobFiles, tmp_path: Path, name: str) -> None:
    for use in (
        lambda: files.write_inputs(name, ARRAYS),
        lambda: files.read_inputs(name),
        lambda: files.write_state(name, 1, ARRAYS),
        lambda: files.remove(name),
        lambda: files.create_array(name, "draws", (1,), np.uint8),
        lambda: files.create_array("job", name, (1,), np.uint8),
        lambda: files.open_array("job", name),
    ):
        with pytest.raises(ValueError, match="expected up to 128 letters"):
            use()
    with pytest.raises(StoreError, match="not the file of a state"):
        files.read_state("job", {"file": name, "sha256": "", "step": 1})
    assert {path.name for path in tmp_path.rglob("*")} <= {"jobs", "job"}


def test_inputs_come_back_as_they_were(files: JobFiles) -> None:
    files.write_inputs("job", {"other": np.zeros(3)})
    files.write_inputs("job", ARRAYS)
    assert_same(files.read_inputs("job"), ARRAYS)


def test_missing_and_damaged_inputs_are_told_apart(files: JobFiles) -> None:
    with pytest.raises(StoreError, match="missing"):
        files.read_inputs("job")
    files.write_inputs("job", ARRAYS)
    path = files.folder("job") / "inputs.safetensors"
    for content in (b"", path.read_bytes()[:-1], pickle.dumps(ARRAYS)):
        path.write_bytes(content)
        with pytest.raises(StoreError, match="damaged"):
            files.read_inputs("job")


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([{}], dtype=object)])
def test_arrays_of_anything_but_numbers_are_refused(files: JobFiles, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="plain numbers"):
        files.write_inputs("job", {"a": array})


def test_states_are_read_by_their_pointers(files: JobFiles) -> None:
    first = files.write_state("job", 20, {"v": np.zeros(4)})
    second = files.write_state("job", 100, ARRAYS)
    assert (first["step"], second["step"]) == (20, 100)
    assert_same(files.read_state("job", first), {"v": np.zeros(4)})
    assert_same(files.read_state("job", second), ARRAYS)
    assert files.write_state("job", 100, ARRAYS) == second


def test_a_state_that_changed_is_not_resumed_from(files: JobFiles) -> None:
    pointer = files.write_state("job", 20, ARRAYS)
    path = files.folder("job") / pointer["file"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="SHA-256"):
        files.read_state("job", pointer)
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        files.read_state("job", pointer)


def test_other_bytes_for_the_same_step_leave_a_pointer_valid(files: JobFiles) -> None:
    pointer = files.write_state("job", 20, ARRAYS)
    files.write_state("job", 20, {"zombie": np.ones(3)})
    assert_same(files.read_state("job", pointer), ARRAYS)


def test_pruning_keeps_the_pointer_and_what_is_newer(files: JobFiles) -> None:
    pointers = [files.write_state("job", step, {"v": np.full(2, step)}) for step in (9, 10, 100)]
    files.write_inputs("job", ARRAYS)
    files.create_array("job", "draws", (2,), np.uint8)
    files.prune_states("job", pointers[1])
    files.prune_states("job", pointers[1])
    files.prune_states("nosuch", pointers[1])
    assert {path.name for path in files.folder("job").iterdir()} == {
        pointers[1]["file"],
        pointers[2]["file"],
        "inputs.safetensors",
        "draws.npy",
    }


@pytest.mark.parametrize("dtype", ["uint8", "bool", ">f4", "int64"])
def test_an_array_is_written_in_place_and_reopened_as_it_is(files: JobFiles, dtype: str) -> None:
    array = files.create_array("job", "draws", (3, 5), dtype)
    assert not array.any()
    array[1] = 1
    array.flush()
    again = files.create_array("job", "draws", (3, 5), np.dtype(dtype))
    np.testing.assert_array_equal(again, array)
    again[2, 0] = 1
    again.flush()
    read = files.open_array("job", "draws")
    assert (read.shape, read.dtype) == ((3, 5), np.dtype(dtype))
    assert read.sum() == 6
    assert not read.flags.writeable
    np.testing.assert_array_equal(np.load(files.folder("job") / "draws.npy"), read)


def test_an_array_has_its_space_from_the_start(files: JobFiles) -> None:
    files.create_array("job", "draws", (1000, 1000), np.float64)
    if sys.platform == "linux":
        assert (files.folder("job") / "draws.npy").stat().st_blocks * 512 >= 8_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    program = """
import errno, resource, signal, sys
from pathlib import Path
import numpy as np
from service.store.files import JobFiles

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
    lambda: JobFiles(Path(sys.argv[1])).create_array("job", "draws", (10000,), np.uint8),
    lambda: JobFiles(Path(sys.argv[1])).write_inputs("job", {"a": np.zeros(10000)}),
):
    try:
        write()
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "EFBIG\nEFBIG\n"
    assert list((tmp_path / "jobs" / "job").iterdir()) == []


def test_another_shape_or_type_under_the_name_is_refused(files: JobFiles) -> None:
    files.create_array("job", "draws", (2, 3), np.uint8)
    for shape, dtype in (((3, 2), np.uint8), ((2, 3), np.int8)):
        with pytest.raises(StoreError, match=r"holds \(2, 3\) of uint8"):
            files.create_array("job", "draws", shape, dtype)


@pytest.mark.parametrize(("shape", "dtype"), [((0,), "u1"), ((2, 0), "u1"), ((2,), object), ((2,), "S0")])
def test_arrays_without_plain_elements_are_refused(files: JobFiles, shape: tuple[int, ...], dtype: object) -> None:
    with pytest.raises(ValueError, match="plain type"):
        files.create_array("job", "draws", shape, dtype)  # type: ignore[arg-type]


def test_workers_that_create_one_array_at_once_write_into_the_same(files: JobFiles) -> None:
    for round_ in range(20):
        start = threading.Barrier(4)

        def write(row: int, job: str = f"job-{round_}", start: threading.Barrier = start) -> None:
            start.wait()
            array = files.create_array(job, "draws", (4, 8), np.uint8)
            array[row] = row + 1
            array.flush()

        threads = [threading.Thread(target=write, args=(row,)) for row in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert files.open_array(f"job-{round_}", "draws").sum(axis=1).tolist() == [8, 16, 24, 32]


def test_missing_damaged_and_pickled_arrays_are_refused(files: JobFiles) -> None:
    with pytest.raises(StoreError, match="missing"):
        files.open_array("job", "draws")
    files.create_array("job", "draws", (100,), np.uint8)
    path = files.folder("job") / "draws.npy"
    whole = path.read_bytes()
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for content in (b"", whole[:20], whole[:-1], path.read_bytes(), pickle.dumps(1)):
        path.write_bytes(content)
        with pytest.raises(StoreError, match="damaged"):
            files.open_array("job", "draws")


def test_a_removed_job_leaves_nothing_and_others_stay(files: JobFiles, tmp_path: Path) -> None:
    files.write_inputs("kept", ARRAYS)
    files.write_inputs("job", ARRAYS)
    files.create_array("job", "draws", (2,), np.uint8)
    files.write_state("job", 1, ARRAYS)
    files.remove("job")
    files.remove("job")
    assert os.listdir(tmp_path / "jobs") == ["kept"]
