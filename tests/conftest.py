"""Every test runs with the shapes and types that `models` declares checked at each call."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook("models", "beartype.beartype")
