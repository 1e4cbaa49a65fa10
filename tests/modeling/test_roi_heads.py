import heads_util as util
import pytest
import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, cascade_rcnn
from detectron2.utils.events import EventStorage

import lvis_tde
from lvis_tde import TDEFastRCNNOutputLayers
from lvis_tde.config import tde_options
from lvis_tde.posthoc import Settings


def test_one_training_step_and_one_inference(tiny_model, make_batch):
    model = tiny_model().train()
    assert isinstance(model.roi_heads.box_predictor, TDEFastRCNNOutputLayers)
    with EventStorage() as storage:
        losses = model(make_batch())
        assert storage.latest()["tde/num_fg"][0] > 0
    assert {"loss_cls", "loss_box_reg", "loss_mask"} <= set(losses)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval()
    with torch.no_grad():
        outputs = model(make_batch())
    for output in outputs:
        instances = output["instances"]
        assert torch.isfinite(instances.scores).all() and instances.pred_masks.shape[1:] == (64, 64)


def test_images_without_objects(tiny_model, make_batch):
    model = tiny_model().train()
    with EventStorage():
        losses = model(make_batch(objects=0))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert (model.roi_heads.box_predictor.feature_mean.mean == 0).all()


def _keep_known(cfg, known):
    for key in set(cfg) - set(known):
        del cfg[key]
    for key, node in cfg.items():
        if isinstance(node, CfgNode):
            _keep_known(node, known[key])


def test_the_name_is_all_that_a_config_needs(tiny_cfg):
    # A config of a project that has never heard of MODEL.TDE.
    cfg = tiny_cfg("softmax", "MODEL.ROI_HEADS.NAME", "TDEROIHeads")
    foreign = get_cfg()
    _keep_known(cfg, foreign)
    foreign.merge_from_other_cfg(cfg)
    predictor = build_model(foreign).roi_heads.box_predictor
    assert predictor.alpha == 1.5 and predictor.cls_score.norm == "deconfound"


def test_config_reaches_the_predictor(tiny_cfg):
    changed = dict(
        NORM="capsule",
        NUM_HEADS=4,
        TAU=20.0,
        GAMMA=0.5,
        ALPHA=3.0,
        BACKGROUND_EXEMPT=False,
        MEAN_MOMENTUM=0.5,
        PRECISE_MEAN=5,
        FAST_NMS=False,
        ALPHA_REGION=0.5,
        LOSS="eqlv2",
        SEESAW_P=0.7,
        SEESAW_Q=1.5,
        EQLV2_GAMMA=10.0,
        EQLV2_MU=0.7,
        EQLV2_ALPHA=3.0,
    )
    steps = dict(
        TAU_NORM=0.1,
        LOGN=0.2,
        LOGIT_ADJUSTMENT=0.3,
        NORCAL=0.4,
        FRACAL=0.5,
        CLASS_MEANS=0.6,
        KEEP_SUM="factual",
    )
    sigmoid = ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
    overrides = [x for key, value in changed.items() for x in (f"MODEL.TDE.{key}", value)]
    overrides += [x for key, value in steps.items() for x in (f"MODEL.POSTHOC.{key}", value)]
    cfg = tiny_cfg("deconfound", *overrides, *sigmoid)
    predictor = build_model(cfg).roi_heads.box_predictor
    classifier = predictor.cls_score
    assert (classifier.norm, classifier.num_heads) == ("capsule", 4)
    assert (classifier.tau, classifier.gamma, predictor.alpha) == (20.0, 0.5, 3.0)
    assert predictor.feature_mean.momentum == 0.5
    assert not predictor.background_exempt
    assert predictor.box_loss.weights == {"gamma": 10.0, "mu": 0.7, "alpha": 3.0}
    assert predictor.use_sigmoid_ce and predictor.strengths == (0.5, 3.0)
    assert predictor.posthoc == Settings(
        0.5, 3.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, background="joint", keep_sum="factual"
    )
    options = tde_options(cfg)
    assert options.pop("posthoc").keys() == {key.lower() for key in steps}
    assert set(key.upper() for key in options) == set(changed) - {"PRECISE_MEAN"}
    assert set(cfg.MODEL.POSTHOC) == set(steps)


