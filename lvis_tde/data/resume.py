"""Training data that go on where an interrupted run stopped."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from detectron2.config import CfgNode
from detectron2.data.common import ToIterableDataset
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image
from torch.utils.data.sampler import Sampler

__all__ = ["ResumableSampler", "is_wide", "training_sampler"]

_ORIENTATION = next(key for key, name in ExifTags.TAGS.items() if name == "Orientation")
_SIDEWAYS = (5, 6, 7, 8)
# Release 0.6 deals single images out to the workers of a loader, main deals out batches.
_DEALS_BATCHES = "shard_chunk_size" in inspect.signature(ToIterableDataset).parameters


def is_wide(record: dict) -> bool:
    """Whether an image is wider than high, as Detectron2's mapper finds it.

    Args:
        record: dataset dict. Without "width" or "height" the header of the file "file_name" is
            read, as the mapper takes the size of the image then.
    """
    if "width" in record and "height" in record:
        return record["width"] > record["height"]
    with PathManager.open(record["file_name"], "rb") as file, Image.open(file) as image:
        width, height = image.size
        # The mapper turns such images when it reads them.
        return height > width if image.getexif().get(_ORIENTATION) in _SIDEWAYS else width > height


def training_sampler(cfg: CfgNode, dataset: list) -> Sampler:
    """The sampler that ``DATALOADER.SAMPLER_TRAIN`` names, as Detectron2 makes it.

    Args:
        cfg: with "TrainingSampler" or "RepeatFactorTrainingSampler".
        dataset: records of the training set.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        # Main has the square root of the repeat factors as an option, 0.6 always takes it.
        sqrt = cfg.DATALOADER.get("REPEAT_SQRT")
        options = {} if sqrt is None else {"sqrt": sqrt}
        repeat_factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, **options
        )
        return RepeatFactorTrainingSampler(repeat_factors)
    return TrainingSampler(len(dataset))


class ResumableSampler(Sampler):
    """An infinite sampler that can leave out what was used before a resume.

    Detectron2 batches images of like orientation: an image waits in its bucket until a batch of
    its kind is full. So the images used after n batches are not the first ones of the stream; the
    bucketing is repeated on the indices alone, without loading an image. Several workers would
    give the images in another order than one; what they get is arranged such that they do not.
    """

    def __init__(
        self,
        sampler: Sampler,
        wide: Sequence[bool],
        grouped: bool,
        *,
        batch_size: int,
        num_workers: int = 0,
    ):
        """
        Args:
            sampler: infinite stream of indices, this process's share; each pass is the same.
            wide: for each index :func:`is_wide`; used only if ``grouped``.
            grouped: whether batches are grouped by that (``DATALOADER.ASPECT_RATIO_GROUPING``).
            batch_size: of this process.
            num_workers: of this process's loader.
        """
        self.sampler = sampler
        self._wide = wide
        self._grouped = grouped
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._waiting: list[int] = []
        self._used = 0

    def resume(self, num_batches: int) -> None:
        """Leaves out the first ``num_batches`` batches of this process, from the next pass on."""
        buckets: dict[bool, list[int]] = {False: [], True: []}
        self._used = 0
        stream = iter(self.sampler)
        while num_batches > 0:
            index = next(stream)
            self._used += 1
            bucket = buckets[self._grouped and self._wide[index]]
            bucket.append(index)
            if len(bucket) == self._batch_size:
                bucket.clear()
                num_batches -= 1
        self._waiting = buckets[False] + buckets[True]

    def __iter__(self) -> Iterator[int]:
        stream = chain(self._waiting, islice(self.sampler, self._used, None))
        if self._num_workers < 2 or self._grouped != _DEALS_BATCHES:
            yield from stream
            return
        # One batch for each worker at a time. Grouped, the loader takes an image from every worker
        # in turn; otherwise a batch from every worker in turn.
        step = self._num_workers if self._grouped else self._batch_size
        while block := list(islice(stream, self._num_workers * self._batch_size)):
            for first in range(step):
                yield from block[first::step]
