"""Words in checkpoints, as tensors of a fixed size.

Checkpointers take every entry for a tensor, and drop one whose shape is not the model's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["pack", "pack_words", "unpack", "unpack_words"]

# Bytes of a word in UTF-8; LVIS's longest name of a class has 33.
WORD = 128


def pack(content: Any, size: int) -> Tensor:
    """A JSON value as bytes, zeros behind it.

    Args:
        content: what JSON can hold.
        size: N.

    Returns:
        (N,) uint8; all zero if there is no room for it.
    """
    data = json.dumps(content).encode("utf-8")
    data = data if len(data) <= size else b""
    return torch.tensor(list(data.ljust(size, b"\0")), dtype=torch.uint8, device="cpu")


def unpack(state: Tensor) -> Any:
    """What :func:`pack` was given; None if it is none of its tensors, or all zero."""
    try:
        return json.loads(bytes(state.cpu().tolist()).rstrip(b"\0").decode("utf-8"))
    except (TypeError, ValueError):
        return None


def pack_words(words: Sequence[str]) -> Tensor:
    """(N, WORD) uint8 of N words; longer ones are cut."""
    rows = [word.encode("utf-8")[:WORD].ljust(WORD, b"\0") for word in words]
    return torch.tensor([list(row) for row in rows], dtype=torch.uint8).reshape(-1, WORD)


def unpack_words(state: Tensor) -> list[str]:
    """The words of :func:`pack_words`; "" for a row of zeros."""
    rows = (bytes(row).rstrip(b"\0") for row in state.cpu().tolist())
    return [row.decode("utf-8", errors="ignore") for row in rows]
