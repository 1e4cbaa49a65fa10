"""One face for both kinds of config: all that the tools and the calibration need of either."""

from __future__ import annotations

import abc
import copy
import functools
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.data.detection_utils import build_augmentation
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from ..calibration.checkpoint import load_trained
from ..checkpointer import SafeCheckpointer
from ..config import use_tde_on_softmax
from ..data.files import write_text
from ..layers.functional import check_alpha
from ..modeling.strengths import posthoc_options
from ..posthoc import Settings
from .classification import resolved
from .trainer import Trainer

__all__ = ["Recipe", "YacsRecipe"]

logger = logging.getLogger(__name__)


class _Setting:
    """A value that each kind of config has under a name of its own."""

    def __set_name__(self, owner, name: str):
        self._name = name

    def __get__(self, recipe, owner=None):
        path = recipe.keys[self._name].split(".")
        return functools.reduce(getattr, path, recipe.cfg)

    def __set__(self, recipe, value):
        *path, last = recipe.keys[self._name].split(".")
        setattr(functools.reduce(getattr, path, recipe.cfg), last, value)


class _Sets(_Setting):
    """Names of datasets, as a tuple whatever the config has."""

    def __get__(self, recipe, owner=None) -> tuple[str, ...]:
        names = super().__get__(recipe, owner)
        return (names,) if isinstance(names, str) else tuple(names)


class Recipe(abc.ABC):
    """How a model is built, trained and tested: a config, whatever its kind.

    What is set here is set in the config.

    Attributes:
        cfg: the config itself.
        keys: the config's own names of the settings below, for messages.
        weights: checkpoint to start from.
        output_dir: folder for all that is written.
        device: such as "cuda".
        num_classes: C, without background.
        train_sets, test_sets: registered names.
        calibration_sets: likewise, of images to choose on.
        partial_weights: whether weights may lack a part of the model; not in the config.
        fast: whether :meth:`load_model` optimizes it for inference; not in the config.
        inference_dtype: the config's name of the data type that it then has.
    """

    partial_weights = False
    fast = False
    inference_dtype: Any

    keys: ClassVar[dict[str, str]]
    weights, output_dir, device, num_classes = (_Setting() for _ in range(4))
    train_sets, test_sets = _Sets(), _Sets()
    calibration_sets: Any = ()

    def __init__(self, cfg):
        self.cfg = cfg

    def clone(self) -> Recipe:
        """A copy whose changes do not come back."""
        other = copy.copy(self)
        other.cfg = copy.deepcopy(self.cfg)
        return other

    def use_cpu_without_gpu(self) -> None:
        """Turns ``device`` to "cpu" where no GPU can be used, and says so."""
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            logger.warning("No GPU found: running on the CPU (%s=cpu).", self.keys["device"])
            self.device = "cpu"

    def results_folder(self, dataset: str) -> str:
        """Where the detections on a dataset go."""
        return os.path.join(self.output_dir, "inference", dataset)

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """The model's input for a picture, as in a test.

        Args:
            image: RGB, (H, W, 3) uint8.

        Returns:
            dict: "image", a (3, H', W') float32 tensor in the test's size and order of channels,
            and the "height" and "width" of the picture.
        """
        image_format, augmentations = self.test_input()
        image_input = transforms.AugInput(image[:, :, ::-1] if image_format == "BGR" else image)
        transforms.AugmentationList(augmentations)(image_input)
        tensor = torch.from_numpy(image_input.image.astype("float32").transpose(2, 0, 1).copy())
        return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}

    def load_model(self, *, resume: bool = False) -> nn.Module:
        """The model with its weights; if ``resume``, those of the last checkpoint of its run.

        Raises:
            FileNotFoundError, ValueError: see :func:`load_trained`.
        """
        recipe = self.clone()
        recipe.weights = self.weights_to_load(resume=resume)
        return load_trained(recipe)

    def weights_to_load(self, *, resume: bool = False) -> str:
        """``weights``; if ``resume``, the last checkpoint in ``output_dir``, if there is one."""
        checkpointer = SafeCheckpointer(nn.Module(), self.output_dir)
        if resume and checkpointer.has_checkpoint():
            return checkpointer.get_checkpoint_file()
        return self.weights

    @property
    @abc.abstractmethod
    def num_checkpoints(self) -> int:
        """How many a training leaves behind."""

    @property
    @abc.abstractmethod
    def batch_size(self) -> int:
        """Training images of an iteration, over all processes."""

    @abc.abstractmethod
    def build_solver(self, model: nn.Module) -> None:
        """Builds optimizer and schedule, to see whether the config has one of each."""

    def check(self, *, training: bool) -> None:  # noqa: B027
        """Fails if the settings do not go together.

        Raises:
            ValueError: naming the setting and the cure.
        """

    @abc.abstractmethod
    def set_alpha(self, alpha: float) -> None:
        """Sets the strength of TDE, >= 0.

        Raises:
            ValueError: if the model has no TDE.
        """

    @abc.abstractmethod
    def set_posthoc(self, settings: Settings) -> None:
        """Sets the strengths of TDE and of all other post-hoc steps.

        Raises:
            ValueError: if the model has no TDE.
        """

    @abc.abstractmethod
    def put_tde_on_softmax(self, num_heads: int = 1) -> None:
        """Turns the recipe of a softmax detector into one that puts TDE on its trained weights.

        A recipe with TDE is left as it is.

        Args:
            num_heads: K, a divisor of the box head's output size.

        Raises:
            ValueError: if this is not known for the model.
        """

    @abc.abstractmethod
    def save(self, path: str | os.PathLike) -> None:
        """Writes the config to a file that :func:`load_recipe` takes."""

    @abc.abstractmethod
    def build_model(self) -> nn.Module:
        """The model with random weights, on its device, not wrapped for several processes."""

    @abc.abstractmethod
    def train_loader(self) -> Iterable[list[dict]]:
        """Endless batches of training images."""

    @abc.abstractmethod
    def test_loader(self, dataset: str) -> Iterable[list[dict]]:
        """This process's images of a dataset, each once."""

    @abc.abstractmethod
    def evaluator(self, dataset: str, *, save: bool = True) -> DatasetEvaluator:
        """The evaluator of a dataset; if ``save``, it writes the detections to a file, too."""

    @abc.abstractmethod
    def test_input(self) -> tuple[str, Sequence]:
        """The test's order of channels, "BGR" or "RGB", and what it does to an image."""

    @abc.abstractmethod
    def train(self, *, resume: bool = False):
        """Trains, and evaluates at the end where there are test sets."""

    @abc.abstractmethod
    def evaluate(self, model: nn.Module, *, bootstrap: int = -1) -> dict:
        """Metrics on the test sets; by LVIS's rules a report in ``output_dir``, too.

        Args:
            model: with its weights.
            bootstrap: resamples for the report's intervals; -1 for as many as it has time for.
        """


