"""Shrunken Detectron2 models, an image with labels and a training step, for tests of the heads."""

from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

from lvis_tde import TDEFastRCNNOutputLayers, add_tde_config

LAZY = Path(__file__).parent.parent / "configs" / "lazy"
LAZY_NAMES = {
    "TDEROIHeads": "mask_rcnn_r50_tde.py",
    "TDECascadeROIHeads": "cascade_rcnn_r101_tde.py",
}
LAZY_CLASSES = 7
TDE_NAMES = {
    "StandardROIHeads": "TDEROIHeads",
    "CascadeROIHeads": "TDECascadeROIHeads",
    "Res5ROIHeads": "TDERes5ROIHeads",
}


def zoo_config(name: str) -> CfgNode:
    """Detectron2's config with ``MODEL.TDE`` at its defaults, made thin."""
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(name))
    return shrink(cfg)


def shrink(cfg: CfgNode) -> CfgNode:
    """Makes the model thin and its proposals few; what the config is about stays as it is."""
    model = cfg.MODEL
    # Detectron2 has no deformable convolution that trains on the CPU.
    model.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    model.DEVICE = "cpu"
    model.WEIGHTS = ""
    model.RESNETS.STEM_OUT_CHANNELS = 32
    if model.RESNETS.DEPTH >= 50:  # smaller ones have one width only
        model.RESNETS.RES2_OUT_CHANNELS = 32
        model.RESNETS.WIDTH_PER_GROUP = 1 if model.RESNETS.NUM_GROUPS > 1 else 32
    model.FPN.OUT_CHANNELS = 32
    model.RPN.BATCH_SIZE_PER_IMAGE = 32
    model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.PRE_NMS_TOPK_TEST = 100
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 20
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    model.ROI_BOX_HEAD.FC_DIM = 32
    model.ROI_BOX_HEAD.CONV_DIM = 32
    model.ROI_MASK_HEAD.CONV_DIM = 32
    model.ROI_KEYPOINT_HEAD.CONV_DIMS = [32 for _ in model.ROI_KEYPOINT_HEAD.CONV_DIMS]
    model.SEM_SEG_HEAD.CONVS_DIM = 32
    model.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.INPUT.MIN_SIZE_TEST = 64
    # The learning rate of the first step of the warm-up.
    cfg.SOLVER.BASE_LR *= cfg.SOLVER.WARMUP_FACTOR
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    return cfg


def training_image(cfg: CfgNode, *, num_objects: int = 2, size: int = 64, seed: int = 0) -> dict:
    """One image in the format of Detectron2's data loader, with what the heads of ``cfg`` need."""
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_objects, 2, generator=rng) * size / 2
    boxes = torch.cat([corner, corner + size / 3], dim=1)
    target = Instances((size, size))
    target.gt_boxes = Boxes(boxes)
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    target.gt_classes = torch.randint(num_classes, (num_objects,), generator=rng)
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "bitmask":
        grid = torch.arange(size)
        inside = (grid >= corner[:, :, None]) & (grid < corner[:, :, None] + size / 3)
        target.gt_masks = BitMasks(inside[:, 1, :, None] & inside[:, 0, None, :])
    elif cfg.MODEL.MASK_ON:
        polygons = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()]
        target.gt_masks = PolygonMasks(polygons)
    if cfg.MODEL.KEYPOINT_ON:
        number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        points = corner[:, None] + torch.rand(num_objects, number, 2, generator=rng) * size / 3
        visible = torch.full((num_objects, number, 1), 2.0)
        target.gt_keypoints = Keypoints(torch.cat([points, visible], dim=2))
    image = torch.randint(256, (3, size, size), generator=rng).float()
    data = {"image": image, "instances": target, "height": size, "width": size}
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        data["sem_seg"] = torch.randint(classes, (size, size), generator=rng)
    if cfg.MODEL.LOAD_PROPOSALS:
        proposals = Instances((size, size))
        shifts = torch.tensor([0.0, 2.0, 10.0])[:, None, None]
        proposals.proposal_boxes = Boxes((boxes + shifts).flatten(0, 1).clamp(max=size))
        proposals.objectness_logits = torch.zeros(len(proposals.proposal_boxes))
        data["proposals"] = proposals
    return data


def predictors(model, kind=TDEFastRCNNOutputLayers) -> list:
    """The box predictors of ``model``, one for every cascade stage."""
    return [m for m in model.modules() if isinstance(m, kind)]


