"""Hooks of the training loop."""

import logging

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..layers.feature_mean import RunningFeatureMean

__all__ = ["FeatureMeanLR", "SeedEveryIteration"]

logger = logging.getLogger(__name__)


class FeatureMeanLR(HookBase):
    """Tells every running mean the learning rate of the step that is about to run."""

    def before_train(self):
        modules = self.trainer.model.modules()
        self._means = [m for m in modules if isinstance(m, RunningFeatureMean)]
        self._group = hooks.LRScheduler.get_best_param_group_id(self.trainer.optimizer)

    def before_step(self):
        for mean in self._means:
            mean.lr = self.trainer.optimizer.param_groups[self._group]["lr"]


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