def test_heads_must_divide_the_features(tiny_cfg):
    with pytest.raises(ValueError, match="num_heads=5 does not divide the feature size 32"):
        build_model(tiny_cfg("deconfound", "MODEL.TDE.NUM_HEADS", 5))


def test_trains_under_the_plain_default_trainer(tiny_cfg, tiny_set):
    # A user's own trainer knows nothing of the running mean.
    cfg = tiny_cfg(
        "deconfound", "DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", (),
        "SOLVER.MAX_ITER", 3, "INPUT.MIN_SIZE_TRAIN", (64,),
    )  # fmt: skip
    trainer = DefaultTrainer(cfg)
    trainer.train()
    mean = trainer.model.roi_heads.box_predictor.feature_mean.mean
    assert torch.isfinite(mean).all() and mean.norm() > 0


@pytest.mark.parametrize("heads", ["TDEROIHeads", "TDECascadeROIHeads"])
def test_fast_nms_gives_the_detections_of_upstreams_code(heads, tiny_model, make_batch):
    options = ["MODEL.ROI_HEADS.NAME", heads, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    options += ["MODEL.RPN.POST_NMS_TOPK_TEST", 300, "MODEL.MASK_ON", False]
    if heads == "TDECascadeROIHeads":
        options += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
    model = tiny_model("deconfound", *options).eval()
    predictors = [m for m in model.modules() if isinstance(m, TDEFastRCNNOutputLayers)]
    results = []
    for fast in (True, False):
        for predictor in predictors:
            torch.nn.init.ones_(predictor.feature_mean.mean)
            predictor.fast_nms = fast
        with torch.no_grad():
            results.append(model(make_batch()))
    for ours, upstreams in zip(*results):
        ours, upstreams = ours["instances"], upstreams["instances"]
        assert len(ours) == 10
        assert torch.equal(ours.pred_boxes.tensor, upstreams.pred_boxes.tensor)
        assert torch.equal(ours.scores, upstreams.scores)
        assert torch.equal(ours.pred_classes, upstreams.pred_classes)


@pytest.mark.parametrize("fast", [True, False])
def test_cascade_spares_upstreams_nms_unless_told_not_to(fast, tiny_model, make_batch, monkeypatch):
    candidates = []

    def count(boxes, scores, image_shapes, score_thresh, nms_thresh, topk):
        candidates.append(sum(int((s[:, :-1] > score_thresh).sum()) for s in scores))
        return upstream(boxes, scores, image_shapes, score_thresh, nms_thresh, topk)

    upstream = cascade_rcnn.fast_rcnn_inference
    monkeypatch.setattr(cascade_rcnn, "fast_rcnn_inference", count)
    options = ["MODEL.ROI_HEADS.NAME", "TDECascadeROIHeads", "MODEL.TDE.FAST_NMS", fast]
    model = tiny_model("deconfound", *options, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    with torch.no_grad():
        outputs = model.eval()(make_batch())
    assert all(len(output["instances"]) > 0 for output in outputs)
    assert (sum(candidates) == 0) == fast


@pytest.mark.parametrize("heads", ["TDEROIHeads", "TDECascadeROIHeads", "TDERes5ROIHeads"])
def test_explicit_predictors_without_tde_are_refused(heads):
    cfg = util.lazy_config(heads)
    cfg.model.roi_heads._target_ = getattr(lvis_tde, heads)
    for stage in util.lazy_stages(cfg):
        stage._target_ = FastRCNNOutputLayers
        for option in ("norm", "num_heads", "tau", "gamma", "alpha"):
            stage.pop(option, None)
    with pytest.raises(TypeError, match=f"{heads} was given a FastRCNNOutputLayers"):
        instantiate(cfg.model)
