"""Tensors that a formula gives: the same numbers for this project and for somebody else's code."""

import numpy as np
import torch


def uniform(shape, seed):
    """Float64 in [0, 1), from integers alone, so equal on every machine."""
    k = np.arange(int(np.prod(shape)), dtype=np.int64)
    values = (k * k * 7919 + k * 104729 + (seed + 1) * 15485863) % 65521
    return torch.from_numpy(values.reshape(shape) / 65521)


def images(number, size, seed):
    """(number, 3, size, size) uint8."""
    return (uniform((number, 3, size, size), seed) * 256).to(torch.uint8)


def labels(number, num_classes, seed):
    """(number,) int64, low classes more often."""
    return (uniform((number,), seed) ** 2 * num_classes).long()


@torch.no_grad()
def fill(parameters):
    """Sets parameters in their order: weights spread as Kaiming's, those of norms around theirs."""
    for seed, parameter in enumerate(parameters):
        centered = 2 * uniform(tuple(parameter.shape), seed) - 1
        if parameter.dim() > 1:
            fan_in = parameter[0].numel()
            centered *= (6 / fan_in) ** 0.5 if parameter.dim() == 4 else fan_in**-0.5
        else:
            # Norms have a weight and a bias in turns, of which the weight starts at 1.
            centered = 0.2 * centered + parameter.double().mean().round()
        parameter.copy_(centered)


def projections(tensors):
    """(T, 2) float64: the norm of each tensor, and its product with the formula's numbers."""
    rows = []
    for seed, tensor in enumerate(tensors):
        flat = tensor.detach().double().flatten().cpu()
        rows.append(torch.stack([flat.norm(), flat @ (2 * uniform(flat.shape, seed + 1000) - 1)]))
    return torch.stack(rows)
