"""Where figures come from: the commit, the machine and the day of a unit, and of all together."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["made_here", "together"]


def made_here() -> dict[str, Any]:
    """Of what is made now: "commit" of this code, None out of a checkout, "date" and "hardware"."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"commit": _commit(), "date": now, "hardware": _hardware()}


def together(made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several units: all commits and machines that they name, and the day of the last.

    Args:
        made: of each, see :func:`made_here`; empty where it is not known.

    Returns:
        As :func:`made_here`, which it is where no unit says it.
    """
    here = made_here()
    known = {key: sorted({str(one[key]) for one in made if one.get(key)}) for key in here}
    return {
        "commit": ", ".join(known["commit"]) or here["commit"],
        "date": max(known["date"], default=here["date"]),
        "hardware": "; ".join(known["hardware"]) or here["hardware"],
    }


def _commit() -> str | None:
    """Of the checkout that has this file, "-dirty" behind it if a file of it is changed; None
    where none has, as where it is installed below another project's."""
    here = Path(__file__)
    try:
        _git(here, "ls-files", "--error-unmatch", here.name)
        return _git(here, "describe", "--always", "--dirty", "--exclude", "*").strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(here: Path, *command: str) -> str:
    whole = ["git", "-C", str(here.parent), *command]
    return subprocess.run(whole, capture_output=True, text=True, check=True).stdout


def _hardware() -> str:
    """Processor, cores and GPUs."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        name = model[1] if model else name
    parts = [f"{name}, {os.cpu_count()} cores"]
    parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(parts)
