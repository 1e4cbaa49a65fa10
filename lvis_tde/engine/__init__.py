"""Training and evaluation: recipes and arguments, checks, hooks, trainer, LazyConfig."""

from ..arguments import add_data_arguments, argument_parser
from .checks import check_dataset, check_inputs, check_weights
from .console import setup_console
from .defaults import (
    check,
    check_run,
    launch,
    load_config,
    load_recipe,
    setup,
    use_fast,
)
from .lazy import LazyRecipe
from .own_data import use_data
from .recipes import Recipe, YacsRecipe
from .trainer import Trainer

__all__ = [
    "LazyRecipe",
    "Recipe",
    "Trainer",
    "YacsRecipe",
    "add_data_arguments",
    "argument_parser",
    "check",
    "check_dataset",
    "check_inputs",
    "check_run",
    "check_weights",
    "launch",
    "load_config",
    "load_recipe",
    "setup",
    "setup_console",
    "use_data",
    "use_fast",
]
