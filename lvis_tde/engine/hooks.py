"""Hooks of the training loop."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn

from ..calibration.checkpoint import save_checkpoint
from ..calibration.estimate import estimate_feature_mean
from ..calibration.settings import tde_predictors
from ..checkpointer import SafeCheckpointer, read_checkpoint
from ..data.classes import class_info
from ..modeling.strengths import Strengths
from ..progress import Progress

__all__ = [
    "KeepBest",
    "LastCheckpoint",
    "PreciseMean",
    "SeedEveryIteration",
    "TrainingProgress",
    "WeightNorms",
    "weight_norms",
]

logger = logging.getLogger(__name__)


class TrainingProgress(HookBase):
    """Tells how far the training is, from its first iteration on."""

    def before_train(self):
        start, end = self.trainer.start_iter, self.trainer.max_iter
        logger.info("Training from iteration %d to %d.", start, end)
        self._progress = Progress("training", end, done=start)

    def after_step(self):
        note = ""
        with contextlib.suppress(KeyError):  # of a step that records no loss
            note = f"total_loss {self.trainer.storage.history('total_loss').latest():.4g}"
        self._progress.step(self.trainer.iter + 1, note=note)


class LastCheckpoint(HookBase):
    """Writes the checkpoint of the end for a run that was killed just before it.

    Of such a run the last periodic checkpoint has all iterations, so that resuming it makes none,
    and the hook that saves, which saves after an iteration, would never write ``model_final.pth``.
    """

    def __init__(self, checkpointer: Checkpointer):
        self._checkpointer = checkpointer

    def before_train(self):
        done = self.trainer.start_iter
        last = os.path.basename(self._checkpointer.get_checkpoint_file())
        if done == self.trainer.max_iter > 0 and last != "model_final.pth":
            self.trainer.iter = done - 1  # as behind the step that the checkpoint stands for
            self._checkpointer.save("model_final", iteration=done - 1)
            self.trainer.iter = done


class PreciseMean(HookBase):
    """Re-estimates the running means at the end of training, from the weights as they then are.

    As Detectron2's ``PreciseBN`` does for the statistics of batch norm. Register it before the
    hooks that save and evaluate.
    """

    def __init__(self, model: nn.Module, make_loader: Callable[[], Iterable], num_batches: int):
        """
        Args:
            model: with TDE predictors, wrapped for several processes or not.
            make_loader: makes a training loader, once.
            num_batches: batches each process uses, >= 2.

        Raises:
            ValueError: if ``num_batches`` is too small, or the model has no TDE predictor.
        """
        if num_batches < 2:
            raise ValueError(
                f"num_batches={num_batches} (MODEL.TDE.PRECISE_MEAN) must be at least 2, or 0 to "
                "keep the running mean."
            )
        tde_predictors(model)  # or an error now, not when all is trained
        self._model = model
        self._make_loader = make_loader
        self._num_batches = num_batches

    def after_step(self):
        if self.trainer.iter + 1 < self.trainer.max_iter:
            return
        logger.info("Estimating the feature mean from %d batches.", self._num_batches)
        loader = self._make_loader()
        try:
            estimate_feature_mean(self._model, loader, max_batches=self._num_batches, tolerance=0)
        except ValueError as error:
            logger.warning("%s The running mean is kept.", error)


class SeedEveryIteration(HookBase):
    """Makes the random numbers of an iteration a function of seed, rank and iteration.

    A resumed run then repeats the uninterrupted one, on every rank, with no state to save.
    """

    def __init__(self, seed: int):
        self._seed = seed

    def before_train(self):
        # Once more after the data were fetched: a fresh data loader draws numbers for itself,
        # and it is fresh in the first iteration after a resume alone.
        self._handle = self.trainer.model.register_forward_pre_hook(self._before_forward)

    def after_train(self):
        self._handle.remove()

    def _before_forward(self, model, _):
        # Not in the evaluation or the batch-norm statistics that run between two iterations.
        if model.training and torch.is_grad_enabled():
            self.before_step()

    def before_step(self):
        step = self.trainer.iter * comm.get_world_size() + comm.get_rank()
        seed_all_rng((self._seed * 1_000_003 + step) % 2**31)


class KeepBest(HookBase):
    """Evaluates periodically and keeps the best checkpoint, whole: the mean in it is that of its
    own iteration, as are the statistics of batch norm.

    Register it before the hook that saves, so that a run that is killed in between evaluates
    again instead of never. The best so far is read from the file when a run is resumed, if it is of
    this run.

    Attributes:
        kept (bool): whether there is a best one of this run, in all processes.
    """

    FILE = "model_best"

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], dict[str, float]],
        metric: str,
        checkpointer: DetectionCheckpointer,
    ):
        """
        Args:
            period: iterations between two evaluations; the last iteration has one, too.
            evaluate: called by all processes; the first returns metrics, which are recorded
                as "calib/<name>".
            metric: to maximize. Of equals the first is kept.
            checkpointer: writes ``model_best.pth`` beside the others.

        Raises:
            ValueError: if ``period`` is not positive.
        """
        if period < 1:
            raise ValueError(f"period={period} must be at least 1 iteration.")
        self._period = period
        self._evaluate = evaluate
        self._metric = metric
        self._checkpointer = checkpointer
        self._best = -math.inf
        self._run = uuid.uuid4().hex  # that of the process that writes counts
        self.kept = False

    def state_dict(self):
        return {"run": self._run}

    def load_state_dict(self, state):
        self._run = state["run"]

    @property
    def path(self) -> str:
        return os.path.join(self._checkpointer.save_dir, f"{self.FILE}.pth")

    def load(self) -> None:
        """Puts the best weights into the model, if there are any of this run."""
        if self.kept:
            SafeCheckpointer(self._checkpointer.model).load(self.path)
        else:
            logger.warning("No evaluation gave %s: the last weights are used.", self._metric)

    def before_train(self):
        if self.trainer.start_iter and os.path.isfile(self.path):
            saved = read_checkpoint(self.path, lazily=True)
            # Another run's may lie in the folder. Of a file that does not say whose it is: one of
            # iterations that are still to come.
            past = saved.get("iteration", math.inf) < self.trainer.start_iter
            if saved.get("run", self._run if past else None) == self._run:
                self._best, self.kept = saved["best"], True

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self._period and done < self.trainer.max_iter:
            return
        found = self._evaluate()
        if found:
            self._record(found)
        self.kept = comm.all_gather(self._best > -math.inf)[0]

    def _record(self, found: dict[str, float]) -> None:
        if self._metric not in found:
            raise ValueError(f"TEST.CALIB_METRIC is {self._metric!r}; there is {', '.join(found)}.")
        values: dict[str, Any] = {f"calib/{name}": float(v) for name, v in found.items()}
        self.trainer.storage.put_scalars(**values, smoothing_hint=False)
        value = float(found[self._metric])
        # What is undefined is NaN, or in LVIS's metrics negative.
        defined = [name for name, one in found.items() if one >= 0]
        if self._best == -math.inf and defined and self._metric not in defined:
            raise ValueError(
                f"calib/{self._metric} is undefined ({value:g}), so no checkpoint is the best: the "
                "images of DATASETS.CALIB show none of its classes. Set TEST.CALIB_METRIC to "
                f"another metric, such as {defined[0]}, or choose on other images."
            )
        if value > self._best and value >= 0:
            self._best = value
            how = {"iteration": self.trainer.iter, "best": value, "run": self._run}
            save_checkpoint(self._checkpointer.model, self.path, **how)
            logger.info("calib/%s %.2f is the best so far: %s", self._metric, value, self.path)


def weight_norms(weight: Tensor, groups: Sequence[str]) -> dict[str, Tensor]:
    """Mean norm of the class weights of each frequency group.

    Args:
        weight: (C or more, D) raw weights; rows after the first C, such as the background's, are
            not looked at.
        groups: "r", "c" or "f" of each of the C classes.

    Returns:
        Group to a scalar on the weights' device, in fp32; a group without classes is left out.
    """
    norms = weight.detach()[: len(groups)].float().norm(dim=1)
    return {
        group: norms[[i for i, one in enumerate(groups) if one == group]].mean()
        for group in "rcf"
        if group in groups
    }


class WeightNorms(HookBase):
    """Records the mean norm of rare, common and frequent classes' weights.

    Training that favors the head shows in longer weights of frequent classes (Kang et al., ICLR
    2020). The scalars are ``tde/weight_norm_r``, ``_c`` and ``_f``, of a cascade in each stage's
    name scope, beside the predictor's own ``tde/fg_cosine_to_mean``. Register it before the hook
    that writes, with the same period.
    """

    def __init__(self, model: nn.Module, dataset: str, period: int = 20):
        """
        Args:
            model: with TDE predictors; without any, or without groups, nothing is recorded.
            dataset: registered name of the training set, whose metadata have the groups; or "".
            period: iterations between two records; the last one has one, too.
        """
        self._period = period
        self._predictors = [one for one in model.modules() if isinstance(one, Strengths)]
        self._groups: Sequence[str] = ()
        if self._predictors and dataset:
            with contextlib.suppress(ValueError):  # of a set that does not name its classes
                num_classes = self._predictors[0].statistics.num_classes
                self._groups = class_info(dataset, num_classes).frequency or ()

    def after_step(self):
        done = self.trainer.iter + 1
        if not self._groups or (done % self._period and done < self.trainer.max_iter):
            return
        storage = self.trainer.storage
        for stage, predictor in enumerate(self._predictors):
            found = weight_norms(predictor.cls_score.weight, self._groups)
            values = dict(zip(found, torch.stack([*found.values()]).tolist()))
            scoped = len(self._predictors) > 1
            with storage.name_scope(f"stage{stage}") if scoped else contextlib.nullcontext():
                for group, value in values.items():
                    storage.put_scalar(f"tde/weight_norm_{group}", value, smoothing_hint=False)
