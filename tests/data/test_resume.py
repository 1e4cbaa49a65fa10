import itertools

import pytest
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler

from lvis_tde.data.resume import ResumableSampler

SIZES = [(80, 60), (60, 80), (60, 60), (90, 40), (30, 50)]
RECORDS = [
    {"image_id": i, "width": w, "height": h}
    for i, (w, h) in enumerate(itertools.islice(itertools.cycle(SIZES), 23))
]


def batches(grouped, batch_size, resume_after=0):
    wide = [record["width"] > record["height"] for record in RECORDS]
    sampler = ResumableSampler(TrainingSampler(len(RECORDS), seed=5), wide, grouped)
    sampler.resume(resume_after, batch_size)
    loader = build_detection_train_loader(
        RECORDS,
        mapper=None,
        sampler=sampler,
        total_batch_size=batch_size,
        aspect_ratio_grouping=grouped,
    )
    for batch in loader:
        yield [record["image_id"] for record in batch]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("grouped", [True, False])
def test_a_resumed_stream_continues_the_uninterrupted_one(grouped, batch_size):
    whole = list(itertools.islice(batches(grouped, batch_size), 30))
    for start in (0, 1, 7, 20):
        resumed = list(itertools.islice(batches(grouped, batch_size, start), 30 - start))
        assert resumed == whole[start:]