class YacsRecipe(Recipe):
    """A yacs config, whose training and tests are those of :class:`Trainer`."""

    cfg: CfgNode
    calibration_sets = _Sets()
    keys: ClassVar[dict[str, str]] = {
        "weights": "MODEL.WEIGHTS",
        "output_dir": "OUTPUT_DIR",
        "device": "MODEL.DEVICE",
        "num_classes": "MODEL.ROI_HEADS.NUM_CLASSES",
        "train_sets": "DATASETS.TRAIN",
        "test_sets": "DATASETS.TEST",
        "calibration_sets": "DATASETS.CALIB",
        "masks": "MODEL.MASK_ON",
        "mask_format": "INPUT.MASK_FORMAT",
    }

    @property
    def inference_dtype(self):
        return self.cfg.MODEL.get("TDE", {}).get("INFERENCE_DTYPE", "")

    @property
    def num_checkpoints(self):
        solver = self.cfg.SOLVER
        if solver.CHECKPOINT_PERIOD < 1:
            raise ValueError(f"SOLVER.CHECKPOINT_PERIOD={solver.CHECKPOINT_PERIOD} is below 1.")
        return 1 + solver.MAX_ITER // solver.CHECKPOINT_PERIOD

    @property
    def batch_size(self):
        return self.cfg.SOLVER.IMS_PER_BATCH

    def build_solver(self, model):
        cfg = resolved(self.cfg)
        Trainer.build_lr_scheduler(cfg, Trainer.build_optimizer(cfg, model))

    def set_alpha(self, alpha):
        self.cfg.MODEL.TDE.ALPHA = check_alpha(alpha)

    def set_posthoc(self, settings):
        options = posthoc_options(settings)
        for key, value in options.pop("posthoc").items():
            self.cfg.MODEL.POSTHOC[key.upper()] = value
        for key, value in options.items():
            self.cfg.MODEL.TDE[key.upper()] = value

    def put_tde_on_softmax(self, num_heads=1):
        use_tde_on_softmax(self.cfg, num_heads)

    def save(self, path):
        write_text(path, self.cfg.dump())

    def build_model(self):
        return Trainer.build_model(self.cfg)

    def train_loader(self):
        return Trainer.build_train_loader(self.cfg)

    def test_loader(self, dataset):
        return Trainer.build_test_loader(self.cfg, dataset)

    def evaluator(self, dataset, *, save=True):
        return Trainer.build_evaluator(self.cfg, dataset, save=save)

    def test_input(self):
        return self.cfg.INPUT.FORMAT, build_augmentation(self.cfg, is_train=False)

    def train(self, *, resume=False):
        trainer = Trainer(self.cfg)
        trainer.resume_or_load(resume=resume)
        return trainer.train()

    def evaluate(self, model, *, bootstrap=-1):
        return Trainer.test_and_report(self.cfg, model, bootstrap=bootstrap)
