"""Mask R-CNN R50-FPN, and a cascade R101, at LVIS settings with calibrated random weights."""

import torch
from detectron2 import model_zoo
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from lvis_tde.config import add_tde_config

# By import: registers the heads.
from lvis_tde.modeling import mask_head, roi_heads  # noqa: F401
from lvis_tde.modeling.fast_rcnn import TDEFastRCNNOutputLayers

from .authors import AuthorsOutputLayers
from .data import calibrate

__all__ = ["VARIANTS", "build", "calibrate_classifier", "count_candidates", "make_inputs"]

# ROI heads and mask head of each variant.
VARIANTS = {
    "Detectron2 (softmax)": ("StandardROIHeads", "MaskRCNNConvUpsampleHead"),
    "authors' formulation": ("TDEROIHeads", "MaskRCNNConvUpsampleHead"),
    "this project": ("TDEROIHeads", "SelectedClassMaskRCNNConvUpsampleHead"),
}


def build(variant, args, heads=None, *, depth=50, agnostic=False, tde=None):
    """A model of ``VARIANTS``, or with the given pair of ROI heads and mask head.

    Args:
        variant, args, heads: what it is.
        depth: of the ResNet, 50 or 101.
        agnostic: one box a region for all classes; of each class it has a mask all the same.
        tde: changes of ``MODEL.TDE``.
    """
    cfg = model_zoo.get_config(f"LVISv1-InstanceSegmentation/mask_rcnn_R_{depth}_FPN_1x.yaml")
    add_tde_config(cfg)
    cfg.MODEL.TDE.update(tde or {})
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = args.device
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_MASK_HEAD.NAME = heads or VARIANTS[variant]
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    torch.manual_seed(args.seed)
    model = build_model(cfg)
    for name, buffer in model.named_buffers():
        # Frozen statistics of a random network: without this the activations grow block by block.
        if name.endswith("conv3.norm.weight"):
            buffer.fill_(0.2)
    if variant.startswith("authors"):
        ours = model.roi_heads.box_predictor
        authors = AuthorsOutputLayers(cfg, ShapeSpec(channels=ours.cls_score.in_features))
        authors.load_state_dict(ours.state_dict())
        model.roi_heads.box_predictor = authors.to(args.device)
    return model


def make_inputs(args, training=False):
    """``args.batch`` images with short edge ``args.size``, 4:3, with objects in training."""
    generator = torch.Generator().manual_seed(args.seed)
    height, width = args.size, args.size * 4 // 3
    inputs = []
    for _ in range(args.batch):
        coarse = torch.rand(1, 3, height // 16, width // 16, generator=generator) * 255
        image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
        entry = {"image": image.byte(), "height": height * 3 // 5, "width": width * 3 // 5}
        if training:
            corner = torch.rand(10, 2, generator=generator) * torch.tensor([width, height]) * 0.6
            size = torch.rand(10, 2, generator=generator) * height * 0.3 + 12
            objects = Instances((height, width))
            objects.gt_boxes = Boxes(torch.cat([corner, corner + size], dim=1))
            objects.gt_classes = torch.randint(1203, (10,), generator=generator)
            objects.gt_masks = BitMasks(torch.rand(10, height, width, generator=generator) > 0.5)
            entry["instances"] = objects
        inputs.append(entry)
    return inputs


@torch.no_grad()
def calibrate_classifier(model, inputs, candidates, seed):
    """Set the classifier so that about ``candidates`` pairs an image exceed the threshold.

    Each class scores the features that resemble those of some proposal; the background is set so
    that the number of candidates is as asked.

    Returns:
        Candidates per image, as counted.
    """
    heads = model.roi_heads
    if isinstance(heads.box_predictor, torch.nn.ModuleList):  # a cascade, stage by stage
        stages = zip(heads.box_head, heads.box_predictor)
        found = [_calibrate(model, *one, inputs, candidates, seed) for one in stages]
        return sum(found) / len(found)
    return _calibrate(model, heads.box_head, heads.box_predictor, inputs, candidates, seed)


def _calibrate(model, box_head, predictor, inputs, candidates, seed):
    features = []
    tde = isinstance(predictor, TDEFastRCNNOutputLayers)
    if tde:
        predictor.feature_mean.mean.fill_(1)
    hook = box_head.register_forward_hook(lambda m, i, out: features.append(out))
    raw = model.inference(inputs, do_postprocess=False)
    hook.remove()
    del raw
    x = features[0].float()
    mean = x.mean(dim=0)
    centered = x - mean
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(x), (predictor.num_classes,), generator=generator).to(x.device)
    direction = torch.nn.functional.normalize(centered[chosen], dim=1)
    prior = torch.randn(predictor.num_classes, generator=generator).to(x.device)
    classifier = predictor.cls_score
    target = candidates * len(inputs)
    if tde:
        predictor.feature_mean.mean.copy_(mean)
        pull = mean / mean.norm()
        # Weights shorter than gamma want a larger tau, and so leave the background more room.
        classifier.weight[:-1] = 0.01 * (direction + 0.1 * prior[:, None] * pull)
        classifier.tau *= 3 / classifier(x)[:, :-1].std().item()

        def set_background(value):
            classifier.weight[-1] = pull * 10.0**value

        low, high = -6.0, 6.0
    else:
        classifier.weight[:-1] = direction
        classifier.weight[:-1] *= 3 / (x @ direction.t()).std()
        classifier.weight[-1] = 0
        classifier.bias[:-1] = prior - classifier.weight[:-1] @ mean

        def set_background(value):
            classifier.bias[-1] = value

        low, high = -40.0, 80.0

    def count(value):
        set_background(value)
        return count_candidates(predictor, x)

    set_background(calibrate(count, target, low, high))
    return count_candidates(predictor, x) / len(inputs)


def count_candidates(predictor, features):
    """Scores above the threshold among the foreground classes of all proposals."""
    probs = predictor.predict_probs(predictor(features), [features])[0]
    return int((probs[:, :-1] > predictor.test_score_thresh).sum())
