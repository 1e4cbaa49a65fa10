"""Random boxes and scores whose distribution is like that of a trained model on one image."""

import torch

__all__ = ["calibrate", "clustered_boxes", "detection_scores"]


def clustered_boxes(num_proposals, image_shape, num_objects, generator):
    """(R, 4) boxes around ``num_objects`` objects, and the object (R,) each belongs to."""
    height, width = image_shape
    limits = torch.tensor([width, height], dtype=torch.float32)
    center = torch.rand(num_objects, 2, generator=generator) * limits
    size = torch.rand(num_objects, 2, generator=generator).square() * 300 + 16
    owner = torch.randint(num_objects, (num_proposals,), generator=generator)
    noise = torch.randn(2, num_proposals, 2, generator=generator)
    center = center[owner] + noise[0] * size[owner] * 0.12
    size = size[owner] * torch.exp(noise[1] * 0.15)
    return torch.cat([center - size / 2, center + size / 2], dim=1), owner


def detection_scores(owner, num_classes, candidates, score_thresh, generator):
    """(R, C + 1) probabilities with about ``candidates`` foreground ones above the threshold.

    Proposals of one object share most of their logits and classes have priors of their own, so
    few classes lead and a long tail of them lies around the threshold.
    """
    shape = (int(owner.max()) + 1, num_classes + 1)
    logits = torch.randn(shape, generator=generator)[owner] * 2.2
    logits += torch.randn(logits.shape, generator=generator) * 0.7
    logits += torch.randn(num_classes + 1, generator=generator) * 1.5

    def count(background):
        shifted = logits.clone()
        shifted[:, -1] += background
        return (shifted.softmax(dim=1)[:, :-1] > score_thresh).sum().item()

    logits[:, -1] += calibrate(count, candidates, -20.0, 40.0)
    return logits.softmax(dim=1)


def calibrate(count, target, low, high, steps=40):
    """The value in [low, high] at which the falling function ``count`` comes down to ``target``."""
    for _ in range(steps):
        middle = (low + high) / 2
        if count(middle) > target:
            low = middle
        else:
            high = middle
    return high
