"""Measures the tables of speed and writes this folder's README.md and results.json: `python -m benchmarks`."""

from __future__ import annotations

import json
import os

from benchmarks import fit, gibbs, langevin, page, score_matching


def main() -> None:
    """Run all, print and store."""
    epochs = [row for threads in sorted({1, os.cpu_count() or 1}) for row in fit.measure(threads)]
    found = {
        "machine": page.machine(),
        "gibbs": gibbs.measure(),
        "fit": epochs,
        "langevin": langevin.measure(),
        "score_matching": score_matching.measure(),
        "conditions": {"langevin": langevin.conditions(), "score_matching": score_matching.conditions()},
    }
    (page.HERE / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    score_matching.draw(found["score_matching"], page.HERE / "score-matching.png")
    print(page.write())


if __name__ == "__main__":
    main()
