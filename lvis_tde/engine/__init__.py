"""Training and evaluation: recipes and arguments, checks, hooks, trainer, LazyConfig."""

from .checks import check_dataset, check_inputs, check_weights
from .defaults import (
    add_data_arguments,
    argument_parser,
    launch,
    load_config,
    load_recipe,
    setup,
    use_data,
)
from .lazy import LazyRecipe
from .recipes import Recipe, YacsRecipe
from .trainer import Trainer

__all__ = [
    "LazyRecipe",
    "Recipe",
    "Trainer",
    "YacsRecipe",
    "add_data_arguments",
    "argument_parser",
    "check_dataset",
    "check_inputs",
    "check_weights",
    "launch",
    "load_config",
    "load_recipe",
    "setup",
    "use_data",
]
