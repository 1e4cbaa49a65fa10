"""One evaluation of two settings of a model, and a report with both side by side."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from ..evaluation import ClassificationEvaluator, LVISEvaluator
from ..posthoc import Settings
from .alpha import predict_for_alphas
from .settings import describe, settings, tde_predictors

__all__ = ["evaluate_beside", "parse_settings"]


def parse_settings(text: str) -> Settings:
    """Strengths in words.

    Args:
        text: "off", or NAME=VALUE pairs such as "alpha=1,logit_adjustment=0.5": names of
            :class:`~lvis_tde.posthoc.Settings`, and alpha.

    Returns:
        All others are off.

    Raises:
        ValueError: for anything else.
    """
    if text == "off":
        return Settings()
    kinds = {name: type(value) for name, value in dataclasses.asdict(Settings()).items()}
    options: dict[str, Any] = {}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        names = ("region", "class_") if name == "alpha" else (name,)
        for one in names:
            if one not in kinds:
                raise ValueError(
                    f"{pair!r} sets none of alpha, {', '.join(kinds)}: give 'off', or NAME=VALUE "
                    "pairs with commas between them."
                )
            try:
                options[one] = kinds[one](value)
            except ValueError:
                raise ValueError(f"{pair!r}: {value!r} is no number.") from None
    return Settings(**options)


class _Both(nn.Module):
    """Predicts with two settings; the outputs of the first are under "beside" in the second's."""

    def __init__(self, model: nn.Module, beside: Settings, own: Settings):
        super().__init__()
        self.model, self.pair = model, [beside, own]
        self.train(model.training)  # to which an evaluation returns

    @torch.no_grad()
    def forward(self, inputs: list[dict]) -> list[dict]:
        beside, own = predict_for_alphas(self.model, inputs, self.pair, rle=True)
        return [{**one, "beside": other} for one, other in zip(own, beside)]


class _Evaluators(DatasetEvaluator):
    def __init__(self, beside: LVISEvaluator, own: LVISEvaluator):
        self.beside, self.own = beside, own

    def reset(self):
        self.beside.reset()
        self.own.reset()

    def process(self, inputs, outputs):
        self.beside.process(inputs, [output["beside"] for output in outputs])
        self.own.process(inputs, outputs)

    def evaluate(self):
        self.beside.evaluate()
        return self.own.evaluate()


def evaluate_beside(
    recipe, model: nn.Module, beside: Settings, model_name: str, *, bootstrap: int = -1
) -> dict:
    """Evaluates a model on its test sets with its own settings, and with others, in one pass.

    Test-time augmentation and expected results play no part.

    Args:
        recipe: a :class:`~lvis_tde.engine.Recipe`; ``report`` in its ``output_dir`` gets a page
            for every test set, with both settings in every table and chart, and the difference.
        model: with TDE predictors and its weights; it is as it was in the end.
        beside: the other settings, such as ``Settings()`` for TDE off.
        model_name: for the title.
        bootstrap: resamples for intervals; 0 for none, -1 for as many as a report has time for.

    Returns:
        dict: the results with the model's own settings, by test set if there are several.

    Raises:
        ValueError: if the model has no TDE predictor, a set is not evaluated by LVIS's rules, or
            the two settings are the same.
    """
    own = tde_predictors(model)[0].posthoc
    if describe(own) == describe(beside):
        raise ValueError(
            f"The model predicts with {describe(own) or 'TDE off'}, so there is nothing to "
            "compare it with: give other settings than its own."
        )
    with settings(model, posthoc=beside):
        pass  # fails here if it needs statistics that the model does not have
    evaluators = {name: recipe.evaluator(name) for name in recipe.test_sets}
    for name, evaluator in evaluators.items():
        if isinstance(evaluator, ClassificationEvaluator):
            raise ValueError(
                f"{name} has a class for each image, and --beside compares detections: evaluate "
                "twice, and compare the two predictions.npz with tools/report.py --compare; or see "
                "what all settings gain with tools/sweep_posthoc.py."
            )
        if not isinstance(evaluator, LVISEvaluator):
            raise ValueError(
                f"{name} is evaluated by {type(evaluator).__name__}, which has no report: give the "
                "set with --test-data, or register it with register_long_tailed."
            )
    results = {}
    for name, evaluator in evaluators.items():
        evaluator.for_report(bootstrap)
        other = evaluator.fresh_copy(output_dir=None)
        both = _Both(model, beside, own)
        found = inference_on_dataset(both, recipe.test_loader(name), _Evaluators(other, evaluator))
        if comm.is_main_process():
            results[name] = found
            runs = dict(
                zip((describe(one) or "TDE off" for one in (beside, own)), (other, evaluator))
            )
            folder = os.path.join(recipe.output_dir, "report", name)
            evaluator.write_report(folder, model_name, runs)
    return next(iter(results.values())) if len(results) == 1 else results
