"""Pictures and videos of any source: found, and read."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

__all__ = ["UnreadableError", "find_inputs", "frames", "is_video", "read_picture"]

_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


class UnreadableError(OSError):
    """A picture or a video that cannot be read."""


def is_video(path: str | os.PathLike) -> bool:
    """Whether the name is that of a video file."""
    return Path(path).suffix.lower() in _VIDEOS


def find_inputs(patterns: Iterable[str]) -> list[str]:
    """Files for names, globs and folders, in order, each once.

    Of a folder these are the pictures and videos in it, by their names.

    Raises:
        FileNotFoundError: naming the one that matches no file, or the folder without any.
    """
    found = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            matches = [os.path.join(pattern, name) for name in sorted(os.listdir(pattern))]
            kinds = (*_PICTURES, *_VIDEOS)
            matches = [m for m in matches if m.lower().endswith(kinds) and os.path.isfile(m)]
            if not matches:
                raise FileNotFoundError(f"The folder {pattern} has no pictures and no videos.")
            found += matches
            continue
        # A name is taken as it is, even if it has the characters of a pattern.
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
        matches = [match for match in matches if os.path.isfile(match)]
        if not matches:
            raise FileNotFoundError(f"No file matches {pattern!r}.")
        found += matches
    return list(dict.fromkeys(found))


def read_picture(path: str) -> np.ndarray:
    """A picture of any kind.

    Returns:
        RGB, (H, W, 3) uint8.

    Raises:
        UnreadableError: if it is no picture, or a damaged one.
    """
    try:
        return np.ascontiguousarray(read_image(path, "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"it cannot be read as a picture ({error})") from error


def frames(path: str) -> Iterator[tuple[np.ndarray, float]]:
    """RGB frames of a video and its frames per second.

    Raises:
        UnreadableError: if OpenCV cannot read it.
    """
    video = cv2.VideoCapture(path)
    try:
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        readable, frame = video.read()
        if not readable:
            raise UnreadableError(f"OpenCV cannot read the video {path}")
        while readable:
            yield np.ascontiguousarray(frame[:, :, ::-1]), rate
            readable, frame = video.read()
    finally:
        video.release()
