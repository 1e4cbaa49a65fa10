"""Means of the classes from few images of each, against those that the one pass over all gives."""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from lvis_tde.calibration.checkpoint import run_estimate
from lvis_tde.calibration.class_means import estimate_class_means, few_of_each_class
from lvis_tde.calibration.estimate import estimate_feature_mean
from lvis_tde.calibration.settings import tde_predictors
from lvis_tde.engine import YacsRecipe

MEASURED = ("class_means", "center", "similarity")


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_they_are_those_of_one_pass_for_all(tiny_model, make_batch):
    model, batches = tiny_model("deconfound").eval(), [make_batch(objects=k) for k in (1, 2, 3, 4)]
    before = state_of(model)
    torch.manual_seed(3)
    found = estimate_feature_mean(model, batches, max_batches=4, tolerance=0, class_means=True)
    expected = state_of(model)
    model.load_state_dict(before)
    torch.manual_seed(3)
    assert estimate_class_means(model, batches, num_batches=4) == found.num_without_mean
    for name, value in model.state_dict().items():
        wanted = expected if name.endswith(MEASURED) else before
        assert torch.equal(value, wanted[name]), name
    (predictor,) = tde_predictors(model)
    assert predictor.statistics.class_means.any() and not model.training


def test_it_waits_for_a_class_that_the_images_have(tiny_model, make_batch):
    model = tiny_model("deconfound").eval()
    (predictor,) = tde_predictors(model)
    for one in (predictor.statistics.num_images, predictor.statistics.instances):
        one.fill_(1)  # of each class, also of one that no batch shows
    seen = []

    def loader():
        for seed in range(100):
            seen.append(seed)
            yield make_batch(objects=1 + seed % 2)

    (missing,) = estimate_class_means(model, loader(), num_batches=3)
    assert missing > 0 and len(seen) == 4
    known = predictor.statistics.class_means.any(dim=1)
    predictor.statistics.instances.copy_(known)
    seen.clear()
    assert estimate_class_means(model, loader(), num_batches=3) == (missing,)
    assert len(seen) == 3
    with pytest.raises(ValueError, match="num_batches=0"):
        estimate_class_means(model, loader(), num_batches=0)


@pytest.mark.parametrize("number", [1, 2, 100])
def test_the_part_has_so_many_images_of_each_class(tiny_set, number, caplog):
    whole = DatasetCatalog.get(tiny_set["train"])
    caplog.set_level(logging.INFO)
    name = few_of_each_class(tiny_set["train"], number)
    part = DatasetCatalog.get(name)
    assert f"Up to {number} images of each class: {len(part)} of the {len(whole)} of" in caplog.text

    def images_of(records):
        pairs = {(a["category_id"], r["image_id"]) for r in records for a in r["annotations"]}
        return {c: sum(one == c for one, _ in pairs) for c, _ in pairs}

    have, given = images_of(whole), images_of(part)
    assert {c: min(n, number) for c, n in given.items()} == {
        c: min(n, number) for c, n in have.items()
    }
    by_id = {record["image_id"]: record for record in whole}
    assert all(by_id[record["image_id"]] == record for record in part)
    assert len({record["image_id"] for record in part}) == len(part)
    metadata = [MetadataCatalog.get(one).as_dict() for one in (tiny_set["train"], name)]
    for one in metadata:
        one.pop("name")
    assert metadata[0] == metadata[1]
    # Asked for again, and with other images.
    assert few_of_each_class(tiny_set["train"], number) == name
    assert few_of_each_class(tiny_set["train"], number, seed=1) != name


def test_crowds_do_not_count_and_ids_are_not_needed():
    def record(*objects):
        return {"annotations": [{"category_id": c, "iscrowd": crowd} for c, crowd in objects]}

    records = [record((0, 1)), record((0, 0)), record((1, 0)), record((1, 0), (0, 1)), record()]
    DatasetCatalog.register("few_crowds", lambda: records)
    part = DatasetCatalog.get(few_of_each_class("few_crowds", 5))
    assert part == [records[1], records[2], records[3]]
    DatasetCatalog.register("few_none", lambda: records[4:])
    with pytest.raises(ValueError, match="'few_none' has no annotated object"):
        few_of_each_class("few_none", 5)
    for name in ("few_crowds", "few_none"):
        DatasetCatalog.remove(name)


@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_bad_numbers_are_found_before_any_work(number, tiny_set, tiny_cfg):
    for call in (
        lambda: few_of_each_class(tiny_set["train"], number),
        lambda: run_estimate(YacsRecipe(tiny_cfg("softmax")), images_per_class=number),
    ):
        with pytest.raises(ValueError, match=f"images_per_class={number} must be a whole number"):
            call()
