"""A small CIFAR in its own format, and the recipe of a small network for it."""

from pathlib import Path

import torch
from classification_files_util import write_cifar

from lvis_tde.engine import load_recipe

CONFIGS = Path(__file__).parents[1] / "configs" / "classification"
STEM = "cifar10_lt_10"
# A network of few channels on images of a quarter of the side.
SMALL = [
    "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.NAME", "build_cifar_resnet_backbone",
    "MODEL.RESNETS.DEPTH", "14",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "4",
    "INPUT.CLASSIFICATION.SIZE", "8",
    "INPUT.CLASSIFICATION.CROP_PADDING", "1",
    "SOLVER.IMS_PER_BATCH", "16",
    "SOLVER.BASE_LR", "0.05",
    "SOLVER.EPOCHS.TOTAL", "1",
    "SOLVER.EPOCHS.STEPS", "()",
    "SOLVER.EPOCHS.WARMUP", "0",
    "DATASETS.TRAIN", f"('{STEM}_train',)",
    "DATASETS.CALIB", f"('{STEM}_calib',)",
    "DATASETS.TEST", f"('{STEM}_test',)",
]  # fmt: skip


def write_sets(root):
    """87 training images in 10 classes, of which one has 2; 4 test images of each."""
    return write_cifar(root, 10, train_per_class=20, test_per_class=4).parent


def arguments(method, output, *overrides):
    """A command line for the tools."""
    config = str(CONFIGS / f"cifar10_lt_{method}.yaml")
    return ["--config-file", config, *SMALL, "OUTPUT_DIR", str(output), *map(str, overrides)]


def recipe(method, output, *overrides):
    """The recipe of such a command line, unchecked."""
    _, config, *options = arguments(method, output, *overrides)
    return load_recipe(config, options)


def model_with_mean(method="tde", output="output", *overrides):
    """A model with fixed random weights and a mean, in eval mode."""
    torch.manual_seed(0)
    model = recipe(method, output, *overrides).build_model().eval()
    # Batch norm of an untrained network must not blow its features up.
    mean = torch.rand(model.predictor.feature_mean.mean.shape)
    model.predictor.feature_mean.mean.copy_(mean)
    return model
