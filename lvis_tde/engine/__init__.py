"""Training and evaluation: config and arguments, checks, hooks, trainer, LazyConfig."""

from .checks import check_dataset, check_inputs, check_weights
from .defaults import argument_parser, launch, load_config, setup, use_cpu_without_gpu, use_data
from .trainer import Trainer

__all__ = [
    "Trainer",
    "argument_parser",
    "check_dataset",
    "check_inputs",
    "check_weights",
    "launch",
    "load_config",
    "setup",
    "use_cpu_without_gpu",
    "use_data",
]
