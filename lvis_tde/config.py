"""Configuration keys of this package: ``MODEL.TDE``, ``MODEL.POSTHOC``, ``MODEL.TDE_MASK``.

For classification beside them: ``MODEL.IMAGE_CLASSIFIER``, ``INPUT.CLASSIFICATION`` and
``SOLVER.EPOCHS``.
"""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg

__all__ = ["add_classification_config", "add_tde_config", "use_tde_on_softmax"]

_TDE_HEADS = {
    "StandardROIHeads": "TDEROIHeads",
    "CascadeROIHeads": "TDECascadeROIHeads",
    "Res5ROIHeads": "TDERes5ROIHeads",
}

_SIGMOID = {
    # Sigmoids in place of the softmax.
    "USE_SIGMOID_CE": False,
    # With sigmoids: only the classes of a batch and some random others count in the loss.
    "USE_FED_LOSS": False,
    # How many classes count, and the power of a class's image count that is its chance.
    "FED_LOSS_NUM_CLASSES": 50,
    "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
}


def add_tde_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.TDE`` with the defaults for LVIS (paper section 5.1), and what is beside it."""
    cfg.MODEL.TDE = node = CfgNode()
    # Normalization of features and weights: "cosine", "capsule" or "deconfound"; "none" keeps the
    # linear classifier of a trained softmax model.
    node.NORM = "deconfound"
    # Number of heads K; it must divide the size of the box head's output.
    node.NUM_HEADS = 2
    # Inverse temperature tau of the logits.
    node.TAU = 16.0
    # gamma, added to the norm of the weights under "deconfound".
    node.GAMMA = 1 / 32
    # Strength alpha of the removal at inference; 0 turns TDE off (with ALPHA_REGION, if that is
    # set). Not used in training. Sigmoids need far less than a softmax.
    node.ALPHA = 1.5
    # Sigmoids: strength of the part of the removed term that is equal for all classes of a region,
    # so that ALPHA is that of the rest; -1 for ALPHA.
    node.ALPHA_REGION = -1.0
    # Keep the factual ratio of foreground to background at inference, whatever TDE and
    # MODEL.POSTHOC do to the foreground; False is one softmax over both. Sigmoids have none.
    node.BACKGROUND_EXEMPT = True
    # Momentum mu of the running mean of the foreground features; a step weighs 1 - mu.
    node.MEAN_MOMENTUM = 0.9998
    # Faster post-processing for many classes, with the same detections; False runs upstream's.
    node.FAST_NMS = True
    # Re-estimate the mean from this many batches at the end of training; 0 keeps the running mean.
    node.PRECISE_MEAN = 0
    # Loss of the box classifier: "cross_entropy" (a softmax's, or of sigmoids), "balanced_softmax",
    # "seesaw", or "eqlv2" with MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE.
    node.LOSS = "cross_entropy"
    # Powers of the seesaw loss: of the ratio of class sizes, and of that of scores.
    node.SEESAW_P = 0.8
    node.SEESAW_Q = 2.0
    # EQL v2: slope and place of the weight of negative gradients, and how much positive ones gain.
    node.EQLV2_GAMMA = 12.0
    node.EQLV2_MU = 0.8
    node.EQLV2_ALPHA = 4.0
    # Data type of a model that is run with --fast: "bfloat16", "float16" (GPUs), "" for float32.
    node.INFERENCE_DTYPE = ""
    # Removed, and ignored with a warning: the mean's weight followed the learning rate under it.
    cfg.register_deprecated_key("MODEL.TDE.MEAN_MOMENTUM_LR_SCALED")

    # Steps at inference beside TDE, see lvis_tde/posthoc; none is used in training, and 0 is off.
    # All but TAU_NORM need statistics of the classes: tools/estimate_feature_mean.py gathers them.
    cfg.MODEL.POSTHOC = node = CfgNode()
    # tau of the normalization of the classifier's weights (Kang et al., ICLR 2020).
    node.TAU_NORM = 0.0
    # Normalization of each class's logits over the training regions; 1 is Zhao et al., IJCV 2024.
    node.LOGN = 0.0
    # beta of logit adjustment (Menon et al., ICLR 2021).
    node.LOGIT_ADJUSTMENT = 0.0
    # gamma of NorCal (Pan et al., NeurIPS 2021), which has BACKGROUND_EXEMPT False.
    node.NORCAL = 0.0
    # lambda of FRACAL (Alexandridis et al., CVPR 2025), which has BACKGROUND_EXEMPT False.
    node.FRACAL = 0.0
    # Logits for a similarity of 1 to the mean features of a class, which need --class-means of it.
    node.CLASS_MEANS = 0.0
    # Sigmoids: the summed probability that each region keeps: that after TDE and the classes'
    # means alone ("tde"), so that the other steps only move the ranking of its classes, the factual
    # one ("factual"), or none.
    node.KEEP_SUM = "tde"

    # Detectron2 main's keys and defaults, which release 0.6 does not have. They are for TDE heads
    # there: its own predictor knows the softmax alone.
    for key, value in _SIGMOID.items():
        if key not in cfg.MODEL.ROI_BOX_HEAD:
            cfg.MODEL.ROI_BOX_HEAD[key] = value

    # "SGD", which Detectron2 builds, or "ADAMW", whose betas are SOLVER.MOMENTUM and 0.999. Some
    # projects have this key, too, and their default then stays.
    if "OPTIMIZER" not in cfg.SOLVER:
        cfg.SOLVER.OPTIMIZER = "SGD"

    cfg.MODEL.TDE_MASK = node = CfgNode()
    # Factor on the cosine between a mask feature and a class filter (Seesaw Loss: 20).
    node.TEMPERATURE = 20.0
    # Added to both norms before the division.
    node.EPSILON = 1e-6

    add_classification_config(cfg)


def add_classification_config(cfg: CfgNode) -> None:
    """Adds the keys of ``ImageClassifier``, of its images and of training by epochs."""
    cfg.MODEL.IMAGE_CLASSIFIER = node = CfgNode()
    # C; there is no background class.
    node.NUM_CLASSES = 100
    # With MODEL.BACKBONE.NAME "build_image_backbone": a classification model of torchvision, or
    # "timm/NAME".
    node.NETWORK = "resnet50"
    # Start it from the weights that torchvision or timm publishes.
    node.PRETRAINED = False
    # "cross_entropy", "focal", "ldam" or "balanced_softmax".
    node.LOSS = "cross_entropy"
    # gamma of the focal loss.
    node.FOCAL_GAMMA = 2.0
    # LDAM: the largest margin, that of the smallest class, and the factor on the cosines, which
    # MODEL.TDE.TAU is, too.
    node.LDAM_MARGIN = 0.5
    node.LDAM_SCALE = 30.0
    # Weigh the classes in the loss from this iteration on (DRW); -1 never does.
    node.DEFER_ITER = -1
    # beta of those weights, the inverse of a class's effective number of images.
    node.DEFER_BETA = 0.9999
    # Second stage of training: "classifier" alone, anew (cRT), or a "scales" of each of its
    # classes (LWS), on frozen features; "" trains all.
    node.TRAIN_ONLY = ""
    # Training images of each class, for the losses that need them; the trainer fills an empty one.
    node.CLASS_COUNTS = ()

    cfg.INPUT.CLASSIFICATION = node = CfgNode()
    # Side of the square images that the network sees.
    node.SIZE = 32
    # Training: crop from the image with this many zeros around it.
    node.CROP_PADDING = 0
    # Training: crop a random area and shape, resized to SIZE.
    node.RESIZED_CROP = False
    # Training: chance of a horizontal flip.
    node.FLIP = 0.0
    # Training: strength of the jitter of brightness, contrast and saturation.
    node.COLOR_JITTER = 0.0
    # Training: policy of AutoAugment, such as "cifar10" or "imagenet"; "" for none.
    node.AUTO_AUGMENT = ""
    # Training: magnitude of RandAugment; 0 for none.
    node.RAND_AUGMENT = 0
    # Training: alpha of mixup; 0 for none.
    node.MIXUP = 0.0
    # Test: the shorter side before the central crop of SIZE; 0 leaves it.
    node.RESIZE_TEST = 0

    cfg.SOLVER.EPOCHS = node = CfgNode()
    # Length of training in passes over the training set, and in it the ends of the steps and of
    # the warm-up and MODEL.IMAGE_CLASSIFIER.DEFER_ITER; TOTAL 0 leaves all of it to iterations.
    node.TOTAL = 0
    node.STEPS = ()
    node.WARMUP = 0
    node.DEFER = -1
    # Passes between two evaluations (TEST.EVAL_PERIOD); 0 leaves that to iterations.
    node.EVAL = 0

    # Sets to choose on, never to report on: sweeps take them, and with an evaluation period the
    # best checkpoint on them is kept, and tested at the end of training.
    cfg.DATASETS.CALIB = ()
    # What that checkpoint is the best in (a sweep has --metric): "top1", "balanced" (mean over
    # classes), "many", "medium" or "few"; of a detector's boxes "AP", "APr" and so on. "" is
    # "balanced" or "AP".
    cfg.TEST.CALIB_METRIC = ""


# Arguments of predictors of boxes alone.
_OF_BOXES = ("fast_nms", "loss", "seesaw_p", "seesaw_q", "eqlv2_gamma", "eqlv2_mu", "eqlv2_alpha")


def tde_options(cfg: CfgNode, *, boxes: bool = True) -> dict:
    """The predictor's arguments from ``MODEL.TDE`` and ``MODEL.POSTHOC``, or their defaults.

    Args:
        cfg: with or without these nodes.
        boxes: give those that a predictor for whole images does not have, too.
    """
    if "TDE" not in cfg.MODEL:
        cfg = get_cfg()
        add_tde_config(cfg)
    options = {key.lower(): value for key, value in cfg.MODEL.TDE.items()}
    del options["precise_mean"]  # of the training loop
    options.pop("inference_dtype", None)  # of the whole model
    if not boxes:
        options = {name: value for name, value in options.items() if name not in _OF_BOXES}
    # A config of an earlier release, pickled with its model, has no such node.
    posthoc = cfg.MODEL.get("POSTHOC", {})
    options["posthoc"] = {key.lower(): value for key, value in posthoc.items()}
    return options


def use_tde_on_softmax(cfg: CfgNode, num_heads: int = 1) -> None:
    """Turns the config of a softmax detector into one that puts TDE on its trained weights.

    The classifier stays what it is (``MODEL.TDE.NORM: "none"``). With sigmoids alpha is 0, since
    the default is far too much for them. A config that has TDE heads already is left as it is.

    Args:
        cfg: changed in place.
        num_heads: K, a divisor of the box head's output size.

    Raises:
        ValueError: if there are no TDE heads for the config's ROI heads.
    """
    name = cfg.MODEL.ROI_HEADS.NAME
    if name in _TDE_HEADS.values():
        return
    if name not in _TDE_HEADS:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is {name!r}; TDE is known to replace {', '.join(_TDE_HEADS)}. "
            "For other heads use lvis_tde.modeling.swap.swap_box_predictor(model, norm='none') and "
            "lvis_tde.calibration.estimate.estimate_feature_mean(model, loader) in your own code."
        )
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NAME = _TDE_HEADS[name]
    cfg.MODEL.TDE.NORM = "none"
    cfg.MODEL.TDE.NUM_HEADS = num_heads
    if cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE", False):
        # The default is a softmax's, and no strength serves all sigmoids: a sweep chooses.
        cfg.MODEL.TDE.ALPHA = 0.0
    if frozen:
        cfg.freeze()
