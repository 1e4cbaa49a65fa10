"""How evenly the boxes of a class lie in the image: the box-counting dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from .margins import full_precision

GRIDS = 64  # of the authors: 1 x 1 to 64 x 64 cells
MIN_BOXES = 4  # below, a class has dimension 1


def fractal_dimension(centers: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Box-counting dimension of where the boxes of each class lie in the image.

    ``Phi_i`` is the slope of ``log N_g`` over ``log g``, N_g being how many cells of a g x g grid
    hold a center of class i, fitted over the grids g = 1 to 64 with ``g^2 <= n_i``: 2 for boxes
    spread over the image, and at least 1. A class of less than 4 boxes has 1.

    Source: Alexandridis et al., CVPR 2025 (FRACAL). The authors' code drops centers on the right
    and the lower border; here they lie in the last cell.

    Args:
        centers: (N, 2) centers of the boxes of the training set, x divided by the width and y by
            the height of the image, in [0, 1], any floating type; computed in float64.
        classes: (N,) integers in [0, num_classes).
        num_classes: C.

    Returns:
        Tensor: (C,) dimensions, of the type of ``centers``, fp32 at least.

    Raises:
        ValueError: if a shape, a center or a class is out of its range.
    """
    centers, classes = torch.as_tensor(centers), torch.as_tensor(classes)
    _check(centers, classes, num_classes)
    points = centers.double()
    classes = classes.to(points.device, torch.int64)
    sizes = torch.arange(1, GRIDS + 1, device=points.device)
    cells = torch.stack([_occupied(points, classes, num_classes, g) for g in range(1, GRIDS + 1)])

    counts = classes.bincount(minlength=num_classes)
    used = (sizes[:, None] ** 2 <= counts).double()
    x = sizes.double().log()[:, None]
    # Least squares over the grids in use; unused ones and absent classes have no cells to count.
    y = cells.clamp(min=1).double().log()
    grids = used.sum(0).clamp(min=1)
    x = (x - (used * x).sum(0) / grids) * used
    slope = (x * y).sum(0) / x.square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)
    dimension = torch.where(counts >= MIN_BOXES, slope.clamp(min=1), 1.0)
    return dimension.to(full_precision(centers).dtype)


def _occupied(points: Tensor, classes: Tensor, num_classes: int, size: int) -> Tensor:
    """(C,) numbers of the cells of a ``size`` x ``size`` grid that hold a center."""
    # Edges as multiples of 1 / size, like the authors': a product with size rounds differently.
    edges = torch.arange(1, size, dtype=torch.float64, device=points.device) * (1 / size)
    x, y = torch.bucketize(points, edges, right=True).unbind(-1)
    table = torch.zeros(num_classes * size * size, dtype=torch.bool, device=points.device)
    table[(classes * size + y) * size + x] = True
    return table.view(num_classes, -1).sum(-1)


def _check(centers: Tensor, classes: Tensor, num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1.")
    if centers.dim() != 2 or centers.shape[1] != 2 or classes.shape != centers.shape[:1]:
        raise ValueError(
            f"centers {tuple(centers.shape)} and classes {tuple(classes.shape)} must be (N, 2) "
            "and (N,)."
        )
    outside = ~((centers >= 0) & (centers <= 1)).all(-1)
    if outside.any():
        raise ValueError(
            f"center {centers[outside][0].tolist()} is outside [0, 1]: divide x by the width and "
            "y by the height of the image."
        )
    wrong = (classes < 0) | (classes >= num_classes)
    if wrong.any():
        raise ValueError(f"class {classes[wrong][0]} is not in [0, {num_classes}).")
