"""All steps together, in one order, folded into one pass over the logits.

    1. weights      tau-normalization: ``b + f (z - b)``
    2. logits       TDE with the weights of 1, LogN, then the similarity to the classes' means
    3. margins      logit adjustment, NorCal, FRACAL's frequencies
    4. background   softmax: exempt or joint
    5. renormalize  softmax: over what 4 says; sigmoid: :func:`keep_sum`
    6. fractal      softmax: division by ``Phi^lambda``, and 5 again, so it is one more margin;
                    sigmoid: the product of :func:`fracal_sigmoid`

Steps 1 to 3, and 6 of a softmax, are linear in the logits: ``F_i z_i + M_i - c . (F_i g_i)`` with
one factor and one margin a class, and the K terms of TDE; the similarity is a product of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .class_means import add_similarity, mean_directions, usual_similarity
from .exemption import exempt_in_place, rows_at_a_time
from .margins import (
    apply_affine,
    check_strength,
    check_vector,
    fractal_power,
    frequency_margin,
    full_precision,
    logit_adjustment_margin,
    logn_affine,
    norcal_margin,
    split_pull,
    subtract_products,
    tau_norm_affine,
    with_background,
)
from .sigmoid import fracal_sigmoid_margin, shift_to_sum, shifted
from .statistics import Known, Statistics

BACKGROUND = ("exempt", "joint")
KEEP_SUM = ("tde", "factual", "")


@dataclass(frozen=True)
class Settings:
    """Strengths of the steps, each >= 0, and 0 for off.

    Attributes:
        region, class_: of TDE's two parts; both alpha for the paper's TDE.
        tau_norm: tau.
        logn: 1 for the paper's.
        logit_adjustment: beta.
        norcal: gamma; the paper's with background "joint", else it is logit adjustment.
        fracal: lambda; the paper's with background "joint". Any value above 0 also turns on the
            margin of frequencies, which has no strength.
        class_means: logits for a similarity of 1 to the mean features of a class.
        background: "exempt" or "joint", of a softmax with a background.
        keep_sum: of sigmoids, what sum of probabilities each region keeps: that after TDE and the
            classes' means alone ("tde", so the other steps only move the ranking of the classes),
            that of the factual logits ("factual"), or none ("").
    """

    region: float = 0.0
    class_: float = 0.0
    tau_norm: float = 0.0
    logn: float = 0.0
    logit_adjustment: float = 0.0
    norcal: float = 0.0
    fracal: float = 0.0
    class_means: float = 0.0
    background: str = "exempt"
    keep_sum: str = "tde"

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(field.default, float):
                value = check_strength(field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)  # a float, whatever number it was
        for name, choices in (("background", BACKGROUND), ("keep_sum", KEEP_SUM)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(map(repr, choices))}"
                )


@dataclass(frozen=True, eq=False)
class Composition:
    """Logits to probabilities under given settings; made by :func:`compose`.

    Attributes:
        settings (Settings): strengths.
        sigmoid: of the logits; else their softmax.
        background: the last column of the logits is the background.
        factor, margin: (C,) in float64, what the steps fold into; None for 1 and 0.
        fractal: (C,) margin of FRACAL's second factor under a sigmoid, or None.
        directions, usual: (C + 1, D) and (C,) of the classes' means, see :func:`mean_directions`
            and :func:`usual_similarity`, or None.
    """

    settings: Settings
    sigmoid: bool
    background: bool
    factor: Tensor | None
    margin: Tensor | None
    fractal: Tensor | None
    directions: Tensor | None = None
    usual: Tensor | None = None

    @property
    def uses_tde(self) -> bool:
        """Whether a call needs ``cosine`` and ``pull``."""
        return self.settings.region > 0 or self.settings.class_ > 0

    @property
    def uses_features(self) -> bool:
        """Whether a call needs ``features``."""
        return self.directions is not None

    @property
    def neutral(self) -> bool:
        """Whether the probabilities are the factual ones, bit for bit."""
        folded = (self.factor, self.margin, self.fractal, self.directions)
        return not self.uses_tde and all(part is None for part in folded)

    def adjust(
        self,
        logits: Tensor,
        cosine: Tensor | None = None,
        pull: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Steps 1 to 3, and 6 of a softmax, without :func:`keep_sum`: a new tensor.

        Args:
            logits: (R, C + 1), or (R, C) without background, any floating type.
            cosine, pull: see :func:`tde`; only with a strength of TDE.
            features: (R, D), the classifier's input; only with a strength of ``class_means``.

        Returns:
            Tensor: logits of the same shape, fp32 at least.

        Raises:
            ValueError: if the shapes do not go together, or TDE lacks its terms, or the classes'
                means the features.
        """
        return self._with_means(self._linear(logits, cosine, pull), features)

    def _linear(self, logits: Tensor, cosine: Tensor | None, pull: Tensor | None) -> Tensor:
        if not self.uses_tde:
            return apply_affine(logits, self.factor, self.margin, self.background)
        cosine, pull = self._terms(cosine, pull)
        if self.factor is None and self.margin is None:
            return subtract_products(full_precision(logits), cosine, pull)
        adjusted = apply_affine(logits, self.factor, self.margin, self.background)
        if self.factor is not None:
            pull = pull * with_background(self.factor, 1.0, self.background).to(pull)[:, None]
        return subtract_products(adjusted, cosine, pull, own=True)

    def _with_means(self, logits: Tensor, features: Tensor | None) -> Tensor:
        if self.directions is None:
            return logits
        strength = self.settings.class_means
        if features is None:
            raise ValueError(
                f"class_means={strength} needs the features, the classifier's input: pass them, or "
                "set it to 0."
            )
        means = self.directions, self.usual
        return add_similarity(logits, features, *means, strength, self.background)

    def __call__(
        self,
        logits: Tensor,
        cosine: Tensor | None = None,
        pull: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Probabilities of the shape of ``logits``; see :meth:`adjust`."""
        if self.neutral:
            logits = full_precision(logits)
            return logits.sigmoid() if self.sigmoid else logits.softmax(-1)
        graph = torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()
        # A product with few rows is slow, and one with all classes' means is large.
        step = rows_at_a_time(logits) * (4 if self.uses_features else 1)
        if graph or len(logits) <= step:
            return self._changed(logits, cosine, pull, features)
        # A region depends on itself alone; what is made on the way stays as small as a part.
        probs = torch.empty_like(full_precision(logits))
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            own, shown = (None if part is None else part[rows] for part in (cosine, features))
            probs[rows] = self._changed(logits[rows], own, pull, shown)
        return probs

    def _changed(self, logits: Tensor, *terms: Tensor | None) -> Tensor:
        adjusted = self.adjust(logits, *terms)
        if self.sigmoid:
            return self._sigmoid(full_precision(logits), adjusted, *terms)
        if self.background and self.settings.background == "exempt":
            return exempt_in_place(full_precision(logits), adjusted)
        return adjusted.softmax(-1)

    def _terms(self, cosine: Tensor | None, pull: Tensor | None) -> tuple[Tensor, Tensor]:
        if cosine is None or pull is None:
            raise ValueError(
                f"region={self.settings.region} and class_={self.settings.class_} need cosine and "
                "pull, TDE's terms: pass them, or set both to 0."
            )
        strengths = self.settings.region, self.settings.class_
        return cosine, split_pull(full_precision(pull), *strengths, self.background)

    def _evidence(
        self, logits: Tensor, cosine: Tensor | None, pull: Tensor | None, features: Tensor | None
    ) -> Tensor:
        """TDE and the classes' means alone, which have the sum that is to be kept."""
        if self.uses_tde:
            logits = subtract_products(logits, *self._terms(cosine, pull))
        return self._with_means(logits, features)

    def _sigmoid(self, logits: Tensor, adjusted: Tensor, *terms: Tensor | None) -> Tensor:
        """Steps 5 and 6; overwrites ``adjusted``."""
        foreground = slice(-1 if self.background else None)
        moved = self.factor is not None or self.margin is not None
        if self.settings.keep_sum == "factual" or (self.settings.keep_sum and moved):
            reference = logits
            if self.settings.keep_sum == "tde":
                reference = self._evidence(logits, *terms)
            shift = shift_to_sum(adjusted[:, foreground], reference[:, foreground])
            adjusted = shifted(adjusted, shift)
        if self.background:
            adjusted[:, -1] = logits[:, -1]
        if self.fractal is None:
            return adjusted.sigmoid_()
        fractal = with_background(self.fractal, torch.inf, self.background).to(adjusted)
        return (adjusted + fractal).sigmoid() * adjusted.sigmoid()


def compose(
    settings: Settings,
    statistics: Statistics | None = None,
    *,
    sigmoid: bool = False,
    background: bool = True,
) -> Composition:
    """Folds the settings, once for many calls.

    Args:
        settings: strengths; all 0 give the factual probabilities bit for bit.
        statistics: of the classes, as far as the settings need them.
        sigmoid: the classifier's probabilities are sigmoids, not a softmax.
        background: the last column of the logits is the background, which stays. Detectron2's
            sigmoid heads have such a column, too, and never use it.

    Returns:
        Composition: call it with logits, and with TDE's terms if a strength of TDE is above 0.

    Raises:
        ValueError: if statistics are missing, of different lengths or out of their range.
    """
    need = Known(settings, statistics or Statistics())
    factor = margin = fractal = None
    if settings.tau_norm > 0:
        norms = check_vector("weight_norms", need("tau_norm", "weight_norms"), None, least=0)
        factor, margin = tau_norm_affine(norms, settings.tau_norm, need.statistics.bias)
    if settings.logn > 0:
        mean, std = need("logn", "mean"), need("logn", "std")
        scale, shift = logn_affine(mean, std, settings.logn)
        factor = scale if factor is None else factor.to(scale) * scale
        margin = shift if margin is None else margin.to(shift) * scale + shift
    margins = []
    if settings.logit_adjustment > 0:
        counts = need("logit_adjustment", "counts")
        margins.append(logit_adjustment_margin(counts, settings.logit_adjustment))
    if settings.norcal > 0:
        margins.append(norcal_margin(need("norcal", "counts"), settings.norcal))
    if settings.fracal > 0:
        counts, dimension = need("fracal", "counts"), need("fracal", "dimension")
        total = need.statistics.num_images
        if sigmoid:
            fractal = fracal_sigmoid_margin(counts, dimension, settings.fracal, total)
        else:
            margins.append(frequency_margin(counts, total))
            margins.append(-fractal_power(dimension, settings.fracal))
    for part in margins:
        margin = part if margin is None else margin + part.to(margin)
    # Statistics that change nothing leave the probabilities as they are.
    if factor is not None and bool((factor == 1).all()):
        factor = None
    if margin is not None and not margin.any():
        margin = None
    directions = usual = None
    if settings.class_means > 0:
        means = need("class_means", "class_means")
        directions = mean_directions(means, need.statistics.center)
        usual = usual_similarity(directions, need.statistics.similarity)
    return Composition(settings, sigmoid, background, factor, margin, fractal, directions, usual)
