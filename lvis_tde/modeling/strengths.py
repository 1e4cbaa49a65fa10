"""What a TDE predictor is given after training: how much of the indirect effect it removes, and the
strengths of the other post-hoc steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..layers.classifier import CosineMultiHeadClassifier
from ..layers.functional import check_alpha, normalize_weight
from ..posthoc import Composition, Settings, Statistics, compose
from ..posthoc.margins import check_strength
from .remembered import Remembered
from .statistics import ClassStatistics

__all__ = ["DEFAULT_ALPHA", "Strengths", "posthoc_options"]

DEFAULT_ALPHA = 1.5  # of the paper, for LVIS

# Compositions that are remembered; two numbers a class each.
_MOST_FOLDS = 128

# The settings beside TDE's own, which have names of this predictor.
_STRENGTHS = ("tau_norm", "logn", "logit_adjustment", "norcal", "fracal", "class_means")
_OTHERS = (*_STRENGTHS, "keep_sum")
# What each of them needs of the class statistics: fields of posthoc's, buffers of the module.
_NEEDS = {
    "logn": (("mean", "std"), ("logit_mean", "logit_std")),
    "logit_adjustment": (("counts",), ("images",)),
    "norcal": (("counts",), ("images",)),
    "fracal": (("counts", "dimension"), ("images", "dimension", "num_images")),
    "class_means": (("class_means",), ("class_means", "center", "similarity")),
}


class Strengths(Remembered):
    """Mixin for predictors; none of it is used in training.

    Attributes:
        has_background (bool): of a class, whether the last column of its logits is none of the
            classes.
        alpha (float): strength of the removal, >= 0.
        alpha_region (float or None): of sigmoids, the strength of the part that is equal for all
            classes of a region; None for ``alpha``.
        background_exempt (bool): of a softmax, whether the background keeps its probability.
        statistics (ClassStatistics): of the training set, part of checkpoints.
        calibrated_alpha (float or None): the alpha that was chosen for these weights on held-out
            data, part of checkpoints.
        chosen (str): how all strengths in force were chosen, in words; "" if nobody did. Part of
            checkpoints, with the strengths and whether the classifier has sigmoids.
    """

    has_background: bool
    use_sigmoid_ce: bool
    cls_score: CosineMultiHeadClassifier
    statistics: ClassStatistics

    def _start(
        self,
        alpha: float,
        alpha_region: float | None,
        background_exempt: bool,
        others: Mapping[str, Any] | None,
    ) -> None:
        """Of a constructor.

        Raises:
            ValueError: if a value is out of its range, or ``others`` has another key than those of
                ``MODEL.POSTHOC``, in lower case.
        """
        others = dict(others or {})
        unknown = sorted(set(others) - set(_OTHERS))
        if unknown:
            raise ValueError(
                f"posthoc has {', '.join(unknown)}, which is none of {', '.join(_OTHERS)}. TDE's "
                "strengths are alpha and alpha_region."
            )
        self._others = Settings(**others)
        self._folds: dict[Settings, tuple[Composition, list[tuple[Tensor, int]]]] = {}
        self._alpha, self._background_exempt = 0.0, True
        self._alpha_region: float | None = None
        self.alpha = alpha
        self.alpha_region = alpha_region
        self.background_exempt = background_exempt

    @property
    def alpha(self) -> float:
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = check_alpha(value)
        self._assemble()

    @property
    def alpha_region(self) -> float | None:
        return self._alpha_region

    @alpha_region.setter
    def alpha_region(self, value: float | None) -> None:
        if value is None or value == -1:
            self._alpha_region = None
        elif self.use_sigmoid_ce:
            self._alpha_region = check_strength("alpha_region", value)
        else:
            raise ValueError(
                f"alpha_region={value} needs sigmoids (use_sigmoid_ce=True): a softmax has alpha "
                "alone."
            )
        self._assemble()

    @property
    def background_exempt(self) -> bool:
        return self._background_exempt

    @background_exempt.setter
    def background_exempt(self, value: bool) -> None:
        self._background_exempt = bool(value)
        self._assemble()

    @property
    def strengths(self) -> tuple[float, float]:
        """Of what all classes of a region share, and of the rest; both 0 turn TDE off."""
        return self._posthoc.region, self._posthoc.class_

    @property
    def posthoc(self) -> Settings:
        """All strengths in force. Set it to set all of them at once.

        Raises:
            ValueError: on setting, if ``region`` differs from ``class_`` and there is a softmax.
        """
        return self._posthoc

    @posthoc.setter
    def posthoc(self, value: Settings) -> None:
        tied = value.region == value.class_
        if not (tied or self.use_sigmoid_ce):
            raise ValueError(
                f"region={value.region} and class_={value.class_} need sigmoids "
                "(use_sigmoid_ce=True): of a softmax both are alpha."
            )
        self._others = value
        self._alpha, self._alpha_region = value.class_, None if tied else value.region
        self._background_exempt = value.background == "exempt"
        self._assemble(value)

    def _assemble(self, whole: Settings | None = None) -> None:
        self._posthoc = whole or dataclasses.replace(
            self._others,
            region=self._alpha if self._alpha_region is None else self._alpha_region,
            class_=self._alpha,
            background="exempt" if self._background_exempt else "joint",
        )
        self._reads = _reads(self._posthoc)
        self._folded: Composition | None = None
        self._seen: list[tuple[Tensor, int]] = []
        if self._posthoc in self._folds:
            self._folded, self._seen = self._folds[self._posthoc]
        elif not self._reads:
            # What needs no statistics is folded here, so that a compiled graph finds it.
            self._fold(None, [])

    def _fold(self, statistics: Statistics | None, seen: list[tuple[Tensor, int]]) -> Composition:
        """Folds, and remembers it: a sweep comes back to the same settings with every image."""
        kind = {"sigmoid": self.use_sigmoid_ce, "background": self.has_background}
        folded = compose(self._posthoc, statistics, **kind)
        if folded.directions is not None:
            # As large as the weights, and the same for all settings.
            for other, _ in self._folds.values():
                if other.directions is not None and torch.equal(
                    other.directions, folded.directions
                ):
                    folded = dataclasses.replace(folded, directions=other.directions)
                    break
        if len(self._folds) >= _MOST_FOLDS:
            self._folds.clear()
        self._folded, self._seen = self._folds[self._posthoc] = folded, seen
        return folded

    def composition(self) -> Composition:
        """What makes probabilities of logits, folded once.

        It is folded anew when a setting, the statistics or the weights have changed. A compiled
        graph takes it as it is: call this before compiling with a setting that needs statistics.

        Raises:
            ValueError: if a setting needs statistics that are not known.
        """
        if self._folded is not None and (not self._reads or torch.compiler.is_compiling()):
            return self._folded
        seen = [(one, _version(one)) for one in self._read()]
        if self._folded is not None and len(seen) == len(self._seen):
            same = zip(seen, self._seen)
            if all(one is other and now == then for (one, now), (other, then) in same):
                return self._folded
        # Not inference tensors, which later gradients could not pass.
        with torch.inference_mode(False), torch.no_grad():
            return self._fold(self._known(), seen)

    def __getstate__(self) -> dict[str, Any]:
        # A copy counts the changes of its tensors anew.
        return {**self.__dict__, "_folded": None if self._reads else self._folded, "_folds": {}}

    def _read(self) -> list[Tensor]:
        """The tensors that the composition is folded from."""
        needs = [_NEEDS[name] for name in self._reads if name in _NEEDS]
        tensors = [getattr(self.statistics, part) for _, parts in needs for part in parts]
        if "tau_norm" in self._reads:
            tensors += self.cls_score.parameters()
        return tensors

    def _known(self) -> Statistics:
        known = self.statistics.known()
        for name in self._reads:
            needed = _NEEDS[name][0] if name in _NEEDS else ()
            missing = [part for part in needed if getattr(known, part) is None]
            if missing:
                option = " --class-means" if name == "class_means" else ""
                raise ValueError(
                    f"{name}={getattr(self._posthoc, name):g} (MODEL.POSTHOC.{name.upper()}) needs "
                    f"{' and '.join(missing)} of the classes, which this model does not have. "
                    f"tools/estimate_feature_mean.py{option} gathers them from the training set "
                    "and writes a checkpoint that has them; or set it to 0."
                )
        if "tau_norm" in self._reads:
            known = dataclasses.replace(known, **self._weight_norms())
        return known

    def _weight_norms(self) -> dict[str, Any]:
        """Of the weights as they enter the logits; of their scale nothing depends."""
        classifier = self.cls_score
        weight = normalize_weight(
            classifier.weight, classifier.num_heads, classifier.norm, classifier.gamma
        )
        bias, classes = classifier.bias, slice(-1 if self.has_background else None)
        return {
            "weight_norms": torch.linalg.vector_norm(weight[classes].double(), dim=-1),
            "bias": None if bias is None else bias[classes].double(),
        }


def posthoc_options(settings: Settings) -> dict[str, Any]:
    """The predictor's arguments that give these settings; also the keys of a config."""
    tied = settings.region == settings.class_
    return {
        "alpha": settings.class_,
        "alpha_region": -1.0 if tied else settings.region,
        "background_exempt": settings.background == "exempt",
        "posthoc": {name: getattr(settings, name) for name in _OTHERS},
    }


def _reads(settings: Settings) -> list[str]:
    """The settings in force that need to know something of the classes."""
    return [name for name in ("tau_norm", *_NEEDS) if getattr(settings, name) > 0]


def _version(tensor: Tensor) -> int:
    """Grows with every change in place, where torch counts them."""
    return -1 if tensor.is_inference() else tensor._version
