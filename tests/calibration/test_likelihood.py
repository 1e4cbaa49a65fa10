"""The likelihood of the names of known objects, against a closed form and against a loop over
images and regions with each setting in force."""

import contextlib
import math

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, pairwise_iou
from heads_util import predictors

from lvis_tde.calibration.estimate import estimate_feature_mean
from lvis_tde.calibration.likelihood import KnownObjects, log_shares
from lvis_tde.calibration.settings import settings
from lvis_tde.calibration.statistics import gather_class_statistics
from lvis_tde.engine import Trainer, load_config
from lvis_tde.modeling.intercept import intercepted
from lvis_tde.posthoc import Settings

TRIED = (
    Settings(),
    Settings(logit_adjustment=1.0),
    Settings(region=1.0, class_=1.0, logit_adjustment=0.5),
)


def test_log_shares_are_those_of_the_foreground():
    logits = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    sums, counts = log_shares(logits.softmax(1), labels)
    expected = -torch.nn.functional.cross_entropy(logits[:, :-1], labels, reduction="none")
    for one in range(3):
        assert float(sums[one]) == pytest.approx(float(expected[labels == one].sum()), rel=1e-5)
    assert counts.tolist() == [20, 20, 20, 0] and sums[3] == 0


def test_what_is_impossible_is_unlikely_and_finite():
    sums, _ = log_shares(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([0, 1]))
    assert torch.isfinite(sums).all() and (sums < -50).all()


@pytest.fixture(scope="module", params=["softmax", "sigmoid", "cascade"])
def model_and_loader(request, tiny_set):
    from conftest import ROOT, TINY

    options = [*TINY, "MODEL.RPN.POST_NMS_TOPK_TEST", 100, "INPUT.MIN_SIZE_TEST", 96]
    options += ["DATASETS.TRAIN", (tiny_set["train"],)]
    if request.param == "cascade":
        options += ["MODEL.ROI_HEADS.NAME", "TDECascadeROIHeads"]
        options += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
    name = "sigmoid" if request.param == "sigmoid" else "deconfound"
    cfg = load_config(str(ROOT / "configs" / f"demo_{name}.yaml"), options)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    estimate_feature_mean(model, Trainer.build_train_loader(cfg), max_batches=2, tolerance=0)
    gather_class_statistics(model, tiny_set["train"])
    return model.eval(), lambda: Trainer.build_test_loader(cfg, tiny_set["calib"])


@torch.no_grad()
def by_hand(model, loader, dataset, strengths):
    """Mean over classes of the mean logarithm of the right class's share, in a pass of its own."""
    records = {r["image_id"]: r for r in DatasetCatalog.get(dataset)}
    logs, stages = {}, []

    def record(predict_probs, predictions, proposals):
        stages.append((predict_probs(predictions, proposals)[0], proposals[0]))
        return [stages[-1][0]]

    for inputs in loader:
        stages.clear()
        with contextlib.ExitStack() as stack:
            stack.enter_context(settings(model, posthoc=strengths))
            for predictor in predictors(model):
                stack.enter_context(intercepted(predictor, "predict_probs", record))
            model(inputs)
        probs = sum(part for part, _ in stages) / len(stages)
        regions, known = stages[-1][1], records[inputs[0]["image_id"]]
        scale = regions.image_size[0] / known["height"]
        for box, row in zip(regions.proposal_boxes.tensor, probs[:, :-1]):
            best, label = 0.5, None
            for one in known["annotations"]:
                x, y, w, h = (scale * v for v in one["bbox"])
                truth = Boxes(torch.tensor([[x, y, x + w, y + h]]))
                iou = float(pairwise_iou(Boxes(box[None]), truth))
                if iou >= best:
                    best, label = iou, one["category_id"]
            if label is not None:
                logs.setdefault(label, []).append(math.log(float(row[label] / row.sum())))
    means = [sum(values) / len(values) for values in logs.values()]
    return 100 * math.exp(sum(means) / len(means))


def test_likelihood_is_that_of_a_loop_by_hand(model_and_loader, tiny_set):
    model, loader = model_and_loader
    known = KnownObjects(model, loader(), tiny_set["calib"])
    found = [known.likelihood(one) for one in TRIED]
    expected = [by_hand(model, loader(), tiny_set["calib"], one) for one in TRIED]
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(set(found)) == 3


def test_a_full_memory_leaves_images_out(model_and_loader, tiny_set, caplog):
    model, loader = model_and_loader
    known = KnownObjects(model, loader(), tiny_set["calib"], budget=1)
    assert "not all images count" in caplog.text
    assert 0 < known.likelihood(Settings()) < 100
