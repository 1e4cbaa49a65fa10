"""Loaders of classification sets from a config."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from .batches import EvaluationBatches, TrainBatches
from .names import register_by_name
from .sets import ClassificationSet

__all__ = ["EvaluationLoader", "TrainLoader", "build_test_loader", "build_train_loader"]

_SAMPLERS = ("TrainingSampler", "ClassBalancedSampler")


def _iterate(
    batches: Dataset, numbers: Iterable[int], num_workers: int, pin: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of these numbers, in order, made in this process or in workers."""
    if num_workers == 0:
        return map(batches.__getitem__, numbers)
    loader = DataLoader(
        batches,
        sampler=numbers,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin,
        # Else it would take a number from everybody's generator.
        generator=torch.Generator(),
    )
    return iter(loader)


class TrainLoader:
    """Endless batches, which :meth:`resume` lets begin later."""

    def __init__(self, batches: TrainBatches, num_workers: int = 0, pin: bool = False):
        """
        Args:
            batches: by their numbers.
            num_workers: processes that make them; 0: this one does.
            pin: put what workers make in pinned memory.
        """
        self.batches = batches
        self._num_workers = num_workers
        self._pin = pin
        self._first = 0

    @property
    def resumable_sampler(self) -> TrainLoader:
        """What the trainer tells how far an interrupted run came: this loader."""
        return self

    def resume(self, num_batches: int) -> None:
        """Leaves out the first ``num_batches`` batches, from the next pass on."""
        self._first = num_batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        numbers = itertools.count(self._first)
        return _iterate(self.batches, numbers, self._num_workers, self._pin)


class EvaluationLoader:
    """Every image of this process's share, once."""

    def __init__(self, batches: EvaluationBatches, num_workers: int = 0, pin: bool = False):
        """As :class:`TrainLoader`."""
        self.batches = batches
        self._num_workers = num_workers
        self._pin = pin

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return _iterate(self.batches, range(len(self)), self._num_workers, self._pin)


def _images(name: str) -> ClassificationSet:
    register_by_name(name)
    images = DatasetCatalog.get(name)
    if not isinstance(images, ClassificationSet):
        raise ValueError(f"{name!r} is no classification set")
    return images


def build_train_loader(cfg: CfgNode, *, name: str | None = None) -> TrainLoader:
    """The training images of a config: endless, shuffled, augmented batches of this process.

    Batch k depends on ``SEED`` and k alone, or on a seed that all processes agree on where that is
    negative.

    Args:
        cfg: with ``INPUT.CLASSIFICATION``; ``SOLVER.IMS_PER_BATCH`` is over all processes,
            ``DATALOADER.SAMPLER_TRAIN`` "TrainingSampler" or "ClassBalancedSampler".
        name: of the set; default: the only one of ``DATASETS.TRAIN``.

    Raises:
        FileNotFoundError: if the set is not there.
        ValueError: if there is not one set, or a value is out of its range.
    """
    if name is None:
        if len(cfg.DATASETS.TRAIN) != 1:
            raise ValueError(
                f"DATASETS.TRAIN is {tuple(cfg.DATASETS.TRAIN)}: a classifier is trained on one set"
            )
        (name,) = cfg.DATASETS.TRAIN
    if cfg.DATALOADER.SAMPLER_TRAIN not in _SAMPLERS:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}: for classification it "
            f"is one of {', '.join(_SAMPLERS)}"
        )
    options = {key.lower(): value for key, value in cfg.INPUT.CLASSIFICATION.items()}
    batches = TrainBatches(
        _images(name),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        balanced=cfg.DATALOADER.SAMPLER_TRAIN == "ClassBalancedSampler",
        resize=options.pop("resize_test"),
        rank=comm.get_rank(),
        world=comm.get_world_size(),
        **options,
    )
    # Batches from memory are faster made than sent from another process.
    workers = cfg.DATALOADER.NUM_WORKERS if batches.image_by_image else 0
    return TrainLoader(batches, workers, pin=cfg.MODEL.DEVICE.startswith("cuda"))


def build_test_loader(cfg: CfgNode, name: str) -> EvaluationLoader:
    """The images of a set, each once, dealt out to the processes.

    Args:
        cfg: as for :func:`build_train_loader`; a batch is as large as in training.
        name: of the set.

    Raises:
        FileNotFoundError: if the set is not there.
        ValueError: if it is no classification set.
    """
    images, options, world = _images(name), cfg.INPUT.CLASSIFICATION, comm.get_world_size()
    batches = EvaluationBatches(
        images,
        batch_size=max(1, cfg.SOLVER.IMS_PER_BATCH // world),
        size=options.SIZE,
        resize=options.RESIZE_TEST,
        rank=comm.get_rank(),
        world=world,
    )
    workers = cfg.DATALOADER.NUM_WORKERS if images.images is None else 0
    return EvaluationLoader(batches, workers, pin=cfg.MODEL.DEVICE.startswith("cuda"))
