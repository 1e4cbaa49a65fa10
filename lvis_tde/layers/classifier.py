"""The classifier that replaces the softmax box classifier. This file needs torch alone."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .functional import (
    NO_NORM,
    NORMS,
    at_least_fp32,
    autocast_off,
    check_norm,
    check_num_heads,
    cosine_to_mean,
    counterfactual,
    may_overwrite,
    normalize_features,
    normalize_weight,
    weight_pull,
)

logger = logging.getLogger(__name__)

# Of normalized weights at a time, where nothing needs them later. A megabyte at LVIS settings: it
# stays in the cache, where fresh memory for all of them costs more than their normalization.
_CLASSES_AT_A_TIME = 256


class CosineMultiHeadClassifier(nn.Module):
    """Multi-head classifier on normalized features and weights (paper sections 3.3 and 4.1).

    ``y_i = tau / K * sum_k xh_k . wh_{i,k}``, without bias. Always factual: the running mean is
    an argument of :func:`~lvis_tde.tde_logits`, so the classifier has no state but its weight.

    ``norm="none"`` is Detectron2's linear classifier, ``y = w . x + b``, so that a trained one can
    be used with TDE: parameters of the same names, no scale, and a bias that TDE leaves as it is.
    Sigmoids need a bias under the other normalizations, too: ``bias`` gives them one.

    Normalization, heads, tau and gamma are part of checkpoints; loading one with others warns.

    Attributes:
        weight (Parameter): (out_features, in_features). In detection the last row is background.
        bias (Parameter or None): (out_features,) under "none", or where a start is given.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_heads: int = 2,
        tau: float = 16.0,
        gamma: float = 1 / 32,
        norm: str = "deconfound",
        bias: float | None = None,
    ):
        """
        Args:
            in_features: D, size of the classifier input.
            out_features: number of classes, background included where there is one.
            num_heads: K, a divisor of ``in_features`` (2 for LVIS).
            tau: inverse temperature of the logits, > 0 (16 for LVIS).
            gamma: offset of the weights' norm under "deconfound", >= 0 (1/32 for LVIS).
            norm: "cosine", "capsule" or "deconfound" (paper section 3.3); "none" for the linear
                classifier, which uses neither ``tau`` nor ``gamma``.
            bias: start of a learned bias for each class; None for no bias, under "none" for zero.

        Raises:
            ValueError: if an argument is out of its range.
        """
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"Sizes must be positive, got {in_features} and {out_features}.")
        if not tau > 0 or not math.isfinite(tau):
            raise ValueError(f"tau={tau} must be positive and finite.")
        if not gamma >= 0 or not math.isfinite(gamma):
            raise ValueError(f"gamma={gamma} must be finite and not negative.")
        self.in_features = in_features
        self.out_features = out_features
        self.num_heads = check_num_heads(in_features, num_heads)
        self.tau = float(tau)
        self.gamma = float(gamma)
        self.norm = check_norm(norm)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self._bias_start = 0.0 if bias is None and norm == NO_NORM else bias
        parameter = None if self._bias_start is None else nn.Parameter(torch.empty(out_features))
        self.register_parameter("bias", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(D), so that gamma is small beside the norm of a head's weights.

        Under "none" as Detectron2 starts its linear classifier.
        """
        if self.bias is not None:
            nn.init.constant_(self.bias, self._bias_start or 0.0)
        if self.norm == NO_NORM:
            nn.init.normal_(self.weight, std=0.01)
            return
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)

    @property
    def scale(self) -> float:
        """tau / K; 1 under "none"."""
        return 1.0 if self.norm == NO_NORM else self.tau / self.num_heads

    def forward(self, features: Tensor) -> Tensor:
        """Factual logits.

        Args:
            features: (R, in_features), any floating type.

        Returns:
            Tensor: (R, out_features), fp32 at least, also under autocast.
        """
        with autocast_off(features):
            if features.is_cpu and self.norm != NO_NORM and may_overwrite():
                return self._in_parts(features)
            return self._product(
                normalize_features(features, self.num_heads, self.norm), self.weight, self.bias
            )

    def _product(self, xh: Tensor, weight: Tensor, bias: Tensor | None, out=None) -> Tensor:
        """Logits of some of the classes from normalized features."""
        wh = normalize_weight(weight, self.num_heads, self.norm, self.gamma).to(xh.dtype)
        if bias is not None:
            bias = bias.to(xh.dtype)
        if self.norm == NO_NORM:
            return F.linear(xh, wh, bias)
        # The product takes the scale along; scaling any factor would be a pass of its own.
        if bias is None:
            zero = xh.new_zeros(1)
            return torch.addmm(zero, xh, wh.t(), beta=0, alpha=self.scale, out=out)
        return torch.addmm(bias, xh, wh.t(), alpha=self.scale, out=out)

    def _in_parts(self, features: Tensor) -> Tensor:
        # Before what is given back at once, so that an allocator finds room for it below.
        dtype = at_least_fp32(features).dtype
        logits = features.new_empty((len(features), self.out_features), dtype=dtype)
        xh = normalize_features(features, self.num_heads, self.norm)
        for start in range(0, self.out_features, _CLASSES_AT_A_TIME):
            own = slice(start, start + _CLASSES_AT_A_TIME)
            bias = None if self.bias is None else self.bias[own]
            self._product(xh, self.weight[own], bias, out=logits[:, own])
        return logits

    def indirect_effect(self, features: Tensor, feature_mean: Tensor, alpha: float) -> Tensor:
        """Counterfactual logits, see :func:`~lvis_tde.layers.functional.counterfactual`.

        Args:
            features: (R, in_features), any floating type.
            feature_mean: (in_features,); zero gives zeros.
            alpha: strength of the removal, >= 0.

        Returns:
            Tensor: (R, out_features), fp32 at least, also under autocast.
        """
        with autocast_off(features):
            cosine, pull = self.effect_terms(features, feature_mean)
            return counterfactual(cosine, pull, scale=1.0, alpha=alpha)

    def direct_effect(
        self, logits: Tensor, features: Tensor, feature_mean: Tensor, alpha: float
    ) -> Tensor:
        """``logits - indirect_effect(...)`` in one pass over the logits.

        Args:
            logits: (R, out_features), what :meth:`forward` gave for ``features``.
            features, feature_mean, alpha: see :meth:`indirect_effect`.

        Returns:
            Tensor: (R, out_features), fp32 at least, also under autocast.
        """
        with autocast_off(features):
            cosine, pull = self.effect_terms(features, feature_mean)
            return torch.addmm(at_least_fp32(logits), cosine, pull.t(), alpha=-alpha)

    def effect_terms(self, features: Tensor, feature_mean: Tensor) -> tuple[Tensor, Tensor]:
        """The two factors of the indirect effect at alpha 1, which is their product.

        Args:
            features, feature_mean: see :meth:`indirect_effect`.

        Returns:
            tuple: ``xh_k . d_k`` (R, K) and ``tau / K * d_k . wh_{i,k}`` (out_features, K), fp32
            at least, also under autocast.
        """
        with autocast_off(features):
            cosine = cosine_to_mean(features, feature_mean, self.num_heads, self.norm)
            pull = weight_pull(self.weight, feature_mean, self.num_heads, self.norm, self.gamma)
            return cosine, self.scale * pull.to(cosine.dtype)

    def _settings(self) -> dict[str, float | str]:
        """What the weights were trained with and mean nothing without."""
        settings: dict[str, float | str] = {"norm": self.norm, "num_heads": self.num_heads}
        if self.norm != NO_NORM:
            settings["tau"] = self.tau
        if self.norm == "deconfound":
            settings["gamma"] = self.gamma
        return settings

    def get_extra_state(self) -> Tensor:
        # A tensor, since checkpointers take every entry for one.
        values = [NORMS.index(self.norm), self.num_heads, self.tau, self.gamma]
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        index, num_heads, tau, gamma = state.tolist()
        theirs = {"norm": NORMS[int(index)], "num_heads": int(num_heads), "tau": tau}
        theirs["gamma"] = gamma
        differing = [
            f"{name} {theirs[name]} there, {value} here"
            for name, value in self._settings().items()
            if theirs[name] != value
        ]
        if differing:
            logger.warning(
                "The checkpoint's classifier has other settings than this one: %s. Weights that "
                "were trained with the one give wrong scores with the other.",
                "; ".join(differing),
            )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Checkpoints of softmax models, and of earlier releases, do not know the entry.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_heads={self.num_heads}, tau={self.tau:g}, gamma={self.gamma:g}, "
            f"norm={self.norm!r}"
            + ("" if self.bias is None or self.norm == NO_NORM else ", with a bias")
        )
