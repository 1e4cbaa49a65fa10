"""The recipe of a classifier of images, and a user's own folders of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

import torch
from detectron2.data import MetadataCatalog
from PIL import Image
from torchvision.transforms import v2

from ..data.classification.batches import check_sides
from ..data.classification.image_folder import register_image_folder
from .classification import resolved
from .recipes import Recipe, YacsRecipe

__all__ = ["ClassifierRecipe", "use_folders"]

logger = logging.getLogger(__name__)


class ClassifierRecipe(YacsRecipe):
    """A yacs config whose model is an :class:`~lvis_tde.modeling.ImageClassifier`.

    Such a model always has a TDE predictor, so a trained softmax needs no other recipe.
    """

    keys: ClassVar[dict[str, str]] = {
        **YacsRecipe.keys,
        "num_classes": "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES",
    }

    def check(self, *, training):
        for name in (*self.train_sets, *self.calibration_sets, *self.test_sets):
            kind = MetadataCatalog.get(name).get("evaluator_type", "classification")
            if kind != "classification":
                raise ValueError(
                    f"{name!r} has boxes, and the model classifies whole images: give a "
                    "classification set, or a folder of images with --train-folder."
                )
        if len(self.calibration_sets) > 1:
            raise ValueError(f"DATASETS.CALIB is {self.calibration_sets}: one set chooses.")
        if self.cfg.TEST.AUG.ENABLED:
            raise ValueError(
                "TEST.AUG.ENABLED is True: that augmentation is of detectors. Set it to False."
            )
        only = self.cfg.MODEL.IMAGE_CLASSIFIER.TRAIN_ONLY
        if training and only and not self.weights:
            raise ValueError(
                f"MODEL.IMAGE_CLASSIFIER.TRAIN_ONLY is {only!r}, a second stage on trained "
                "features: name the checkpoint of the first in MODEL.WEIGHTS."
            )

    @property
    def num_checkpoints(self):
        return YacsRecipe(resolved(self.cfg)).num_checkpoints

    def put_tde_on_softmax(self, num_heads=1):
        pass

    def prepare(self, image):
        options = self.cfg.INPUT.CLASSIFICATION
        check_sides(options.SIZE, options.RESIZE_TEST)
        steps = v2.Compose(
            [
                v2.Resize(options.RESIZE_TEST or options.SIZE),
                v2.CenterCrop(options.SIZE),
                v2.ToImage(),
            ]
        )
        return {"image": steps(Image.fromarray(image)).as_subclass(torch.Tensor)}

    def test_input(self):
        return "RGB", ()


def use_folders(
    recipe: Recipe, train: str | None, test: str | None = None, *, hold_out: bool = False
) -> None:
    """Registers folders of images and points a recipe at them: data sets and number of classes.

    Args:
        recipe: changed; left alone without ``train`` and ``test``.
        train, test: folders in the layout of torchvision's ``ImageFolder``. Without ``test`` no
            set is tested on.
        hold_out: train on nine tenths of every class, and choose on the rest.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if the recipe is none of a classifier, ``train`` is missing, or ``test`` has
            other classes.
    """
    if hold_out and train is None:
        raise ValueError(
            "--hold-out needs --train-folder, of which it takes a tenth. Name other sets to choose "
            "on in DATASETS.CALIB."
        )
    if train is None and test is None:
        return
    if not isinstance(recipe, ClassifierRecipe):
        raise ValueError(
            "--train-folder and --test-folder are for classifiers, such as those of "
            "configs/classification. A detector takes --train-data JSON IMAGES."
        )
    if train is None:
        raise ValueError(
            f"--test-folder {test} needs --train-folder, whose images make the classes and groups."
        )
    stem = Path(train).resolve().name
    whole = f"{stem}_train"
    register_image_folder(whole, train)
    recipe.train_sets, recipe.calibration_sets, recipe.test_sets = (whole,), (), ()
    if hold_out:
        parts = f"{stem}_fit", f"{stem}_calib"
        for name, part in zip(parts, ("fit", "calib")):
            register_image_folder(name, train, part=part, train_set=whole)
        recipe.train_sets, recipe.calibration_sets = parts[:1], parts[1:]
    if test is None:
        logger.warning("No --test-folder: evaluation on a test set is skipped.")
    else:
        name = f"{Path(test).resolve().name}_test"
        register_image_folder(name, test, train_set=whole)
        recipe.test_sets = (name,)
    recipe.num_classes = len(MetadataCatalog.get(whole).thing_classes)
