"""Completes the lower half of 16 MNIST test digits through a running service and draws the result.

    python -m benchmarks.complete_mnist mnist.npz out.png [URL] [MODEL]

A row a digit: the digit, its clamped upper half, four completions, the posterior mean. Prints how many of the unknown
pixels the mean gets right, beside always guessing "off".
"""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import numpy as np

from service.picture import grid

SAMPLES, SWEEPS = 4, 1000


def main(data: str, out: str, url: str = "http://127.0.0.1:8000", model: str = "rbm-mnist") -> None:
    """Ask, draw, print."""
    digits = np.load(data, allow_pickle=False)["x_test"]
    chosen = np.random.default_rng(0).choice(len(digits), 16, replace=False)
    original = (digits[np.sort(chosen)] > 127).astype(np.float64)
    mask = np.zeros((28, 28), int)
    mask[:14] = 1
    body = {"inputs": original.tolist(), "mask": mask.tolist(), "samples": SAMPLES, "sweeps": SWEEPS, "seed": 1}
    answer = httpx.post(f"{url}/v1/models/{model}/complete", json=body, timeout=300.0)
    answer.raise_for_status()
    found = answer.json()
    samples, mean = np.asarray(found["samples"]), np.asarray(found["mean"])
    assert (samples[:, :, :14] == original[:, None, :14]).all(), "clamped units come back as sent"
    half = np.where(mask == 1, original, 0.5)
    columns = np.concatenate((original[:, None], half[:, None], samples, mean[:, None]), axis=1)
    Path(out).write_bytes(grid(columns, "unit"))
    unknown = original[:, 14:]
    print(
        f"unknown pixels right: mean {((mean[:, 14:] > 0.5) == unknown).mean():.3f}, all off {1 - unknown.mean():.3f}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
