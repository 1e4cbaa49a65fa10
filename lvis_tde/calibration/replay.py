"""The box branch of a model, finished for several settings though its networks run once.

What a setting such as alpha changes lies behind the networks: probabilities, the average over
cascade stages, thresholds, NMS and whatever else a head does with them. All of that is the head's
own code, run anew for each setting; only its networks give again what they gave the first time.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..modeling.intercept import intercepted

__all__ = ["BoxBranch", "KeptBranches", "box_branch_only"]

logger = logging.getLogger(__name__)

_OTHER_BRANCHES = ("mask_", "keypoint_")


@contextlib.contextmanager
def box_branch_only(model: nn.Module) -> Iterator[None]:
    """Leaves the mask and keypoint branches out while it is open."""
    switched = [
        (module, name)
        for module in model.modules()
        if isinstance(module, ROIHeads)
        for name in ("mask_on", "keypoint_on")
        if getattr(module, name, False)
    ]
    try:
        for module, name in switched:
            setattr(module, name, False)
        yield
    finally:
        for module, name in switched:
            setattr(module, name, True)


class BoxBranch:
    """All of a model's work on some images that comes before its post-hoc settings, done once.

    Attributes:
        images (ImageList): the input of the network.
        features (dict): what the backbone gave.
    """

    def __init__(self, model: GeneralizedRCNN, inputs: list[dict]):
        """Runs backbone and proposal generator.

        Args:
            model: in eval mode.
            inputs: N images in Detectron2's format.
        """
        self.images = model.preprocess_image(inputs)
        self.features = model.backbone(self.images.tensor)
        if model.proposal_generator is not None:
            self._proposals, _ = model.proposal_generator(self.images, self.features, None)
        else:
            self._proposals = [one["proposals"].to(model.device) for one in inputs]
        self._heads = model.roi_heads
        # Of each call of a network: its name, the regions it was given and what it gave.
        self._calls: list[tuple[str, Tensor | None, Any]] = []
        self._next, self._recorded = 0, False

    def detect(self) -> list[Instances]:
        """Detections under the current settings, boxes alone, by the path of the head.

        The networks of the head run in the first call.

        Returns:
            list[Instances]: N, in the size of the network's input.

        Raises:
            ValueError: if the settings change what the head runs its networks on.
        """
        with self.opened() as detect:
            return detect()

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[], list[Instances]]]:
        """:meth:`detect` for many settings in a row; boxes are decoded once, too."""
        boxes: list[Any] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(box_branch_only(self._heads))
            for name, module in _networks(self._heads).items():
                step = functools.partial(self._step, name)
                stack.enter_context(intercepted(module, "forward", step))
                if hasattr(module, "predict_boxes"):
                    decode = functools.partial(self._boxes, boxes)
                    stack.enter_context(intercepted(module, "predict_boxes", decode))
            yield self._detect

    def _detect(self) -> list[Instances]:
        self._next = self._decoded = 0
        self._recorded = bool(self._calls)
        # A copy: a head may change its proposals in place.
        proposals = [_private_regions(one) for one in self._proposals]
        found, _ = self._heads(self.images, self.features, proposals, None)
        if self._recorded and self._next != len(self._calls):
            raise self._differs(f"{self._next} calls, not {len(self._calls)}")
        return found

    def _boxes(self, known: list[Any], predict_boxes, predictions, proposals):
        if self._decoded == len(known):
            regions = [one.proposal_boxes.tensor for one in proposals]
            known.append((regions, predict_boxes(predictions, proposals)))
        self._decoded += 1
        before, boxes = known[self._decoded - 1]
        if not all(_same(a, b.proposal_boxes.tensor) for a, b in zip(before, proposals)):
            return predict_boxes(predictions, proposals)
        return _private(boxes)

    def _step(self, name, *call, **kwargs):
        return (self._replay if self._recorded else self._record)(name, *call, **kwargs)

    def without_maps(self) -> BoxBranch:
        """A copy that has no feature maps and no pooled features, which are nearly all of it.

        In their places are NaNs of the same shape, which take no memory: what a network gave is
        known, so nothing should look at what goes in.
        """
        slim = copy.copy(self)
        slim.images = ImageList(_nan_like(self.images.tensor), self.images.image_sizes)
        slim.features = {name: _nan_like(one) for name, one in self.features.items()}
        slim._calls = [(name, regions, _without_maps(one)) for name, regions, one in self._calls]
        return slim

    @property
    def num_bytes(self) -> int:
        """Memory of what was recorded, in bytes."""
        tensors = [t for _, regions, output in self._calls for t in _tensors((regions, output))]
        tensors += [t for one in self._proposals for t in _tensors(one.get_fields().values())]
        return sum(t.untyped_storage().nbytes() for t in tensors)

    def _record(self, name, forward, *args, **kwargs):
        output = forward(*args, **kwargs)
        self._calls.append((name, _regions((*args, *kwargs.values())), output))
        return _private(output)

    def _replay(self, name, _, *args, **kwargs):
        if self._next == len(self._calls):
            raise self._differs(f"more than {len(self._calls)} calls")
        recorded, regions, output = self._calls[self._next]
        self._next += 1
        if name != recorded:
            raise self._differs(f"{name} in place of {recorded}")
        now = _regions((*args, *kwargs.values()))
        if regions is not None and not _same(regions, now):
            raise self._differs(f"{name} for other regions")
        return _private(output)

    def _differs(self, how: str) -> ValueError:
        return ValueError(
            f"{type(self._heads).__name__} runs its networks differently when alpha changes: "
            f"{how}. One pass cannot serve several alphas: evaluate one alpha at a time."
        )


class KeptBranches:
    """The box branches of a pass over images, kept for further passes over the same.

    Made for boxes alone: nothing is left to predict masks from.
    """

    def __init__(
        self, model: GeneralizedRCNN, loader: Iterable[list[dict]], *, budget: int = 2 << 30
    ):
        """
        Args:
            model: in eval mode.
            loader: batches of images in Detectron2's format, the same ones in every pass.
            budget: most bytes to keep. Images beyond go through the networks in every pass; an
                image of LVIS with 1000 regions takes about 10 MB, one of the demo 0.2.
        """
        self._model, self._loader, self._budget = model, loader, budget
        self._kept: list[tuple[list[dict], BoxBranch]] = []
        self._all = False
        self._replayable: bool | None = None

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[list[dict], BoxBranch]]:
        """Yields each batch, without the images themselves where it is kept, and its branch."""
        yield from self._kept
        if self._all:
            return
        start = len(self._kept)
        for number, inputs in enumerate(self._loader):
            if number < start:
                continue
            branch = BoxBranch(self._model, inputs)
            yield inputs, branch
            self._keep(number, inputs, branch)
        self._all = len(self._kept) == len(self)

    def _keep(self, number: int, inputs: list[dict], branch: BoxBranch) -> None:
        if self._replayable is None:
            self._replayable = _same_detections(branch.detect(), branch.without_maps().detect())
            if not self._replayable:
                logger.info("The ROI heads read their pooled features: they are kept, too.")
        if self._replayable:
            branch = branch.without_maps()
        # A gap would make later batches take the place of earlier ones.
        if number == len(self._kept) and branch.num_bytes <= self._budget:
            self._budget -= branch.num_bytes
            light = [{k: v for k, v in one.items() if k != "image"} for one in inputs]
            self._kept.append((light, branch))


def _same_detections(first: list[Instances], second: list[Instances]) -> bool:
    return all(
        len(a) == len(b)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.pred_classes, b.pred_classes)
        and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        for a, b in zip(first, second)
    )


def _nan_like(tensor: Tensor) -> Tensor:
    value = torch.nan if tensor.is_floating_point() else 0
    return tensor.new_full((), value).expand(tensor.shape)


def _without_maps(output: Any) -> Any:
    if isinstance(output, Tensor):
        return _nan_like(output) if output.dim() > 2 else output
    if type(output) in (tuple, list):
        return type(output)(map(_without_maps, output))
    return output


def _tensors(values: Iterable) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Boxes):
            value = value.tensor
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _networks(heads: nn.Module) -> dict[str, nn.Module]:
    """What is expensive in the box branch, each module once."""
    found: dict[nn.Module, str] = {}
    for name, child in heads.named_children():
        if name.startswith(_OTHER_BRANCHES):
            continue
        parts = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        for number, part in parts:
            found.setdefault(part, f"{name}.{number}" if number else name)
    return {name: module for module, name in found.items()}


def _private(output: Any) -> Any:
    """A copy, since a head may change it in place.

    Pooled features are as large as all the rest and are only read, by the next network.
    """
    if isinstance(output, Tensor):
        return output if output.dim() > 2 else output.clone()
    if type(output) in (tuple, list):
        return type(output)(map(_private, output))
    return copy.deepcopy(output)


def _private_regions(one: Instances) -> Instances:
    """A copy of an image's proposals; :func:`copy.deepcopy` takes as long as their NMS."""
    fields = {
        name: value.clone() if isinstance(value, (Tensor, Boxes)) else copy.deepcopy(value)
        for name, value in one.get_fields().items()
    }
    return Instances(one.image_size, **fields)


def _regions(arguments: tuple) -> Tensor | None:
    """A copy of the boxes that a pooler is called with, if it is one."""
    for argument in arguments:
        if isinstance(argument, (list, tuple)) and argument and isinstance(argument[0], Boxes):
            return torch.cat([boxes.tensor for boxes in argument])
    return None


def _same(a: Tensor, b: Tensor | None) -> bool:
    if b is None or a.shape != b.shape:
        return False  # `equal` takes a tenth of the time, and knows no NaN
    return torch.equal(a, b) or torch.allclose(a, b, 0.0, 0.0, equal_nan=True)
