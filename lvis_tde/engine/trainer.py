"""Training and evaluation of yacs configs: Detectron2's trainer, plus what TDE needs."""

import contextlib
import functools
import logging
import os

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import DefaultTrainer, defaults
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.utils import comm
from torch.utils.data import Sampler

from ..data.resume import ResumableSampler
from ..evaluation import LVISEvaluator
from ..evaluation.build import build_evaluator
from .hooks import PreciseMean, SeedEveryIteration

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


def _training_sampler(cfg: CfgNode, dataset: list) -> Sampler:
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        # Main has the square root of the repeat factors as an option, 0.6 always takes it.
        sqrt = cfg.DATALOADER.get("REPEAT_SQRT")
        options = {} if sqrt is None else {"sqrt": sqrt}
        repeat_factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, **options
        )
        return RepeatFactorTrainingSampler(repeat_factors)
    return TrainingSampler(len(dataset))


@contextlib.contextmanager
def _ddp_on(device: str):
    """Lets ``DefaultTrainer`` train on several CPU processes.

    It gives every process the GPU of its rank, which DistributedDataParallel refuses for a model
    on the CPU, and offers no argument or method to say otherwise.
    """
    create = defaults.create_ddp_model
    if device == "cpu":
        defaults.create_ddp_model = functools.partial(create, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = create


class Trainer(DefaultTrainer):
    """:class:`DefaultTrainer` with LVIS evaluation and exact resumption.

    With ``SEED`` >= 0 a resumed run sees the images that the uninterrupted one would have seen.
    With ``DATALOADER.NUM_WORKERS`` 0 and images of one orientation it also repeats its losses;
    otherwise some images are augmented otherwise.
    """

    def __init__(self, cfg):
        with _ddp_on(cfg.MODEL.DEVICE):
            super().__init__(cfg)

    def resume_or_load(self, resume=True):
        super().resume_or_load(resume)
        sampler = getattr(self.data_loader, "resumable_sampler", None)
        if sampler is not None:
            sampler.resume(self.start_iter, self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())
            if "_data_loader_iter" in vars(self._trainer):
                # Release 0.6 starts the workers, and with them the sampler, on construction.
                self._trainer._data_loader_iter = iter(self.data_loader)

    def state_dict(self):
        state = super().state_dict()
        # Release 0.6 leaves out the optimizer and its momentum; main saves them under this key.
        state.setdefault("_trainer", self._trainer.state_dict())
        return state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if "_trainer" not in state_dict:
            logger.warning("The checkpoint has no optimizer state: resuming with zero momentum.")
        elif "_trainer" not in super().state_dict():
            self._trainer.load_state_dict(state_dict["_trainer"])

    def build_hooks(self):
        hooks = super().build_hooks()
        num_batches = self.cfg.MODEL.get("TDE", {}).get("PRECISE_MEAN", 0)
        if num_batches:
            # After the statistics of batch norm, before the last checkpoint and the evaluation.
            saves = (PeriodicCheckpointer, EvalHook)
            place = next(i for i, hook in enumerate(hooks) if isinstance(hook, saves))
            loader = functools.partial(self.build_train_loader, self.cfg)
            hooks.insert(place, PreciseMean(self.model, loader, num_batches))
        if self.cfg.SEED >= 0:
            hooks.insert(0, SeedEveryIteration(self.cfg.SEED))
        return hooks

    @classmethod
    def build_train_loader(cls, cfg):
        samplers = ("TrainingSampler", "RepeatFactorTrainingSampler")
        if cfg.DATALOADER.SAMPLER_TRAIN not in samplers:
            return super().build_train_loader(cfg)
        keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        sampler = ResumableSampler(
            _training_sampler(cfg, dataset),
            wide=[record["width"] > record["height"] for record in dataset],
            grouped=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        )
        loader = build_detection_train_loader(cfg, dataset=dataset, sampler=sampler)
        loader.resumable_sampler = sampler
        return loader

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test_and_report(cls, cfg, model) -> dict:
        """:meth:`test`, and a page and pictures in ``OUTPUT_DIR/report`` for every LVIS set."""
        evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, model, evaluators)
        for name, evaluator in zip(cfg.DATASETS.TEST, evaluators):
            if comm.is_main_process() and isinstance(evaluator, LVISEvaluator):
                evaluator.write_report(os.path.join(cfg.OUTPUT_DIR, "report", name))
        return results
