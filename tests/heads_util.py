"""Shrunken Detectron2 models, an image with labels and a training step, for tests of the heads."""

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

from lvis_tde import TDEFastRCNNOutputLayers, add_tde_config

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


def lazy_zoo_model(name: str):
    """The model of Detectron2's LazyConfig ``common/models/{name}.py``."""
    return model_zoo.get_config(f"common/models/{name}.py").model
