"""What training records of the class weights, and that recording changes nothing."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from lvis_tde.data.frequency import frequency_group
from lvis_tde.engine import Trainer
from lvis_tde.engine.hooks import WeightNorms, weight_norms

AS_SOFTMAX = ("MODEL.ROI_HEADS.NAME", "TDEROIHeads", "MODEL.TDE.NORM", "none", "MODEL.TDE.ALPHA", 0)


@pytest.fixture
def train(tiny_cfg, tiny_set, tmp_path):
    def run(name, *overrides):
        cfg = tiny_cfg(
            name, "DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", (), "SEED", 3,
            "SOLVER.MAX_ITER", 3, "INPUT.MIN_SIZE_TRAIN", (64,),
            "OUTPUT_DIR", str(tmp_path / str(len(list(tmp_path.iterdir())))), *overrides,
        )  # fmt: skip
        seed_all_rng(3)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        lines = open(f"{cfg.OUTPUT_DIR}/metrics.json").read().splitlines()
        return trainer.model, json.loads(lines[-1])

    return run


class FakeTrainer:
    iter, max_iter = 19, 100


def expected_norms(weight, dataset):
    counts = MetadataCatalog.get(dataset).class_image_count
    groups = [frequency_group(one["image_count"]) for one in counts]
    norms = [row.norm().item() for row in weight.detach()]
    return {
        f"tde/weight_norm_{g}": sum(n for n, one in zip(norms, groups) if one == g)
        / groups.count(g)
        for g in set(groups)
    }


@pytest.mark.parametrize("name", ["deconfound", "sigmoid_deconfound"])
def test_metrics_hold_the_norms_of_each_group(train, tiny_set, name):
    model, last = train(name)
    expected = expected_norms(model.roi_heads.box_predictor.cls_score.weight, tiny_set["train"])
    assert len(expected) > 1
    assert {k: v for k, v in last.items() if "norm_" in k} == pytest.approx(expected, rel=1e-6)


def test_a_softmax_is_recorded_without_changing_its_training(train, tiny_set, tiny_model, tmp_path):
    start = str(tmp_path / "start.pth")
    torch.save({"model": tiny_model("softmax").state_dict()}, start)
    plain, unrecorded = train("softmax", "MODEL.WEIGHTS", start)
    model, last = train("softmax", "MODEL.WEIGHTS", start, *AS_SOFTMAX)
    ours = model.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(value, ours[key]), key
    assert not any(key.startswith("tde/") for key in unrecorded)
    expected = expected_norms(model.roi_heads.box_predictor.cls_score.weight, tiny_set["train"])
    assert {"tde/fg_cosine_to_mean", *expected} <= last.keys()


def test_a_cascade_records_each_stage(tiny_model, tiny_set):
    model = tiny_model("deconfound", "MODEL.ROI_HEADS.NAME", "TDECascadeROIHeads")
    hook = WeightNorms(model, tiny_set["train"])
    hook.trainer = FakeTrainer()
    with EventStorage() as hook.trainer.storage:
        hook.after_step()
        hook.trainer.iter = 20
        hook.after_step()
        found = hook.trainer.storage.latest()
    for stage in range(3):
        weight = model.roi_heads.box_predictor[stage].cls_score.weight
        for name, value in expected_norms(weight, tiny_set["train"]).items():
            assert found[f"stage{stage}/{name}"][0] == pytest.approx(value, rel=1e-6)


def test_groups_without_classes_and_sets_without_groups(tiny_model):
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [99.0, 99.0]])
    found = weight_norms(weight, ["f", "r", "f"])
    assert {k: v.item() for k, v in found.items()} == {"r": 1.0, "f": 7.5}
    DatasetCatalog.register("without_groups", list)
    try:
        MetadataCatalog.get("without_groups").thing_classes = list("abcdefg")
        for name in ("without_groups", "", "unknown"):
            hook = WeightNorms(tiny_model(), name, period=1)
            hook.trainer = FakeTrainer()
            hook.after_step()  # to a storage that is not there
    finally:
        DatasetCatalog.remove("without_groups")
        for name in ("without_groups", "unknown"):
            MetadataCatalog.remove(name)
