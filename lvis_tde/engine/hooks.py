"""Hooks of the training loop."""

import logging

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

__all__ = ["SeedEveryIteration"]

logger = logging.getLogger(__name__)


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
