"""Training and evaluation behind ``tools/train_net.py``: Detectron2's, plus what TDE needs."""

import argparse
import contextlib
import functools
import logging
import os
from pathlib import Path
from typing import Callable

import torch
from detectron2 import engine
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    default_argument_parser,
    default_setup,
    defaults,
    hooks,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch.utils.data import Sampler

from .config import add_tde_config
from .data.long_tailed import register_long_tailed
from .data.resume import ResumableSampler
from .evaluation import LVISEvaluator
from .modeling.feature_mean import RunningFeatureMean

__all__ = [
    "FeatureMeanLR",
    "Trainer",
    "argument_parser",
    "build_evaluator",
    "check_inputs",
    "launch",
    "load_config",
    "setup",
    "use_data",
]

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


def build_evaluator(cfg: CfgNode, dataset_name: str, *, save: bool = True) -> DatasetEvaluator:
    """LVIS metrics for a dataset with ``evaluator_type`` "lvis", COCO's for "coco".

    Args:
        cfg: for ``OUTPUT_DIR`` and the number of detections an image.
        dataset_name: registered dataset.
        save: write the detections to a file, too.

    Raises:
        ValueError: for any other type.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name) if save else None
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind == "lvis":
        return LVISEvaluator(
            dataset_name, output_dir=folder, max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE
        )
    if kind == "coco":
        # The fast implementation is a compiled operator, which not every installation has.
        return COCOEvaluator(dataset_name, output_dir=folder, use_fast_impl=False)
    raise ValueError(
        f"Dataset {dataset_name!r} has evaluator_type {kind!r}; this tool evaluates 'lvis' and "
        "'coco'. Set it in the dataset's metadata, or override Trainer.build_evaluator."
    )


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
    """:class:`DefaultTrainer` with LVIS evaluation, the mean's learning rate and exact resumption.

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
        first = [FeatureMeanLR()]
        if self.cfg.SEED >= 0:
            first.append(SeedEveryIteration(self.cfg.SEED))
        return first + super().build_hooks()

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


def check_dataset(name: str, num_classes: int, key: str = "MODEL.ROI_HEADS.NUM_CLASSES") -> None:
    """Fails if a dataset's files are not there or it has not the classes of the config's ``key``.

    Raises:
        FileNotFoundError: naming the missing path and where to read about it.
        ValueError: if the dataset has another number of classes than the model.
    """
    if name not in DatasetCatalog.list():
        raise FileNotFoundError(
            f"Dataset {name!r} is not registered. Builtin LVIS names are lvis_v1_train and "
            "lvis_v1_val; for your own data see datasets/README.md."
        )
    metadata = MetadataCatalog.get(name)
    paths = [metadata.get("json_file"), metadata.get("image_root")]
    if name.startswith("lvis_v"):  # its image_root is COCO's folder, one level higher
        folders = ["val2017"] if "val" in name else ["train2017"]
        if name.startswith("lvis_v1_val"):
            folders.append("train2017")
        paths += [os.path.join(paths[1], folder) for folder in folders]
    for path in paths:
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(
                f"Dataset {name!r} needs {path}, which does not exist. datasets/README.md says "
                "what goes where; DETECTRON2_DATASETS names the root folder (now "
                f"{os.environ.get('DETECTRON2_DATASETS', 'datasets')!r})."
            )
    classes = metadata.get("thing_classes")
    if classes is not None and len(classes) != num_classes:
        raise ValueError(
            f"Dataset {name!r} has {len(classes)} classes, but {key} is {num_classes}: set it to "
            f"{len(classes)}."
        )


def check_weights(path: str, key: str = "MODEL.WEIGHTS") -> None:
    """Fails if the local checkpoint that the config names under ``key`` is not there.

    Raises:
        FileNotFoundError: naming the path and what to do.
    """
    if path and "://" not in path and not os.path.isfile(path):
        raise FileNotFoundError(
            f"{key} names {path}, which does not exist. Give the path of a checkpoint, "
            f'or {key} "" to train from scratch (see datasets/README.md).'
        )


