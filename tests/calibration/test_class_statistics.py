"""What is gathered of the classes of a training set, against counts and moments by hand."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from heads_util import lazy_config, lazy_stages, predictors

from lvis_tde import TDEFastRCNNOutputLayers, posthoc
from lvis_tde.calibration.alpha import predict_for_alphas, sweep_alpha
from lvis_tde.calibration.estimate import estimate_feature_mean
from lvis_tde.calibration.settings import settings
from lvis_tde.calibration.statistics import (
    check_class_list,
    gather_class_statistics,
    prepare_statistics,
)
from lvis_tde.engine import YacsRecipe, load_recipe
from lvis_tde.engine.lazy import LazyRecipe
from lvis_tde.modeling.statistics import class_hash
from lvis_tde.posthoc import Settings

NAMES = list("abcdefg")
BOXES = [  # image, class, XYWH box in images of 100 x 50, crowd
    (0, 0, (10, 10, 20, 20), 0),
    (0, 0, (50, 20, 10, 10), 0),
    (0, 3, (90, 40, 40, 40), 0),
    (1, 0, (0, 0, 4, 4), 0),
    (1, 5, (0, 0, 4, 4), 1),
    (2, 0, (70, 5, 4, 4), 0),
]


@pytest.fixture
def registered():
    """A set of four images, one without objects."""
    name = "class_statistics"

    def load():
        records = [{"width": 100, "height": 50, "annotations": []} for _ in range(4)]
        for image, number, (x, y, w, h), crowd in BOXES:
            one = {"category_id": number, "iscrowd": crowd}
            one.update(bbox=[x, y, w, h], bbox_mode=BoxMode.XYWH_ABS)
            if image == 1:
                one.update(bbox=[x, y, x + w, y + h], bbox_mode=BoxMode.XYXY_ABS)
            records[image]["annotations"].append(one)
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).thing_classes = NAMES
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_annotations_are_counted(tiny_model, registered):
    model = tiny_model()
    gather_class_statistics(model, registered)
    (predictor,) = predictors(model)
    found = predictor.statistics
    assert found.images.tolist() == [3, 0, 0, 1, 0, 0, 0]
    assert found.instances.tolist() == [4, 0, 0, 1, 0, 0, 0]
    assert found.num_images == 4
    assert found.classes.tolist() == [class_hash(name) for name in NAMES]
    centers = torch.tensor([[0.2, 0.4], [0.55, 0.5], [1.0, 1.0], [0.02, 0.04], [0.72, 0.14]])
    expected = posthoc.fractal_dimension(centers, torch.tensor([0, 0, 3, 0, 0]), 7)
    torch.testing.assert_close(found.dimension, expected)
    assert found.known().mean is None
    gather_class_statistics(model, [registered, registered])
    assert found.images.tolist()[0] == 6 and found.num_images == 8


def test_it_is_what_the_metadata_of_a_set_counts(tiny_model, tiny_set):
    model = tiny_model()
    gather_class_statistics(model, tiny_set["train"])
    counts = sorted(MetadataCatalog.get(tiny_set["train"]).class_image_count, key=lambda c: c["id"])
    images = predictors(model)[0].statistics.images
    assert images.tolist() == [record["image_count"] for record in counts]


def test_other_classes_are_refused(tiny_model, registered):
    model = tiny_model()
    check_class_list(model, registered)  # nothing is known yet
    gather_class_statistics(model, registered)
    check_class_list(model, registered)
    other = MetadataCatalog.get("class_statistics_other")
    other.thing_classes = [*NAMES[:4], "x", *NAMES[5:]]
    with pytest.raises(ValueError, match="Class 4 of 'class_statistics_other' is 'x'.*another"):
        check_class_list(model, "class_statistics_other")
    MetadataCatalog.remove("class_statistics_other")
    MetadataCatalog.get("class_statistics_few").thing_classes = NAMES[:3]
    DatasetCatalog.register("class_statistics_few", lambda: [])
    with pytest.raises(ValueError, match="has 3 classes, the model 7"):
        gather_class_statistics(model, "class_statistics_few")
    DatasetCatalog.remove("class_statistics_few")


@pytest.mark.parametrize("sigmoid", [False, True])
def test_moments_of_the_logits_of_all_training_regions(tiny_model, make_batch, sigmoid):
    options = ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", sigmoid)
    model, seen = tiny_model("deconfound", *options), []
    (predictor,) = predictors(model)
    predictor.register_forward_hook(lambda _, __, output: seen.append(output[0].detach()))
    estimate_feature_mean(model, [make_batch(), make_batch(3)] * 2)
    logits = torch.cat(seen)[:, :-1].double().numpy()
    assert len(logits) == 10 * 16  # those of background, too
    found = predictor.statistics
    np.testing.assert_allclose(found.logit_mean.numpy(), logits.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.logit_std.numpy(), logits.std(0), rtol=1e-4)


def test_one_pass_for_settings(tiny_model, make_batch, tiny_set):
    model, inputs = tiny_model().eval(), make_batch()
    (predictor,) = predictors(model)
    predictor.feature_mean.mean.uniform_()
    wanted = [Settings(), Settings(1.5, 1.5), Settings(tau_norm=1.0, background="joint")]
    with pytest.raises(ValueError, match="MODEL.POSTHOC.LOGIT_ADJUSTMENT"):
        predict_for_alphas(model, inputs, [Settings(logit_adjustment=1.0)])
    gather_class_statistics(model, tiny_set["train"])
    wanted += [Settings(0.5, 0.5, logit_adjustment=1.0)]
    before, seen = predictor.posthoc, set()
    for one, output in zip(wanted, predict_for_alphas(model, inputs, wanted)):
        assert predictor.posthoc == before
        with settings(model, posthoc=one), torch.no_grad():
            assert predictor.posthoc == one and predictor.calibrated_alpha == one.class_
            expected = model(inputs)
        for ours, theirs in zip(output, expected):
            torch.testing.assert_close(ours["instances"].scores, theirs["instances"].scores)
        seen.add(round(output[0]["instances"].scores.sum().item(), 6))
    assert len(seen) == len(wanted) and predictor.calibrated_alpha is None
    found = sweep_alpha(model, [inputs], wanted, CountDetections)
    assert list(found) == wanted and all(r["bbox"]["AP"] > 0 for r in found.values())
    with settings(model, posthoc=wanted[-1], alpha=0.0):
        assert predictor.posthoc == Settings(logit_adjustment=1.0)


class CountDetections:
    """An evaluator."""

    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += sum(len(one["instances"]) for one in outputs)

    def evaluate(self):
        return {"bbox": {"AP": self.count}}


def test_before_a_training(tiny_model, make_batch, registered, caplog):
    model = tiny_model("deconfound", "MODEL.POSTHOC.NORCAL", 0.5)
    (predictor,) = predictors(model)
    prepare_statistics(model, [registered], measured=False)
    assert predictor.statistics.images.tolist() == [3, 0, 0, 1, 0, 0, 0]
    predictor.statistics.images[0] = 9
    prepare_statistics(model, [registered], measured=False, resumed=True)  # known already
    assert predictor.statistics.images[0] == 9
    # What a checkpoint of another training knows may be of other images.
    prepare_statistics(model, [registered], measured=False)
    assert predictor.statistics.images[0] == 3
    predictor.posthoc = Settings()  # so they are not needed now
    prepare_statistics(model, [registered], measured=False, resumed=True)
    assert predictor.statistics.images[0] == 3
    prepare_statistics(model, [registered], measured=False)
    assert predictor.statistics.known().counts is None and predictor.statistics.class_names
    predictor.posthoc = Settings(logn=1.0, logit_adjustment=1.0)
    with pytest.raises(ValueError, match="LOGN.*MODEL.TDE.PRECISE_MEAN.*TEST.EVAL_PERIOD to 0"):
        prepare_statistics(model, [registered], measured=False)
    prepare_statistics(model, [registered], measured=True)
    predictor.posthoc = Settings(class_means=2.0)
    with pytest.raises(ValueError, match="class_means=2 .*Train with CLASS_MEANS 0"):
        prepare_statistics(model, [registered], measured=True)
    predictor.posthoc = Settings()
    # A step makes what is known of the logits unknown, a validation loss does not.
    estimate_feature_mean(model, [make_batch()] * 2)
    predictor.calibrated_alpha, predictor.chosen = 1.5, "alpha 1.5 by bbox/AP on birds"
    model.train()
    with EventStorage():
        with torch.no_grad():
            model(make_batch())
        assert predictor.statistics.known().std is not None and predictor.chosen
        model(make_batch())
    assert predictor.statistics.known().std is None and predictor.statistics.images.any()
    assert predictor.calibrated_alpha is None and predictor.chosen == ""
    # The classes of another set.
    MetadataCatalog.get("class_statistics_new").thing_classes = NAMES[::-1]
    predictor.posthoc = Settings()
    prepare_statistics(model, ["class_statistics_new"], measured=False)
    assert "They are forgotten" in caplog.text and not predictor.statistics.images.any()
    prepare_statistics(tiny_model("softmax"), [registered], measured=False)


@pytest.mark.parametrize(
    "chosen",
    [
        Settings(1.0, 1.0, logit_adjustment=0.5),
        Settings(0.5, 1.0, tau_norm=0.25, background="joint", keep_sum=""),
    ],
)
def test_a_recipe_takes_settings(chosen, tiny_cfg, tmp_path):
    cfg = tiny_cfg("deconfound", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
    cfg.MODEL.TDE.ALPHA_REGION = 0.1
    node = lazy_config("TDEROIHeads")
    node.train.device = "cpu"
    lazy_stages(node)[0].update(use_sigmoid_ce=True, _target_=TDEFastRCNNOutputLayers)
    for number, recipe in enumerate((YacsRecipe(cfg), LazyRecipe(node))):
        recipe.set_posthoc(chosen)
        recipe.save(tmp_path / f"{number}.yaml")
        (predictor,) = predictors(load_recipe(str(tmp_path / f"{number}.yaml")).build_model())
        assert predictor.posthoc == chosen
