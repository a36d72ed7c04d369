"""The data sets that are fetched where they are nowhere to be found: from public mirrors, known by their SHA-256."""

from __future__ import annotations

import hashlib
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from training.errors import DataError

MIRRORS: Mapping[str, tuple[str, ...]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": (
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
    ),
}
SHA256: Mapping[str, Mapping[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
}
_MAX_DOWNLOAD = 64 * 2**20


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - https addresses of our own
        return bytes(answer.read(_MAX_DOWNLOAD))


def incomplete(dataset: str, folder: Path) -> bool:
    """Whether some of a data set's files are there and others not, as after a download that was broken off."""
    there = [(folder / name).exists() for name in SHA256.get(dataset, ())]
    return any(there) and not all(there)


def download(dataset: str, folder: Path, fetch: Callable[[str], bytes] = _fetch) -> None:
    """Fetch those files of a data set that `folder` lacks; each appears there only if its SHA-256 is right.

    Raises:
        DataError: no mirror gave the right bytes of one of them.
    """
    for name, expected in SHA256[dataset].items():
        if not (folder / name).exists():
            _store(folder / name, _right_bytes(dataset, name, expected, fetch))


def _right_bytes(dataset: str, name: str, expected: str, fetch: Callable[[str], bytes]) -> bytes:
    faults = []
    for mirror in MIRRORS[dataset]:
        try:
            content = fetch(mirror + name)
        except (urllib.error.URLError, OSError) as error:
            faults.append(f"{mirror + name}: {error}")
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == expected:
            return content
        faults.append(f"{mirror + name}: SHA-256 is {found}, expected {expected}")
    raise DataError(
        f"{dataset} could not be downloaded; give --data PATH or set EBM_DATA_DIR to a folder that has it. "
        + "; ".join(faults)
    )


def _store(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)
