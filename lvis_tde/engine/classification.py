"""What a config of an image classifier means: its sets, its schedule, its loaders' arguments."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ..data.classification.names import register_by_name
from ..data.classification.sets import ClassificationSet
from ..modeling.image_classifier import ImageClassifier
from ..modeling.image_predictor import TDEImagePredictor

__all__ = [
    "best_by",
    "calibrated_on",
    "ignored_for_epochs",
    "is_classification",
    "new_classifier",
    "resolved",
    "scheduled",
]


def is_classification(cfg: CfgNode) -> bool:
    """Whether ``MODEL.META_ARCHITECTURE`` is an :class:`ImageClassifier`."""
    name = cfg.MODEL.META_ARCHITECTURE
    kind = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return inspect.isclass(kind) and issubclass(kind, ImageClassifier)


def scheduled(cfg: CfgNode, num_images: int) -> None:
    """Turns ``SOLVER.EPOCHS`` into iterations: ``EVAL``, and the others if ``TOTAL`` is set.

    A pass over the training set has ``num_images / IMS_PER_BATCH`` iterations, a fraction too: no
    image is left out.

    Args:
        cfg: changed.
        num_images: of the training set.

    Raises:
        ValueError: if a step, the warm-up or the start of DRW lies outside of the training.
    """
    epochs, each = cfg.SOLVER.EPOCHS, num_images / cfg.SOLVER.IMS_PER_BATCH
    if epochs.EVAL > 0:
        cfg.TEST.EVAL_PERIOD = max(1, round(epochs.EVAL * each))
    if not epochs.TOTAL:
        return
    deferred = (epochs.DEFER,) if epochs.DEFER >= 0 else ()
    ends = {"STEPS": epochs.STEPS, "WARMUP": (epochs.WARMUP,), "DEFER": deferred}
    for name, values in ends.items():
        if any(not 0 <= value <= epochs.TOTAL for value in values):
            raise ValueError(
                f"SOLVER.EPOCHS.{name} {values} must lie between 0 and SOLVER.EPOCHS.TOTAL, which "
                f"is {epochs.TOTAL}."
            )
    cfg.SOLVER.MAX_ITER = math.ceil(epochs.TOTAL * each)
    cfg.SOLVER.STEPS = tuple(round(step * each) for step in epochs.STEPS)
    cfg.SOLVER.WARMUP_ITERS = round(epochs.WARMUP * each)
    cfg.MODEL.IMAGE_CLASSIFIER.DEFER_ITER = -1 if epochs.DEFER < 0 else round(epochs.DEFER * each)


def resolved(cfg: CfgNode) -> CfgNode:
    """The config of a classifier with what follows from its training set: counts and schedule.

    A config of another model is given back as it is.

    Raises:
        ValueError: if there are several training sets, one has another number of classes than the
            model, or the schedule is wrong; or another model's has epochs.
    """
    if not is_classification(cfg):
        epochs = cfg.SOLVER.get("EPOCHS", {})
        if epochs.get("TOTAL") or epochs.get("EVAL"):
            raise ValueError(
                f"SOLVER.EPOCHS.TOTAL is {epochs.TOTAL} and SOLVER.EPOCHS.EVAL {epochs.EVAL}: "
                "epochs are for classifiers. A detector has SOLVER.MAX_ITER, SOLVER.STEPS and "
                "TEST.EVAL_PERIOD, in iterations."
            )
        return cfg
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    images = _images(cfg.DATASETS.TRAIN)
    node, number = cfg.MODEL.IMAGE_CLASSIFIER, len(images.classes)
    if number != node.NUM_CLASSES:
        # More would be trained, and no evaluation would take their probabilities.
        raise ValueError(
            f"{cfg.DATASETS.TRAIN[0]!r} has {number} classes, but "
            f"MODEL.IMAGE_CLASSIFIER.NUM_CLASSES is {node.NUM_CLASSES}: set it to {number}."
        )
    if not node.CLASS_COUNTS:
        node.CLASS_COUNTS = images.class_counts().tolist()
    scheduled(cfg, len(images))
    if frozen:
        cfg.freeze()
    return cfg


def ignored_for_epochs(cfg: CfgNode) -> str:
    """What is set in iterations and replaced by ``SOLVER.EPOCHS``, or the other way round.

    Returns:
        In words; "" for nothing.
    """
    if not is_classification(cfg):
        return ""
    epochs = cfg.SOLVER.EPOCHS
    if not epochs.TOTAL:
        places = {"STEPS": "SOLVER.STEPS", "WARMUP": "SOLVER.WARMUP_ITERS"}
        places["DEFER"] = "MODEL.IMAGE_CLASSIFIER.DEFER_ITER"
        unset = {"STEPS": (), "WARMUP": 0, "DEFER": -1}
        return " ".join(
            f"SOLVER.EPOCHS.{name} {epochs[name]} is not used, since SOLVER.EPOCHS.TOTAL is 0: in "
            f"iterations it is {place}."
            for name, place in places.items()
            if epochs[name] != unset[name]
        )
    default = get_cfg().SOLVER
    names = [n for n in ("MAX_ITER", "STEPS") if repr(cfg.SOLVER[n]) != repr(default[n])]
    return " ".join(
        f"SOLVER.{name} {cfg.SOLVER[name]} is not used, since SOLVER.EPOCHS.TOTAL is "
        f"{cfg.SOLVER.EPOCHS.TOTAL}: set that to 0 to train by iterations."
        for name in names
    )


def best_by(cfg: CfgNode) -> str:
    """The metric of ``TEST.CALIB_METRIC``, or where that is empty what suits the model."""
    return cfg.TEST.CALIB_METRIC or ("balanced" if is_classification(cfg) else "AP")


def calibrated_on(cfg: CfgNode) -> CfgNode:
    """The config with ``DATASETS.CALIB`` in the place of the test sets."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = cfg.DATASETS.CALIB
    return cfg


@contextlib.contextmanager
def new_classifier(model: nn.Module, *, unless: bool) -> Iterator[None]:
    """Keeps a classifier that is trained anew (cRT) out of what is loaded in between.

    Args:
        model: wrapped for several processes or not; one without such a classifier is left alone.
        unless: for a run that goes on, whose classifier is the one in the checkpoint.
    """
    found = [m for m in model.modules() if isinstance(m, TDEImagePredictor)]
    fresh = [
        (one.cls_score, copy.deepcopy(one.cls_score.state_dict()))
        for one in found
        if one.train_only == "classifier" and not unless
    ]
    yield
    # Those of the constructor, which are equal in all processes.
    for classifier, state in fresh:
        classifier.load_state_dict(state)


def _images(names: Sequence[str]) -> ClassificationSet:
    if len(names) != 1:
        raise ValueError(f"DATASETS.TRAIN is {names}: a classifier has one training set.")
    register_by_name(names[0])
    return DatasetCatalog.get(names[0])
