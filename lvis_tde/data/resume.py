"""Training data that go on where an interrupted run stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data.sampler import Sampler

__all__ = ["ResumableSampler"]


class ResumableSampler(Sampler):
    """An infinite sampler that can leave out what was used before a resume.

    Detectron2 batches images of like orientation: an image waits in its bucket until a batch of
    its kind is full. So the images used after n batches are not the first ones of the stream; the
    bucketing is repeated on the indices alone, without loading an image.
    """

    def __init__(self, sampler: Sampler, wide: Sequence[bool], grouped: bool):
        """
        Args:
            sampler: infinite stream of indices, this process's share.
            wide: for each index, whether the image is wider than high.
            grouped: whether batches are grouped by that (``DATALOADER.ASPECT_RATIO_GROUPING``).
        """
        self.sampler = sampler
        self._wide = wide
        self._grouped = grouped
        self._batches, self._batch_size = 0, 1

    def resume(self, num_batches: int, batch_size: int) -> None:
        """Leaves out the first ``num_batches`` batches of this process, from the next pass on."""
        self._batches, self._batch_size = num_batches, batch_size

    def __iter__(self) -> Iterator[int]:
        stream = iter(self.sampler)
        yield from self._waiting(stream)
        yield from stream

    def _waiting(self, stream: Iterator[int]) -> list[int]:
        """The indices that wait in a bucket when the last batch to leave out is full."""
        waiting: list[int] = []
        done = 0
        while done < self._batches:
            index = next(stream)
            waiting.append(index)
            kind = self._kind(index)
            batch = [i for i in waiting if self._kind(i) == kind]
            if len(batch) == self._batch_size:
                waiting = [i for i in waiting if self._kind(i) != kind]
                done += 1
        return waiting

    def _kind(self, index: int) -> bool:
        return self._grouped and self._wide[index]