def check_inputs(cfg: CfgNode, *, training: bool = True, testing: bool = True) -> None:
    """Fails before anything is built if a dataset or weight file is not there.

    Raises:
        FileNotFoundError: naming the missing path and where to read about it.
        ValueError: if a dataset has another number of classes than the model.
    """
    names = tuple(cfg.DATASETS.TRAIN) if training else ()
    names += tuple(cfg.DATASETS.TEST) if testing else ()
    for name in names:
        check_dataset(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    check_weights(cfg.MODEL.WEIGHTS)


def use_data(cfg: CfgNode, train=None, test=None, bounds=None) -> None:
    """Registers a user's files and points ``cfg`` at them: ``DATASETS`` and ``NUM_CLASSES``.

    Args:
        cfg: changed in place.
        train, test: (annotation file, image folder) in LVIS or COCO format, or None to leave the
            config's own. The groups of ``test`` are those of ``train`` where both are given.
        bounds: most images of a rare and of a common class; None for LVIS's 10 and 100.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if a file is not consistent, see :func:`register_long_tailed`.
    """
    for path in (*(train or ()), *(test or ())):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} does not exist (see datasets/README.md).")
    for key, data, train_json in (("TRAIN", train, None), ("TEST", test, train and train[0])):
        if data is None:
            continue
        name = f"{Path(data[0]).stem}_{key.lower()}"
        register_long_tailed(name, *data, train_json=train_json, bounds=bounds)
        cfg.DATASETS[key] = (name,)
        if key == "TEST" and train is None:
            logger.warning(
                "No --train-data: the groups rare, common and frequent are those that %s itself "
                "gives or counts, not those of the training set.",
                data[0],
            )
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(MetadataCatalog.get(name).thing_classes)


def use_cpu_without_gpu(cfg: CfgNode) -> None:
    """Turns ``MODEL.DEVICE`` to "cpu" where no GPU can be used, and says so."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: running on the CPU (MODEL.DEVICE cpu).")
        cfg.MODEL.DEVICE = "cpu"


def load_config(config_file: str = "", opts=()) -> CfgNode:
    """Detectron2's defaults, ``MODEL.TDE``, the file and the "KEY VALUE" overrides, in this order.

    Raises:
        FileNotFoundError: if the file does not exist.
    """
    cfg = get_cfg()
    add_tde_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"--config-file {config_file} does not exist.")
        cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    return cfg


def argument_parser(**options) -> argparse.ArgumentParser:
    """Detectron2's command line, and that of :func:`use_data`; :func:`setup` takes its result."""
    parser = default_argument_parser(**options)
    group = parser.add_argument_group("your own data, in LVIS or COCO format")
    pair = dict(nargs=2, metavar=("JSON", "IMAGES"))
    group.add_argument("--train-data", help="annotation file and image folder", **pair)
    group.add_argument(
        "--test-data",
        help="annotation file and image folder; give --train-data too, whose counts of images "
        "make the groups of AP_r, AP_c and AP_f",
        **pair,
    )
    group.add_argument(
        "--bounds",
        type=int,
        nargs=2,
        metavar=("RARE", "COMMON"),
        help="most training images of a rare and of a common class (LVIS: 10 100)",
    )
    return parser


def launch(main: Callable, args: argparse.Namespace):
    """Detectron2's launcher: runs ``main(args)`` in ``args.num_gpus`` processes on every machine.

    Release 0.6 starts several processes on GPUs only; without any it runs one, and says so.
    """
    num_gpus, num_machines = args.num_gpus, args.num_machines
    on_cpu = hasattr(comm, "create_local_process_group")  # the launcher of main
    if num_gpus * num_machines > 1 and not on_cpu and not torch.cuda.is_available():
        logger.warning("No GPU found, and this Detectron2 starts one process on CPUs: running 1.")
        num_gpus = num_machines = 1
    return engine.launch(
        main,
        num_gpus,
        num_machines=num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def setup(args, *, testing: bool = True) -> CfgNode:
    """Loads the config of the command line ``args`` and sets up logging, folders and seeds.

    ``testing`` False is for what needs no test set.
    """
    cfg = load_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="lvis_tde")
    use_data(cfg, args.train_data, args.test_data, args.bounds)
    use_cpu_without_gpu(cfg)
    cfg.freeze()
    check_inputs(cfg, training=not args.eval_only, testing=testing)
    default_setup(cfg, args)
    return cfg
