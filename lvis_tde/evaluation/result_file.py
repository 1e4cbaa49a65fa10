"""Result files: their dicts one after the other, and columns of what they hold, checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["is_compressed", "named", "numbers", "objects"]

BLOCK = 1 << 22
# Above the length of any word of JSON but a string, such as -Infinity, and of an escape in one.
_LONGEST = 16
_NUMBERS = (int, float, np.integer, np.floating)


def is_compressed(segmentation: Any) -> bool:
    """Whether a segmentation is a compressed RLE."""
    # Without a single byte of counts it would be taken for no segmentation at all.
    return (
        isinstance(segmentation, dict)
        and "size" in segmentation
        and isinstance(segmentation.get("counts"), (str, bytes))
        and len(segmentation["counts"]) > 0
    )


def numbers(
    values: list[Any], results: list[dict[str, Any]], key: str, shape: tuple[int, ...]
) -> np.ndarray:
    """A column of numbers, float64.

    Args:
        values: one of each detection.
        results: the detections, for the error.
        key: what the values are.
        shape: of each.

    Returns:
        (D, *shape).

    Raises:
        ValueError: naming the first detection with something else.
    """
    try:
        column = np.array(values)
        if column.shape == (len(values), *shape) and column.dtype.kind in "iuf":
            return column.astype(np.float64)
    except ValueError:
        pass  # lists of several lengths
    if not values:
        return np.zeros((0, *shape))
    for i, value in enumerate(values):
        one = np.array(value, dtype=object)
        numbers = all(isinstance(v, _NUMBERS) and not isinstance(v, bool) for v in one.flat)
        if one.shape != shape or not numbers:
            expected = "[x, y, width, height]" if shape else "a number"
            found = f"{key}={str(value)[:80]!r}"
            raise ValueError(
                f"detection {i} {named(results[i])} has {found}, expected {expected}: it holds "
                "something that is no number"
            )
    return np.array(values, dtype=np.float64)


def named(result: dict[str, Any]) -> str:
    """What a detection is known by, for messages."""
    return f"(image_id {result['image_id']!r}, category_id {result['category_id']!r})"


def objects(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The dicts of a JSON list, parsed one after the other from a moving window of the file.

    Args:
        path: JSON file.

    Yields:
        Dicts.

    Raises:
        ValueError: it holds something else.
    """
    decode, skip = json.JSONDecoder().raw_decode, " \t\r\n,"
    with open(path, encoding="utf-8-sig") as file:
        start = file.read(BLOCK)
        text, at = start.lstrip(), 1
        before = len(start) - len(text)  # characters of the file before the window
        if text[:1] != "[":
            raise ValueError(
                f"it holds no JSON list of detections: {text[:40]!r} (the annotations come first, "
                "then the results)"
            )
        while True:
            while at < len(text) and text[at] in skip:
                at += 1
            if text[at : at + 1] == "]":
                rest = text[at + 1 :]
                while rest and not rest.strip():
                    rest = file.read(BLOCK)
                if rest:
                    rest = (rest + file.read(40)).strip()
                    raise ValueError(
                        f"it goes on behind its JSON list: {rest[:40]!r} (a result file is "
                        "one list: have two been written behind each other?)"
                    )
                return
            try:
                value, at = decode(text, at)
            except json.JSONDecodeError as error:
                # Where the window cuts a word or a string, more of the file may mend it.
                cut = error.pos > len(text) - _LONGEST or error.msg.startswith("Unterminated")
                more = file.read(BLOCK) if cut else ""
                if not more:
                    where = f"{error.msg} at character {before + error.pos}"
                    if cut:
                        raise ValueError(f"it ends within its JSON list: {where}") from error
                    found = text[error.pos : error.pos + 40]
                    raise ValueError(f"it is no JSON: {where}: {found!r}") from error
                before += at
                text, at = text[at:] + more, 0
                continue
            if not isinstance(value, dict):
                raise ValueError(f"it lists {str(value)[:80]!r}, which is no detection")
            yield value