def build(cfg: CfgNode, seed: int = 0):
    """A model that behaves like one with pretrained weights where it matters to a single step."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    for module in model.modules():
        # Norms without statistics let features, and so all losses, explode with depth.
        if isinstance(module, (FrozenBatchNorm2d, torch.nn.BatchNorm2d)):
            module.weight.data.fill_(0.5)
        # Random shifts of the boxes would leave later cascade stages without objects.
        elif isinstance(module, FastRCNNOutputLayers):
            torch.nn.init.zeros_(module.bbox_pred.weight)
    return model


def step(cfg: CfgNode, model, batch: list) -> dict:
    """One step of SGD; returns the losses as numbers."""
    model.train()
    optimizer = build_optimizer(cfg, model)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}


def infer(model, batch: list) -> list:
    """Detections of every image."""
    model.eval()
    with torch.no_grad():
        return [output["instances"] for output in model(batch)]


def assert_finite(losses: dict, detections: list) -> None:
    """Losses, boxes and scores are finite; every image has detections."""
    assert losses and all(torch.tensor(list(losses.values())).isfinite()), losses
    for found in detections:
        assert len(found) > 0
        assert found.pred_boxes.tensor.isfinite().all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


def assert_trained_and_finite(model, losses: dict, detections: list) -> None:
    """The same for a model with TDE throughout, and the mean of every stage has moved."""
    assert_finite(losses, detections)
    stages = predictors(model)
    assert stages and stages == predictors(model, FastRCNNOutputLayers)
    for stage in stages:
        assert stage.feature_mean.mean.isfinite().all() and stage.feature_mean.mean.any()


def lazy_config(heads: str):
    """A LazyConfig with these heads, made small: a shipped one, or for C4 Detectron2's with TDE."""
    if heads == "TDERes5ROIHeads":
        cfg = LazyConfig.load(str(LAZY / "lvis_v1.py"))
        cfg.model = model_zoo.get_config("common/models/mask_rcnn_c4.py").model
        cfg.model.roi_heads.box_predictor._target_ = TDEFastRCNNOutputLayers
        cfg.model.roi_heads.res5.update(
            norm="BN", in_channels=96, bottleneck_channels=16, out_channels=64
        )
        bottom_up, num_stages, channels = cfg.model.backbone, 3, 96
    else:
        cfg = LazyConfig.load(str(LAZY / LAZY_NAMES[heads]))
        bottom_up, num_stages, channels = cfg.model.backbone.bottom_up, 4, 32
        cfg.model.backbone.out_channels = 32
        for box_head in cfg.model.roi_heads.get("box_heads") or [cfg.model.roi_heads.box_head]:
            box_head.update(input_shape=ShapeSpec(channels=32, height=7, width=7), fc_dims=[64])
        for stage in lazy_stages(cfg):
            stage.input_shape = ShapeSpec(channels=64)
        cfg.model.roi_heads.mask_head.input_shape = ShapeSpec(channels=32, height=14, width=14)
    # Norms that need no pretrained statistics: features would explode otherwise.
    bottom_up.stem.norm = "BN"
    bottom_up.stages = [
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=1,
            stride_per_block=[1 if i == 0 else 2],
            in_channels=32 * i or 64,
            out_channels=32 * (i + 1),
            norm="BN",
        )
        for i in range(num_stages)
    ]
    cfg.model.proposal_generator.head.in_channels = channels
    cfg.model.proposal_generator.post_nms_topk = [20, 20]
    cfg.model.roi_heads.batch_size_per_image = 16
    cfg.model.roi_heads.num_classes = LAZY_CLASSES
    cfg.model.roi_heads.mask_head.conv_dims = [16, 16]
    for stage in lazy_stages(cfg):
        stage.test_score_thresh, stage.test_topk_per_image = 0.0001, 10
    cfg.train.init_checkpoint = ""
    return cfg


def lazy_stages(cfg) -> list:
    """The configs of the box predictors."""
    return cfg.model.roi_heads.get("box_predictors") or [cfg.model.roi_heads.box_predictor]


def lazy_image(seed: int = 0) -> dict:
    """A training image for :func:`lazy_config`."""
    cfg = zoo_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = LAZY_CLASSES
    return training_image(cfg, seed=seed)
