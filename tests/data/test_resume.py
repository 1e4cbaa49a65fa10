import itertools

import numpy as np
import pytest
from detectron2.data import build_detection_train_loader
from detectron2.data.detection_utils import check_image_size, read_image
from detectron2.data.samplers import TrainingSampler
from PIL import Image

from lvis_tde.data.resume import ResumableSampler, is_wide

SIZES = [(80, 60), (60, 80), (60, 60), (90, 40), (30, 50)]
RECORDS = [
    {"image_id": i, "width": w, "height": h}
    for i, (w, h) in enumerate(itertools.islice(itertools.cycle(SIZES), 23))
]


def batches(grouped, batch_size, resume_after=0, num_workers=0):
    sampler = ResumableSampler(
        TrainingSampler(len(RECORDS), seed=5),
        [is_wide(record) for record in RECORDS],
        grouped,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    sampler.resume(resume_after)
    loader = build_detection_train_loader(
        RECORDS,
        mapper=None,
        sampler=sampler,
        total_batch_size=batch_size,
        aspect_ratio_grouping=grouped,
        num_workers=num_workers,
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


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("grouped", [True, False])
def test_so_it_does_with_several_workers(grouped):
    whole = list(itertools.islice(batches(grouped, 4, num_workers=3), 16))
    # What one worker gives, and so no image twice or left out.
    assert whole == list(itertools.islice(batches(grouped, 4), 16))
    for start in (1, 7):
        resumed = batches(grouped, 4, start, num_workers=3)
        assert list(itertools.islice(resumed, 16 - start)) == whole[start:]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", SIZES[:3])
def test_an_image_without_a_size_has_that_which_the_mapper_finds(size, orientation, tmp_path):
    path = str(tmp_path / "image.jpg")
    image = Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    record = {"file_name": path}
    filled_in = dict(record)
    check_image_size(filled_in, read_image(path, "RGB"))
    assert is_wide(record) == (filled_in["width"] > filled_in["height"])
