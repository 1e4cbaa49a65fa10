"""Groups of classes by image count: rare, common, frequent; in classification few, medium, many."""

from __future__ import annotations

__all__ = ["CLASSIFICATION_BOUNDS", "LVIS_BOUNDS", "frequency_group"]

# Most images of a rare and of a common class (Gupta et al., LVIS, CVPR 2019).
LVIS_BOUNDS = (10, 100)
# Fewest and most training images of a medium class (Liu et al., Open Long-Tailed Recognition, CVPR
# 2019). The classes with fewer are LVIS's "r" here, those with more its "f".
CLASSIFICATION_BOUNDS = (20, 100)


def frequency_group(image_count: int, bounds: tuple[int, int] = LVIS_BOUNDS) -> str:
    """Group of a class by the number of train images that show it.

    Args:
        image_count: number of images, >= 0. A class that train does not show is rare.
        bounds: most images of a rare and of a common class.

    Returns:
        "r", "c" or "f".
    """
    rare, common = bounds
    return "r" if image_count <= rare else "c" if image_count <= common else "f"
