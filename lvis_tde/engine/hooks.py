"""Hooks of the training loop."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from ..calibration.estimate import estimate_feature_mean

__all__ = ["EarlyProgress", "PreciseMean", "SeedEveryIteration"]

logger = logging.getLogger(__name__)


class EarlyProgress(HookBase):
    """Says that training goes on until Detectron2's printer does, from its 20th iteration on.

    The first iteration is told, and after it one every few seconds.
    """

    SECONDS, UNTIL = 5.0, 20

    def before_train(self):
        self._start = self._told = time.monotonic()
        logger.info(
            "Training from iteration %d to %d.", self.trainer.start_iter, self.trainer.max_iter
        )

    def after_step(self):
        done, now = self.trainer.iter + 1 - self.trainer.start_iter, time.monotonic()
        if done >= self.UNTIL or (done > 1 and now - self._told < self.SECONDS):
            return
        self._told = now
        each = (now - self._start) / done
        with contextlib.suppress(KeyError):  # of a step that records no loss
            loss = self.trainer.storage.history("total_loss").latest()
            logger.info(
                "Iteration %d: total_loss %.4g, %.2f s each, ETA %.0f s",
                self.trainer.iter,
                loss,
                each,
                each * (self.trainer.max_iter - self.trainer.iter - 1),
            )


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
            ValueError: if ``num_batches`` is too small.
        """
        if num_batches < 2:
            raise ValueError(
                f"num_batches={num_batches} (MODEL.TDE.PRECISE_MEAN) must be at least 2, or 0 to "
                "keep the running mean."
            )
        self._model = model
        self._make_loader = make_loader
        self._num_batches = num_batches

    def after_step(self):
        if self.trainer.iter + 1 < self.trainer.max_iter:
            return
        logger.info("Estimating the feature mean from %d batches.", self._num_batches)
        loader = self._make_loader()
        estimate_feature_mean(self._model, loader, max_batches=self._num_batches, tolerance=0)


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
