"""Every config of classification builds, trains and differs from its softmax as its name says."""

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from lvis_tde.engine import Trainer, load_config, load_recipe
from lvis_tde.engine.image_recipe import ClassifierRecipe

ROOT = Path(__file__).parent.parent / "configs" / "classification"
RUNS = sorted(path.stem for path in ROOT.glob("*.yaml") if not path.stem.startswith("Base-"))
SETS = {
    "cifar10_lt": (10, 128, 1.0),
    "cifar100_lt": (100, 128, 1.5),
    "digits_lt": (10, 128, 1.0),
    "emoji_lt": (100, 128, 1.5),
    "imagenet_lt_x50": (1000, 2048, 3.0),
    "imagenet_lt_r50": (1000, 2048, 3.0),
    "places_lt_r152": (365, 2048, 3.0),
}
METHODS = (
    "softmax",
    "focal",
    "balanced_softmax",
    "ldam_drw",
    "cosine",
    "capsule",
    "tde",
    "crt",
    "lws",
)
# What a method may change of the softmax baseline.
CHANGES = {
    "focal": {"MODEL.IMAGE_CLASSIFIER.LOSS"},
    "balanced_softmax": {"MODEL.IMAGE_CLASSIFIER.LOSS"},
    "ldam_drw": {
        "MODEL.IMAGE_CLASSIFIER.LOSS", "MODEL.TDE.NORM", "MODEL.TDE.TAU", "SOLVER.EPOCHS.DEFER",
    },
    "crt": {
        "MODEL.WEIGHTS", "MODEL.IMAGE_CLASSIFIER.TRAIN_ONLY", "DATALOADER.SAMPLER_TRAIN",
        "SOLVER.LR_SCHEDULER_NAME", "SOLVER.EPOCHS.TOTAL", "SOLVER.EPOCHS.STEPS",
        "SOLVER.EPOCHS.WARMUP",
    },
}  # fmt: skip
CHANGES["lws"] = CHANGES["crt"]
CHANGES.update(
    dict.fromkeys(
        ("cosine", "capsule", "tde"), {"MODEL.TDE.NORM", "MODEL.TDE.NUM_HEADS", "MODEL.TDE.ALPHA"}
    )
)


def load(name, *options):
    return load_config(str(ROOT / f"{name}.yaml"), options)


def split(name):
    (stem,) = (one for one in SETS if name.startswith(one))
    return stem, name.removeprefix(f"{stem}_")


def differences(a, b, prefix=""):
    """Dotted names of the keys in which two configs differ."""
    for key in {**a, **b}:
        if isinstance(a[key], dict):
            yield from differences(a[key], b[key], f"{prefix}{key}.")
        elif a[key] != b[key]:
            yield prefix + key


def test_every_set_has_the_methods_of_the_paper():
    for stem in SETS:
        found = {split(name)[1] for name in RUNS if split(name)[0] == stem}
        whole = not stem.startswith(("imagenet_lt_r50", "places"))
        assert found == set(
            METHODS if whole else ("softmax", "balanced_softmax", "tde", "crt", "lws")
        )


@pytest.mark.parametrize("name", RUNS)
def test_a_method_differs_from_softmax_as_its_name_says(name):
    stem, method = split(name)
    cfg, softmax = load(name), load(f"{stem}_softmax")
    changed = set(differences(cfg, softmax)) - {"OUTPUT_DIR"}
    if method == "softmax":
        assert cfg.MODEL.TDE.NORM == "none" and cfg.MODEL.TDE.ALPHA == 0
        return
    assert changed <= CHANGES[method] and changed
    if method in ("cosine", "capsule", "tde"):
        # design.md, section 1.
        norm = "deconfound" if method == "tde" else method
        assert (cfg.MODEL.TDE.NORM, cfg.MODEL.TDE.NUM_HEADS) == (norm, 2)
        assert cfg.MODEL.TDE.ALPHA == SETS[stem][2]
    if method in ("crt", "lws"):
        first = Path(softmax.OUTPUT_DIR) / "model_final.pth"
        assert Path(cfg.MODEL.WEIGHTS) == first


@pytest.mark.parametrize("stem", ["cifar10_lt", "cifar100_lt"])
def test_cifar_is_the_protocol_of_the_paper(stem):
    cfg = load(f"{stem}_tde")
    solver, images = cfg.SOLVER, cfg.INPUT.CLASSIFICATION
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.2, 0.9, 5e-4)
    assert (solver.IMS_PER_BATCH, solver.GAMMA, solver.WEIGHT_DECAY_NORM) == (256, 0.01, 5e-4)
    epochs = solver.EPOCHS
    assert (epochs.TOTAL, tuple(epochs.STEPS), epochs.WARMUP) == (200, (120, 160), 5)
    assert (images.SIZE, images.CROP_PADDING, images.FLIP) == (32, 4, 0.5)
    assert cfg.MODEL.BACKBONE.NAME == "build_cifar_resnet32_backbone"
    assert cfg.MODEL.TDE.MEAN_MOMENTUM == 0.9


def test_imagenet_is_the_protocol_of_the_paper():
    cfg = load("imagenet_lt_x50_tde")
    solver, images = cfg.SOLVER, cfg.INPUT.CLASSIFICATION
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.IMS_PER_BATCH) == (0.2, 5e-4, 512)
    assert (solver.EPOCHS.TOTAL, solver.LR_SCHEDULER_NAME) == (90, "WarmupCosineLR")
    assert (images.SIZE, images.RESIZED_CROP, images.FLIP, images.COLOR_JITTER) == (
        224,
        True,
        0.5,
        0.4,
    )
    assert cfg.MODEL.IMAGE_CLASSIFIER.NETWORK == "resnext50_32x4d"


@pytest.mark.parametrize("name", RUNS)
def test_config_builds_and_trains(name):
    stem, _ = split(name)
    classes, features, _ = SETS[stem]
    options = ["MODEL.IMAGE_CLASSIFIER.CLASS_COUNTS", f"{tuple(range(1, classes + 1))}"]
    options += ["MODEL.IMAGE_CLASSIFIER.PRETRAINED", "False", "MODEL.DEVICE", "cpu"]
    recipe = load_recipe(str(ROOT / f"{name}.yaml"), options)
    assert isinstance(recipe, ClassifierRecipe) and recipe.num_classes == classes
    if features > 128 and name != "imagenet_lt_x50_tde":
        return  # the networks are those of torchvision: one of them is enough
    model = recipe.build_model().train()
    assert model.predictor.cls_score.in_features == features
    side = min(32, recipe.cfg.INPUT.CLASSIFICATION.SIZE)
    batch = {"image": torch.rand(2, 3, side, side) * 255, "class": torch.tensor([0, classes - 1])}
    optimizer = Trainer.build_optimizer(recipe.cfg, model)
    with EventStorage(0):
        loss = model(batch)["loss_cls"]
        loss.backward()
    optimizer.step()
    assert loss.isfinite()
