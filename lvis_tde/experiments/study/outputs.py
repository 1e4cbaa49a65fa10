"""What a study leaves for readers: its tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...calibration.posthoc_table import aligned
from ...data.files import write_text

__all__ = ["write_outputs"]


def write_outputs(study: Mapping[str, Any], output: Path) -> str:
    """Writes ``tables.md``.

    Args:
        study: content of ``study.json``.
        output: folder.

    Returns:
        The tables in Markdown.
    """
    rows = [["run", "seed", "box AP", "APr"]]
    for run, seeds in study["runs"].items():
        for seed, one in seeds.items():
            rows.append([run, seed, *(f"{one['val']['bbox'][m]:.2f}" for m in ("AP", "APr"))])
    text = aligned(rows, 2)
    write_text(output / "tables.md", text + "\n")
    return text
