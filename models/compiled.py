"""Kernels for the CPU, compiled when they are first called."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba

_FEATURES = llvmlite.binding.get_host_cpu_features()
if _FEATURES.get("avx512f") and numba.config.CPU_FEATURES is None:  # type: ignore[attr-defined]
    # LLVM prefers vectors of 256 bits even where there are longer ones, which take a quarter off the kernels' time.
    numba.config.CPU_FEATURES = f"{_FEATURES.flatten()},-prefer-256-bit"  # type: ignore[attr-defined]


def jit(function: Any) -> Any:
    """The function, compiled; it runs without the interpreter's lock."""
    # No fastmath: contraction or reassociation would change bits. Kernels are `no_type_check`: a checker of shapes that
    # wraps functions, as the tests install, would hand numba its wrapper.
    return numba.njit(nogil=True, fastmath=False, error_model="numpy")(function)
