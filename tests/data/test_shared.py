"""Two processes of a machine read a training set once, and both have all of it."""

import datetime
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from torch import distributed

from lvis_tde.data.shared import Records, brief, load_once

RECORDS = [
    {
        "file_name": f"{i}.jpg",
        "width": 10 + i,
        "height": 12,
        "image_id": i,
        "annotations": [{"category_id": k, "bbox": [0.5, k, 2, 3]} for k in range(i)],
    }
    for i in range(4)
]


def work(rank, folder):
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    tempfile.tempdir = folder

    def load():
        (Path(folder) / f"read_by_{rank}").touch()
        MetadataCatalog.get("shared_test").thing_classes = ["a", "b", "c"]
        return RECORDS

    def fail():
        raise ValueError("no such file")

    found = load_once(load, ["shared_test"])
    result = {
        "records": [found[i] for i in range(len(found))],
        "brief": brief(found),
        "classes": MetadataCatalog.get("shared_test").thing_classes,
    }
    try:
        load_once(fail, [])
    except ValueError as error:
        result["error"] = str(error)
    torch.save(result, f"{folder}/{rank}.pth")


def test_one_process_reads_for_both(tmp_path):
    torch.multiprocessing.start_processes(
        work, args=(str(tmp_path),), nprocs=2, start_method="forkserver"
    )
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pth")
        assert result["records"] == RECORDS and result["classes"] == ["a", "b", "c"]
        assert result["brief"] == brief(RECORDS) and result["error"] == "no such file"
    assert (tmp_path / "read_by_0").exists() and not (tmp_path / "read_by_1").exists()
    assert not list(tmp_path.glob("lvis_tde_records_*"))


def test_a_process_of_its_own_has_the_list_itself():
    assert load_once(lambda: RECORDS, ["shared_test"]) is RECORDS


def test_brief_records_are_what_samplers_ask_for():
    short = brief([*RECORDS, {"file_name": "none.jpg"}])
    assert short[3]["annotations"] == [{"category_id": k} for k in range(3)]
    assert short[3]["annotations"][1] is short[2]["annotations"][1]
    assert short[1].keys() == {"file_name", "width", "height", "annotations"}
    assert short[4] == {"file_name": "none.jpg", "annotations": []}
    assert np.ptp([one["width"] for one in short[:4]]) == 3


@pytest.mark.parametrize("number", [0, 1, 4])
def test_records_have_the_indices_of_a_list(tmp_path, number):
    packed = [pickle.dumps(record) for record in RECORDS[:number]]
    (tmp_path / "file").write_bytes(b"".join(packed))
    records = Records(str(tmp_path / "file"), np.cumsum(list(map(len, packed)), dtype=np.int64))
    assert list(records) == RECORDS[:number] and len(records) == number
    assert [records[i] for i in range(-number, number)] == RECORDS[:number] * 2
    for index in (number, -number - 1):
        with pytest.raises(IndexError):
            records[index]
