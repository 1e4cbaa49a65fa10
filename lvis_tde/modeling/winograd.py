"""3x3 convolutions with a quarter of the multiplications, for inference on the CPU.

Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR 2016): each tile of 4x4 outputs takes 36 products for a
pair of channels in place of 144. oneDNN has no such convolution any more; here it is matrix
products, which every PyTorch has.

Shape shorthand in this module:

    N: images, C: input channels, K: output channels, T: tiles of a part of the images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers.functional import autocast_off

__all__ = ["pays", "transform_weight", "winograd_conv2d"]

_OUT, _IN = 4, 6  # sides of a tile of outputs, and of the inputs that it sees
# Where the polynomials are evaluated, beside infinity. The usual 0, 1, -1, 2, -2 have twice the
# rounding error (measured).
_POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)

# Numbers of a part of the input, times 36: the part stays in the cache between its five passes.
_PART = 2**15
# With fewer channels the transforms cost what the products save (measured).
_MIN_CHANNELS = 128
# Of 4: what is left of the gain where the tiles reach beyond the image.
_MIN_GAIN = 2.5


def _toom_cook() -> list[Tensor]:
    """The transforms of a tile of inputs, weights and products, (36, 36), (36, 9) and (16, 36)."""
    points = torch.tensor(_POINTS, dtype=torch.float64)
    # Coefficients of the products of all (x - point), and of all but one.
    factors = [points[torch.arange(_IN - 1) != row] for row in range(_IN - 1)] + [points]
    into = torch.zeros(_IN, _IN, dtype=torch.float64)
    for row, roots in zip(into, factors):
        row[0] = 1
        for root in roots:
            row.copy_(row.roll(1) - root * row)
    powers = points[:, None] ** torch.arange(_OUT)
    scale = torch.stack([(point - roots).prod() for point, roots in zip(points, factors)])
    last = torch.eye(_OUT, dtype=torch.float64)[-1:]
    weight = torch.cat([powers[:, :3] / scale[:, None], last[:, 1:]])
    return [torch.kron(one, one) for one in (into, weight, torch.cat([powers, last]).T)]


_INTO, _WEIGHT, _OUT_OF = _toom_cook()


def pays(channels: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether :func:`winograd_conv2d` is the faster one on the CPU.

    Args:
        channels: C and K.
        size: height and width of the images.
    """
    tiles = -(-size[0] // _OUT) * -(-size[1] // _OUT)
    enough = 9 * size[0] * size[1] >= _MIN_GAIN * _IN * _IN * tiles
    return min(channels) >= _MIN_CHANNELS and enough


def transform_weight(weight: Tensor) -> Tensor:
    """What :func:`winograd_conv2d` takes, (36, C, K), of a weight (K, C, 3, 3), float32."""
    transformed = _WEIGHT.to(weight.device) @ weight.double().flatten(2).flatten(0, 1).T
    return transformed.view(-1, *weight.shape[:2]).mT.to(weight.dtype).contiguous()


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``conv2d(x, w, bias, padding=1)`` for a weight (K, C, 3, 3).

    In float32 the root mean square of the error is about 1e-6 of that of the result.

    Args:
        x: (N, C, H, W), float32 on the CPU; best channels last.
        weight: :func:`transform_weight` of it.
        bias: (K,).

    Returns:
        (N, K, H, W), channels last.
    """
    n, c, h, w = x.shape
    k = weight.shape[2]
    rows, columns = -(-h // _OUT), -(-w // _OUT)
    padded = x.new_empty(n, rows * _OUT + 2, columns * _OUT + 2, c)
    for border in (padded[:, :1], padded[:, h + 1 :], padded[:, :, :1], padded[:, :, w + 1 :]):
        border.zero_()
    padded[:, 1 : h + 1, 1 : w + 1] = x.permute(0, 2, 3, 1)
    result = x.new_empty(n, rows * _OUT, columns * _OUT, k)
    tiles = _tiles(padded, _IN, rows, columns)
    outputs = _tiles(result, _OUT, rows, columns)
    into, out = _INTO.to(x), _OUT_OF.to(x)

    per_part = max(1, _PART // c)
    images = max(1, per_part // (rows * columns))
    height = max(1, min(rows, per_part // columns))
    with autocast_off(x):
        for image in range(0, n, images):
            for row in range(0, rows, height):
                where = (slice(None),) * 2 + (
                    slice(image, image + images),
                    slice(row, row + height),
                )
                part = tiles[where]
                product = torch.bmm((into @ part.reshape(_IN**2, -1)).view(_IN**2, -1, c), weight)
                found = (out @ product.view(_IN**2, -1)).view(_OUT, _OUT, *part.shape[2:5], k)
                target = outputs[where]
                target.copy_(found) if bias is None else torch.add(found, bias, out=target)
    return result[:, :h, :w].permute(0, 3, 1, 2)


def _tiles(x: Tensor, side: int, rows: int, columns: int) -> Tensor:
    """A view (side, side, N, rows, columns, channels) of an image (N, height, width, channels)."""
    image, row, column, channel = x.stride()
    strides = (row, column, image, _OUT * row, _OUT * column, channel)
    return x.as_strided((side, side, len(x), rows, columns, x.shape[3]), strides)
