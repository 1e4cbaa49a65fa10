"""A trained model on training batches: what its box predictors are given, and nothing learned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..modeling.intercept import intercepted
from .replay import box_branch_only

__all__ = ["labels_of", "regions_of_training"]


@contextlib.contextmanager
def _labels_matched(model: nn.Module) -> Iterator[None]:
    """Training mode where it matches labels: in the containers, and in none of their networks.

    So statistics are frozen, and neither dropout nor stochastic depth is active.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        # A classifier of images is a container itself.
        parts = (getattr(model, name, None) for name in ("proposal_generator", "roi_heads"))
        for module in (model, *parts):
            if module is not None:
                module.training = True
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def regions_of_training(
    model: nn.Module, watched: Iterable[tuple[nn.Module, Callable[..., Any]]]
) -> Iterator[None]:
    """While it is open, ``model(batch)`` shows the regions that training would learn from.

    Args:
        model: with its ground truth in the batches; the mode of each module is restored.
        watched: pairs of a box predictor and what is called in the place of its ``losses``, whose
            place it is where predictions meet proposals, or labels: see :func:`labels_of`.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(EventStorage(1))
        stack.enter_context(_labels_matched(model))
        stack.enter_context(box_branch_only(model))
        for predictor, losses in watched:
            stack.enter_context(intercepted(predictor, "losses", losses))
        yield


def labels_of(truth: Any) -> Tensor:
    """(R,) classes of the regions that ``losses`` gets: of images they are what it gets."""
    return truth if isinstance(truth, Tensor) else torch.cat([p.gt_classes for p in truth])
